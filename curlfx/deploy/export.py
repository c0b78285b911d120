"""From a network to an ONNX file, through PyTorch's exporter."""

from __future__ import annotations

import copy
import errno
import itertools
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curlfx.deploy.model_file import PROTOBUF_LIMIT, OnnxFile, check_onnx, describe
from curlfx.deploy.operators import operators_read_once
from curlfx.deploy.repair import repair
from curlfx.errors import ConfigError, InvariantError, ModelError
from curlfx.files import unwritable, write_bytes

OPSET = 20
OPSETS = range(18, 24)  # what is tested; the exporter's own operators start at 18
BATCH = "batch"


def export_onnx(
    module: nn.Module,
    example_inputs: Sequence[Any],
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    single_file: bool = True,
) -> OnnxFile:
    """Write ``module`` in eval mode to ``path``, checked by ONNX's checker, whole or not at all.

    Weights are constant initialisers. The export takes half the time when BatchNorm is folded and in-place
    activations are gone: see `curlfx.deploy.prepare`. An example of one image is doubled where the batch is dynamic.

    Args:
        dynamic_batch: Axis 0 of every input is the axis ``batch``; otherwise the file takes the example's size only.
        opset: Version of the operator set, in `OPSETS`; None is `OPSET`.
        single_file: Weights inside the file, as far as the 2 GB of one file reach; else in ``<path>.data`` beside it.

    Raises: ConfigError for the opset; ModelError when the network cannot be exported; OutputError when the file
        cannot be written.
    """
    path, wanted = Path(path), OPSET if opset is None else opset
    if wanted not in OPSETS:
        raise ConfigError(f"opset = {opset}: want one of {OPSETS[0]} to {OPSETS[-1]}")
    if not path.parent.is_dir():  # before the work, not after it
        raise unwritable(path, FileNotFoundError(errno.ENOENT, f"no folder {path.parent}"))
    module, inputs = _ready(module, tuple(example_inputs), dynamic_batch=dynamic_batch)
    program = _translate(module, inputs, wanted, dynamic_batch=dynamic_batch)
    repair(program.model)
    _name_outputs(program)
    if program.model.opset_imports.get("") != wanted:
        found = program.model.opset_imports.get("")
        raise ModelError(f"opset = {wanted}: this network can only be written in {found}; want opset={found}")
    if not single_file or _weight_bytes(program) > PROTOBUF_LIMIT:
        _save_beside(program, path)
        return check_onnx(path)
    proto = program.model_proto
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise InvariantError(f"{path}: the exporter wrote what the ONNX checker refuses: {error}") from error
    write_bytes(path, proto.SerializeToString())
    return describe(path, proto)


def _ready(module: nn.Module, inputs: tuple[Any, ...], *, dynamic_batch: bool) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network and its inputs on the CPU; more than one image where the batch is dynamic (export bakes in a 1)."""
    if any(tensor.device.type != "cpu" for tensor in (*module.parameters(), *module.buffers())):
        module = copy.deepcopy(module).cpu()
    inputs = pytree.tree_map_only(Tensor, Tensor.cpu, inputs)
    if dynamic_batch and any(tensor.dim() and len(tensor) == 1 for tensor in _tensors(inputs)):
        inputs = pytree.tree_map_only(Tensor, lambda one: torch.cat([one, one]) if one.dim() else one, inputs)
    return module, inputs


def _translate(
    module: nn.Module, inputs: tuple[Any, ...], opset: int, *, dynamic_batch: bool
) -> torch.onnx.ONNXProgram:
    axes = pytree.tree_map(lambda one: {0: BATCH} if isinstance(one, Tensor) and one.dim() else None, inputs)
    was_training = module.training
    module.eval()
    try:
        with _quiet(), torch.no_grad(), operators_read_once():
            program = torch.onnx.export(
                module, inputs, dynamo=True, dynamic_shapes=axes if dynamic_batch else None, opset_version=opset,
                verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises whatever its parts raise
        raise _refused(error, dynamic_batch=dynamic_batch) from error
    finally:
        module.train(was_training)
    if program is None:
        raise InvariantError("torch.onnx.export returned nothing")
    return program


def _refused(error: Exception, *, dynamic_batch: bool) -> ModelError:
    """What to tell the caller: the innermost cause, which the exporter buries under its advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause)
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'\)", text)
    if missing:
        return ModelError(
            f"this network cannot be exported to ONNX: {'.'.join(missing.groups())} has no counterpart there"
        )
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")[:300]
    hint = "; if its batch size is fixed, export it with dynamic_batch=False" if dynamic_batch else ""
    return ModelError(f"this network cannot be exported to ONNX: {type(cause).__name__}: {reason}{hint}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of the exporter: what fails is raised, the rest is its own business."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name_outputs(program: torch.onnx.ONNXProgram) -> None:
    """Call the outputs what the network calls them: ``out``, ``aux_0`` …, or ``output`` where it says nothing.

    A weight or a value inside that has such a name gets another one.
    """
    exported, graph = program.exported_program, program.model.graph
    outputs = graph.outputs
    spec = None if exported is None else exported.call_spec.out_spec
    if spec is None or spec.num_leaves != len(outputs):
        return
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    taken = {value.name for value in graph.inputs}
    inside = {value.name: value for node in graph for value in node.outputs} | dict(graph.initializers)
    for (keys, _), value in zip(leaves, outputs, strict=True):
        name = "_".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in keys)
        name = name if name and not name[0].isdigit() else f"output_{name}".rstrip("_")
        if name not in taken:
            other = inside.get(name, value)
            if other is not value and other.name == name:
                other.name = next(
                    free for n in itertools.count() if (free := f"{name}_{n}") not in inside.keys() | taken
                )
                inside[other.name] = other
            value.name = name
            taken.add(name)


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _weight_bytes(program: torch.onnx.ONNXProgram) -> int:
    values = program.model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _save_beside(program: torch.onnx.ONNXProgram, path: Path) -> None:
    """Write graph and weights as two files, under their final names in a folder of their own first."""
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir()
        program.save(folder / path.name, external_data=True)
        for made in sorted(folder.iterdir(), key=lambda one: one.name == path.name):  # the graph last
            made.replace(path.with_name(made.name))
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
