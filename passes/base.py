"""What a pass is."""

import abc
from dataclasses import dataclass
from typing import ClassVar

from curlfx.graph import TracedModel


@dataclass(frozen=True)
class Pass(abc.ABC):
    """One rewrite of a traced network; its fields are its options.

    A subclass is a frozen dataclass that defines ``name`` and `rewrite`, and `requires` and `ensures` where there is
    something to check. Calling a pass runs it alone through `curlfx.passes.pipeline.run`.

    Attributes:
        name: Command-line spelling.
    """

    name: ClassVar[str]

    def requires(self, traced: TracedModel) -> None:  # noqa: B027 - nothing to require is the common case
        """Refuse a network or options that the pass does not take, before anything is touched.

        Raises: UsageError, or a subclass, for the caller's mistake.
        """

    @abc.abstractmethod
    def rewrite(self, traced: TracedModel) -> bool:
        """Change the graph and the module tree of a clone; returns whether anything changed.

        The tensors are shared with the input: replace them (`TracedModel.set_parameter`), never write into them. Nodes
        that end up unread are swept by the pipeline, which also recompiles.
        """

    def ensures(self, before: TracedModel, after: TracedModel) -> None:  # noqa: B027 - the verifier has run already
        """Check what this pass promises of its result, shapes propagated.

        Raises: InvariantError for a bug in the pass.
        """

    def __call__(self, traced: TracedModel) -> TracedModel:
        """The network after this pass; the input stays as it is and shares no weights with the result."""
        from curlfx.passes.pipeline import run

        return run(traced, [self])[0]
