"""A supernet in stages: the network of any genome, run stage by stage, with the losses of in-place distillation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from curlfx.coupling import Coupling
from curlfx.errors import ModelError
from curlfx.graph import TracedModel
from curlfx.graph.effects import is_impure
from curlfx.graph.logits import output_of
from curlfx.importance.section import Section, Values
from curlfx.passes.functionalise import Functionalise
from curlfx.passes.gate import GATES
from curlfx.passes.pipeline import run
from curlfx.passes.widths import Widths, batch_norms, gate_of, statistics_of
from curlfx.recovery.hardware import choose_device
from curlfx.search.space import Genome, Space
from curlfx.search.stages import choose_cuts, constants, genes_of, is_size, sections, separators

Mode = Literal["batch", "measured"]
"""Batch normalisation by the statistics of the batch, or by those that were measured."""
Statistics = dict[str, Tensor]
"""Running means and variances by name."""


@dataclass(frozen=True)
class Stage:
    """A part of the network between two separators.

    Attributes:
        start: Node whose value comes in; None: the images.
        end: Node whose value goes out; of the last stage the logits.
        genes: Positions of the coupling groups whose widths it depends on, those of what comes in included.
    """

    start: str | None
    end: str
    genes: tuple[int, ...]


class Supernet:
    """One set of weights for every genome of a space.

    A genome is a vector of gates over the intact graph: switching costs nothing, and every value that stays is that of
    the slim network.

    Args:
        traced: The dense network in eval mode, left as it is; the supernet starts from a copy of its weights.
        space: The genomes.
        cuts: Nodes to cut behind; None chooses by resolution, () makes a single stage.
        device: Where it lives.

    Attributes:
        network: The dense network with the supernet's weights, not gated: what a plan slims, and what is trained.
        stages: In the order of the network.

    Raises: ModelError for a network that cannot be run in parts; ConfigError for a cut that is no separator.
    """

    def __init__(
        self, traced: TracedModel, space: Space, cuts: Sequence[str] | None = None, *, device: str = "cpu"
    ) -> None:
        self.space, self.device = space, choose_device(device)
        self.network = run(traced, [])[0].to(self.device)
        self._check()
        coupling = space.coupling
        graphs: dict[Mode, TracedModel] = {
            "batch": run(self.network, [Widths(coupling), Functionalise()], own_weights=False)[0],
            "measured": run(self.network, [gate_of(coupling), Functionalise()], own_weights=False)[0],
        }
        impure = next((node for node in graphs["batch"].graph.nodes if is_impure(node)), None)
        if impure is not None:
            raise ModelError(
                f"supernet: node '{impure.name}' ({impure.target}) writes into a tensor that others may read; write it "
                "without the in-place operator"
            )
        chosen, logits = self._cuts(graphs["batch"], cuts)
        self._parts: dict[Mode, _Parts] = {mode: _Parts(graph, chosen, logits, mode) for mode, graph in graphs.items()}
        starts = (None, *chosen)
        self.stages = tuple(
            Stage(start, end, genes_of(section, coupling, start))
            for start, end, section in zip(starts, (*chosen, logits), self._parts["measured"].sections, strict=True)
        )
        self._borders = [_indices(coupling, name, self.device) for name in chosen]
        self._sizes: dict[int, dict[str, Any]] = {}
        self.dtype = self._parts["batch"].gates_dtype

    def gates(self, genome: Genome) -> Tensor:
        """1 for channels that stay, 0 for those that go, ``(N + 1,)``."""
        return torch.from_numpy(self.space.alive(genome)).to(self.device, self.dtype)

    def forward(
        self, stage: int, incoming: Tensor, gates: Tensor, mode: Mode = "batch", statistics: Statistics | None = None
    ) -> Tensor:
        """What leaves a stage, all channels of it; of those that are closed nothing is promised.

        Args:
            stage: Position in `stages`.
            incoming: Images, or the value of the cut before the stage; closed channels in it are not read.
            gates: From `gates`.
            mode: How batch normalisations normalise.
            statistics: What was measured, under ``"measured"``; under ``"batch"`` tensors that take the mean and
                variance of the batch.
        """
        parts = self._parts[mode]
        values = parts.values(incoming, stage, gates, statistics, self._sizes_for(len(incoming)))
        found: Tensor = parts.sections[stage].run(values)
        return found

    def outputs(
        self, images: Tensor, gates: Tensor, mode: Mode = "batch", statistics: Statistics | None = None
    ) -> Iterator[Tensor]:
        """What leaves every stage of the assembled network, one after the other; the last are the logits."""
        value = images
        for stage in range(len(self.stages)):
            value = self.forward(stage, value, gates, mode, statistics)
            yield value

    def loss(self, stage: int, output: Tensor, target: Tensor, gates: Tensor, spread: Tensor | None = None) -> Tensor:
        """How far a stage of a narrow network is from that of the whole one, a scalar.

        Within the network the mean squared error over the channels that stay, in variances of the target; at its end
        the cross-entropy with the target's softmax.

        Args:
            spread: Variance of the target, where this is a part of it; None: this is all of it.
        Source: DNA (arXiv:1911.13053) for the former, slimmable networks (arXiv:1903.05134) for the latter.
        """
        output, target = _precise(output), _precise(target.detach())
        if stage == len(self.stages) - 1:
            return -(target.softmax(1) * functional.log_softmax(output, 1)).sum(1).mean()
        squares = (output - target).square()
        spread = target.var(unbiased=False) if spread is None else spread
        spread = spread.clamp_min(torch.finfo(target.dtype).tiny)
        mask = self.mask(stage, gates)
        if mask is None:
            return squares.mean() / spread
        mask = mask.to(squares.dtype).expand_as(squares)
        return (squares * mask).sum() / mask.sum() / spread

    def mask(self, stage: int, gates: Tensor) -> Tensor | None:
        """Gates laid out like what leaves a stage; None where all of it stays."""
        found: Tensor | None = None
        for indices in self._borders[stage]:
            mask = gates[indices]
            found = mask if found is None else found * mask
        return found

    def empty_statistics(self, stage: int | None = None) -> Statistics:
        """Tensors for means and variances of the batch normalisations of a stage, or of all; zeros."""
        names = self._parts["batch"].measured(stage)
        return {name: torch.zeros_like(self.network.parameter(name)) for name in names}

    def _check(self) -> None:
        if len([node for node in self.network.graph.nodes if node.op == "placeholder"]) != 1:
            raise ModelError("supernet: the network takes several inputs, want images alone")
        if not self.network.dynamic_batch:
            raise ModelError("supernet: this network takes one batch size only; stages are measured on several")

    def _cuts(self, gated: TracedModel, cuts: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
        """Names of the cuts and of the logits. Nodes that gating writes differently are no cuts."""
        plain = run(self.network, [Functionalise()], own_weights=False)[0]
        output, coupling = output_of(plain), self.space.coupling
        targets = {node.name: node.target for node in gated.graph.nodes}
        found = [node for node in separators(plain, coupling, output) if targets.get(node.name) == node.target]
        return choose_cuts(found, plain, coupling, output, cuts), output_of(gated).name

    def _sizes_for(self, batch: int) -> dict[str, Any]:
        """The sizes that the graph computes, which depend on the batch alone."""
        if batch not in self._sizes:
            self._sizes[batch] = self._parts["measured"].sizes(self.network, batch)
        return self._sizes[batch]


class _Parts:
    """One graph in sections."""

    def __init__(self, graph: TracedModel, cuts: Sequence[str], logits: str, mode: Mode) -> None:
        self._mode = mode
        self.sections = sections(graph, cuts, logits)
        self._graph = graph
        self._constants: Mapping[Node, Any] = constants(graph)
        self._gates = graph.node_of(GATES)
        nodes = {node.name: node for node in graph.graph.nodes}
        self._placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
        self._starts = [self._placeholder, *(nodes[name] for name in cuts)]
        self._buffers = {
            node: [(buffer, str(buffer.target)) for buffer in statistics_of(node)] for node in batch_norms(graph.graph)
        }
        self._wanted = [self._sized(section) for section in self.sections]

    @property
    def gates_dtype(self) -> torch.dtype:
        """Type of the gates."""
        return self._graph.parameter(GATES).dtype

    def measured(self, stage: int | None) -> list[str]:
        """Names of the running statistics that a stage reads, or all stages do, each once."""
        chosen = self.sections if stage is None else [self.sections[stage]]
        nodes = {node for section in chosen for node in section.nodes}
        return list(dict.fromkeys(name for node, held in self._buffers.items() if node in nodes for _, name in held))

    def values(
        self, incoming: Tensor, stage: int, gates: Tensor, statistics: Statistics | None, sizes: Mapping[str, Any]
    ) -> Values:
        """What a section reads. Statistics of the batch that nobody asked for go to tensors that nobody reads."""
        found: Values = {**self._constants, self._starts[stage]: incoming, self._gates: gates}
        found.update({node: sizes[node.name] for node in self._wanted[stage]})
        for held in self._buffers.values():
            for node, name in held:
                if statistics is not None and name in statistics:
                    found[node] = statistics[name]
                elif self._mode == "batch":
                    found[node] = torch.empty_like(self._constants[node])
        return found

    def sizes(self, network: TracedModel, batch: int) -> dict[str, Any]:
        """Every size of the graph for a batch, found by one pass over empty images."""
        if not any(self._wanted):
            return {}
        example = network.example_inputs[0]
        images = torch.zeros((batch, *example.shape[1:]), dtype=example.dtype, device=self._device())
        everything = [node for node in self._graph.graph.nodes if node.op == "call_function"]
        values: Values = {**self._constants, self._placeholder: images}
        section = Section(everything, {}, everything[-1])
        with torch.no_grad():
            for node in everything:
                values[node] = section.compute(node, values)
        return {node.name: values[node] for node in everything if is_size(node)}

    def _device(self) -> torch.device:
        return self._graph.parameter(GATES).device

    def _sized(self, section: Section) -> list[Node]:
        return [node for node in section.inputs if is_size(node)]


def _indices(coupling: Coupling, name: str, device: torch.device) -> list[Tensor]:
    """Channel numbers of a node's value, in arrays that broadcast to it."""
    return [torch.from_numpy(array.copy()).to(device) for array in coupling.channels_in(coupling.labels(name))]


def _precise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
