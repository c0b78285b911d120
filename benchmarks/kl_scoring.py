"""Seconds and accuracy of the KL scores: one forward pass per channel, exact, fast, and the default that mixes them.

- naive: the whole gated network once per channel, all images at once, as the published code does. It runs on evenly
  spaced channels and is multiplied up to all of them.
- exact: `kl-exact`. Without ``--channels`` on all channels (and then the others are judged by it); with it on that many
  of them, and multiplied up by the work that they leave out.
- fast: `kl-fast`. - kl: the default criterion.

Seconds are processor time of one thread; naive and fast take turns with the exact scores of parts of the images, and
what is printed is the mean of the rounds and half of their range. Forward passes are seconds over those of one pass of
the naive loop. Accuracy is straight after slimming, without any training.

    python benchmarks/kl_scoring.py --model curlfx:resnet20 --weights resnet20.safetensors --data imagefolder:DIR
    python benchmarks/kl_scoring.py --model torchvision:resnet50 --images 16 --size 224 --channels 96
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tables import fixed, markdown, percent, processor
from torch import Tensor, nn
from trial import randomise

from curlfx.coupling import Coupling, couple
from curlfx.graph import TracedModel, trace
from curlfx.importance import Scores, score
from curlfx.importance.exact import Exact
from curlfx.importance.gated import GatedNetwork
from curlfx.importance.together import parts, quiet
from curlfx.passes.gate import GATES, Gate
from curlfx.planning import plan, slim
from curlfx.recovery import evaluate
from curlfx.sources import DataSource, load_data, load_model

CRITERIA = ("kl-exact", "kl-fast", "kl")


class Unwatched:
    """Nobody follows the work."""

    def worked(self, work: float) -> None:
        """Nothing."""

    def finished(self, place: int) -> None:
        """Nothing."""


@dataclass
class Times:
    """Seconds of one way to score, for all channels, one per round.

    Attributes:
        rounds: Each for all images and all channels.
    """

    rounds: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Seconds."""
        return statistics.mean(self.rounds)

    @property
    def half_range(self) -> float:
        """Seconds."""
        return (max(self.rounds) - min(self.rounds)) / 2


class Bench:
    """One network and its images.

    Args:
        arguments: The command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        shape = (3, arguments.size, arguments.size)
        self.data: DataSource | None = None
        model = load_model(arguments.model, weights=arguments.weights)
        if arguments.data is None:
            randomise(model)
            generator = torch.Generator().manual_seed(0)
            self.images = torch.randn(arguments.images, *shape, generator=generator)
            scale_logits(model.eval(), self.images[:8], arguments.deviation)
        else:
            self.data = load_data(arguments.data, shape=shape)
            self.test = load_data(arguments.data, shape=shape, limit=arguments.test_limit).loader("test", 500)
            self.images = self.data.proxy(arguments.images)
        self.traced: TracedModel = trace(model.eval(), (self.images[:2],))
        self.coupling: Coupling = couple(self.traced)
        every = np.arange(1, self.coupling.total + 1)
        count = arguments.channels or every.size
        self.some = every[np.unique(np.linspace(0, every.size - 1, count).astype(int))]
        self.seconds = {name: Times() for name in ("naive", "kl-exact", "kl-fast", "kl")}
        self.found: dict[str, np.ndarray] = {}

    def measure(self) -> None:
        """All ways of scoring, in turns."""
        network = GatedNetwork(self.traced, self.coupling)
        every = Exact(network, np.arange(1, self.coupling.total + 1))
        exact = Exact(network, self.some)
        share = exact.work / every.work
        sums = np.zeros(self.coupling.total + 1)
        rounds = self.images.chunk(self.arguments.rounds)
        for number, images in enumerate(rounds):
            whole = len(self.images) / len(images)
            self.seconds["naive"].rounds.append(self._naive_forward() * (self.coupling.total + 1))
            seconds = cpu_seconds(lambda images=images: add_exact(exact, network, images, sums))
            self.seconds["kl-exact"].rounds.append(seconds * whole / share)
            self.seconds["kl-fast"].rounds.append(cpu_seconds(lambda: self._score("kl-fast")))
            note(f"round {number + 1} of {len(rounds)}")
        self.found["kl-exact"] = sums / len(self.images)
        if self.arguments.channels is None or self.arguments.mixed:
            self.seconds["kl"].rounds.append(cpu_seconds(lambda: self._score("kl")))

    def _naive_forward(self) -> float:
        """Seconds of one forward pass of the whole gated network, the mean over some closed channels."""
        module = Gate(self.coupling)(self.traced).module.eval()
        gates = module.get_buffer(GATES)
        picks = self.some[np.linspace(0, self.some.size - 1, self.arguments.naive).astype(int)]
        with torch.inference_mode():

            def loop() -> None:
                for channel in picks.tolist():
                    gates[channel] = 0
                    module(self.images).log_softmax(1)
                    gates[channel] = 1

            return cpu_seconds(loop) / picks.size

    def _score(self, criterion: str) -> None:
        found: Scores = score(self.traced, self.coupling, criterion, data=self.images)
        values = np.zeros(self.coupling.total + 1)
        for group in self.coupling.groups:
            values[group.channels] = found.values[group.id]
        self.found[criterion] = values
        self.details = dict(found.details)

    def correlation(self, criterion: str) -> float | None:
        """Spearman's rank correlation with the exact scores, over all channels that have one."""
        if criterion not in self.found:
            return None
        return float(stats.spearmanr(self.found[criterion][self.some], self.found["kl-exact"][self.some]).statistic)

    def accuracy(self, criterion: str, target: str) -> float | None:
        """Of the network at a target, without recovery."""
        if self.data is None or criterion not in self.found or self.arguments.channels is not None:
            return None
        values = {group.id: self.found[criterion][group.channels] for group in self.coupling.groups}
        scores = Scores(criterion, values)
        decision = plan(self.traced, self.coupling, scores, target={"macs": target}, round_to=1)
        narrow = slim(self.traced, decision, self.coupling)
        return evaluate(narrow.module, self.test)

    def rows(self) -> list[list[str]]:
        """The table: a row per way."""
        naive = self.seconds["naive"]
        forward = naive.mean / (self.coupling.total + 1)
        found = []
        for name, times in self.seconds.items():
            if not times.rounds:
                continue
            note(f"{name}: {times.mean:.1f} s, Spearman {self.correlation(name)}")
            targets = self.arguments.targets.split(",")
            found.append(
                [
                    name,
                    f"{times.mean:.1f} ± {times.half_range:.1f}",
                    fixed(times.mean / forward, 1),
                    f"{naive.mean / times.mean:.1f}×",
                    fixed(1.0 if name == "naive" else self.correlation(name), 4),
                    *(percent(self.accuracy(name, target), 2) for target in targets),
                ]
            )
        return found

    def describe(self) -> str:
        """The sentence above the table."""
        arguments, sampled = self.arguments, self.arguments.channels is not None
        images = (
            f"random images, random weights and statistics, deviation of the logits {arguments.deviation}"
            if self.data is None
            else "training images"
        )
        exact = f"exact scores of {self.some.size} channels, seconds multiplied up" if sampled else "all channels exact"
        dense = "" if self.data is None else f", dense {evaluate(self.traced.module, self.test):.2%}"
        return (
            f"{arguments.model}: {self.coupling.total} channels in {len(self.coupling.groups)} groups, "
            f"{len(self.images)} images {arguments.size}x{arguments.size} ({images}{dense}); naive loop on "
            f"{arguments.naive} channels per round, multiplied up; {exact}; {arguments.rounds} rounds; "
            f"accuracy straight after slimming to a share of the MACs; {processor()}, one thread."
        )


def scale_logits(model: nn.Module, images: Tensor, deviation: float) -> None:
    """Scale the last linear layer: the logits of random weights are so far apart that every softmax is a step."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        factor = deviation / model(images).std(1).mean()
        for parameter in last.parameters():
            parameter.mul_(factor)


def add_exact(exact: Exact, network: GatedNetwork, images: Tensor, sums: np.ndarray) -> None:
    with quiet(network.device):
        for part in parts(network, images, independent=True):
            exact.add(network.on_device(part), sums, Unwatched())


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="curlfx:resnet20")
    parser.add_argument("--weights", help="weights of the dense network; none randomises those it has")
    parser.add_argument("--data", help="DATA with training and test images; none takes random images")
    parser.add_argument("--images", type=int, default=256, help="images to score with")
    parser.add_argument("--deviation", type=float, default=2.0, help="of the logits, where weights are random")
    parser.add_argument("--size", type=int, default=32, help="pixels per side")
    parser.add_argument("--channels", type=int, help="score this many channels exactly (default all)")
    parser.add_argument("--mixed", action="store_true", help="run 'kl' too when --channels is given")
    parser.add_argument("--naive", type=int, default=4, help="channels that the naive loop runs, per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", default="70%,50%", help="MACs to reach (default 70%%,50%%)")
    parser.add_argument("--test-limit", type=int, default=2000, help="test images, every class as often (default 2000)")
    parser.add_argument("--out", type=Path, help="append the table to this Markdown file too")
    return parser.parse_args(arguments)


def main() -> int:
    """Measure and print the table."""
    arguments = parse()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    note(f"{bench.coupling.total} channels")
    bench.measure()
    headers = ["scores", "seconds", "forward passes", "faster than naive", "Spearman to exact"]
    headers += [f"top-1 at {target}" for target in arguments.targets.split(",")]
    text = bench.describe() + "\n\n" + markdown(headers, bench.rows()) + "\n"
    print(text)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
