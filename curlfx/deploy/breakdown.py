"""What a profile says: time by operator, and the convolutions that left onnxruntime's fast path on a CPU."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto

from curlfx.deploy.model_file import read_onnx
from curlfx.deploy.profile import NodeTime
from curlfx.deploy.session import PROVIDERS

ALIGNMENT = 4  # channels that onnxruntime moves at once between its layouts
BLOCKS = (8, 16)  # channels of one block: 16 with AVX-512 and on ARM64, else 8
SHOWN = 5  # names in a sentence
_NCHWC = "com.microsoft.nchwc"
_NCHWC_NAME = re.compile(r"_nchwc(_token_\d+)?$")  # onnxruntime calls its copy of a node so, after the node's output
_CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
_QUEUED = frozenset(PROVIDERS[name] for name in ("cuda", "tensorrt", "rocm", "directml"))
_REORDERS = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator.

    Attributes:
        op_type: As onnxruntime calls it; ``(NCHWc)`` behind those that work on blocks of channels.
        milliseconds: Of one run.
        share: Of the time of all nodes, in [0, 1].
        nodes: How many.
    """

    op_type: str
    milliseconds: float
    share: float
    nodes: int


@dataclass(frozen=True)
class SlowConvolution:
    """A convolution that onnxruntime computes by copying its input into a matrix (im2col), not in blocks of channels.

    Attributes:
        name: Of the node, as in the file.
        weight: Name of its weights in the file, which is that of the parameter in files of `export_onnx`; None where
            the file has no node of this name.
        input_channels: Of the whole input.
        milliseconds: Of one run.
        reason: Why; None where it is not known.
    """

    name: str
    weight: str | None
    input_channels: int
    milliseconds: float
    reason: str | None

    def __str__(self) -> str:
        """Its parameter where the file says it, else its node; and the input channels."""
        known = self.weight is not None and self.weight.endswith(".weight")
        return f"{self.weight if known else self.name} ({self.input_channels})"


@dataclass(frozen=True)
class Breakdown:
    """A profile, summed up.

    Attributes:
        nodes: Every node of the optimised graph, in execution order.
        operators: The most expensive first.
        convolutions: How many there are.
        slow: Those that left the fast path of the CPU.
        reorders: How many ``ReorderInput`` and ``ReorderOutput`` nodes move data between the two layouts.
    """

    nodes: tuple[NodeTime, ...]
    operators: tuple[OperatorTime, ...]
    convolutions: int
    slow: tuple[SlowConvolution, ...]
    reorders: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """JSON values; keys as the attributes."""
        return asdict(self)

    def sentences(self, name: str) -> tuple[str, ...]:
        """What is to be known of the file ``name``: why convolutions are slow, by reason, and how times are meant."""

        def reason(one: SlowConvolution) -> str:
            return one.reason or "reason unknown; perhaps this processor has no such path"

        by_reason = groupby(sorted(self.slow, key=reason), key=reason)
        slow = [self._sentence(name, why, list(convolutions)) for why, convolutions in by_reason]
        queued = sorted({node.provider for node in self.nodes} & _QUEUED)
        started = [f"{name}: the profile says how long nodes take to start on {where}, not to run" for where in queued]
        return (*slow, *started)

    def _sentence(self, name: str, reason: str, slow: Sequence[SlowConvolution]) -> str:
        whole = sum(one.milliseconds for one in self.operators)
        share = sum(one.milliseconds for one in slow) / whole if whole else 0.0
        names = [str(one) for one in slow[:SHOWN]]
        more = f" and {len(slow) - SHOWN} more" if len(slow) > SHOWN else ""
        count = "1 convolution" if len(slow) == 1 else f"{len(slow)} convolutions"
        return f"{name}: {count} left the fast path ({reason}), {share:.0%} of the time: {', '.join(names)}{more}"


def break_down(path: Path, nodes: Sequence[NodeTime]) -> Breakdown:
    """Sum up the profile ``nodes`` of the file ``path``. Raises: ModelError when it cannot be read."""
    model = read_onnx(path)
    own = {node.name: node for node in model.graph.node if node.name}
    blocked = [_is_blocked(node, own) for node in nodes]
    convolutions = [(node, fast) for node, fast in zip(nodes, blocked, strict=True) if node.op_type in _CONVOLUTIONS]
    return Breakdown(
        nodes=tuple(nodes),
        operators=_by_operator(nodes, blocked),
        convolutions=len(convolutions),
        slow=tuple(_slow(node, own, model) for node, fast in convolutions if not fast and _on_cpu(node)),
        reorders={kind: sum(node.op_type == kind for node in nodes) for kind in _REORDERS},
    )


def _by_operator(nodes: Sequence[NodeTime], blocked: Sequence[bool]) -> tuple[OperatorTime, ...]:
    names = [f"{node.op_type} (NCHWc)" if fast else node.op_type for node, fast in zip(nodes, blocked, strict=True)]
    counts, times = Counter(names), dict.fromkeys(names, 0.0)
    for name, node in zip(names, nodes, strict=True):
        times[name] += node.milliseconds
    whole = sum(times.values())
    return tuple(
        OperatorTime(name, time, time / whole if whole else 0.0, counts[name])
        for name, time in sorted(times.items(), key=lambda item: -item[1])
    )


def _is_blocked(node: NodeTime, own: Mapping[str, NodeProto]) -> bool:
    """Whether onnxruntime runs it on blocks of channels. A profile leaves the domain out, but nodes of that domain are
    new ones, with a name of their own, unless the file was optimised before.
    """
    if node.name in own:
        return own[node.name].domain == _NCHWC and node.op_type not in _REORDERS
    return _NCHWC_NAME.search(node.name) is not None


def _on_cpu(node: NodeTime) -> bool:
    return node.provider == PROVIDERS["cpu"]


def _slow(node: NodeTime, own: Mapping[str, NodeProto], model: ModelProto) -> SlowConvolution:
    shapes, declared = node.input_shapes, own.get(node.name)
    weight = declared.input[1] if declared is not None else None
    channels = shapes[0][1] if shapes and len(shapes[0]) > 1 else 0
    return SlowConvolution(node.name, weight, channels, node.milliseconds, next(_reasons(shapes, weight, model), None))


def _reasons(shapes: Sequence[Sequence[int]], weight: str | None, model: ModelProto) -> Iterator[str]:
    """Why a convolution is refused by the fast path, the surest first.

    Source: onnxruntime/core/optimizer/nchwc_transformer.cc, and one-layer files of every kind on onnxruntime 1.31.
    """
    if weight in _overridable(model):
        yield "weights are an input of the graph; export them as constants"
    if len(shapes) > 1:
        yield from _shape_reasons(shapes[0], shapes[1])
    if weight is not None and weight not in {tensor.name for tensor in model.graph.initializer}:
        yield "weights are computed in the graph"


def _shape_reasons(image: Sequence[int], weight: Sequence[int]) -> Iterator[str]:
    """Shapes: image ``(N, C, …)``, weight ``(K, C / groups, …)``."""
    if len(image) != 4 or len(weight) != 4:
        yield "not two-dimensional"
        return
    groups, kept = image[1] // weight[1], weight[0]
    if groups == 1 and image[1] % ALIGNMENT and image[1] > min(BLOCKS):
        yield f"input channels no multiple of {ALIGNMENT}"
    elif groups > 1 and kept == image[1] == groups:
        if kept % ALIGNMENT:
            yield f"depthwise channels no multiple of {ALIGNMENT}"
    elif groups > 1 and (weight[1] % max(BLOCKS) or kept // groups % max(BLOCKS)):
        yield f"channels of a group no multiple of the block of {' or '.join(map(str, BLOCKS))}"


def _overridable(model: ModelProto) -> set[str]:
    """Inputs, which the caller may set; up to IR version 3 every constant had to be listed among them as well."""
    inputs = {value.name for value in model.graph.input}
    return inputs if model.ir_version >= 4 else inputs - {tensor.name for tensor in model.graph.initializer}
