"""Recovery from few images: what each part of CURL's recipe is worth, beside training afresh and a small dense network.

A dense network is slimmed once per seed, its channels scored on the few images too, and recovered on them in several
ways that build on each other; judged on all test images. Every arm takes the same number of steps (an epoch of the
expanded data has six times as many), but for label refinement, which comes after them: "longer" is its control and
takes as many steps without it. Each is judged once more with BatchNorm's statistics measured afresh on the images
alone: those that a training on expanded images leaves are of these. A row that is on record is not measured again, and
an interrupted one goes on from its last epoch.

    python benchmarks/limited_data.py --data cifar10 --weights resnet56.safetensors --small-weights resnet20.safetensors
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from records import Lines, Row, called, checkpoint, collect, forget, spread
from subjects import add_machine, chosen
from tables import fixed, markdown, percent, publish
from torch import nn

from curlfx.cost import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.importance import score
from curlfx.planning import SlimPlan, plan, slim
from curlfx.recovery import Recipe, TrainSettings, evaluate, recalibrate, recover
from curlfx.recovery.recipes import UNREFINED
from curlfx.sources import DataSource, load_data, load_model
from curlfx.sources.expansion import VERSIONS
from curlfx.sources.images import balanced

RECORD = Path(__file__).parent / "results" / "limited_data.jsonl"
KEYS = (
    "model", "small_model", "size", "per_class", "target", "epochs", "refine_epochs", "lr", "scratch_lr", "batch_size",
    "weight_decay", "proxy", "test_limit",
)  # fmt: skip
PLACES = ("data", "weights", "small_weights")


@dataclass(frozen=True)
class Arm:
    """One way of making a small network from few images.

    Attributes:
        title: In the table.
        network: ``slim``, ``scratch`` (the slim one with random weights) or ``small`` (another dense one).
        teacher: Distil from the dense network.
        mixup: Blend images.
        expand: Train on six versions of every image.
        refine: Train soft labels along afterwards; ``longer``: as many steps of the training before instead.
    """

    title: str
    network: str = "slim"
    teacher: bool = False
    mixup: bool = False
    expand: bool = False
    refine: str = ""


ARMS: dict[str, Arm] = {
    "plain": Arm("slimmed, cross-entropy"),
    "distillation": Arm("+ distillation", teacher=True),
    "mixup": Arm("+ mixup", teacher=True, mixup=True),
    "expansion": Arm("+ expansion", teacher=True, mixup=True, expand=True),
    "refinement": Arm("+ label refinement", teacher=True, mixup=True, expand=True, refine="refine"),
    "longer": Arm("the same steps without it", teacher=True, mixup=True, expand=True, refine="longer"),
    "curl": Arm("as published: expansion in the refinement only", teacher=True, mixup=True, refine="refine"),
    "scratch": Arm("the slim network from scratch", network="scratch"),
    "small": Arm("the small dense network, fine-tuned", network="small"),
}


class Bench:
    """The networks, the few images and what all arms of a seed share.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        spec = (
            arguments.data if ":" in arguments.data or arguments.data == "digits" else f"imagefolder:{arguments.data}"
        )
        shape = None if spec == "digits" else (3, arguments.size, arguments.size)
        whole = load_data(spec, shape=shape)
        self.data = limited(whole, arguments.per_class * whole.num_classes, arguments.test_limit)
        self.images = self.data.size("train")
        self.test = self.data.loader("test", 500)
        self.traced: TracedModel = trace(load_model(arguments.model, weights=arguments.weights), (self.data.proxy(2),))
        self.coupling: Coupling = couple(self.traced)
        self.dense_accuracy = evaluate(self.traced.module, self.test, device=arguments.device)
        self._plans: dict[int, SlimPlan] = {}

    def plan(self, seed: int) -> SlimPlan:
        """The channels that stay, the same for all arms of a seed; scored on the few images."""
        if seed not in self._plans:
            proxy = self.data.proxy(self.arguments.proxy, seed)
            scores = score(self.traced, self.coupling, "kl", data=[proxy], seed=seed, progress=Lines("kl"))
            target = {"macs": self.arguments.target}
            self._plans[seed] = plan(self.traced, self.coupling, scores, target=target, round_to=1)
        return self._plans[seed]

    def network(self, arm: Arm, seed: int) -> tuple[nn.Module, int, int]:
        """The network to train, its MACs and its parameters."""
        if arm.network == "small":
            arguments = self.arguments
            small = trace(load_model(arguments.small_model, weights=arguments.small_weights), (self.data.proxy(2),))
            cost = CostModel(small, couple(small)).dense
            return small.module, cost.macs, cost.params
        decision = self.plan(seed)
        dense = self.traced
        if arm.network == "scratch":
            torch.manual_seed(seed)
            dense = trace(load_model(self.arguments.model), (self.data.proxy(2),))
        return slim(dense, decision).module, decision.after.macs, decision.after.params

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        """What the arm asks for, in as many steps as every other one."""
        arguments, versions = self.arguments, len(VERSIONS)
        epochs = arguments.epochs + (versions * arguments.refine_epochs if arm.refine == "longer" else 0)
        train = TrainSettings(
            epochs=max(1, round(epochs / versions)) if arm.expand else epochs,
            batch_size=arguments.batch_size,
            lr=arguments.scratch_lr if arm.network == "scratch" else arguments.lr,
            weight_decay=arguments.weight_decay,
            warmup_epochs=epochs / 30 / (versions if arm.expand else 1),
            distillation=0.7 if arm.teacher else 0.0,
            mixup=1.0 if arm.mixup else 0.0,
        )
        refining = replace(
            UNREFINED,
            epochs=arguments.refine_epochs if arm.refine == "refine" else 0,
            batch_size=arguments.batch_size,
            weight_decay=arguments.weight_decay,
        )
        return Recipe(train, arm.expand, refining).on(seed=seed, device=arguments.device)

    def row(self, name: str, seed: int) -> Row:
        """Make, judge, train, judge."""
        arm, start = ARMS[name], time.perf_counter()
        network, macs, params = self.network(arm, seed)
        before = evaluate(network, self.test, device=self.arguments.device)
        row = key(self.arguments, name, seed)
        path = checkpoint(self.arguments.record, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = self.recipe(arm, seed)
        result = recover(
            network, self.data, recipe, teacher=self.traced.module, progress=Lines(f"{name} {seed}"),
            checkpoint=path, resume=True,
        )  # fmt: skip
        steps = [len(one.history) * -(-count // settings.batch_size) for one, count, settings in (
            (result.trained, self.images * (len(VERSIONS) if recipe.expand else 1), recipe.train),
            (result.refined, self.images * len(VERSIONS), recipe.refine),
        ) if one is not None]  # fmt: skip
        accuracy = evaluate(network, self.test, device=self.arguments.device)
        recalibrate(network, self.data.loader("train", 100, shuffle=True), device=self.arguments.device)
        return {
            **row,
            "base_accuracy": self.dense_accuracy,
            "images": self.images,
            "macs": macs,
            "macs_ratio": macs / self.plan(seed).before.macs,
            "params": params,
            "accuracy_before": before,
            "accuracy": accuracy,
            "accuracy_recalibrated": evaluate(network, self.test, device=self.arguments.device),
            "steps": sum(steps),
            "training_seconds": round(result.seconds, 1),
            "seconds": round(time.perf_counter() - start, 1),
        }


def limited(data: DataSource, train: int, test: int | None) -> DataSource:
    """The data with every class's share of ``train`` training images, and of ``test`` test images."""
    splits = dict(data.splits)
    splits["train"] = splits["train"].subset(balanced(splits["train"].labels, train))
    if test is not None:
        splits["test"] = splits["test"].subset(balanced(splits["test"].labels, test))
    return replace(data, splits=splits)


def key(arguments: argparse.Namespace, arm: str, seed: int) -> Row:
    """What makes a measurement what it is; a row on record with the same key is not measured again."""
    places = {name: called(getattr(arguments, name)) for name in PLACES}
    return {"arm": arm, "seed": seed, **{name: getattr(arguments, name) for name in KEYS}, **places}


def table(rows: Sequence[Row]) -> str:
    """One row per arm: means over the seeds, ± half the range."""
    headers = ["network and training", "seeds", "MACs", "of dense", "params", "steps", "top-1 % before"]
    headers += ["top-1 % after", "loss to dense", "with BatchNorm measured afresh", "min per seed"]
    body = []
    for name, arm in ARMS.items():
        mine = [row for row in rows if row["arm"] == name]
        if not mine:
            continue
        mean = {column: statistics.mean(row[column] for row in mine) for column in ("macs", "macs_ratio", "params")}
        found = [row["accuracy"] for row in mine]
        body.append(
            [
                arm.title,
                ", ".join(str(row["seed"]) for row in mine),
                f"{mean['macs'] / 1e6:.2f} M",
                percent(mean["macs_ratio"]),
                f"{mean['params'] / 1e3:.0f} k",
                str(mine[0]["steps"]),
                spread([row["accuracy_before"] for row in mine]),
                spread(found),
                f"{100 * (statistics.mean(found) - mine[0]['base_accuracy']):+.2f}",
                spread([row["accuracy_recalibrated"] for row in mine]),
                fixed(statistics.mean(row["seconds"] for row in mine) / 60, 1),
            ]
        )
    return markdown(headers, body)


def describe(arguments: argparse.Namespace, rows: Sequence[Row]) -> str:
    """The sentences above the table."""
    base = f"{100 * rows[0]['base_accuracy']:.2f} %" if rows else "not measured"
    return (
        f"{arguments.model}, whose weights were made with all training images: {base}. Slimmed to {arguments.target} "
        f"of the MACs and recovered with {arguments.per_class} images per class; channels by KL over {arguments.proxy} "
        f"of them. SGD with Nesterov momentum 0.9, batch {arguments.batch_size}, cosine from {arguments.lr} "
        f"({arguments.scratch_lr} from scratch), weight decay {arguments.weight_decay}, {arguments.epochs} epochs of "
        "the images or as many steps of the expanded ones; distillation weight 0.7 at temperature 2, mixup Beta(1, 1); "
        f"label refinement: {arguments.refine_epochs} epochs of the expanded images at 1e-4. The small network is "
        f"{arguments.small_model}, whose weights were made with all training images too. BatchNorm measured afresh: on "
        "the images as in evaluation, after all training. Accuracies: mean over seeds ± half their range."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder with train/ and test/, or a DATA specification")
    parser.add_argument("--weights", help="weights of the dense network (.safetensors)")
    parser.add_argument("--model", default="curlfx:resnet56")
    parser.add_argument("--small-weights", help="weights of the small dense network (.safetensors)")
    parser.add_argument("--small-model", default="curlfx:resnet20")
    parser.add_argument("--size", type=int, default=32, help="pixels per side")
    parser.add_argument("--per-class", type=int, default=50, help="training images per class (default 50)")
    parser.add_argument("--target", default="32%", help="MACs to reach (default 32%%: those of ResNet-20)")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=150, help="epochs of the images alone (default 150)")
    parser.add_argument("--refine-epochs", type=int, default=16, help="epochs of label refinement (default 16)")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--scratch-lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--proxy", type=int, default=256, help="training images for the KL score")
    parser.add_argument("--test-limit", type=int, help="judge on this many test images (default all)")
    add_machine(parser, RECORD)
    return parser.parse_args(arguments)


def main() -> int:
    """Measure what is not on record and print the table."""
    arguments = parse()
    arms, seeds = chosen(arguments, ARMS)
    bench: Bench | None = None

    def measure(wanted: Row) -> Row:
        nonlocal bench
        bench = bench or Bench(arguments)
        row = bench.row(wanted["arm"], wanted["seed"])
        print(f"{row['arm']} seed {row['seed']}: {row['accuracy']:.4f}", file=sys.stderr, flush=True)
        return row

    wanted = [key(arguments, arm, seed) for seed in seeds for arm in arms]
    rows = collect(arguments.record, wanted, measure, lambda each: forget(checkpoint(arguments.record, each)))
    text = describe(arguments, rows) + "\n\n" + table(rows) + "\n"
    publish(text, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
