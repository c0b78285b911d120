"""Detours that PyTorch's exporter takes in every network, whether it was slimmed or not, cut short."""

from __future__ import annotations

from typing import Any

from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

_LAST = 2**63 - 1
_FIRST = -_LAST
_HEAD_AXES = 4  # batch, heads, tokens, channels


def shorten(model: ir.Model) -> None:
    """Replace them in place; constants that nobody reads afterwards go."""
    rules = [
        RewriteRule(_transposed_keys, _keys_transposed, _have_heads),
        RewriteRule(_moved_axis, _axes_moved, _is_the_same_axis),
    ]
    if RewriteRuleSet(rules).apply_to_model(model):
        RemoveUnusedNodesPass()(model)


def _transposed_keys(op: Any, keys: Any) -> Any:
    """Keys ``(batch, heads, tokens, channels)`` that are flattened to 3 axes, transposed and spread out again.

    The exporter transposes the keys of an attention so, and computes both shapes at run time: 8 nodes and two copies
    for one ``Transpose``, which onnxruntime then makes part of the product.
    Source: onnxscript, function_libs/torch_lib/ops/nn.py, ``_aten_scaled_dot_product_attention_no_mask_onnx``.
    """
    shape = op.Shape(keys, start=0, _allow_other_attributes=False)  # with an end it is another shape
    channels = op.Slice(shape, [-1], [_LAST])
    tokens = op.Slice(shape, [-2], [-1])
    before = op.Slice(shape, [_FIRST], [-2])
    flat = op.Reshape(keys, op.Concat([-1], tokens, channels, axis=0))
    return op.Reshape(op.Transpose(flat, perm=[0, 2, 1]), op.Concat(before, channels, tokens, axis=0))


def _have_heads(context: Any, keys: ir.Value) -> bool:  # noqa: ARG001 - the rewriter gives it
    """Whether the keys are known to have four axes."""
    return keys.shape is not None and len(keys.shape) == _HEAD_AXES


def _keys_transposed(op: Any, keys: ir.Value) -> Any:
    return op.Transpose(keys, perm=[0, 1, 3, 2])


def _moved_axis(op: Any, x: Any, put: Any, taken: Any) -> Any:
    """An axis that is put in, moved and taken out again, as `torch.nn.MultiheadAttention` splits its projection."""
    return op.Squeeze(op.Transpose(op.Unsqueeze(x, put), _outputs=["moved"]), taken)


def _is_the_same_axis(context: Any, moved: ir.Value, put: ir.Value, taken: ir.Value, **_: Any) -> bool:  # noqa: ARG001
    """Whether the axis that is taken out is the one that was put in."""
    order, first, last = _order(moved), _axis(put), _axis(taken)
    if not order or first is None or last is None:
        return False
    return order[last % len(order)] == first % len(order)


def _axes_moved(op: Any, x: ir.Value, moved: ir.Value, put: ir.Value, **_: Any) -> Any:
    order = _order(moved)
    gone = (_axis(put) or 0) % len(order)
    return op.Transpose(x, perm=[one - (one > gone) for one in order if one != gone])


def _order(moved: ir.Value) -> tuple[int, ...]:
    """How a ``Transpose`` orders axes; empty where it does not say."""
    node = moved.producer()
    given = None if node is None else node.attributes.get("perm")
    return () if given is None else tuple(given.as_ints())


def _axis(value: ir.Value) -> int | None:
    """The one axis that a constant names."""
    held = value.const_value
    return int(held.numpy().item()) if held is not None and held.size == 1 else None
