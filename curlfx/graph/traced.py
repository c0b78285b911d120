"""The network as a graph that passes read and write, and that trains like the module it came from."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from curlfx.graph.modes import set_mode

_SLOTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""Where a module keeps its tensors and what is below it."""


class TracedModule(GraphModule):
    """A traced network as an ordinary `nn.Module`: trains, saves, copies and moves like the original.

    Parameters and buffers stand at their original dotted names, also those that the graph does not use, so the keys
    of ``state_dict()`` are the original's. ``train()`` and ``eval()`` flip the graph between the two modes.

    Attributes:
        graph: ATen dialect; every parameter, buffer and constant is a ``get_attr`` node with its dotted name as target.
    """

    def __init__(self, tree: nn.Module, graph: Graph, class_name: str = "TracedModule") -> None:
        super().__init__(nn.Module(), Graph(), class_name)
        _adopt(self, tree)
        self.training = False
        self.graph = graph

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode or back: batch statistics and dropout on or off."""
        super().train(mode)
        if set_mode(self.graph, mode):
            self.recompile()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast as every module does, and let devices and float types that are written in the graph follow."""
        before = _device(self), _float_type(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = _device(self), _float_type(self)
        moves = {old: new for old, new in zip(before, after, strict=True) if None not in (old, new) and old != new}
        if moves and _redirected(self.graph, moves):
            self.recompile()
        return self

    def become(self, other: "TracedModule") -> None:
        """Take over the tensors and the graph of another traced network; this object and its mode stay.

        ``other`` shares its tensors with this one from then on.
        """
        training = self.training
        for slots in _SLOTS:
            getattr(self, slots).clear()
        _adopt(self, other)
        self.graph = other.graph
        self.train(training)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TracedModule":
        result = copied(self, lambda tensor: copy.deepcopy(tensor, memo))
        memo[id(self)] = result
        return result

    def __copy__(self) -> "TracedModule":
        return copied(self, lambda tensor: tensor)


@dataclass(eq=False)
class TracedModel:
    """A traced network with what is known about it; passes get a `clone` and change that.

    Attributes:
        module: The network; its graph is `graph`.
        example_inputs: Positional inputs, batch 2 or more where it is dynamic; the shapes are for these.
        notes: What the export lost, one sentence each: stochastic depth, unused parameters, a fixed batch size.
        dynamic_batch: Whether the graph takes any batch size.
    """

    module: TracedModule
    example_inputs: tuple[Any, ...]
    notes: tuple[str, ...] = ()
    dynamic_batch: bool = True

    @property
    def graph(self) -> Graph:
        """The FX graph of the module."""
        return self.module.graph

    def clone(self) -> "TracedModel":
        """A new graph and module tree that hold the same parameter and buffer objects: nothing large is copied."""
        module = copied(self.module, lambda tensor: tensor)
        return TracedModel(module, self.example_inputs, self.notes, self.dynamic_batch)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the module and its example inputs, as `nn.Module.to`."""
        self.module.to(*args, **kwargs)
        self.example_inputs = pytree.tree_map_only(Tensor, lambda x: _moved(x, *args, **kwargs), self.example_inputs)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter, buffer and constant once, by its first name."""
        return dict([*self.module.named_parameters(), *self.module.named_buffers()])

    def parameter(self, name: str) -> Tensor:
        """The parameter, buffer or constant at a dotted name.

        Raises: KeyError when the module has none of that name.
        """
        owner, kind, key = _slot(self.module, name)
        return getattr(owner, kind)[key]  # type: ignore[no-any-return]

    def set_parameter(self, name: str, tensor: Tensor) -> None:
        """Replace the parameter, buffer or constant at a dotted name, and at every name that is tied to it.

        A parameter stays one, with its ``requires_grad``; the tensor that was there is left alone.
        Raises: KeyError when the module has none of that name.
        """
        self.set_parameters({name: tensor})

    def set_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace many at once, each as `set_parameter` does, in one walk over the module tree.

        Raises: KeyError when the module has none of some name; nothing is replaced then.
        """
        new: dict[int, Tensor] = {}
        for name, tensor in tensors.items():
            old = self.parameter(name)
            value = tensor.detach()
            new[id(old)] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
        for module in self.module.modules():
            for slots in (module._parameters, module._buffers):
                for key, held in slots.items():
                    if id(held) in new:
                        slots[key] = new[id(held)]  # type: ignore[assignment]

    def add_parameter(self, name: str, tensor: Tensor, *, requires_grad: bool = True) -> None:
        """Put a new parameter at a dotted name; modules on the way are made where they are missing."""
        owner_of(self.module, name).register_parameter(name.rpartition(".")[2], nn.Parameter(tensor, requires_grad))

    def add_buffer(self, name: str, tensor: Tensor, *, persistent: bool = False) -> None:
        """Put a new buffer at a dotted name, in the state dict only if ``persistent``."""
        owner_of(self.module, name).register_buffer(name.rpartition(".")[2], tensor, persistent=persistent)

    def remove_parameter(self, name: str) -> None:
        """Take away the parameter or buffer at a dotted name, once no node reads it any more.

        Raises: KeyError when the module has none of that name.
        """
        owner, _, key = _slot(self.module, name)
        delattr(owner, key)

    def node_of(self, name: str) -> Node:
        """The ``get_attr`` node of a parameter, buffer or constant; made at the head of the graph if there is none."""
        self.parameter(name)
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target == name:
                return node  # type: ignore[no-any-return]
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            return self.graph.create_node("get_attr", name)

    def recompile(self) -> None:
        """Make the module compute what the graph now says."""
        self.module.recompile()


def copied(module: TracedModule, tensor: Callable[[Tensor], Tensor]) -> TracedModule:
    """A new traced module; ``tensor`` says what becomes of each parameter and buffer (asked once per object)."""
    graph = Graph(tracer_cls=module.graph._tracer_cls)
    values: dict[Node, Node] = {}
    returned = graph.graph_copy(module.graph, values)
    last = graph.output(returned)
    last.meta = dict(module.graph.output_node().meta)
    graph.set_codegen(copy.copy(module.graph._codegen))
    result = TracedModule(tree(module, tensor), graph, type(module).__name__)
    result.training = module.training
    return result


def tree(module: nn.Module, tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    """Bare modules of the same names as a module's, holding its tensors as ``tensor`` gives them, ties kept."""
    modules: dict[int, nn.Module] = {}
    tensors: dict[int, Tensor] = {}

    def value(old: Tensor | None) -> Tensor | None:
        if old is None:
            return None
        if id(old) not in tensors:
            tensors[id(old)] = tensor(old)
        return tensors[id(old)]

    def visit(old: nn.Module) -> nn.Module:
        if id(old) not in modules:
            new = modules[id(old)] = nn.Module()
            new.training = old.training
            for name, parameter in old._parameters.items():
                new._parameters[name] = value(parameter)  # type: ignore[assignment]
            for name, buffer in old._buffers.items():
                new._buffers[name] = value(buffer)
            new._non_persistent_buffers_set.update(old._non_persistent_buffers_set)
            for name, child in old._modules.items():
                new._modules[name] = None if child is None else visit(child)
        return modules[id(old)]

    return visit(module)


def _device(module: nn.Module) -> torch.device | None:
    """The device of a module's tensors, if they share one."""
    devices = {tensor.device for tensors in (module.parameters(), module.buffers()) for tensor in tensors}
    return devices.pop() if len(devices) == 1 else None


def _float_type(module: nn.Module) -> torch.dtype | None:
    """The type of a module's floating-point parameters, if they share one."""
    types = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return types.pop() if len(types) == 1 else None


def _redirected(graph: Graph, moves: Mapping[Any, Any]) -> bool:
    """Replace devices and types in all arguments of nodes, as in ``aten.arange(…, device=cpu)``; whether any was."""
    found = False

    def redirect(argument: Any) -> Any:
        nonlocal found
        if isinstance(argument, torch.device | torch.dtype) and argument in moves:
            found = True
            return moves[argument]
        return argument

    for node in graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = map_aggregate(node.args, redirect), map_aggregate(node.kwargs, redirect)
    return found


def _adopt(module: nn.Module, root: nn.Module) -> None:
    for slots in _SLOTS:
        getattr(module, slots).update(getattr(root, slots))


def _slot(module: nn.Module, name: str) -> tuple[nn.Module, str, str]:
    path, _, key = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        raise KeyError(name) from None
    for kind in ("_parameters", "_buffers"):
        if getattr(owner, kind).get(key) is not None:
            return owner, kind, key
    raise KeyError(name)


def owner_of(module: nn.Module, name: str) -> nn.Module:
    """The module that holds what a dotted name says; modules on the way are made where they are missing."""
    for part in name.split(".")[:-1]:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
