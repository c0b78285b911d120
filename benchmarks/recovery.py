r"""Recovery with linear over-parameterisation, beside plain fine-tuning and distillation.

A dense network is slimmed once per target and seed, and recovered in several ways with the same images, epochs, batches
and learning rate. "same seconds" is plain fine-tuning for as long as over-parameterisation with similarities took, by
the seconds on record: a training of its own, whose cosine runs over all of its epochs. A row that is on record is not
measured again, and an interrupted one goes on from its last epoch.

    python benchmarks/recovery.py --data cifar10 --weights resnet56.safetensors --seeds 0,1
    python benchmarks/recovery.py --data cifar10 --model benchmarks/cifar_networks.py:vgg16_bn --size 32 \
        --train-epochs 60
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peak_memory import PeakMemory
from records import Lines, Row, called, checkpoint, collect, find, forget, spread
from subjects import add_dense, add_machine, chosen, dense_network, images_for
from tables import fixed, markdown, percent, publish

from curlfx.coupling import couple
from curlfx.errors import BudgetError
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.planning import SlimPlan, plan, slim
from curlfx.recovery import Overparam, Recipe, TrainSettings, evaluate, recover
from curlfx.recovery.hardware import choose_device
from curlfx.recovery.overparam import PER_LAYER_AND_IMAGE

RECORD = Path(__file__).parent / "results" / "recovery.jsonl"
REFERENCE = "overparam-spkd"
"""The arm whose seconds plain fine-tuning gets too."""


@dataclass(frozen=True)
class Arm:
    """One way to recover.

    Attributes:
        title: In the table.
        distillation: Whether the dense network's logits count.
        expanded: Whether the network is enlarged meanwhile.
        similarity: Whether the dense network's features count.
        same_seconds: Whether it takes the seconds of `REFERENCE` instead of the same epochs.
    """

    title: str
    distillation: bool = False
    expanded: bool = False
    similarity: bool = False
    same_seconds: bool = False


ARMS: dict[str, Arm] = {
    "plain": Arm("plain fine-tuning"),
    "kd": Arm("distillation", distillation=True),
    "overparam": Arm("over-parameterisation", expanded=True),
    REFERENCE: Arm("+ similarities", expanded=True, similarity=True),
    "overparam-spkd-kd": Arm("+ similarities + distillation", distillation=True, expanded=True, similarity=True),
    "plain-longer": Arm("plain fine-tuning, same seconds", same_seconds=True),
}


class Bench:
    """The dense network, its data, and what all arms share.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.data = images_for(arguments, None)
        self.training = images_for(arguments, arguments.train_limit)
        self.test = images_for(arguments, arguments.test_limit).loader("test", 500)
        self.traced: TracedModel = trace(dense_network(arguments, self.training), (self.data.proxy(2),))
        self.coupling = couple(self.traced)
        self.dense_accuracy = self.judge(self.traced)
        self._scores: dict[int, Scores] = {}
        self._plans: dict[tuple[int, str], tuple[SlimPlan, float]] = {}

    def judge(self, network: TracedModel) -> float:
        """Accuracy on the test images."""
        return evaluate(network.module, self.test, device=self.arguments.device)

    def plan(self, seed: int, target: str) -> tuple[SlimPlan, float]:
        """The channels that stay, the same for all arms, and the accuracy straight after slimming."""
        if seed not in self._scores:
            proxy, name = self.data.proxy(self.arguments.proxy, seed), self.arguments.importance
            self._scores[seed] = score(self.traced, self.coupling, name, data=[proxy], seed=seed, progress=Lines(name))
        if (seed, target) not in self._plans:
            found = plan(self.traced, self.coupling, self._scores[seed], {"macs": target}, round_to=1)
            self._plans[seed, target] = found, self.judge(slim(self.traced, found, self.coupling))
        return self._plans[seed, target]

    def recipe(self, arm: Arm, seed: int, epochs: int) -> Recipe:
        """What an arm asks for."""
        arguments = self.arguments
        train = TrainSettings(
            epochs=epochs,
            lr=arguments.lr,
            batch_size=arguments.batch_size,
            distillation=TrainSettings.distillation if arm.distillation else 0.0,
            seed=seed,
            device=arguments.device,
        )
        if not arm.expanded:
            return Recipe(train)
        weight: float | None = arguments.similarity if arm.similarity else 0.0
        enlarged = Overparam(train, rate=arguments.rate, similarity=weight, frozen_epochs=arguments.frozen_epochs)
        return Recipe(replace(train, epochs=0), overparam=enlarged)

    def row(self, name: str, seed: int, target: str) -> Row:
        """Slim, judge, recover, judge."""
        arm, arguments = ARMS[name], self.arguments
        epochs = self.epochs_in_the_same_time(seed, target) if arm.same_seconds else arguments.epochs
        decision, slimmed = self.plan(seed, target)
        network = slim(self.traced, decision, self.coupling)
        loader = self.training.loader("train", arguments.batch_size, seed=seed, augment=True, shuffle=True)
        row = key(arguments, name, seed, target)
        path = checkpoint(arguments.record, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        with PeakMemory(choose_device(arguments.device)) as memory:
            result = recover(
                network, loader, self.recipe(arm, seed, epochs), teacher=self.traced,
                progress=Lines(f"{target} {name} {seed}"), checkpoint=path, resume=True,
            )  # fmt: skip
        return {
            **row,
            "base_accuracy": self.dense_accuracy,
            "macs_ratio": decision.after.macs / decision.before.macs,
            "params_ratio": decision.after.params / decision.before.params,
            "accuracy_slimmed": slimmed,
            "accuracy": self.judge(network),
            "epochs_trained": epochs,
            "seconds": round(result.seconds, 2),
            "peak_mib": memory.mib,
        }

    def epochs_in_the_same_time(self, seed: int, target: str) -> int:
        """Epochs of plain fine-tuning that take the seconds of `REFERENCE`."""
        found = {
            name: find(self.arguments.record, key(self.arguments, name, seed, target)) for name in ("plain", REFERENCE)
        }
        missing = [name for name, row in found.items() if row is None]
        if missing:
            sys.exit(f"arm plain-longer needs the seconds of {', '.join(missing)}: add it to --arms")
        plain, reference = (row["seconds"] for row in found.values() if row is not None)
        return max(1, round(self.arguments.epochs * reference / plain))


def key(arguments: argparse.Namespace, arm: str, seed: int, target: str) -> Row:
    """What makes a measurement what it is; a row on record with the same key is not measured again."""
    names = ("model", "size", "train_epochs", "epochs", "lr", "batch_size", "train_limit", "test_limit", "importance")
    names += ("proxy",)
    found = {"arm": arm, "seed": seed, "target": target, **{name: getattr(arguments, name) for name in names}}
    found |= {name: called(getattr(arguments, name)) for name in ("data", "weights")}
    if ARMS[arm].expanded or ARMS[arm].same_seconds:
        found |= {name: getattr(arguments, name) for name in ("rate", "similarity", "frozen_epochs")}
    return found


def table(rows: Sequence[Row]) -> str:
    """One row per target and arm: means over the seeds, ± half the range."""
    headers = ["MACs", "of dense", "params", "recovery", "seeds", "epochs", "top-1 % after slimming", "recovered"]
    headers += ["against plain", "seconds", "of plain", "peak MiB"]
    body = []
    for target in dict.fromkeys(row["target"] for row in rows):
        plain = [row for row in rows if (row["target"], row["arm"]) == (target, "plain")]
        for name, arm in ARMS.items():
            mine = [row for row in rows if (row["target"], row["arm"]) == (target, name)]
            if not mine:
                continue
            seconds = statistics.mean(row["seconds"] for row in mine)
            base = {row["seed"]: row for row in plain}
            pairs = [(row, base[row["seed"]]) for row in mine if row["seed"] in base]
            peaks = [row["peak_mib"] for row in mine if row["peak_mib"] is not None]
            body.append(
                [
                    target,
                    percent(statistics.mean(row["macs_ratio"] for row in mine)),
                    percent(statistics.mean(row["params_ratio"] for row in mine)),
                    arm.title,
                    ", ".join(str(row["seed"]) for row in mine),
                    "/".join(str(count) for count in sorted({row["epochs_trained"] for row in mine})),
                    spread([row["accuracy_slimmed"] for row in mine]),
                    spread([row["accuracy"] for row in mine]),
                    _difference([row["accuracy"] - other["accuracy"] for row, other in pairs]),
                    fixed(seconds, 0 if seconds >= 10 else 1),
                    _ratio([row["seconds"] / other["seconds"] for row, other in pairs]),
                    fixed(max(peaks), 0) if peaks else "",
                ]
            )
    return markdown(headers, body)


def _difference(points: Sequence[float]) -> str:
    return f"{100 * statistics.mean(points):+.2f}" if points else ""


def _ratio(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}x" if values else ""


def _weight(similarity: float | None) -> str:
    return f"{PER_LAYER_AND_IMAGE} per layer and image" if similarity is None else f"{similarity:g}"


def describe(arguments: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The sentences above the table."""
    base = f"{100 * rows[0]['base_accuracy']:.2f} %" if rows else "not measured"
    images = "all training images" if arguments.train_limit is None else f"{arguments.train_limit} training images"
    settings = TrainSettings()
    return (
        f"{arguments.model}, base accuracy {base}, slimmed by {arguments.importance} over {arguments.proxy} proxy "
        f"images; recovered on {images}: batch {arguments.batch_size}, SGD with Nesterov momentum {settings.momentum}, "
        f"cosine from {arguments.lr}, weight decay {settings.weight_decay} (in enlarged layers on the middle factor). "
        f"Distillation: weight {settings.distillation}, temperature {settings.temperature}. Over-parameterisation: "
        f"rate {arguments.rate}, similarities weigh {_weight(arguments.similarity)}. Seconds: of training alone; peak: "
        "memory above that before the training. Accuracies: mean over seeds ± half their range; against plain: same "
        "seed and epochs."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_dense(parser, "curlfx:resnet56")
    parser.add_argument("--targets", default="50%,30%,15%", help="MACs to reach (default 50%%,30%%,15%%)")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=int, default=Overparam.rate, help="channels within, per channel outside")
    parser.add_argument("--similarity", type=float, help="weight of the similarities (default: by layers and batch)")
    parser.add_argument(
        "--frozen-epochs", type=int, help="in which the outer factors rest (default: the first of several)"
    )
    parser.add_argument("--importance", default="kl", help="criterion that chooses channels (default kl)")
    parser.add_argument("--proxy", type=int, default=256, help="training images that it looks at")
    add_machine(parser, RECORD)
    return parser.parse_args(arguments)


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

    wanted = [
        key(arguments, arm, seed, target)
        for seed in seeds
        for target in arguments.targets.split(",")
        for arm in ARMS
        if arm in arms
    ]
    rows = collect(arguments.record, wanted, measure, lambda each: forget(checkpoint(arguments.record, each)))
    text = describe(arguments, rows) + "\n\n" + table(rows) + "\n"
    publish(text, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
