"""Code with a width in it: the line is named, the module is as it was, and the graph comes instead."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.trial import relative_error
from curlfx.inplace import InPlaceWarning, slim_
from tests.inplace import zoo


class Net(nn.Module):
    """Twelve channels, then whatever a test writes into ``middle``, then a head."""

    def __init__(self, last: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.last = nn.Conv2d(last, 2, 1)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Viewed(Net):
    def middle(self, x):
        b, _, h, w = x.shape
        y = x.view(b, 12, h * w)  # view
        return y.relu().view(b, 12, h, w)


class ViewedLater(Net):
    def middle(self, x):
        y = x.flatten(2).reshape(x.shape[0], -1, 6 * 64)  # group
        return y.relu().reshape(x.shape[0], -1, 8, 8) * 2


class Halves(Net):
    def __init__(self):
        super().__init__(6)

    def middle(self, x):
        a, b = x.split(6, dim=1)  # split
        return a * b.sigmoid()


class Functional(Net):
    def forward(self, x):
        weight = self.last.weight.view(2, 12)  # functional
        return functional.linear(self.first(x).movedim(1, -1), weight, self.last.bias)


class Scaled(Net):
    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x * x.shape[1] ** -0.5)  # scale


class Hidden(Net):
    """Wrong channels behind a scale that is 0, as at the beginning of training."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(12, 1, 1))

    def forward(self, x):
        x = self.first(x)
        turned = torch.cat([x[:, 4:], x[:, :4]], 1)  # hidden
        return self.last(x + self.scale * turned.relu())


class Inner(nn.Module):
    def forward(self, x):
        return x.unflatten(1, (12, 1)).squeeze(2)  # inner


class Nested(Net):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.ReLU(), Inner())

    def middle(self, x):
        return self.blocks(x)


def line_of(mark: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"inplace/test_hard_coded.py:{next(n for n, text in enumerate(lines, 1) if text.endswith('# ' + mark))}"


def contents(net: nn.Module) -> dict[int, dict[str, object]]:
    """Every slot of every module, down to the objects in them."""
    return {
        id(module): {
            **{f"attribute {key}": value for key, value in vars(module).items() if key[0] != "_"},
            **{f"parameter {key}": id(value) for key, value in module._parameters.items()},
            **{f"buffer {key}": id(value) for key, value in module._buffers.items()},
            **{f"module {key}": id(value) for key, value in module._modules.items()},
        }
        for module in net.modules()
    }


@pytest.mark.parametrize(
    ("kind", "mark", "module", "reason"),
    [
        (Viewed, "view", "", r"shape '\[2, 12, 64\]' is invalid"),
        (ViewedLater, "group", "", r"reshape gives|is invalid"),
        (Halves, "split", "", "."),
        (Functional, "functional", "", "is invalid for input of size"),
        (Scaled, "scale", "", r"mul computes something else here than in the slim graph \(off by"),
        (Hidden, "hidden", "", "."),
        (Nested, "inner", "blocks.1", "."),
    ],
)
def test_the_line_is_named_and_nothing_is_changed(kind, mark, module, reason):
    net, inputs = kind(), zoo.image(8)
    plan = zoo.planned(net, inputs, {"*": 0.75})
    net(inputs).sum().backward()
    gradient, before, output = net.first.weight.grad, contents(net), net(inputs)
    with pytest.warns(InPlaceWarning, match=f"the {kind.__name__} stays as it was") as caught:
        result = slim_(net, plan.made, inputs)
    fault = caught[0].message.fault
    assert (fault.line, fault.module) == (line_of(mark), module)
    assert fault.line in str(caught[0].message)
    assert re.search(reason, fault.reason)
    assert contents(net) == before
    assert net.first.weight.grad is gradient
    assert torch.equal(net(inputs), output)
    assert isinstance(result, nn.Module)
    assert result is not net
    assert relative_error(result.eval()(inputs), plan.slim.module.eval()(inputs)) <= 1e-6
    shared = {tensor.data_ptr() for tensor in net.parameters()}
    assert not shared & {tensor.data_ptr() for tensor in result.parameters()}


def test_the_graph_comes_in_the_mode_of_the_module():
    inputs = zoo.image(8)
    for training in (True, False):
        net = Viewed().train(training)
        plan = zoo.planned(net, inputs)
        with pytest.warns(InPlaceWarning):
            assert slim_(net, plan.made, inputs).training is training


def test_what_is_interrupted_is_put_back(monkeypatch):
    net, inputs = Scaled(), zoo.image(8)
    plan, before = zoo.planned(net, inputs), contents(net)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("curlfx.inplace.apply.parting", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slim_(net, plan.made, inputs)
    assert contents(net) == before


class Auxiliary(Net):
    """A head that only training has."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.first(x).relu()
        if self.training:
            return self.last(x), self.auxiliary(x)  # auxiliary
        return self.last(x)


def test_what_only_training_reads_is_said():
    net, inputs = Auxiliary(), zoo.image(8)
    head = net.auxiliary.weight
    plan = zoo.planned(net, inputs)
    with pytest.warns(
        InPlaceWarning, match="narrow and right in inference, but forward in training mode fails"
    ) as caught:
        assert slim_(net, plan.made, inputs) is net
    assert caught[0].message.fault.module == "auxiliary"
    assert caught[0].message.fault.line == line_of("auxiliary")
    assert net.auxiliary.weight is head
    assert relative_error(net.eval()(inputs), plan.slim.module.eval()(inputs)) <= 1e-6


def test_training_that_failed_before_is_not_blamed():
    class Targets(Auxiliary):
        def forward(self, x, target=None):
            return functional.mse_loss(super().forward(x)[0], target) if self.training else super().forward(x)

    net, inputs = Targets(), zoo.image(8)
    plan = zoo.planned(net, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slim_(net, plan.made, inputs) is net


def test_training_is_tried_without_a_trace_of_it():
    net, inputs = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 2, 1)), zoo.image(8)
    plan = zoo.planned(net, inputs)
    state = torch.get_rng_state()
    kept = list(plan.made.keep["0.weight"])
    mean, count = net[1].running_mean[kept].clone(), copy.deepcopy(net[1].num_batches_tracked)
    assert slim_(net, plan.made, inputs) is net
    assert torch.equal(net[1].running_mean, mean)
    assert torch.equal(net[1].num_batches_tracked, count)
    assert torch.equal(torch.get_rng_state(), state)
