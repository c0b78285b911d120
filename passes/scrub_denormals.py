"""Remove denormal weights: a processor may take ten times as long for each."""

from dataclasses import dataclass
from typing import ClassVar

from curlfx.errors import UsageError
from curlfx.graph import TracedModel
from curlfx.passes.base import Pass


@dataclass(frozen=True)
class ScrubDenormals(Pass):
    """Set every weight and statistic that is closer to zero than ``threshold`` to zero.

    Attributes:
        threshold: Magnitude below which a value counts as zero, in (0, 1e-10].
    """

    name: ClassVar[str] = "scrub-denormals"
    threshold: float = 1e-30

    def requires(self, traced: TracedModel) -> None:  # noqa: ARG002 - any network will do
        """Refuse a threshold that would touch ordinary weights.

        Raises: UsageError.
        """
        if not 0 < self.threshold <= 1e-10:
            raise UsageError(f"{self.name}: threshold = {self.threshold}: want a number in (0, 1e-10]")

    def rewrite(self, traced: TracedModel) -> bool:
        """Replace the tensors that hold such values; the others stay shared with the input."""
        changed = False
        for name, tensor in traced.tensors().items():
            if tensor.is_floating_point():
                tiny = (tensor.abs() < self.threshold) & (tensor != 0)
                if bool(tiny.any()):
                    traced.set_parameter(name, tensor.detach().masked_fill(tiny, 0))
                    changed = True
        return changed
