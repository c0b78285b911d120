r"""Stage-wise pruning: does a supernet rank networks, and does a search find better ones than its controls?

The first table trains random networks of the same MACs anew and asks how a supernet ranks them: Kendall's tau between
proxy and accuracy, for supernets in stages and in one piece, and without the whole or the narrowest network in every
step. The second one recovers the network that the search finds, beside uniform widths, the best random network of the
same number of evaluations, and one-shot pruning by KL (CURL). A row that is on record is not measured again.

    python benchmarks/stagewise.py --data cifar10 --weights resnet20.safetensors
    python benchmarks/stagewise.py --data digits --model curlfx:digits --train-epochs 2 --genomes 4 --limit 200 \
        --supernet-epochs 1 --retrain-epochs 1 --epochs 1 --population 6 --generations 2
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from accuracy import Bench
from records import Lines, Row, checkpoint, collect
from scipy.stats import kendalltau
from subjects import add_dense, add_machine
from tables import fixed, markdown, percent, publish

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores
from curlfx.planning import plan, plan_from_widths, slim
from curlfx.recovery import TrainSettings, fit, recalibrate, recover
from curlfx.recovery.batches import batches
from curlfx.search import (
    Candidate,
    EvolutionSettings,
    Genome,
    ProxyData,
    SandwichSettings,
    Space,
    Supernet,
    search,
    train_supernet,
)
from curlfx.search.budget import Budget
from curlfx.search.evolve import random_genomes
from curlfx.search.proxy import AccuracyProxy, StageProxy
from curlfx.sources import DataSource, load_model
from curlfx.sources.images import held_out

RECORD = Path(__file__).parent / "results" / "stagewise.jsonl"
NETWORKS = ("stage-wise", "uniform", "random search", "kl (CURL, one-shot)", "kl-per-macs (one-shot)")
CALIBRATION = 20


@dataclass(frozen=True)
class Variant:
    """One way to train a supernet.

    Attributes:
        staged: Cut by resolution; else one piece.
        full: The whole network learns from labels in every step.
        tiny: The narrowest network is in every step; else one more random one.
    """

    staged: bool = True
    full: bool = True
    tiny: bool = True


VARIANTS = {
    "stages": Variant(),
    "one stage": Variant(staged=False),
    "stages, no fullnet": Variant(full=False),
    "stages, no tinynet": Variant(tiny=False),
    "stages, neither": Variant(full=False, tiny=False),
    "one stage, neither": Variant(staged=False, full=False, tiny=False),
}


@dataclass(frozen=True)
class Searched:
    """What one search found.

    Attributes:
        networks: By the names in the second table.
        train_seconds: Training of the supernet.
        seconds: The search alone, its controls included.
    """

    networks: Mapping[str, Candidate]
    train_seconds: float
    seconds: float


class Stagewise(Bench):
    """The dense network, its data, and the networks that are compared.

    Args:
        arguments: The command line.
    """

    @cached_property
    def coupling(self) -> Coupling:
        """Its channels."""
        return couple(self.traced)

    @cached_property
    def ranked(self) -> Scores:
        """Scores that say which channels a width keeps."""
        return self.scores(self.arguments.importance, 0, inner=False)

    @cached_property
    def space(self) -> Space:
        """The networks."""
        return Space.of(self.coupling, self.ranked)

    @cached_property
    def costs(self) -> CostModel:
        """Their price."""
        return CostModel(self.traced, self.coupling)

    @cached_property
    def genomes(self) -> list[Genome]:
        """Random networks of the target's MACs, the same for every supernet."""
        budget = Budget(self.space, self.costs, {"macs": self.arguments.target})
        return random_genomes(budget, self.arguments.genomes, seed=100)

    @cached_property
    def divided(self) -> DataSource:
        """Training images without those that proxies judge by, which are ``val``."""
        train = self.recovery_data.images("train")
        stay, out = held_out(train.labels, self.arguments.held_out)
        splits = {**self.recovery_data.splits, "train": train.subset(stay), "val": train.subset(out)}
        return replace(self.recovery_data, splits=splits)

    def proxy_data(self) -> ProxyData:
        """Images to judge by."""
        train = self.divided.loader("train", 128, augment=True, shuffle=True)
        return ProxyData.of(train, self.divided.loader("val", 256), calibration_batches=CALIBRATION)

    def supernet(self, name: str) -> tuple[Supernet, float]:
        """A trained supernet, and the seconds of its training; an interrupted one goes on."""
        arguments, variant = self.arguments, VARIANTS[name]
        supernet = Supernet(self.traced, self.space, None if variant.staged else (), device=str(self.device))
        train = TrainSettings(epochs=arguments.supernet_epochs, lr=arguments.supernet_lr, device=arguments.device)
        settings = SandwichSettings(train, full=variant.full, tiny=variant.tiny)
        file = self.checkpoint(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        loader = self.divided.loader("train", train.batch_size, augment=True, shuffle=True)
        found = train_supernet(supernet, loader, settings, progress=Lines(name), checkpoint=file, resume=True)
        return supernet, found.seconds

    def checkpoint(self, name: str) -> Path:
        """Where the training of a supernet is kept, by all that decides it."""
        settings = key(self.arguments, "ranking", name)
        deciding = {one: settings[one] for one in settings if one not in ("genomes", "target", "test_limit")}
        return checkpoint(self.arguments.record, {**deciding, "kind": "supernet", "size": self.arguments.size})

    def retrained(self, number: int) -> Row:
        """A random network trained anew: its accuracy."""
        start, arguments, genome = time.perf_counter(), self.arguments, self.genomes[number]
        widths = dict(self.space.widths(genome))
        found = plan_from_widths(self.traced, self.coupling, self.ranked, widths, costs=self.costs)
        network = slim(self.dense_or_fresh(), found, self.coupling).module
        settings = TrainSettings(
            epochs=arguments.retrain_epochs, lr=arguments.retrain_lr, batch_size=128, distillation=0.0,
            device=arguments.device,
        )  # fmt: skip
        loader = self.recovery_data.loader("train", settings.batch_size, augment=True, shuffle=True)
        fit(network, loader, settings, progress=Lines(f"network {number}"))
        macs = found.after.macs / found.before.macs
        return {"widths": widths, "macs_ratio": macs, "accuracy": self.judge(network), "seconds": _since(start)}

    def dense_or_fresh(self) -> TracedModel:
        """What a network is trained anew from."""
        if self.arguments.retrain_start == "dense":
            return self.traced
        torch.manual_seed(0)
        return trace(load_model(self.arguments.model, num_classes=self.data.num_classes), (self.data.proxy(2),))

    def ranking(self, name: str) -> Row:
        """What a supernet makes of the random networks."""
        supernet, trained = self.supernet(name)
        data, values, seconds = self.proxy_data(), {}, {}
        for key, proxy in (("stages", StageProxy(supernet, data)), ("accuracy", AccuracyProxy(supernet, data))):
            start = time.perf_counter()
            values[key] = [sum(map(proxy.measure, proxy.parts(genome))) for genome in self.genomes]
            seconds[key] = _since(start)
        return {"train_seconds": round(trained, 1), "values": values, "judge_seconds": seconds}

    @cached_property
    def searched(self) -> Searched:
        """What a search finds, with its controls; an interrupted one goes on."""
        arguments, target = self.arguments, {"macs": self.arguments.target}
        supernet, trained = self.supernet("stages")
        settings = EvolutionSettings(
            population=arguments.population, parents=max(1, arguments.population // 5),
            mutants=arguments.population // 2, crossovers=arguments.population // 2,
            generations=arguments.generations,
        )  # fmt: skip
        state, start = self.checkpoint("stages").with_suffix(".json"), time.perf_counter()
        found = search(
            supernet, self.proxy_data(), target, settings, controls=True, state=state, progress=Lines("search")
        )
        chosen = found.best, found.controls["uniform"], found.controls["random"]
        return Searched(dict(zip(NETWORKS, chosen, strict=False)), trained, _since(start))

    def network(self, name: str) -> Row:
        """One network of the target's MACs, recovered from the dense weights, as every other one."""
        arguments, target = self.arguments, {"macs": self.arguments.target}
        searched = self.searched if name in NETWORKS[:3] else None
        start = time.perf_counter()
        if searched is not None:
            value: float | None = searched.networks[name].value
            widths = dict(self.space.widths(searched.networks[name].genome))
            decided = plan_from_widths(self.traced, self.coupling, self.ranked, widths)
        else:
            per, value = ("macs" if "per-macs" in name else "channel"), None
            scores = self.scores("kl", 0, inner=False)
            decided = plan(self.traced, self.coupling, scores, target, round_to=1, per=per)
        seconds = _since(start)
        network = slim(self.traced, decided, self.coupling).module
        settings = TrainSettings(epochs=arguments.epochs, lr=arguments.lr, batch_size=128, device=arguments.device)
        loader = self.recovery_data.loader("train", settings.batch_size, augment=True, shuffle=True)
        recalibrate(network, list(batches(loader, 0))[:CALIBRATION], device=arguments.device)
        recover(network, loader, settings, teacher=self.traced.module, progress=Lines(name))
        return {
            "proxy": value, "macs": decided.after.macs, "macs_ratio": decided.after.macs / decided.before.macs,
            "accuracy": self.judge(network), "base_accuracy": self.dense_accuracy, "decide_seconds": seconds,
            "train_seconds": 0.0 if searched is None else round(searched.train_seconds, 1),
            "search_seconds": 0.0 if searched is None else searched.seconds,
        }  # fmt: skip


def key(arguments: argparse.Namespace, kind: str, name: str | int) -> Row:
    """The settings of one measurement; a row on record with the same is not measured again."""
    shared = ("model", "target", "importance", "train_limit", "test_limit", "proxy", "train_epochs")
    own = {
        "retrained": ("retrain_epochs", "retrain_lr", "retrain_start"),
        "ranking": ("supernet_epochs", "supernet_lr", "held_out", "genomes"),
        "network": ("supernet_epochs", "supernet_lr", "held_out", "population", "generations", "epochs", "lr"),
    }
    files = {name: getattr(arguments, name) and Path(getattr(arguments, name)).name for name in ("data", "weights")}
    return {"kind": kind, "name": name, **files, **{name: getattr(arguments, name) for name in (*shared, *own[kind])}}


def correlations(rankings: Sequence[Row], retrained: Sequence[Row]) -> str:
    """Kendall's tau of each supernet's proxies with the accuracy after training."""
    accuracies = [row["accuracy"] for row in retrained]
    headers = [
        "supernet",
        "epochs",
        "training s",
        "tau, stage losses",
        "p",
        "tau, accuracy",
        "p",
        "judging s a network",
    ]
    body = []
    for row in rankings:
        cells = [row["name"], str(row["supernet_epochs"]), fixed(row["train_seconds"], 0)]
        for proxy in ("stages", "accuracy"):
            found = kendalltau([-value for value in row["values"][proxy]], accuracies)
            cells += [fixed(found.statistic), fixed(found.pvalue, 3)]
        each = [row["judge_seconds"][proxy] / len(accuracies) for proxy in ("stages", "accuracy")]
        body.append([*cells, " / ".join(fixed(one) for one in each)])
    return markdown(headers, body)


def networks(rows: Sequence[Row]) -> str:
    """The networks of the same target, each recovered alike."""
    headers = ["widths", "MACs", "of dense", "proxy", "top-1 % recovered", "loss to dense"]
    headers += ["supernet s", "search s", "choice s"]
    body = [
        [
            row["name"], f"{row['macs'] / 1e6:.2f} M", percent(row["macs_ratio"]), fixed(row["proxy"], 4),
            fixed(100 * row["accuracy"]), f"{100 * (row['accuracy'] - row['base_accuracy']):+.2f}",
            fixed(row["train_seconds"], 0), fixed(row["search_seconds"], 0), fixed(row["decide_seconds"], 0),
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(headers, body)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_dense(parser, "curlfx:resnet20")
    parser.add_argument("--target", default="50%", help="MACs of all networks (default 50%%)")
    parser.add_argument("--importance", default="magnitude", help="criterion that says which channels a width keeps")
    parser.add_argument("--genomes", type=int, default=20, help="random networks that are trained anew")
    parser.add_argument("--variants", default=";".join(VARIANTS), help=f"of {'; '.join(VARIANTS)}")
    parser.add_argument("--supernet-epochs", type=int, default=20)
    parser.add_argument("--supernet-lr", type=float, default=0.02)
    parser.add_argument(
        "--held-out", type=float, default=0.04, help="share of the training images that proxies judge by"
    )
    parser.add_argument("--retrain-epochs", type=int, default=30)
    parser.add_argument("--retrain-lr", type=float, default=0.1)
    parser.add_argument("--retrain-start", choices=("scratch", "dense"), default="scratch")
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=8, help="of the recovery in the second table")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--limit", type=int, help="--train-limit and --test-limit where these are not given")
    parser.add_argument("--proxy", type=int, default=256, help="training images that criteria look at")
    add_machine(parser, RECORD)
    found = parser.parse_args(arguments)
    found.train_limit = found.limit if found.train_limit is None else found.train_limit
    found.test_limit = found.limit if found.test_limit is None else found.test_limit
    return found


def main() -> int:
    """Measure what is not on record and print the tables."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    variants = [name.strip() for name in arguments.variants.split(";")]
    if unknown := [name for name in variants if name not in VARIANTS]:
        sys.exit(f"--variants {'; '.join(unknown)}: want some of {'; '.join(VARIANTS)}")
    bench: Stagewise | None = None

    def measure(wanted: Row) -> Row:
        nonlocal bench
        bench = bench or Stagewise(arguments)
        made = {"retrained": bench.retrained, "ranking": bench.ranking, "network": bench.network}
        row = {**wanted, **made[wanted["kind"]](wanted["name"])}
        print(f"{wanted['kind']} {wanted['name']}: {row.get('accuracy', '')}", file=sys.stderr, flush=True)
        return row

    def rows(kind: str, names: Sequence[str | int]) -> list[Row]:
        return collect(arguments.record, [key(arguments, kind, name) for name in names], measure)

    retrained = rows("retrained", range(arguments.genomes))
    first = correlations(rows("ranking", variants), retrained)
    spread = [row["accuracy"] for row in retrained]
    text = (
        f"{arguments.model}, {len(retrained)} random networks at {arguments.target} of the MACs, each trained for "
        f"{arguments.retrain_epochs} epochs ({arguments.retrain_start}): top-1 {100 * min(spread):.2f} to "
        f"{100 * max(spread):.2f} %.\n\n{first}\n\nRecovered for {arguments.epochs} epochs "
        f"from the dense weights (the first three come from one supernet and one search):\n\n"
        f"{networks(rows('network', NETWORKS))}\n"
    )
    publish(text, arguments.out)
    return 0


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


if __name__ == "__main__":
    sys.exit(main())
