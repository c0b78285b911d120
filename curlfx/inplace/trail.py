"""Every tensor function the user's code calls, with its line, and where it first strays from the slim graph.

An exception is often raised behind the line that is to blame: ``x.view(b, -1, 64)`` succeeds with the wrong shape, and
the next layer fails.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from curlfx.graph import TracedModel, where
from curlfx.inplace import rehearsal
from curlfx.inplace.fault import Fault
from curlfx.inplace.locate import line_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One tensor that a function returned.

    Attributes:
        name: Of the function.
        shape: Of the tensor.
        lines: The user's lines that led to it, innermost first.
        module: The innermost module whose code it is.
    """

    name: str
    shape: Shape
    lines: tuple[str, ...]
    module: str


class Trail(TorchFunctionMode):
    """Notes the steps of a model while it is entered.

    Attributes:
        steps: In order.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._names = {id(module): name for name, module in model.named_modules()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and note the tensors that it returns."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self._note(getattr(func, "__name__", str(func)), tuple(value.shape), sys._getframe(1))
        return result

    def _note(self, name: str, shape: Shape, frame: FrameType | None) -> None:
        lines: list[str] = []
        module: str | None = None
        while frame is not None and frame.f_code.co_filename != rehearsal.__file__:
            line = line_of(frame.f_code.co_filename, frame.f_lineno)
            if line:
                lines.append(line)
            if module is None:
                module = self._names.get(id(frame.f_locals.get("self")))
            frame = frame.f_back
        self.steps.append(Step(name, shape, tuple(lines), module or ""))


def strays(before: Sequence[Step], after: Sequence[Step], dense: TracedModel, slim: TracedModel) -> Fault | None:
    """The first step of the narrowed module whose shape is none that its line has in the slim graph.

    Args:
        before: The trail of the model as it was.
        after: The trail of the narrowed one, maybe cut short by an exception.
        dense: The graph of the model as it was.
        slim: The graph that the narrowed model should follow.
    """
    known = _shapes_by_line(dense, slim)
    for old, new in zip(before, after, strict=False):
        if (old.name, old.lines) != (new.name, new.lines):
            return None  # the code takes another course
        wanted = {shape for line in new.lines for shape in known.get((line, old.shape), ())}
        if wanted and new.shape not in wanted:
            shapes = " or ".join(str(shape) for shape in sorted(wanted))
            name = new.name.strip("_")
            return Fault(f"{name} gives {new.shape} here, {shapes} in the slim graph", new.module, new.lines[0])
    return None


def _shapes_by_line(dense: TracedModel, slim: TracedModel) -> dict[tuple[str, Shape], set[Shape]]:
    """For every line and every shape that the dense graph has there: the shapes in the slim graph."""
    after = {node.name: node for node in slim.graph.nodes}
    found: dict[tuple[str, Shape], set[Shape]] = defaultdict(set)
    for node in dense.graph.nodes:
        old = node.meta.get("val")
        new = after[node.name].meta.get("val") if node.name in after else None
        if node.op == "call_function" and isinstance(old, Tensor) and isinstance(new, Tensor):
            found[where(node), tuple(old.shape)].add(tuple(new.shape))
    return found
