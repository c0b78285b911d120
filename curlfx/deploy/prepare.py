"""A network made ready for inference."""

from __future__ import annotations

from curlfx.graph import TracedModel
from curlfx.passes.fold_batch_norm import FoldBatchNorm
from curlfx.passes.functionalise import Functionalise
from curlfx.passes.pipeline import run
from curlfx.passes.scrub_denormals import ScrubDenormals
from curlfx.passes.write_out_adaptive_pooling import WriteOutAdaptivePooling
from curlfx.passes.write_out_attention import WriteOutAttention


def prepare(traced: TracedModel) -> TracedModel:
    """The same network in eval mode, in the form that exports best.

    BatchNorm is folded, denormal weights are zero, in-place activations replaced (which halves the time of the export),
    and what has no ONNX counterpart is written in operators that have one. Tensors that do not change are the input's
    own: read the result, do not train it. The input is left in eval mode.
    """
    traced.module.eval()
    return run(traced, _PASSES, own_weights=False)[0]


_PASSES = (FoldBatchNorm(), ScrubDenormals(), Functionalise(), WriteOutAttention(), WriteOutAdaptivePooling())
