"""What is supported: one literal table from op to relevance rule. Users extend it by a mapping of the same form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from curlfx.lrp import contraction, movement, pointwise, pooling
from curlfx.lrp.call import Rule
from curlfx.ops.table import given

RULES: Mapping[str, Rule] = {
    # sums of products
    "conv1d": contraction.layer,
    "conv2d": contraction.layer,
    "conv3d": contraction.layer,
    "conv_transpose1d": contraction.layer,
    "conv_transpose2d": contraction.layer,
    "conv_transpose3d": contraction.layer,
    "linear": contraction.layer,
    "addmm": contraction.addmm,
    "baddbmm": contraction.addmm,
    "matmul": contraction.matmul,
    "mm": contraction.matmul,
    "bmm": contraction.matmul,
    "mv": contraction.matmul,
    "dot": contraction.matmul,
    "einsum": contraction.einsum,
    "scaled_dot_product_attention": contraction.attention,
    # normalisations are diagonal
    "batch_norm": pointwise.unchanged,
    "instance_norm": pointwise.unchanged,
    "group_norm": pointwise.unchanged,
    "layer_norm": pointwise.unchanged,
    "rms_norm": pointwise.unchanged,
    # element-wise ops with two operands; those with one are known by their tag
    "add": pointwise.added,
    "sub": pointwise.added,
    "subtract": pointwise.added,
    "rsub": pointwise.added,
    "mul": pointwise.multiplied,
    "multiply": pointwise.multiplied,
    "div": pointwise.divided,
    "divide": pointwise.divided,
    "true_divide": pointwise.divided,
    "glu": pointwise.halved,
    "where": movement.filled,
    "masked_fill": movement.filled,
    "maximum": movement.routed,
    "minimum": movement.routed,
    # element-wise ops without the tag
    "prelu": pointwise.unchanged,
    "hardswish": pointwise.unchanged,
    "mish": pointwise.unchanged,
    "relu6": pointwise.unchanged,
    "log_sigmoid": pointwise.unchanged,
    "dropout": pointwise.unchanged,
    "alpha_dropout": pointwise.unchanged,
    "feature_dropout": pointwise.unchanged,
    "feature_alpha_dropout": pointwise.unchanged,
    "alias": pointwise.unchanged,
    "detach": pointwise.unchanged,
    "lift_fresh_copy": pointwise.unchanged,
    "clone": pointwise.unchanged,
    "contiguous": pointwise.unchanged,
    "to": pointwise.unchanged,
    "_to_copy": pointwise.unchanged,
    "type_as": pointwise.unchanged,
    # data movement
    "view": movement.routed,
    "_unsafe_view": movement.routed,
    "reshape": movement.routed,
    "flatten": movement.routed,
    "unflatten": movement.routed,
    "ravel": movement.routed,
    "squeeze": movement.routed,
    "unsqueeze": movement.routed,
    "view_as": movement.routed,
    "reshape_as": movement.routed,
    "expand": movement.routed,
    "expand_as": movement.routed,
    "broadcast_to": movement.routed,
    "broadcast_tensors": movement.routed,
    "tile": movement.routed,
    "repeat": movement.routed,
    "repeat_interleave": movement.routed,
    "flip": movement.routed,
    "permute": movement.routed,
    "transpose": movement.routed,
    "swapaxes": movement.routed,
    "swapdims": movement.routed,
    "movedim": movement.routed,
    "moveaxis": movement.routed,
    "t": movement.routed,
    "numpy_T": movement.routed,
    "mT": movement.routed,
    "slice": movement.routed,
    "narrow": movement.routed,
    "select": movement.routed,
    "split": movement.routed,
    "split_with_sizes": movement.routed,
    "chunk": movement.routed,
    "unsafe_split": movement.routed,
    "unsafe_split_with_sizes": movement.routed,
    "unsafe_chunk": movement.routed,
    "tensor_split": movement.routed,
    "unbind": movement.routed,
    "index": movement.routed,
    "index_select": movement.routed,
    "gather": movement.routed,
    "roll": movement.routed,
    "unfold": movement.routed,
    "im2col": movement.filled,
    "diagonal": movement.routed,
    "tril": movement.filled,
    "triu": movement.filled,
    "cat": movement.routed,
    "concat": movement.routed,
    "concatenate": movement.routed,
    "hstack": movement.routed,
    "vstack": movement.routed,
    "stack": movement.routed,
    "pad": movement.filled,
    "constant_pad_nd": movement.filled,
    "pixel_shuffle": movement.routed,
    "pixel_unshuffle": movement.routed,
    "channel_shuffle": movement.routed,
    # the winner takes all
    "max_pool1d": movement.routed,
    "max_pool2d": movement.routed,
    "max_pool3d": movement.routed,
    "max_pool2d_with_indices": movement.routed,
    "max_pool3d_with_indices": movement.routed,
    "adaptive_max_pool1d": movement.routed,
    "adaptive_max_pool2d": movement.routed,
    "adaptive_max_pool3d": movement.routed,
    "amax": movement.routed,
    "amin": movement.routed,
    "max": movement.routed,
    "min": movement.routed,
    "topk": movement.routed,
    "upsample_nearest1d": movement.routed,
    "upsample_nearest2d": movement.routed,
    "upsample_nearest3d": movement.routed,
    "_upsample_nearest_exact1d": movement.routed,
    "_upsample_nearest_exact2d": movement.routed,
    "_upsample_nearest_exact3d": movement.routed,
    # sums over positions
    "avg_pool1d": pooling.averaged,
    "avg_pool2d": pooling.averaged,
    "avg_pool3d": pooling.averaged,
    "adaptive_avg_pool1d": pooling.averaged,
    "adaptive_avg_pool2d": pooling.averaged,
    "adaptive_avg_pool3d": pooling.averaged,
    "mean": pooling.averaged,
    "sum": pooling.averaged,
    "cumsum": pooling.averaged,
    "var_mean": pooling.moments,
    "std_mean": pooling.moments,
    "col2im": pooling.averaged,
    "upsample_linear1d": pooling.averaged,
    "upsample_bilinear2d": pooling.averaged,
    "_upsample_bilinear2d_aa": pooling.averaged,
    "upsample_bicubic2d": pooling.averaged,
    "_upsample_bicubic2d_aa": pooling.averaged,
    "upsample_trilinear3d": pooling.averaged,
}
"""ATen op name to rule; an in-place twin ``name_`` follows the rule of ``name``."""


def rule_for(target: Any, tensors: int, extra: Mapping[Any, Rule]) -> Rule | None:
    """The relevance rule of an op, or None where there is none.

    Args:
        target: An ``OpOverload`` as it stands in the graph.
        tensors: How many of its arguments depend on the images.
        extra: The user's rules, by ``OpOverload`` or by name such as ``"aten::softmax"``; they come first.
    """
    own = given(target, extra)
    if own is not None or not isinstance(target, torch._ops.OpOverload):
        return own
    namespace, _, name = target._schema.name.partition("::")
    if namespace != "aten":
        return None
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if plain in RULES:
        return RULES[plain]
    return pointwise.unchanged if torch.Tag.pointwise in target.tags and tensors == 1 else None
