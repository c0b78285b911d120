r"""Accuracy at a budget: criteria and controls side by side, with the same recovery for all of them.

Every arm slims the same pretrained network to the same MACs and recovers it with the same images, epochs and learning
rate; only the choice of channels differs. "uniform" gives every group the same share of channels, ranked by magnitude;
"-per-macs" divides scores by the MACs of a channel, "-knapsack" keeps the largest sum of scores; "-inner" lets only
channels inside residual blocks go, as Torch-Pruning ("tp-") can with shortcuts that pad channels. A row that is on
record is not measured again.

    python benchmarks/accuracy.py --data cifar10 --weights resnet20.safetensors --epochs 8 --seeds 0,1
    python benchmarks/accuracy.py --data cifar10 --model benchmarks/cifar_networks.py:resnet18 --targets 50%,30% \
        --train-epochs 30
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accuracy_arms import ARMS, Narrowed, narrow, narrow_by_rival, outer_norms
from records import Lines, Row, called, collect, spread
from subjects import add_dense, add_machine, chosen, dense_network, images_for
from tables import fixed, markdown, percent, publish
from torch import Tensor, nn

from curlfx.cost import macs, params
from curlfx.coupling import couple
from curlfx.errors import BudgetError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.recovery import TrainSettings, evaluate, recover
from curlfx.recovery.hardware import choose_device

ABSORBED = "accuracy_absorbed_"
RECORD = Path(__file__).parent / "results" / "accuracy.jsonl"


class Bench:
    """The dense network, its data and what all arms share.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = choose_device(arguments.device)
        self.data = images_for(arguments, None)
        self.recovery_data = images_for(arguments, arguments.train_limit)
        self.test = images_for(arguments, arguments.test_limit).loader("test", 500)
        self.model = dense_network(arguments, self.recovery_data)
        self.traced: TracedModel = trace(self.model, (self.data.proxy(2),))
        self.dense_accuracy = self.judge(self.traced.module)
        self._scores: dict[tuple[str, int, bool], Scores] = {}

    def judge(self, network: nn.Module) -> float:
        """Accuracy on the test images."""
        return evaluate(network, self.test, device=self.arguments.device)

    def proxy(self, seed: int) -> tuple[Tensor, Tensor]:
        """The proxy images, with their classes."""
        images = self.data.images("train")
        order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
        return self.data.proxy(self.arguments.proxy, seed), images.labels[order[: self.arguments.proxy]]

    def scores(self, criterion: str, seed: int, *, inner: bool) -> Scores:
        """Scores of one criterion, computed once per seed."""
        key = (criterion, seed, inner)
        if key not in self._scores:
            traced = copy.deepcopy(self.traced).to(self.device)
            coupling = couple(traced, frozen=outer_norms(self.model) if inner else ())
            batches = list(zip(*(part.split(64) for part in self.proxy(seed)), strict=True))
            self._scores[key] = score(traced, coupling, criterion, data=batches, seed=seed, progress=Lines(criterion))
        return self._scores[key]

    def narrowed(self, arm: str, seed: int, target: str) -> Narrowed:
        """What an arm leaves of the dense network."""
        chosen = ARMS[arm]
        if chosen.rival:
            return narrow_by_rival(chosen, self.model, self.proxy(seed), target)
        return narrow(
            chosen, self.model, self.traced, lambda inner: self.scores(chosen.criterion, seed, inner=inner), target
        )

    def row(self, arm: str, seed: int, target: str) -> Row:
        """Slim, judge, recover, judge."""
        start = time.perf_counter()
        found = self.narrowed(arm, seed, target)
        decided = time.perf_counter() - start
        after_slimming = self.judge(found.module)
        arguments = self.arguments
        ways = found.absorbed if arguments.absorbing else {}
        absorbed = {ABSORBED + way: self.judge(network) for way, network in ways.items()}
        settings = TrainSettings(
            epochs=arguments.epochs,
            lr=arguments.lr,
            batch_size=arguments.batch_size,
            seed=seed,
            device=arguments.device,
        )
        loader = self.recovery_data.loader("train", settings.batch_size, seed=seed, augment=True, shuffle=True)
        recover(found.module, loader, settings, teacher=self.traced.module, progress=Lines(f"{arm} {seed}"))
        dense = sum(macs(self.traced).values()), sum(params(self.traced).values())
        return {
            **key(arguments, arm, seed, target),
            "base_accuracy": self.dense_accuracy,
            "macs": found.macs,
            "macs_ratio": found.macs / dense[0],
            "params": found.params,
            "params_ratio": found.params / dense[1],
            "accuracy_slimmed": after_slimming,
            **absorbed,
            "accuracy": self.judge(found.module),
            "decision_seconds": round(decided, 1),
            "seconds": round(time.perf_counter() - start, 1),
        }


def key(arguments: argparse.Namespace, arm: str, seed: int, target: str) -> Row:
    """The settings of one measurement; a row on record with the same is not measured again."""
    names = ("data", "weights", "model", "epochs", "lr", "batch_size", "train_limit", "test_limit", "proxy", "size")
    settings = {name: getattr(arguments, name) for name in (*names, "train_epochs")}
    settings |= {name: called(settings[name]) for name in ("data", "weights")}
    return {"arm": arm, "seed": seed, "target": target, **settings}


def table(rows: Sequence[Row]) -> str:
    """One row per arm: means over the seeds, ± half the range."""
    headers = ["channels chosen by", "seeds", "MACs", "of dense", "params", "of dense"]
    headers += [
        "top-1 % after slimming",
        "biases absorbed, exact",
        "mean",
        "recovered",
        "loss to dense",
        "min per seed",
    ]
    body = []
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        recovered = [row["accuracy"] for row in mine]
        mean = {
            name: statistics.mean(row[name] for row in mine)
            for name in ("macs", "macs_ratio", "params", "params_ratio")
        }
        body.append(
            [
                arm,
                ", ".join(str(row["seed"]) for row in mine),
                f"{mean['macs'] / 1e6:.2f} M",
                percent(mean["macs_ratio"]),
                f"{mean['params'] / 1e3:.0f} k",
                percent(mean["params_ratio"]),
                spread([row["accuracy_slimmed"] for row in mine]),
                spread([row[ABSORBED + "exact"] for row in mine if ABSORBED + "exact" in row]),
                spread([row[ABSORBED + "mean"] for row in mine if ABSORBED + "mean" in row]),
                spread(recovered),
                f"{100 * (statistics.mean(recovered) - mine[0]['base_accuracy']):+.2f}",
                fixed(statistics.mean(row["seconds"] for row in mine) / 60, 1),
            ]
        )
    return markdown(headers, body)


def describe(arguments: argparse.Namespace, target: str, rows: Sequence[Row]) -> str:
    """The sentence above a table."""
    settings = TrainSettings(epochs=arguments.epochs, lr=arguments.lr, batch_size=arguments.batch_size)
    images = "all training images" if arguments.train_limit is None else f"{arguments.train_limit} training images"
    return (
        f"{arguments.model}, base accuracy {100 * rows[0]['base_accuracy']:.2f} %, target {target} of the MACs. "
        f"Recovery: {settings.epochs} epochs over {images}, batch {settings.batch_size}, SGD with Nesterov momentum "
        f"{settings.momentum}, peak learning rate {settings.lr}, cosine, weight decay {settings.weight_decay}, "
        f"distillation from the dense network (weight {settings.distillation}, temperature {settings.temperature}), "
        f"pad-and-crop and flip, from the network without absorbed biases. {arguments.proxy} proxy images with their "
        f"classes. At least 30 % of every layer stays. Accuracies: mean over seeds ± half their range."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_dense(parser, "curlfx:resnet20")
    parser.add_argument("--targets", default="50%,30%", help="MACs to reach (default 50%%,30%%)")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--limit", type=int, help="--train-limit and --test-limit where these are not given")
    parser.add_argument(
        "--absorbing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="judge with absorbed biases too, straight after slimming",
    )
    parser.add_argument("--proxy", type=int, default=256, help="training images that criteria look at")
    add_machine(parser, RECORD)
    found = parser.parse_args(arguments)
    found.train_limit = found.limit if found.train_limit is None else found.train_limit
    found.test_limit = found.limit if found.test_limit is None else found.test_limit
    return found


def main() -> int:
    """Measure what is not on record and print the table."""
    arguments = parse()
    arms, seeds = chosen(arguments, ARMS)
    bench: Bench | None = None

    def measure(wanted: Row) -> Row | None:
        nonlocal bench
        bench = bench or Bench(arguments)
        arm, seed, target = (wanted[name] for name in ("arm", "seed", "target"))
        try:
            row = bench.row(arm, seed, target)
        except BudgetError as error:
            print(f"{target} {arm} seed {seed} is left out: {error}", file=sys.stderr, flush=True)
            return None
        print(f"{target} {arm} seed {seed}: {row['accuracy']:.4f}", file=sys.stderr, flush=True)
        return row

    tables = []
    for target in arguments.targets.split(","):
        wanted = [key(arguments, arm, seed, target) for seed in seeds for arm in arms]
        if rows := collect(arguments.record, wanted, measure):
            tables.append(describe(arguments, target, rows) + "\n\n" + table(rows) + "\n")
    text = "\n".join(tables)
    publish(text, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
