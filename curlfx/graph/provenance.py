"""What only the model's own modules know of a node: how it behaves in training mode."""

from collections.abc import Iterator
from types import CodeType, FunctionType

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.nn.modules.batchnorm import _BatchNorm

from curlfx.graph.modes import argument_of, mode_of

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_BATCH_NORM = torch.ops.aten.batch_norm.default
_RUNNING_MEAN = 3


def modules_in_eval(model: nn.Module) -> frozenset[str]:
    """Names of the modules that stay in eval mode when the model is set to train: frozen on purpose."""
    model.train()
    return frozenset(name for name, module in model.named_modules(remove_duplicate=False) if not module.training)


def annotate(graph: Graph, model: nn.Module, frozen: frozenset[str]) -> None:
    """Write into ``node.meta`` what `curlfx.graph.modes.set_mode` needs, and let cuDNN normalise where it is on."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for node in graph.find_nodes(op="call_function", target=_ATTENTION):
        module = _module_of(node, modules)[1]
        if isinstance(module, nn.MultiheadAttention) and module.dropout > 0:
            node.meta["train_dropout"] = module.dropout
    for node in graph.nodes:
        mode = mode_of(node)
        if mode is None:
            continue
        name, module = _module_of(node, modules)
        if mode or name in frozen or not (module is None or _reads_mode(module)):
            node.meta["fixed_mode"] = True
        elif node.target is _BATCH_NORM:
            _annotate_counter(node, module)
        _allow_cudnn(node)


def _annotate_counter(node: Node, module: nn.Module | None) -> None:
    statistics = argument_of(node, _RUNNING_MEAN)
    if not isinstance(module, _BatchNorm) or not isinstance(statistics, Node) or module.num_batches_tracked is None:
        return
    node.meta["counter"] = str(statistics.target).removesuffix("running_mean") + "num_batches_tracked"
    if module.momentum is None:
        node.meta["cumulative"] = True


def _allow_cudnn(node: Node) -> None:
    """Export records ``cudnn_enabled=False`` whatever the setting, which would slow training on a GPU."""
    last = node.target._schema.arguments[-1]  # type: ignore[union-attr]
    if last.name == "cudnn_enabled" and len(node.args) == len(node.target._schema.arguments):  # type: ignore[union-attr]
        node.update_arg(len(node.args) - 1, True)


def _module_of(node: Node, modules: dict[str, nn.Module]) -> tuple[str, nn.Module | None]:
    """The innermost module whose ``forward`` made a node, with its name."""
    name = module_name(node)
    return name, modules.get(name)


def module_name(node: Node) -> str:
    """Name of the innermost module whose ``forward`` made a node; "" for the model itself or where it is not known."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0]).split("@")[0]  # "relu@1" is the second call of "relu"


def _reads_mode(module: nn.Module) -> bool:
    """Whether any method of a module's class looks at ``self.training``."""
    return any("training" in names for names in _names_read(type(module)))


def _names_read(kind: type) -> Iterator[tuple[str, ...]]:
    for base in kind.__mro__:
        if base is nn.Module:
            return
        for member in vars(base).values():
            if isinstance(member, FunctionType):
                yield from _names_in(member.__code__)


def _names_in(code: CodeType) -> Iterator[tuple[str, ...]]:
    yield code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
