"""What must hold for every network and every keep set; each function raises AssertionError with what it saw."""

import copy

import torch
from torch import Tensor, nn

from benchmarks.trial import relative_error
from curlfx.cost import CostModel, macs, params
from curlfx.coupling import couple
from curlfx.graph import show
from curlfx.passes.pipeline import run
from curlfx.passes.slim import Slim
from tests.oracles import Keep, Laboratory, train_a_step

TOLERANCE = 1e-9


def evaluate(module: nn.Module, inputs: tuple[Tensor, ...]) -> object:
    """Output in eval mode without gradients."""
    module.eval()
    with torch.no_grad():
        return module(*inputs)


def same_as_the_original(laboratory: Laboratory, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Tracing changes nothing."""
    error = relative_error(evaluate(laboratory.traced.module, inputs), evaluate(module, inputs))
    assert error <= TOLERANCE, f"traced differs from the module by {error:.1e}"


def slim_equals_gated(laboratory: Laboratory, keep: Keep, inputs: tuple[Tensor, ...]) -> None:
    """Deleting channels gives what multiplying them by zero gives.

    Where a normalisation runs across the removed channels, the gated network takes its statistics over the kept ones.
    """
    slim = evaluate(laboratory.slim(keep).module, inputs)
    modes = ["kept"] if laboratory.changes_statistics(keep) else ["all", "kept"]
    for mode in modes:
        error = relative_error(slim, evaluate(laboratory.gated(keep, statistics=mode).module, inputs))
        assert error <= TOLERANCE, f"slim differs from gated (statistics over {mode}) by {error:.1e}; keep {dict(keep)}"


def open_gates_change_nothing(laboratory: Laboratory, inputs: tuple[Tensor, ...]) -> None:
    """With every gate open the gated network is the network."""
    expected = evaluate(laboratory.traced.module, inputs)
    for mode in ("all", "kept"):
        error = relative_error(evaluate(laboratory.gated({}, statistics=mode).module, inputs), expected)
        assert error <= TOLERANCE, f"open gates (statistics over {mode}) change the output by {error:.1e}"


def cost_is_predicted(laboratory: Laboratory, keep: Keep) -> None:
    """The cost model knows MACs and parameters of the slim network without building it."""
    slim = laboratory.slim(keep)
    cost = CostModel(laboratory.traced, laboratory.coupling).evaluate(laboratory.coupling.alive(keep))
    assert cost.macs == sum(macs(slim).values()), f"MACs predicted {cost.macs}, are {sum(macs(slim).values())}"
    assert cost.params == sum(params(slim).values()), (
        f"params predicted {cost.params}, are {sum(params(slim).values())}"
    )


def input_is_left_alone(laboratory: Laboratory, keep: Keep, inputs: tuple[Tensor, ...]) -> None:
    """The pass works on a clone: same text, same values, no shared storage with the result."""
    before = evaluate(laboratory.traced.module, inputs)
    slim = laboratory.slim(keep)
    with torch.no_grad():
        for tensor in (*slim.module.parameters(), *slim.module.buffers()):
            tensor.zero_()
    assert show(laboratory.traced) == laboratory.text, "the input graph was changed"
    assert relative_error(evaluate(laboratory.traced.module, inputs), before) == 0, "the input's weights were changed"


def empty_keep_set_is_no_change(laboratory: Laboratory) -> None:
    """Nothing to remove: same text, `changed` is False."""
    result, records = run(laboratory.traced, [Slim(laboratory.coupling, {})])
    assert show(result) == laboratory.text
    assert [record.changed for record in records] == [False]


def slim_trains(laboratory: Laboratory, keep: Keep, inputs: tuple[Tensor, ...]) -> None:
    """One gradient step in train mode lowers the loss."""
    before, after = train_a_step(laboratory.slim(keep).module, inputs)
    assert after < before, f"loss {before} became {after}"


def slim_copies(laboratory: Laboratory, keep: Keep, inputs: tuple[Tensor, ...]) -> None:
    """A deep copy computes the same with storage of its own."""
    slim = laboratory.slim(keep).module
    expected = evaluate(slim, inputs)
    twin = copy.deepcopy(slim)
    with torch.no_grad():
        for tensor in slim.parameters():
            tensor.zero_()
    assert relative_error(evaluate(twin, inputs), expected) == 0


def slim_keeps_names(laboratory: Laboratory, keep: Keep) -> None:
    """The state dict has the keys of the dense network, and no tensor has grown."""
    dense = laboratory.traced.module.state_dict()
    slim = laboratory.slim(keep).module.state_dict()
    assert list(slim) == list(dense)
    for name, tensor in slim.items():
        assert tensor.ndim == dense[name].ndim, name
        assert all(new <= old for new, old in zip(tensor.shape, dense[name].shape, strict=True)), name


def slim_twice_is_slim_once(laboratory: Laboratory, keep: Keep, inputs: tuple[Tensor, ...]) -> None:
    """A slim network is a network: it can be coupled and slimmed again."""
    slim = laboratory.slim(keep)
    again = Laboratory(slim, couple(slim), show(slim))
    half = {g.id: tuple(range(g.width // 2 or 1)) for g in again.coupling.groups if g.blocks is None and g.width > 1}
    slim_equals_gated(again, half, inputs)
