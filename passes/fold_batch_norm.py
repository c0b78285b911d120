"""Merge batch normalisation into the convolution or linear layer before it."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from curlfx.errors import InvariantError, UsageError
from curlfx.graph import TracedModel, shape_of
from curlfx.graph.modes import argument_of, mode_of, set_argument
from curlfx.passes.base import Pass

_ATEN = torch.ops.aten
_BATCH_NORM = _ATEN.batch_norm.default
_CONVOLUTIONS = frozenset(
    {
        _ATEN.conv1d.default,
        _ATEN.conv1d.padding,
        _ATEN.conv2d.default,
        _ATEN.conv2d.padding,
        _ATEN.conv3d.default,
        _ATEN.conv3d.padding,
    }
)
_TRANSPOSED = frozenset({_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input})
_GROUPS_OF_TRANSPOSED = 6
_LINEAR = _ATEN.linear.default


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch normalisation in inference mode into the layer whose output only it reads, computed in float64.

    Folded are convolutions (1-D to 3-D, grouped, transposed) and linear layers with weights of their own; the
    parameters and statistics of the normalisation leave the state dict, and a layer without a bias gets one.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def requires(self, traced: TracedModel) -> None:
        """Refuse a network in training mode, whose normalisation depends on the batch.

        Raises: UsageError.
        """
        if traced.module.training:
            raise UsageError(f"{self.name}: the network is in training mode; call module.eval() first")

    def rewrite(self, traced: TracedModel) -> bool:
        """Fold every normalisation that can be folded."""
        readers = count_readers(traced)
        changed = False
        for norm in traced.graph.find_nodes(op="call_function", target=_BATCH_NORM):
            layer = _layer_of(traced, norm, readers)
            if layer is not None:
                _fold(traced, layer, norm, readers)
                changed = True
        return changed

    def ensures(self, before: TracedModel, after: TracedModel) -> None:  # noqa: ARG002 - only the result matters
        """Check that no normalisation that could be folded is left.

        Raises: InvariantError.
        """
        readers = count_readers(after)
        for norm in after.graph.find_nodes(op="call_function", target=_BATCH_NORM):
            if _layer_of(after, norm, readers) is not None:
                raise InvariantError(f"node '{norm.name}' is left and could be folded")


def count_readers(traced: TracedModel) -> Counter[int]:
    """How many nodes read each tensor, under whatever name."""
    readers: Counter[int] = Counter()
    for node in traced.graph.find_nodes(op="get_attr"):
        readers[id(traced.parameter(str(node.target)))] += len(node.users)
    return readers


def _layer_of(traced: TracedModel, norm: Node, readers: Counter[int]) -> Node | None:
    """The layer that a normalisation can be folded into, or None."""
    layer = norm.args[0]
    if mode_of(norm) or not isinstance(layer, Node) or len(layer.users) != 1 or not _is_foldable(layer):
        return None
    for operand in (layer.args[1], argument_of(layer, 2)):
        tensor = _tensor(traced, operand)
        if operand is not None and (tensor is None or readers[id(tensor)] != 1):
            return None
    statistics = [argument_of(norm, position) for position in range(1, 5)]
    return layer if all(one is None or _tensor(traced, one) is not None for one in statistics) else None


def _is_foldable(layer: Node) -> bool:
    """Whether a node is a layer whose output channels are those that a normalisation after it scales: axis 1."""
    if layer.target is _LINEAR:
        return len(shape_of(layer)) == 2
    if layer.target not in _CONVOLUTIONS | _TRANSPOSED or not isinstance(layer.args[1], Node):
        return False
    return len(shape_of(layer)) == len(shape_of(layer.args[1]))  # an input without a batch has one axis less


def _tensor(traced: TracedModel, operand: object) -> Tensor | None:
    if not isinstance(operand, Node) or operand.op != "get_attr":
        return None
    return traced.parameter(str(operand.target))


def _fold(traced: TracedModel, layer: Node, norm: Node, readers: Counter[int]) -> None:
    """Put the affine map of a normalisation into the weight and bias of a layer, and take the normalisation out."""
    scale, shift = _affine(traced, norm)
    weight_node = layer.args[1]
    weight, bias = _tensor(traced, weight_node), _tensor(traced, argument_of(layer, 2))
    if weight is None or not isinstance(weight_node, Node):
        raise InvariantError(f"node '{layer.name}': its weight is no parameter")
    name = str(weight_node.target)
    traced.set_parameter(name, (weight.double() * _over(layer, weight, scale)).to(weight.dtype))
    if bias is not None:
        shift = shift + scale * bias.double()
        bias_name = str(argument_of(layer, 2).target)  # type: ignore[union-attr]
        traced.set_parameter(bias_name, shift.to(bias.dtype))
    else:
        bias_name = _free_name(traced, name)
        traced.add_parameter(bias_name, shift.to(weight.dtype), requires_grad=weight.requires_grad)
        set_argument(layer, 2, traced.node_of(bias_name))
    for changed in (name, bias_name):
        readers[id(traced.parameter(changed))] = 1
    norm.replace_all_uses_with(layer)
    statistics = [argument_of(norm, position) for position in range(1, 5)]
    traced.graph.erase_node(norm)
    _forget(traced, [str(one.target) for one in statistics if isinstance(one, Node)])


def _affine(traced: TracedModel, norm: Node) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel that a normalisation in inference mode amounts to; shape ``(C,)``, float64."""
    weight, bias, mean, variance = (_tensor(traced, argument_of(norm, position)) for position in range(1, 5))
    if mean is None or variance is None:
        raise InvariantError(f"node '{norm.name}': no running statistics")
    scale = (variance.double() + float(argument_of(norm, 7))).rsqrt()  # type: ignore[arg-type]
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def _over(layer: Node, weight: Tensor, scale: Tensor) -> Tensor:
    """The scale in a shape that multiplies the output channels of a weight.

    Shapes: scale ``(K,)``; weight ``(K, C/g, ...)``, or transposed ``(C, K/g, ...)`` with the groups along ``C``.
    """
    if layer.target not in _TRANSPOSED:
        return scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = int(argument_of(layer, _GROUPS_OF_TRANSPOSED))  # type: ignore[arg-type]
    rows = scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def _free_name(traced: TracedModel, weight: str) -> str:
    taken = {name for name, _ in traced.module.named_parameters(remove_duplicate=False)}
    taken |= {name for name, _ in traced.module.named_buffers(remove_duplicate=False)}
    name = weight.removesuffix("weight") + "bias"
    while name in taken:
        name += "_"
    return name


def _forget(traced: TracedModel, names: list[str]) -> None:
    """Drop the tensors of a normalisation, and its batch counter, unless a node still reads them."""
    read = {str(node.target) for node in traced.graph.find_nodes(op="get_attr") if node.users}
    counters = [name.removesuffix("running_mean") + "num_batches_tracked" for name in names if "running_mean" in name]
    held = dict(traced.module.named_buffers(remove_duplicate=False))
    for name in dict.fromkeys([*names, *(counter for counter in counters if counter in held)]):
        if name not in read and not (name in counters and any(other in read for other in names)):
            traced.remove_parameter(name)
