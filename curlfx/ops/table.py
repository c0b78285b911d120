"""What is supported: one literal table from op to label rule. Users extend it by passing a mapping of the same form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from curlfx.ops import contraction, convolution, joining, movement, normalisation, pointwise, reduction, spatial
from curlfx.ops.call import Emission, OpCall

Rule = Callable[[OpCall], Emission]

RULES: Mapping[str, Rule] = {
    # contractions
    "linear": contraction.linear,
    "matmul": contraction.matmul,
    "mm": contraction.matmul,
    "bmm": contraction.matmul,
    "addmm": contraction.addmm,
    "baddbmm": contraction.addmm,
    "einsum": contraction.einsum,
    "scaled_dot_product_attention": contraction.attention,
    "embedding": contraction.embedding,
    # convolutions
    "conv1d": convolution.convolution,
    "conv2d": convolution.convolution,
    "conv3d": convolution.convolution,
    "conv_transpose1d": convolution.transposed,
    "conv_transpose2d": convolution.transposed,
    "conv_transpose3d": convolution.transposed,
    # normalisations
    "batch_norm": normalisation.batch_norm,
    "instance_norm": normalisation.instance_norm,
    "group_norm": normalisation.group_norm,
    "layer_norm": normalisation.layer_norm,
    "rms_norm": normalisation.layer_norm,
    # data movement that keeps row-major order
    "view": movement.reshaped,
    "_unsafe_view": movement.reshaped,
    "reshape": movement.reshaped,
    "flatten": movement.reshaped,
    "unflatten": movement.reshaped,
    "ravel": movement.reshaped,
    "squeeze": movement.reshaped,
    "unsqueeze": movement.reshaped,
    "view_as": movement.reshaped_as,
    "reshape_as": movement.reshaped_as,
    "expand": movement.mirrored,
    "broadcast_to": movement.mirrored,
    "tile": movement.mirrored,
    "repeat": movement.mirrored,
    "repeat_interleave": movement.mirrored,
    "flip": movement.mirrored,
    "fliplr": movement.mirrored,
    "flipud": movement.mirrored,
    # data movement that changes it
    "permute": movement.permuted,
    "transpose": movement.permuted,
    "swapaxes": movement.permuted,
    "swapdims": movement.permuted,
    "movedim": movement.permuted,
    "moveaxis": movement.permuted,
    "t": movement.permuted,
    "numpy_T": movement.permuted,
    "mT": movement.permuted,
    "adjoint": movement.permuted,
    "slice": movement.sliced,
    "narrow": movement.sliced,
    "select": movement.selected,
    "split": movement.parted,
    "split_with_sizes": movement.parted,
    "chunk": movement.parted,
    "unsafe_split": movement.parted,
    "unsafe_split_with_sizes": movement.parted,
    "unsafe_chunk": movement.parted,
    "tensor_split": movement.parted,
    "unbind": movement.parted,
    "index": movement.indexed,
    "index_select": movement.indexed,
    "roll": movement.rolled,
    "unfold": movement.windows,
    "cat": joining.cat,
    "concat": joining.cat,
    "concatenate": joining.cat,
    "hstack": joining.hstack,
    "stack": joining.stack,
    "pad": joining.pad,
    "constant_pad_nd": joining.pad,
    # element-wise beyond the ops that carry torch.Tag.pointwise
    "copy": pointwise.pointwise,
    "absolute": pointwise.pointwise,
    "arctan2": pointwise.pointwise,
    "divide": pointwise.pointwise,
    "greater": pointwise.pointwise,
    "greater_equal": pointwise.pointwise,
    "less": pointwise.pointwise,
    "less_equal": pointwise.pointwise,
    "log_sigmoid": pointwise.pointwise,
    "masked_fill": pointwise.pointwise,
    "multiply": pointwise.pointwise,
    "negative": pointwise.pointwise,
    "not_equal": pointwise.pointwise,
    "relu6": pointwise.pointwise,
    "rsub": pointwise.pointwise,
    "special_expit": pointwise.pointwise,
    "subtract": pointwise.pointwise,
    "true_divide": pointwise.pointwise,
    "where.Scalar": pointwise.pointwise,
    "where.ScalarOther": pointwise.pointwise,
    "where.ScalarSelf": pointwise.pointwise,
    "expand_as": pointwise.shaped_like,
    "prelu": pointwise.prelu,
    "glu": pointwise.glu,
    "hardswish": pointwise.like_first,
    "mish": pointwise.like_first,
    "dropout": pointwise.like_first,
    "alpha_dropout": pointwise.like_first,
    "feature_dropout": pointwise.like_first,
    "feature_alpha_dropout": pointwise.like_first,
    "alias": pointwise.like_first,
    "lift_fresh": pointwise.like_first,
    "lift_fresh_copy": pointwise.like_first,
    "detach": pointwise.like_first,
    "contiguous": pointwise.like_first,
    "to": pointwise.like_first,
    "_to_copy": pointwise.like_first,
    "type_as": pointwise.like_first,
    "fill": pointwise.like_first,
    "zero": pointwise.like_first,
    "zeros_like": pointwise.like_first,
    "ones_like": pointwise.like_first,
    "full_like": pointwise.like_first,
    "empty_like": pointwise.like_first,
    "new_zeros": joining.filled,
    "new_ones": joining.filled,
    "new_full": joining.filled,
    "new_empty": joining.filled,
    "zeros": joining.filled,
    "ones": joining.filled,
    "full": joining.filled,
    "empty": joining.filled,
    "arange": pointwise.unlabelled,
    "scalar_tensor": pointwise.unlabelled,
    # reductions
    "sum": reduction.summed,
    "linalg_vector_norm": reduction.norm,
    "linalg_norm": reduction.norm,
    "mean": reduction.statistic,
    "amax": reduction.statistic,
    "amin": reduction.statistic,
    "var": reduction.statistic,
    "std": reduction.statistic,
    "prod": reduction.reduced,
    "logsumexp": reduction.reduced,
    "any": reduction.reduced,
    "all": reduction.reduced,
    "argmax": reduction.reduced,
    "argmin": reduction.reduced,
    "var_mean": reduction.statistics_pair,
    "std_mean": reduction.statistics_pair,
    "max.default": reduction.statistic,
    "min.default": reduction.statistic,
    "max.dim": reduction.extremum,
    "min.dim": reduction.extremum,
    "softmax": reduction.along_axis,
    "_softmax": reduction.along_axis,
    "log_softmax": reduction.along_axis,
    "cumsum": reduction.along_axis,
    "cumprod": reduction.along_axis,
    # spatial
    "max_pool1d": spatial.spatial,
    "max_pool2d": spatial.spatial,
    "max_pool3d": spatial.spatial,
    "avg_pool1d": spatial.spatial,
    "avg_pool2d": spatial.spatial,
    "avg_pool3d": spatial.spatial,
    "adaptive_avg_pool1d": spatial.spatial,
    "adaptive_avg_pool2d": spatial.spatial,
    "adaptive_avg_pool3d": spatial.spatial,
    "adaptive_max_pool1d": spatial.spatial_pair,
    "adaptive_max_pool2d": spatial.spatial_pair,
    "adaptive_max_pool3d": spatial.spatial_pair,
    "max_pool2d_with_indices": spatial.spatial_pair,
    "max_pool3d_with_indices": spatial.spatial_pair,
    "max_unpool2d": spatial.spatial_indexed,
    "max_unpool3d": spatial.spatial_indexed,
    "upsample_nearest1d": spatial.spatial,
    "upsample_nearest2d": spatial.spatial,
    "upsample_nearest3d": spatial.spatial,
    "_upsample_nearest_exact1d": spatial.spatial,
    "_upsample_nearest_exact2d": spatial.spatial,
    "_upsample_nearest_exact3d": spatial.spatial,
    "upsample_linear1d": spatial.spatial,
    "upsample_bilinear2d": spatial.spatial,
    "_upsample_bilinear2d_aa": spatial.spatial,
    "upsample_bicubic2d": spatial.spatial,
    "_upsample_bicubic2d_aa": spatial.spatial,
    "upsample_trilinear3d": spatial.spatial,
    "grid_sampler": spatial.sampled,
    "im2col": spatial.im2col,
    "col2im": spatial.col2im,
    "pixel_shuffle": spatial.pixel_shuffle,
    "pixel_unshuffle": spatial.pixel_unshuffle,
}
"""ATen op name (or ``name.overload``) to rule; an in-place twin ``name_`` follows the rule of ``name``."""


def rule_for(target: Any, extra: Mapping[Any, Rule] | None = None) -> Rule | None:
    """The label rule of an op, or None where there is none (the caller freezes what it touches).

    Args:
        target: An ``OpOverload`` as it stands in the graph.
        extra: The user's rules, by ``OpOverload`` or by name such as ``"mylib::op"``; they come first.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return None
    qualified = target._schema.name
    if extra:
        for key in (target, target.overloadpacket, qualified):
            if key in extra:
                return extra[key]
    namespace, _, name = qualified.partition("::")
    if namespace != "aten":
        return None
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    for key in (f"{plain}.{target._overloadname}", plain):
        if key in RULES:
            return RULES[key]
    twin = getattr(getattr(torch.ops.aten, plain, None), target._overloadname, target)  # some twins lack the tag
    return pointwise.pointwise if torch.Tag.pointwise in (*target.tags, *twin.tags) else None
