"""What must hold of every traced network between two passes."""

from torch.fx import Node

from curlfx.errors import InvariantError
from curlfx.graph.printer import show
from curlfx.graph.shapes import propagate
from curlfx.graph.traced import TracedModel


def check(traced: TracedModel) -> None:
    """Verify a graph: well formed, every name resolves, shapes fit together, nothing dead. Shapes are left propagated.

    Raises: InvariantError with the fault and the graph.
    """
    try:
        _lint(traced)
        propagate(traced)
        for node in traced.graph.nodes:
            if is_dead(node):
                raise InvariantError(f"node '{node.name}' is dead: nothing reads it and it changes nothing")
    except InvariantError as fault:
        raise InvariantError(f"{fault}; a bug of curlfx, please report it with this graph:\n{show(traced)}") from fault


def is_dead(node: Node) -> bool:
    """Whether a node can be taken away unnoticed: no users, no effect. Random ops count as dead when unread."""
    return not node.users and not node.is_impure(impure_random=False)


def _lint(traced: TracedModel) -> None:
    try:
        traced.graph.lint()
    except Exception as cause:
        raise InvariantError(f"the graph is malformed: {cause}") from cause
