"""A job in progress: what its stages share, each part made when it is first asked for, or read back after a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from curlfx.cost.counting import Alive
from curlfx.cost.model import CostModel
from curlfx.coupling import Coupling, couple
from curlfx.errors import CheckError, OutputError, PlanError
from curlfx.files import read_text, write_bytes
from curlfx.graph.traced import TracedModel
from curlfx.importance import Scores
from curlfx.planning import SlimPlan
from curlfx.planning.apply import Absorb
from curlfx.planning.apply import slim as slim_by_plan
from curlfx.progress import Progress
from curlfx.run.config import RunConfig
from curlfx.run.directory import RunDirectory
from curlfx.run.subject import Subject
from curlfx.sources import DataSource
from curlfx.sources.fit import not_finite

Say = Callable[[str], None]
EVALUATION_BATCH = 256
START = "start.safetensors"
"""Weights that a searched network starts from, in the checkpoints."""
SLIM = "slim.safetensors"
"""Newest weights of the slim network."""


@dataclass
class Job:
    """One run between its stages.

    Attributes:
        config: What is to be done.
        subject: The network and its data.
        directory: Where results go.
        progress: Who sees the steps of long stages.
        say: Takes a line of text for people (it also goes to ``log.txt``).
    """

    config: RunConfig
    subject: Subject
    directory: RunDirectory
    progress: Progress | None
    say: Say

    @classmethod
    def start(
        cls, config: RunConfig, subject: Subject, directory: RunDirectory, progress: Progress | None, say: Say
    ) -> Self:
        """A job whose ``say`` also writes to the log of the run directory."""

        def tell(line: str) -> None:
            directory.log(line)
            say(line)

        return cls(config, subject, directory, progress, tell)

    def log(self, line: str) -> None:
        """A line for ``log.txt`` only."""
        self.directory.log(line)

    def file(self, name: str) -> Path:
        """A result in the run directory."""
        return self.directory.path / name

    def checkpoint(self, name: str) -> Path:
        """An intermediate file in the run directory."""
        return self.directory.checkpoints / name

    def done(self, stage: str) -> dict[str, Any]:
        """Result of a finished stage."""
        return self.directory.done[stage]

    @cached_property
    def data(self) -> DataSource:
        """The images, on the device where training and evaluation run as far as they live in memory."""
        return self.subject.data.to(self.subject.device)

    @cached_property
    def dense(self) -> nn.Module:
        """The dense network with its final weights; only the stage that trains it touches `Subject.model` before."""
        if self.done("train")["epochs"]:
            load_tensors(self.subject.model, self.checkpoint("dense.safetensors"))
        return self.subject.model.eval()

    @cached_property
    def traced(self) -> TracedModel:
        """The dense network as a graph."""
        self.dense.eval()
        return self.subject.trace()

    @cached_property
    def coupling(self) -> Coupling:
        """Its channels."""
        return couple(self.traced, frozen=self.config.ignored_layers)

    @cached_property
    def cost(self) -> CostModel:
        """Its price."""
        return CostModel(self.traced, self.coupling)

    @cached_property
    def scores(self) -> Scores:
        """What the criterion found."""
        path, coupling = self.checkpoint("scores.json"), self.coupling
        with reading(path):
            scores = Scores.from_json(read_text(path))
            scores.check(coupling)
        return scores

    @cached_property
    def plan(self) -> SlimPlan:
        """What is to go."""
        path, traced, coupling = self.file("plan.json"), self.traced, self.coupling
        with reading(path):
            plan = SlimPlan.from_json(read_text(path))
            plan.check(traced, coupling)
        return plan

    @cached_property
    def alive(self) -> Alive:
        """The channels that stay, ``(N + 1,)``."""
        return self.coupling.alive(self.plan.keep)

    @cached_property
    def slim(self) -> TracedModel:
        """The slim network, with its newest weights: recalibrated, enlarged and contracted, recovered, refined."""
        return self.slimmed(self.config.absorb_bias)

    def slimmed(self, absorb: Absorb) -> TracedModel:
        """The slim network; biases take something over only as long as its weights are those of the dense one."""
        done = self.directory.done
        trained = "recover" in done or bool(done.get("recalibrate", {}).get("batches"))
        trained = trained or bool(done.get("overparam", {}).get("epochs"))
        network = slim_by_plan(self.traced, self.plan, self.coupling, absorb_bias="none" if trained else absorb)
        if trained:
            load_tensors(network.module, self.file(SLIM))
        elif self.config.search.enabled and self.config.search.start != "dense":
            load_tensors(network.module, self.checkpoint(START))
        network.module.eval()
        return network

    def test_images(self, count: int) -> Tensor:
        """The first test images, ``(count, C, H, W)``, repeated when there are fewer."""
        images = next(iter(self.subject.data.loader("test", count)))[0].cpu()
        return torch.cat([images] * -(-count // len(images)))[:count]


def save_tensors(module: nn.Module, path: Path, **notes: str) -> None:
    """Write the state dict of ``module`` as safetensors, whole or not at all.

    Raises: OutputError; CheckError for weights or statistics that are not finite, before anything is written.
    """
    fault = not_finite(module)
    if fault is not None:
        raise CheckError(f"{path}: not written: {fault}; lower the learning rate that led to it, or mend the weights")
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
    write_bytes(path, safetensors.torch.save(state, metadata=notes))


def load_tensors(module: nn.Module, path: Path) -> None:
    """Read what `save_tensors` wrote into ``module``. Raises: OutputError when the file is missing or damaged."""
    with reading(path):
        module.load_state_dict(safetensors.torch.load(path.read_bytes()))
        fault = not_finite(module)
        if fault is not None:
            raise ValueError(fault)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file, and what to do, when what an earlier stage wrote is missing, damaged or of another network."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError, PlanError) as error:
        raise OutputError(
            f"{path}: cannot read what an earlier stage wrote ({error}); restore it, or start a new run"
        ) from error
