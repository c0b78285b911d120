"""A network as a file that needs none of the classes it was made from: torch's exported program, ``.pt2``.

The file holds no pickle (torch would write one for the example inputs), and one more text, ``curlfx.json``: what torch
does not keep and training needs.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from curlfx.deploy.examples import describe_inputs, make_inputs
from curlfx.deploy.quiet import quiet
from curlfx.deploy.screen import NOTES, screen
from curlfx.errors import CurlfxError, ModelError, SavedError, first_line
from curlfx.files import write_bytes
from curlfx.graph.clean import clean
from curlfx.graph.inline import inline
from curlfx.graph.modes import mode_of
from curlfx.graph.shapes import propagate
from curlfx.graph.traced import TracedModel, TracedModule, owner_of, tree

FORMAT = 1
_MODES = ("fixed_mode", "counter", "cumulative", "train_dropout")
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def save_program(traced: TracedModel, path: Path) -> None:
    """Write a network to ``path``, whole or not at all; as it is in eval mode, on the CPU, its tensors contiguous.

    Raises: ModelError when `torch.export` refuses the graph; SavedError for example inputs that are no tensors, numbers
        and containers of them; OutputError.
    """
    network = copy.deepcopy(traced).to("cpu")
    network.module.eval()
    network.set_parameters({name: t.contiguous() for name, t in network.tensors().items() if not t.is_contiguous()})
    notes = {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "inputs": describe_inputs(network.example_inputs),
        "dynamic_batch": network.dynamic_batch,
        "notes": list(network.notes),
        "modes": [_mode(node) for node in _with_modes(network.graph)],
        "ties": _ties(network),
    }
    program = _exported(network)
    program._example_inputs = None  # else torch writes them as a pickle
    program._guards_code = []
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={NOTES: json.dumps(notes)})
    write_bytes(path, buffer.getbuffer())


def load_program(content: bytes) -> TracedModel:
    """The network of a file that `save_program` wrote, in eval mode; it trains as the one that was saved.

    Raises: SavedError when the file is damaged, holds what could execute code, or this torch cannot read it.
    """
    screen(content)
    texts = {NOTES: ""}
    try:
        with quiet():
            program = torch.export.load(io.BytesIO(content), extra_files=texts)
        notes = json.loads(texts[NOTES])
        if notes["format"] != FORMAT:
            raise SavedError(f"format {notes['format']}, this version reads {FORMAT}")
        traced = TracedModel(
            _module(program), make_inputs(notes["inputs"]), tuple(notes["notes"]), bool(notes["dynamic_batch"])
        )
        _restore_modes(traced.graph, notes["modes"])
        _restore_ties(traced, notes["ties"])
        propagate(traced)
    except CurlfxError:
        raise
    except Exception as cause:  # torch's reader raises whatever its parts raise
        reason = first_line(cause)
        raise SavedError(f"torch {torch.__version__} cannot read it ({type(cause).__name__}: {reason})") from cause
    return traced


def _exported(network: TracedModel) -> ExportedProgram:
    leaves = [leaf for leaf in pytree.tree_leaves(network.example_inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    batch = len(leaves[0]) if leaves else None

    def axes(leaf: object) -> dict[int, Any] | None:
        free = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == batch
        return {0: Dim.DYNAMIC} if free else None

    shapes = pytree.tree_map(axes, network.example_inputs) if network.dynamic_batch else None
    inputs = pytree.tree_map_only(Tensor, torch.clone, network.example_inputs)
    try:
        with quiet(), torch.enable_grad():
            return torch.export.export(network.module, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as cause:  # export raises whatever its parts raise
        reason = first_line(cause)
        raise ModelError(f"this network cannot be saved as a graph: {type(cause).__name__}: {reason}") from cause


def _module(program: ExportedProgram) -> TracedModule:
    """The program's graph over tensors of its own, at the names they had."""
    exported = program.module(check_guards=False)
    graph = Graph()
    graph.output(graph.graph_copy(exported.graph, {}))
    graph.set_codegen(exported.graph._codegen)
    inline(graph, exported)
    clean(graph)
    root = tree(exported, _owned)
    module = TracedModule(root, graph)
    module.eval()
    for part in module.modules():
        part.training = False
    return module


def _owned(tensor: Tensor) -> Tensor:
    owned = tensor.detach().clone()
    return torch.nn.Parameter(owned, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else owned


def _with_modes(graph: Graph) -> list[Node]:
    nodes = (node for node in graph.nodes if node.op == "call_function")
    return [node for node in nodes if mode_of(node) is not None or node.target is _ATTENTION]


def _mode(node: Node) -> dict[str, Any]:
    return {"op": str(node.target), **{key: node.meta[key] for key in _MODES if key in node.meta}}


def _restore_modes(graph: Graph, modes: list[dict[str, Any]]) -> None:
    nodes = _with_modes(graph)
    if [str(node.target) for node in nodes] != [mode["op"] for mode in modes]:
        raise SavedError(f"{NOTES} and the graph name different operators; one of them was changed")
    for node, mode in zip(nodes, modes, strict=True):
        node.meta.update({key: mode[key] for key in _MODES if key in mode})


def _ties(network: TracedModel) -> list[list[str]]:
    """Names that stand for one and the same tensor, as far as it has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in _every_name(network):
        names.setdefault(id(tensor), []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _every_name(network: TracedModel) -> Iterator[tuple[str, Tensor]]:
    yield from network.module.named_parameters(remove_duplicate=False)
    yield from network.module.named_buffers(remove_duplicate=False)


def _restore_ties(network: TracedModel, ties: list[list[str]]) -> None:
    held = dict(_every_name(network))
    for names in ties:
        first = next(held[name] for name in names if name in held)
        slots = "_parameters" if isinstance(first, torch.nn.Parameter) else "_buffers"
        for name in names:
            getattr(owner_of(network.module, name), slots)[name.rpartition(".")[2]] = first
