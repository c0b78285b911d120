"""What an export in eval mode loses, in sentences for the user."""

import dis
from collections import Counter
from collections.abc import Iterable

from torch import nn
from torch.fx import Graph
from torch.nn.modules.batchnorm import _NormBase

from curlfx.graph.traced import TracedModule

_DROP_PATH = ("stochasticdepth", "droppath", "dropblock")
_DROP_RATE = ("p", "drop_prob", "drop_rate")


def lost_in_eval(modules: Iterable[nn.Module], graph: Graph) -> tuple[str, ...]:
    """Notes on what the modules of a model do only in training and the traced network therefore does not do."""
    drops: Counter[str] = Counter()
    branches: Counter[str] = Counter()
    attentions = -sum("train_dropout" in node.meta for node in graph.nodes)
    for module in modules:
        kind = type(module)
        if any(word in kind.__name__.lower() for word in _DROP_PATH):
            drops[kind.__name__] += _rate(module) > 0
        elif isinstance(module, nn.MultiheadAttention):
            attentions += module.dropout > 0
        elif isinstance(module, _NormBase):
            continue  # its mode is an argument of the op, which set_mode flips
        elif not kind.__module__.startswith("torch.nn.modules") and _branches_on_mode(kind):
            branches[kind.__name__] += 1
    notes = [
        f"training drops whole branches at random in {n} {kind} modules; the traced network does not"
        for kind, n in drops.items()
        if n
    ]
    notes += [
        f"{kind}.forward takes another path in training ({n} modules); the eval path is traced"
        for kind, n in branches.items()
    ]
    if attentions > 0:
        notes.append(f"the dropout of {attentions} attention modules is left out of training")
    return tuple(notes)


def unused_parameters(module: TracedModule) -> tuple[str, ...]:
    """A note naming the modules whose parameters the graph does not read, such as auxiliary heads; or no note."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    targets = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    objects = {id(parameters[name]) for name in targets if name in parameters}
    read = {prefix for name, parameter in parameters.items() if id(parameter) in objects for prefix in _prefixes(name)}
    unread = dict.fromkeys(
        next(prefix for prefix in _prefixes(name) if prefix not in read)
        for name, parameter in parameters.items()
        if id(parameter) not in objects
    )
    return (f"not part of the graph, kept as they are: {', '.join(unread)}",) if unread else ()


def _rate(module: nn.Module) -> float:
    rates = (getattr(module, name, None) for name in _DROP_RATE)
    return max((float(rate) for rate in rates if isinstance(rate, int | float)), default=0.0)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _branches_on_mode(kind: type[nn.Module]) -> bool:
    """Whether ``forward`` jumps on ``self.training``: a read that is only passed on to an op is followed by no jump."""
    code = getattr(kind.forward, "__code__", None)
    if code is None:
        return False
    previous = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"TO_BOOL", "COPY", "UNARY_NOT", "CACHE"}:
            continue
        if previous == "training" and "JUMP" in instruction.opname:
            return True
        previous = instruction.argval if instruction.opname == "LOAD_ATTR" else ""
    return False
