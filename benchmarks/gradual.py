r"""Pruning while training: from scratch, dense against gradual against train-then-prune-then-fine-tune.

Every arm starts from the same random weights and takes the same number of epochs over the same images. "masked" and
"physical" take channels at fixed intervals of the one training (`curlfx.GradualPruner`), by zero weights or by slimming
at once; "physical-uniform" takes the same share of every group, "physical-per-macs" goes by scores divided by what a
channel costs, "physical-random", the control, by none; "fine-tuned" trains dense, prunes once by the same criterion to
the same targets, and spends the rest of the epochs on the slim network. A row that is on record is not measured again,
and an interrupted one goes on from its last epoch.

    python benchmarks/gradual.py --data imagefolder:DIR
    python benchmarks/gradual.py --data cifar10:DIR --model benchmarks/cifar_networks.py:vgg16_bn --seeds 0
    python benchmarks/gradual.py --data imagefolder:DIR --epochs 10 --train-limit 20000 --threads 1
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from records import Lines, Row, checkpoint, collect, forget, spread
from subjects import add_machine, chosen
from tables import fixed, markdown, percent, publish

from curlfx.cost import CostModel
from curlfx.coupling import couple
from curlfx.gradual import GradualPruner, PruneStep, Pruning, Schedule
from curlfx.gradual.pruner import BACKWARD
from curlfx.graph import TracedModel, trace
from curlfx.importance import check_criterion
from curlfx.planning.price import Per
from curlfx.recovery import FitResult, TrainSettings, evaluate, fit
from curlfx.run.subject import scoring_batches
from curlfx.sources import input_shape, load_data, load_model
from curlfx.sources.images import balanced

RECORD = Path(__file__).parent / "results" / "gradual.jsonl"
ARMS = {
    "dense": "dense",
    "masked": "gradual, masked",
    "physical": "gradual, physical",
    "physical-uniform": "gradual, physical, equal shares",
    "physical-per-macs": "gradual, physical, scores per MACs",
    "physical-random": "gradual, physical, random channels",
    "fine-tuned": "trained, pruned, fine-tuned",
}
PER: dict[str, Per] = {"physical-per-macs": "macs"}
KEYS = (
    "model", "epochs", "interval", "last", "importance", "macs", "params", "floor", "round_to", "lr", "tune_lr",
    "share", "batch_size", "weight_decay", "train_limit", "test_limit", "proxy", "size",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What an arm leaves.

    Attributes:
        network: The slim network.
        macs: Of it, for one image.
        params: Of it.
        training_macs: Of all epochs and images.
        seconds: Of all epochs, validation excluded as there is none, scoring included.
        steps: What went when.
    """

    network: TracedModel
    macs: int
    params: int
    training_macs: int
    seconds: float
    steps: tuple[PruneStep, ...] = ()


class Bench:
    """The data and what all arms share.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        spec, size = arguments.data, arguments.size
        self.data = load_data(
            f"imagefolder:{spec}" if Path(spec).is_dir() else spec,
            shape=input_shape(arguments.model) if size is None else (3, size, size),
            train_limit=arguments.train_limit,
        )
        if arguments.test_limit is not None:
            test = self.data.images("test")
            fewer = test.subset(balanced(test.labels, arguments.test_limit))
            self.data = replace(self.data, splits={**self.data.splits, "test": fewer})
        self.test = self.data.loader("test", 500)
        self.images = self.data.size("train")

    def dense(self, seed: int) -> TracedModel:
        """The network with the random weights of a seed."""
        torch.manual_seed(seed)
        model = load_model(self.arguments.model, num_classes=self.data.num_classes)
        return trace(model.eval(), (self.data.proxy(2),))

    def proxy(self, seed: int) -> Sequence[object]:
        """Training images that the criterion looks at, with their classes where it asks for them."""
        return scoring_batches(self.data, self.arguments.proxy, seed, self.arguments.importance)

    def schedule(self, interval: int, last: int) -> Schedule:
        """Steps towards the targets of all arms."""
        arguments = self.arguments
        target = {"macs": arguments.macs, "params": arguments.params}
        return Schedule(interval, last, target=target, floor=arguments.floor, round_to=arguments.round_to)

    def fit(self, network: TracedModel, arm: str, seed: int, path: Path, **changed: float) -> FitResult:
        """Train for all epochs, or as ``changed`` says."""
        return self._fit(network, arm, seed, path, None, **changed)

    def row(self, arm: str, seed: int) -> Row:
        """Train, judge."""
        start, row = time.perf_counter(), key(self.arguments, arm, seed)
        path = checkpoint(self.arguments.record, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        dense = self.dense(seed)
        cost = CostModel(dense, couple(dense)).dense
        if arm == "dense":
            found = self.fit(dense, arm, seed, path)
            whole = BACKWARD * self.images * self.arguments.epochs * cost.macs
            made = Trained(dense, cost.macs, cost.params, whole, found.seconds)
        elif arm == "fine-tuned":
            made = self._fine_tuned(dense, seed, path)
        else:
            made = self._gradual(dense, arm, seed, path)
        return {
            **row,
            "images": self.images,
            "macs_dense": cost.macs,
            "macs_ratio": made.macs / cost.macs,
            "params_dense": cost.params,
            "params_ratio": made.params / cost.params,
            "accuracy": evaluate(made.network.module, self.test, device=self.arguments.device),
            "training_macs": made.training_macs,
            "training_ratio": made.training_macs / (BACKWARD * self.images * self.arguments.epochs * cost.macs),
            "training_seconds": round(made.seconds, 1),
            "seconds": round(time.perf_counter() - start, 1),
            "step_seconds": round(sum(step.seconds for step in made.steps), 1),
            "steps": [(step.epoch, step.channels, step.macs, step.params) for step in made.steps],
        }

    def _fit(
        self, network: TracedModel, arm: str, seed: int, path: Path, pruning: Pruning | None, **changed: float
    ) -> FitResult:
        arguments = self.arguments
        epochs = int(changed.get("epochs", arguments.epochs))
        settings = TrainSettings(
            epochs=epochs,
            batch_size=arguments.batch_size,
            lr=changed.get("lr", arguments.lr),
            weight_decay=arguments.weight_decay,
            warmup_epochs=min(1.0, epochs / 10),
            seed=seed,
            device=arguments.device,
        )
        loader = self.data.loader("train", settings.batch_size, seed=seed, augment=True, shuffle=True)
        return fit(
            network.module,
            loader,
            settings,
            progress=Lines(f"{arm} {seed}"),
            checkpoint=path,
            resume=True,
            supplement=pruning,
        )

    def _gradual(self, network: TracedModel, arm: str, seed: int, path: Path) -> Trained:
        arguments = self.arguments
        schedule = self.schedule(arguments.interval, arguments.last)
        pruner = GradualPruner(
            network, schedule, "random" if arm.endswith("random") else arguments.importance, self.proxy(seed),
            physical=arm.startswith("physical"), seed=seed, per=PER.get(arm, "channel"),
            allocation="uniform" if arm.endswith("uniform") else "global",
        )  # fmt: skip

        def told(step: PruneStep) -> None:
            share = step.macs / pruner.dense_cost.macs
            print(f"{arm} {seed}: epoch {step.epoch}: {step.channels} channels go, {share:.1%} MACs", file=sys.stderr)

        found = self._fit(network, arm, seed, path, Pruning(pruner, told))
        training, _ = pruner.training_macs(self.images)
        cost = pruner.cost
        return Trained(pruner.slim(), cost.macs, cost.params, training, found.seconds, tuple(pruner.history))

    def _fine_tuned(self, network: TracedModel, seed: int, path: Path) -> Trained:
        arguments = self.arguments
        first = min(max(round(arguments.share * arguments.epochs), 1), arguments.epochs - 1)
        trained = self.fit(network, "dense part", seed, path, epochs=first)
        start = time.perf_counter()
        network.module.zero_grad()  # the training is over
        pruner = GradualPruner(
            network, self.schedule(1, 1), arguments.importance, self.proxy(seed), physical=True, seed=seed,
            per="channel",
        )  # fmt: skip
        pruner.step(1)
        narrow, before, after = pruner.slim(), pruner.dense_cost, pruner.cost
        decided = time.perf_counter() - start
        rest = arguments.epochs - first
        tuned = self.fit(narrow, "tuning", seed, path.with_stem(f"{path.stem}-tune"), epochs=rest, lr=arguments.tune_lr)
        work = BACKWARD * self.images * (first * before.macs + rest * after.macs)
        seconds = trained.seconds + decided + tuned.seconds
        return Trained(narrow, after.macs, after.params, work, seconds, tuple(pruner.history))


def key(arguments: argparse.Namespace, arm: str, seed: int) -> Row:
    """The settings of one measurement; a row on record with the same is not measured again."""
    data = Path(arguments.data.rpartition(":")[2] or arguments.data).name  # wherever it lies
    return {"arm": arm, "seed": seed, "data": data, **{name: getattr(arguments, name) for name in KEYS}}


def table(rows: Sequence[Row]) -> str:
    """One row per arm: means over the seeds, ± half the range."""
    dense = {row["seed"]: row["accuracy"] for row in rows if row["arm"] == "dense"}
    headers = ["training", "seeds", "params of dense", "MACs of dense", "top-1 %", "drop, points"]
    headers += ["training MACs of dense", "training, min per seed", "steps, min"]
    body = []
    for arm, title in ARMS.items():
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        steps = [row["step_seconds"] / 60 for row in mine if "step_seconds" in row and row["steps"]]
        drops = [100 * (dense[row["seed"]] - row["accuracy"]) for row in mine if row["seed"] in dense]
        body.append(
            [
                title,
                ", ".join(str(row["seed"]) for row in mine),
                percent(statistics.mean(row["params_ratio"] for row in mine)),
                percent(statistics.mean(row["macs_ratio"] for row in mine)),
                spread([row["accuracy"] for row in mine]),
                f"{statistics.mean(drops):+.2f}" if drops and arm != "dense" else "",
                percent(statistics.mean(row["training_ratio"] for row in mine)),
                fixed(statistics.mean(row["training_seconds"] for row in mine) / 60, 1),
                fixed(statistics.mean(steps), 1) if steps else "",
            ]
        )
    return markdown(headers, body)


def describe(arguments: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The sentences above the table."""
    steps = len(range(arguments.interval, arguments.last + 1, arguments.interval))
    first = min(max(round(arguments.share * arguments.epochs), 1), arguments.epochs - 1)
    return (
        f"{arguments.model} from scratch, {arguments.epochs} epochs over {rows[0]['images']} images, batch "
        f"{arguments.batch_size}, SGD with Nesterov momentum 0.9, peak learning rate {arguments.lr}, cosine, weight "
        f"decay {arguments.weight_decay}, pad-and-crop and flip. Target: {arguments.macs} of the MACs and "
        f"{arguments.params} of the parameters; channels by {arguments.importance} over {arguments.proxy} images. "
        f"Gradual: {steps} equal steps, every {arguments.interval} epochs up to epoch {arguments.last}, at least "
        f"{100 * arguments.floor:g} % of every group stays. Fine-tuned: {first} epochs dense, the rest slim from "
        f"learning rate {arguments.tune_lr}. Training MACs: three times those of a forward pass, per image and epoch; "
        "minutes include those of the steps, which are scoring, choosing and slimming. Accuracies: mean over seeds ± "
        "half their range."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="imagefolder:DIR (train/ and test/ in it) or another DATA")
    parser.add_argument("--model", default="curlfx:resnet20")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--interval", type=int, help="epochs between steps (default: ten steps)")
    parser.add_argument("--last", type=int, help="last epoch that prunes (default: three quarters of the epochs)")
    parser.add_argument("--importance", default="relevance", help="criterion (default relevance)")
    parser.add_argument("--macs", default="44%", help="MACs to reach (default 44%%)")
    parser.add_argument("--params", default="42%", help="parameters to reach (default 42%%)")
    parser.add_argument("--floor", type=float, default=0.1, help="share of every group that stays (default 0.1)")
    parser.add_argument("--round-to", type=int, default=1, help="kept widths are multiples of this (default 1)")
    parser.add_argument("--share", type=float, default=0.6, help="of the epochs before fine-tuned prunes (default 0.6)")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--tune-lr", type=float, default=0.02, help="of fine-tuning (default 0.02)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--proxy", type=int, default=512, help="training images that criteria look at (default 512)")
    parser.add_argument("--size", type=int, help="pixels per side of a colour image (default: the data's own)")
    parser.add_argument("--train-limit", type=int, help="train on this many images, classes balanced (default all)")
    parser.add_argument("--test-limit", type=int, help="judge on this many test images (default all)")
    add_machine(parser, RECORD)
    found = parser.parse_args(arguments)
    if found.epochs < 2:
        parser.error(f"--epochs {found.epochs}: want at least 2")
    found.last = found.last or max(1, round(0.75 * found.epochs))
    found.interval = found.interval or max(1, found.last // 10)
    return found


def main() -> int:
    """Measure what is not on record and print the table."""
    arguments = parse()
    check_criterion(arguments.importance)
    arms, seeds = chosen(arguments, ARMS)
    bench: Bench | None = None

    def measure(wanted: Row) -> Row:
        nonlocal bench
        bench = bench or Bench(arguments)
        row = bench.row(wanted["arm"], wanted["seed"])
        print(f"{row['arm']} seed {row['seed']}: {row['accuracy']:.4f}", file=sys.stderr, flush=True)
        return row

    wanted = [key(arguments, arm, seed) for seed in seeds for arm in arms]
    rows = collect(arguments.record, wanted, measure, lambda row: forget(checkpoint(arguments.record, row)))
    text = describe(arguments, rows) + "\n\n" + table(rows) + "\n"
    publish(text, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
