"""From a network to an ONNX file, through PyTorch's exporter."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curlfx.deploy.model_file import PROTOBUF_LIMIT, OnnxFile, check_onnx, describe
from curlfx.deploy.operators import operators_read_once
from curlfx.deploy.parity import TOLERANCE, parity
from curlfx.deploy.precision import TOLERANCE as TOLERANCE_FP16
from curlfx.deploy.precision import Precision, check_precision, to_float16
from curlfx.deploy.quiet import quiet
from curlfx.deploy.repair import repair
from curlfx.deploy.shorten import shorten
from curlfx.deploy.simplify import check_simplifier
from curlfx.deploy.simplify import simplify as run_onnxslim
from curlfx.errors import ConfigError, InvariantError, ModelError, first_line
from curlfx.files import unwritable, written

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
    precision: Precision = "fp32",
    simplify: bool = False,
) -> OnnxFile:
    """Write ``module`` in eval mode to ``path``, checked by ONNX's checker, whole or not at all.

    Weights are constant initialisers. The export takes half the time when BatchNorm is folded and in-place
    activations are gone: see `curlfx.deploy.prepare`. An example of one image is doubled where the batch is dynamic.

    Args:
        dynamic_batch: Axis 0 of every input is the axis ``batch``; otherwise the file takes the example's size only.
        opset: Version of the operator set, in `OPSETS`; None is `OPSET`.
        single_file: Weights inside the file, as far as the 2 GB of one file reach; else in ``<path>.data`` beside it.
        precision: ``fp16``: weights and computation in float16, inputs and outputs as they are; see
            `curlfx.deploy.precision`.
        simplify: Let onnxslim work on the graph, if it is installed.

    A file that is simplified or in float16 is compared with ``module`` in onnxruntime before it gets its name, on the
    example: to 1e-4 of the largest output, or 1e-2 in float16.

    Raises: ConfigError for the opset, the precision, or an onnxslim that is not there; ModelError when the network
        cannot be exported or converted; VerificationError when it was and computes something else; OutputError when the
        file cannot be written.
    """
    path, wanted = Path(path), OPSET if opset is None else opset
    if wanted not in OPSETS:
        raise ConfigError(f"opset = {opset}: want one of {OPSETS[0]} to {OPSETS[-1]}")
    if not path.parent.is_dir():  # before the work, not after it
        raise unwritable(path, FileNotFoundError(errno.ENOENT, f"no folder {path.parent}"))
    check_precision(precision)
    if simplify:
        check_simplifier()
    module, inputs = _ready(module, tuple(example_inputs), dynamic_batch=dynamic_batch)
    program = _translate(module, inputs, wanted, dynamic_batch=dynamic_batch)
    shorten(program.model)
    repair(program.model)
    _name_outputs(program)
    ClearMetadataAndDocStringPass()(program.model)  # every node with the stack of calls and paths that led to it
    found = program.model.opset_imports.get("")
    if found != wanted:
        raise ModelError(f"opset = {wanted}: this network can only be written in {found}; want opset={found}")
    if precision == "fp32" and not simplify:
        return _save(program.model, path, single_file=single_file)
    model = _converted(program.model, inputs, precision, simplify=simplify)
    tolerance = TOLERANCE_FP16 if precision == "fp16" else TOLERANCE

    def check(file: Path) -> None:
        try:
            report = parity(module, file, inputs, tolerance=tolerance)
        except ModelError as error:  # it names the file that is going to be removed
            raise ModelError(str(error).replace(str(file), str(path))) from error
        replace(report, path=path).require()

    return _save(model, path, single_file=single_file, check=check)


def _converted(model: ir.Model, inputs: tuple[Any, ...], precision: Precision, *, simplify: bool) -> ir.Model:
    """The model simplified, in its precision. Raises: ModelError."""
    if _weight_bytes(model) > PROTOBUF_LIMIT:
        raise ModelError("this network has more than 2 GB of weights; it is only exported as fp32, without simplify")
    if simplify:
        model = run_onnxslim(model)
        repair(model)  # what onnxruntime gets wrong may be back
    if precision == "fp16":
        names = [value.name or "" for value in model.graph.inputs]
        model = to_float16(model, {name: one.numpy() for name, one in zip(names, _tensors(inputs), strict=True)})
    return model


def _unchecked(file: Path) -> None:
    """A file that is only what the exporter wrote is compared by `curlfx.deploy.parity`, when it is asked to."""


def _save(model: ir.Model, path: Path, *, single_file: bool, check: Callable[[Path], None] = _unchecked) -> OnnxFile:
    """Write a model, under its final name only when ``check`` has seen the file and raised nothing."""
    if not single_file or _weight_bytes(model) > PROTOBUF_LIMIT:
        _save_beside(model, path, check)
        return check_onnx(path)
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise InvariantError(f"{path}: the exporter wrote what the ONNX checker refuses: {error}") from error
    with written(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        check(temporary)
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
        with quiet(), torch.no_grad(), operators_read_once():
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
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'\)", str(cause))
    if missing:
        return ModelError(
            f"this network cannot be exported to ONNX: {'.'.join(missing.groups())} has no counterpart there"
        )
    reason = first_line(cause)[:300]
    hint = "; if its batch size is fixed, export it with dynamic_batch=False" if dynamic_batch else ""
    return ModelError(f"this network cannot be exported to ONNX: {type(cause).__name__}: {reason}{hint}")


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


def _weight_bytes(model: ir.Model) -> int:
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _save_beside(model: ir.Model, path: Path, check: Callable[[Path], None]) -> None:
    """Write graph and weights as two files, under their final names in a folder of their own first."""
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir()
        ir.save(model, folder / path.name, external_data=f"{path.name}.data")
        check(folder / path.name)
        for made in sorted(folder.iterdir(), key=lambda one: one.name == path.name):  # the graph last
            made.replace(path.with_name(made.name))
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
