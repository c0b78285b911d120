"""A function can be traced in place of a model's own ``forward``."""

import functools
import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional

from curlfx.errors import TraceError
from curlfx.graph import check, show, trace
from curlfx.graph.source import where
from tests.graph.networks import Auxiliary, Dropping, OneImage, Small, gradient_steps, randomise


class Deciding(Small):
    """Its own forward looks at values, as detectors do."""

    def forward(self, x):
        y = super().forward(x)
        return y[y.argmax(1) > 0] if y.sum() > 0 else y


def features(model, images):
    y = torch.relu(model.bn(model.conv(images)))
    return model.fc(y.mean((2, 3)))


def narrow(model, images, *, scale=2.0):
    y = model.conv(images) * scale
    return functional.linear(y.mean((2, 3)), model.fc.weight)


def deciding():
    return randomise(Deciding().double())


def image(batch=1, dtype=torch.float64):
    return torch.randn(batch, 3, 6, 6, dtype=dtype)


def test_what_cannot_be_exported_is_traced_through_a_function():
    model, x = deciding(), image(5)
    with pytest.raises(TraceError):
        trace(model, x)
    traced = trace(model, image(), forward=features)
    check(traced)
    assert traced.dynamic_batch
    assert traced.notes == ()
    assert torch.equal(traced.module(x), features(model.eval(), x))


def test_names_and_order_are_the_models():
    model = deciding()
    traced = trace(model, image(), forward=features)
    ours, theirs = traced.module.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_graph_is_that_of_a_model_with_this_forward():
    class Same(Small):
        forward = features

    model = randomise(Same())
    x = image(dtype=torch.float32)
    assert show(trace(model, x, forward=features)) == show(trace(model, x))


def test_parameters_that_are_not_read_stay_and_are_noted():
    model = randomise(Small())
    traced = trace(model, image(dtype=torch.float32), forward=narrow)
    assert traced.notes == ("not part of the graph, kept as they are: bn, fc.bias",)
    assert list(traced.module.state_dict()) == list(model.state_dict())
    x = image(4, torch.float32)
    assert torch.equal(traced.module(x), narrow(model.eval(), x))


def test_arguments_bound_beforehand():
    model, x = randomise(Small()), image(3, torch.float32)
    traced = trace(model, x, forward=functools.partial(narrow, scale=7.0))
    assert torch.equal(traced.module(x), narrow(model.eval(), x, scale=7.0))


def test_inputs_are_named_as_the_functions():
    traced = trace(Small(), image(dtype=torch.float32), forward=features)
    assert [node.name for node in traced.graph.find_nodes(op="placeholder")] == ["images"]


def test_lines_of_the_function_are_recorded():
    traced = trace(Small(), image(dtype=torch.float32), forward=features)
    first = inspect.getsourcelines(features)[1]
    (relu,) = traced.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    assert where(relu) == f"graph/test_forward.py:{first + 1}"


def test_the_function_may_call_the_model_itself():
    model, x = randomise(Small()), image(3, torch.float32)
    traced = trace(model, x, forward=lambda model, x: {"scores": model(x).softmax(1)})
    assert torch.equal(traced.module(x)["scores"], model.eval()(x).softmax(1))


def test_the_model_is_left_as_it_was():
    model = deciding().train()
    model.bn.eval()
    before = set(model.__dict__)
    for forward in (features, lambda model, x: model.fc(x)):  # the second fails
        try:
            trace(model, image(), forward=forward)
        except TraceError:
            assert forward is not features
        assert set(model.__dict__) == before
        assert model.training
        assert not model.bn.training
        assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.forward.__func__ is Deciding.forward


def test_a_forward_of_one_object_is_put_back():
    model = Small()
    own = model.forward = functools.partial(narrow, model)
    x = image(2, torch.float32)
    traced = trace(model, x, forward=lambda model, x: 3 * model(x))
    assert model.forward is own
    assert torch.equal(traced.module(x), 3 * own(x))


def test_it_trains_as_the_function_does():
    model = deciding()
    model.drop = nn.Identity()
    traced = trace(model, image(), forward=features)
    x = image(8)
    gradient_steps(traced.module, [x], lambda y: y.square().sum())
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    features(model, x).square().sum().backward()
    optimiser.step()
    theirs = model.state_dict()
    for name, tensor in traced.module.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-12, atol=1e-12)


def test_notes_are_of_the_modules_that_are_called():
    x = image(dtype=torch.float32)
    dropped = "training drops whole branches at random in 2 DropPath modules; the traced network does not"
    assert trace(Dropping(), x, forward=lambda model, x: model(x)).notes == (dropped,)
    assert trace(Dropping(), x, forward=features).notes == ()
    assert trace(Auxiliary(), x, forward=features).notes == ("not part of the graph, kept as they are: aux",)


def test_a_batch_that_the_function_fixes_is_noted():
    def fixed(model, x):
        return model(x) + 1

    traced = trace(OneImage(), torch.randn(1, 3, 4), forward=fixed)
    assert not traced.dynamic_batch
    assert "fixed at 1" in traced.notes[0]


def test_what_is_no_forward_is_refused():
    x = image(dtype=torch.float32)
    with pytest.raises(TraceError, match="forward is a str, want a function of the model and its inputs"):
        trace(Small(), x, forward="features")
    with pytest.raises(TraceError, match=r"forward=.*<lambda> reads no parameter of the model; want a function that"):
        trace(Small(), x, forward=lambda model, x: x + 1)
    with pytest.raises(TraceError, match=r"forward=.*<lambda> fails on the example inputs \(.*\): .* 1 positional"):
        trace(Small(), x, forward=lambda x: x)


def test_a_refusal_names_the_line_of_the_function():
    def branching(model, x):
        y = model.conv(x)
        return y if y.sum() > 0 else -y

    line = inspect.getsourcelines(branching)[1] + 2
    with pytest.raises(TraceError, match=rf"graph/test_forward\.py:{line}: the control flow depends on values"):
        trace(Small(), image(dtype=torch.float32), forward=branching)
