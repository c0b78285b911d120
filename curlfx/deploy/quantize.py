"""An ONNX file in 8-bit whole numbers, and how far it agrees with the one it was made from."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from curlfx.deploy.feeds import TYPES
from curlfx.deploy.model_file import PROTOBUF_LIMIT, check_onnx
from curlfx.deploy.quiet import quiet
from curlfx.deploy.session import open_session
from curlfx.errors import ConfigError, DataError, ModelError, first_line
from curlfx.files import unwritable, written
from curlfx.progress import Progress, StepEvent, StepTimer

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Batch = Tensor | Array | Sequence[Tensor | Array] | Mapping[str, Tensor | Array]
_QUANTISED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


@dataclass(frozen=True)
class QuantReport:
    """An 8-bit file beside the float file it was made from, on the images that it was calibrated with.

    Attributes:
        path: The file.
        size_bytes: Of the file.
        float_bytes: Of the float file.
        images: How many were compared.
        top1_agreement: Share of images, in [0, 1], whose largest value along axis 1 of the first output is at the same
            place (for outputs with more axes, share of places); None where that axis is shorter than 2.
        relative_error: Mean over images of ``‖quantised - float‖ / ‖float‖``, all float outputs together.
    """

    path: Path
    size_bytes: int
    float_bytes: int
    images: int
    top1_agreement: float | None
    relative_error: float


def quantize(
    path: str | Path,
    calibration: Iterable[Batch],
    out: str | Path,
    *,
    reduce_range: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> QuantReport:
    """Write the float32 network in ``path`` to ``out`` with 8-bit weights and activations, whole or not at all.

    Static quantisation of onnxruntime in its ``QDQ`` form, as its CPU kernels want it: weights signed and symmetric
    with a scale per channel, activations unsigned with a scale and zero point per tensor, from the smallest and largest
    value that the calibration images give them. Operators without an 8-bit form stay in float32, inputs and outputs
    too. The file is checked by ONNX's checker and run by onnxruntime on all calibration images.

    Args:
        calibration: Batches of images as the network takes them: a tensor or array for a network of one input, a
            sequence in the order of the inputs, or a mapping by input name. All are held in memory.
        reduce_range: Weights in 7 bits, for CPUs without the VNNI instructions (their sums of products may saturate).
        threads: Of onnxruntime for the comparison; 0 is all cores.
        progress: Told after every batch of the calibration (stage ``calibrate``) and the comparison (``compare``).

    Raises: ModelError for a file that is missing, damaged, not in float32 or quantised already; DataError for batches
        that do not fit it or are not finite; ConfigError when ``out`` is ``path``; OutputError when it cannot be
        written.
    """
    path, out = Path(path), Path(out)
    if out.exists() and path.exists() and out.samefile(path):
        raise ConfigError(f"quantize: {out} is the float file itself; name another one for the result")
    if not out.parent.is_dir():  # before the work, not after it
        raise unwritable(out, FileNotFoundError(errno.ENOENT, f"no folder {out.parent}"))
    model = _float_network(path)
    session = open_session(path, threads=threads)
    feeds = [_fed(session, batch, number) for number, batch in enumerate(calibration)]
    if not feeds:
        raise DataError(f"quantize {path}: no calibration images; give at least one batch")
    with written(out) as temporary:
        _quantise(path, model, _Reader(feeds, progress), temporary, reduce_range=reduce_range)
        made = check_onnx(temporary)
        if not made.operators.keys() & _QUANTISED:
            raise ModelError(f"{path}: has no operator that onnxruntime can quantise")
        agreement = _compare(session, open_session(temporary, threads=threads), feeds, progress)
    return QuantReport(out, made.size_bytes, check_onnx(path).size_bytes, sum(map(_rows, feeds)), *agreement)


def _float_network(path: Path) -> onnx.ModelProto:
    """The network in ``path``, weights and all. Raises: ModelError."""
    described = check_onnx(path)
    if described.size_bytes > PROTOBUF_LIMIT:
        raise ModelError(f"{path}: has more than 2 GB, which cannot be quantised here")
    found = described.operators.keys() & _QUANTISED
    if found:
        raise ModelError(f"{path}: is quantised already ({', '.join(sorted(found))}); want the float32 file")
    model = onnx.load(str(path))
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise ModelError(f"{path}: has weights in float16; want the float32 file")
    return model


def _fed(session: Any, batch: Batch, number: int) -> Feeds:
    """A batch by input name. Raises: DataError."""
    inputs = session.get_inputs()
    names = [one.name for one in inputs]
    where = f"calibration batch {number}"
    if not isinstance(batch, Mapping):
        values = [batch] if isinstance(batch, Tensor | np.ndarray) else list(batch)
        if len(values) != len(names):
            raise DataError(f"{where}: has {len(values)} inputs; the network takes {', '.join(names)}")
        batch = dict(zip(names, values, strict=True))
    if batch.keys() != set(names):
        raise DataError(f"{where}: has {', '.join(map(str, batch))}; the network takes {', '.join(names)}")
    return {one.name: _array(batch[one.name], one, where) for one in inputs}


def _array(value: object, wanted: Any, where: str) -> Array:
    """A finite array of the type and shape that an input wants. Raises: DataError."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if not isinstance(array, np.ndarray):
        raise DataError(f"{where}: {wanted.name!r} is {type(value).__name__}; want a tensor or an array")
    axes = [axis if isinstance(axis, int) else None for axis in wanted.shape]
    fits = len(axes) == array.ndim and all(axis in (None, size) for axis, size in zip(axes, array.shape, strict=True))
    if not fits or array.size == 0:
        shape = ", ".join("any" if axis is None else str(axis) for axis in axes)
        raise DataError(f"{where}: {wanted.name!r} has shape {array.shape}; the network takes ({shape})")
    array = _typed(array, wanted, where)
    if not np.isfinite(array).all():
        raise DataError(f"{where}: {wanted.name!r} holds NaN or infinite values; mend or remove them")
    return array


def _typed(array: Array, wanted: Any, where: str) -> Array:
    """In the type of an input: to floating point from any numbers, to whole numbers only where none changes.

    Raises: DataError.
    """
    kind = np.dtype(TYPES.get(wanted.type, array.dtype))
    made: Array = np.ascontiguousarray(array, dtype=kind) if np.can_cast(array.dtype, kind, "same_kind") else array
    if made.dtype != kind or (kind.kind in "iu" and not np.array_equal(made, array)):
        raise DataError(f"{where}: {wanted.name!r} is {array.dtype}; the network takes {kind}; convert it first")
    return made


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the batches to onnxruntime, one after the other."""

    def __init__(self, feeds: Sequence[Feeds], progress: Progress | None) -> None:
        self._steps = _steps("calibrate", feeds, progress)

    def get_next(self) -> Feeds | None:
        """The next batch, None at the end."""
        return next(self._steps, None)


def _steps(stage: str, feeds: Sequence[Feeds], progress: Progress | None) -> Iterator[Feeds]:
    """The batches; each is reported when the next one is asked for."""
    timer = StepTimer(len(feeds))
    for step, batch in enumerate(feeds, 1):
        yield batch
        if progress is not None:
            progress.on_step(StepEvent(stage, 0, step, len(feeds), seconds_left=timer.seconds_left(step)))


def _quantise(path: Path, model: onnx.ModelProto, reader: _Reader, out: Path, *, reduce_range: bool) -> None:
    """Write the 8-bit network. Raises: ModelError when onnxruntime cannot."""
    with _scratch() as folder, quiet():
        if _wants_preparation(model):
            try:
                prepared = folder / "prepared.onnx"
                quant_pre_process(model, str(prepared))
                model = onnx.load(str(prepared))
            except OSError:
                raise
            except Exception as error:  # its parts raise whatever they raise
                raise ModelError(f"{path}: onnxruntime cannot prepare it: {first_line(error)}") from error
        result = folder / "quantised.onnx"
        try:
            quantize_static(
                model,
                str(result),
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except OSError:
            raise
        except Exception as error:  # likewise
            raise ModelError(f"{path}: onnxruntime cannot quantise it: {first_line(error)}") from error
        shutil.copyfile(result, out)


def _wants_preparation(model: onnx.ModelProto) -> bool:
    """Whether onnxruntime should fold and infer first: a BatchNorm is left, or a value without a known type.

    What curlfx exports needs neither.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
    made = {name for node in model.graph.node for name in node.output if name}
    return any(node.op_type == "BatchNormalization" for node in model.graph.node) or not made <= known


def _compare(
    session: Any, quantised: Any, feeds: Sequence[Feeds], progress: Progress | None
) -> tuple[float | None, float]:
    """Top-1 agreement of the first output, and mean relative error of all float outputs."""
    same, errors = [], []
    for batch in _steps("compare", feeds, progress):
        wanted, given = session.run(None, batch), quantised.run(None, batch)
        if np.ndim(wanted[0]) > 1 and wanted[0].shape[1] > 1:
            same.append((wanted[0].argmax(1) == given[0].argmax(1)).ravel())
        errors.append(_errors(wanted, given, _rows(batch)))
    found = np.concatenate(errors)
    if found.size == 0:
        raise ModelError("quantize: no output of the network is float with a row for every image; nothing to compare")
    return float(np.concatenate(same).mean()) if same else None, float(found.mean())


def _errors(wanted: Sequence[Array], given: Sequence[Array], rows: int) -> Array:
    """``‖given - wanted‖ / ‖wanted‖`` of every image, all float outputs that have a row for each together."""
    pairs = [
        (one.reshape(rows, -1).astype(np.float64), other.reshape(rows, -1).astype(np.float64))
        for one, other in zip(wanted, given, strict=True)
        if np.issubdtype(one.dtype, np.floating) and one.ndim and len(one) == rows
    ]
    if not pairs:
        return np.zeros(0)
    ones, others = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
    scale = np.linalg.norm(ones, axis=1)
    gaps: Array = np.linalg.norm(others - ones, axis=1) / np.where(scale > 0, scale, 1)
    return gaps


def _rows(batch: Feeds) -> int:
    """Images of a batch."""
    first = next(iter(batch.values()))
    return len(first) if first.ndim else 1


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="curlfx-") as folder:
        yield Path(folder)
