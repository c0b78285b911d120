"""A traced network computes what its model computes and is as usable."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn

from curlfx.graph import TracedModel, check, show, trace
from tests.graph.networks import (
    Auxiliary,
    Blocks,
    Constants,
    Dropping,
    FixedBatch,
    OneImage,
    Small,
    Structured,
    Tied,
    gradient_steps,
    randomise,
    targets,
)


def small() -> tuple[nn.Module, TracedModel]:
    model = randomise(Small().double())
    return model, trace(model, torch.randn(1, 3, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_any_batch_size(batch):
    model, traced = small()
    x = torch.randn(batch, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(traced.module(x), model.eval()(x))


def test_the_example_of_one_image_is_doubled():
    traced = small()[1]
    assert traced.example_inputs[0].shape == (2, 3, 6, 6)
    assert traced.dynamic_batch
    assert traced.notes == ()


def test_a_static_batch_on_request():
    traced = trace(Small(), torch.randn(1, 3, 6, 6), dynamic_batch=False)
    assert traced.example_inputs[0].shape == (1, 3, 6, 6)
    assert not traced.dynamic_batch


def test_a_batch_that_the_network_fixes_is_noted():
    traced = trace(FixedBatch(), torch.randn(2, 3))
    assert not traced.dynamic_batch
    assert traced.notes == ("the batch size is fixed at 2: the network does not allow a free one",)


def test_a_network_for_one_image_keeps_its_example():
    traced = trace(OneImage(), torch.randn(1, 3, 4))
    assert traced.example_inputs[0].shape == (1, 3, 4)
    assert not traced.dynamic_batch
    assert len(traced.notes) == 1
    assert "fixed at 1" in traced.notes[0]


def test_state_dict_has_the_keys_order_and_values_of_the_model():
    model = randomise(torchvision.models.resnet18(weights=None))
    traced = trace(model, torch.randn(1, 3, 32, 32))
    ours, theirs = traced.module.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    model.load_state_dict(ours)
    traced.module.load_state_dict(theirs)


def test_the_model_is_left_alone_and_shares_nothing():
    model = randomise(Small())
    model.train()
    model.bn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = trace(model, torch.randn(1, 3, 6, 6))
    assert model.training
    assert not model.bn.training
    assert not traced.module.training
    gradient_steps(traced.module, [torch.randn(4, 3, 6, 6)], lambda y: y.square().sum())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_requires_grad_is_kept():
    model = Small()
    model.conv.weight.requires_grad_(False)
    traced = trace(model, torch.randn(1, 3, 6, 6))
    frozen = [name for name, parameter in traced.module.named_parameters() if not parameter.requires_grad]
    assert frozen == ["conv.weight"]


def test_tied_parameters_stay_tied():
    model = Tied()
    traced = trace(model, torch.randn(2, 5))
    assert list(traced.module.state_dict()) == list(model.state_dict())
    for module in (traced.module, copy.deepcopy(traced.module), traced.clone().module):
        assert module.a.weight is module.b.weight
    traced.set_parameter("b.weight", torch.zeros(5, 5))
    assert traced.module.a.weight is traced.module.b.weight
    assert len(list(traced.module.parameters())) == 4


def test_constants_are_named_and_move_but_are_not_saved():
    model = randomise(Constants())
    traced = trace(model, torch.randn(2, 4))
    assert list(traced.module.state_dict()) == list(model.state_dict())
    assert {"mask", "scale"} <= set(targets(traced))
    x = torch.randn(3, 4)
    assert torch.equal(traced.module(x), model(x))
    assert traced.clone().module(x).equal(model(x))
    assert traced.module.double()(x.double()).dtype == torch.float64


def test_unused_parameters_stay_and_are_noted():
    model = Auxiliary()
    traced = trace(model, torch.randn(1, 3, 6, 6))
    assert list(traced.module.state_dict()) == list(model.state_dict())
    assert list(copy.deepcopy(traced.module).state_dict()) == list(model.state_dict())
    assert traced.notes == (
        "Auxiliary.forward takes another path in training (1 modules); the eval path is traced",
        "not part of the graph, kept as they are: aux",
    )


def test_stochastic_depth_is_noted():
    notes = trace(Dropping(), torch.randn(1, 3, 6, 6)).notes
    assert notes == ("training drops whole branches at random in 2 DropPath modules; the traced network does not",)


def test_structured_inputs_and_outputs():
    model = randomise(Structured())
    traced = trace(model, (torch.randn(1, 4), {"shift": torch.randn(1, 3)}))
    inputs = (torch.randn(5, 4), {"shift": torch.randn(5, 3)})
    ours, theirs = traced.module(*inputs), model(*inputs)
    assert ours.keys() == theirs.keys()
    assert ours["out"].equal(theirs["out"])
    assert ours["pair"][1].equal(theirs["pair"][1])
    assert ours["batch"] == 5


@pytest.mark.slow
def test_segmentation_returns_its_dictionary():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    traced = trace(model, torch.randn(1, 3, 64, 64))
    x = torch.randn(3, 3, 64, 64)
    ours, theirs = traced.module(x), model.eval()(x)
    assert list(ours) == ["out"]
    assert torch.equal(ours["out"], theirs["out"])


def test_wrapped_blocks_come_in_line_with_the_same_gradient():
    model = randomise(Blocks().double())
    x = torch.randn(2, 4, dtype=torch.float64)
    traced = trace(model, x)
    check(traced)
    assert not any("wrap" in target for target in targets(traced))
    for module in (model, traced.module):
        module(x).square().sum().backward()
    theirs = {name: p.grad for name, p in model.named_parameters()}
    ours = {name: p.grad for name, p in traced.module.named_parameters()}
    assert theirs["a.weight"] is None
    for name, gradient in theirs.items():
        assert (ours[name] is None) if gradient is None else torch.equal(ours[name], gradient)


def test_no_run_time_checks_and_no_foreign_meta_stay():
    traced = small()[1]
    assert not any("assert" in target for target in targets(traced))
    assert {key for node in traced.graph.nodes for key in node.meta} <= {
        "stack_trace",
        "nn_module_stack",
        "val",
        "counter",
    }


def test_deepcopy_is_independent():
    model, traced = small()
    twin = copy.deepcopy(traced.module)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    gradient_steps(twin, [x], lambda y: y.square().sum())
    assert twin.training
    assert not traced.module.training
    assert torch.equal(traced.module(x), model.eval()(x))


def test_clone_shares_tensors_and_nothing_else():
    traced = small()[1]
    text, twin = show(traced), traced.clone()
    assert show(twin) == text
    theirs = traced.tensors()
    assert all(tensor is theirs[name] for name, tensor in twin.tensors().items())
    twin.set_parameter("fc.bias", torch.ones(2))
    twin.remove_parameter("bn.bias")
    twin.module.train()
    assert show(traced) == text
    assert traced.parameter("fc.bias") is theirs["fc.bias"]
    assert "bn.bias" in traced.module.state_dict()


def test_parameters_are_read_written_added_and_found():
    traced = small()[1]
    traced.set_parameter("conv.weight", torch.zeros(2, 3, 3, 3))
    assert isinstance(traced.parameter("conv.weight"), nn.Parameter)
    assert traced.parameter("conv.weight").shape == (2, 3, 3, 3)
    traced.add_buffer("gates.all", torch.ones(3))
    assert traced.node_of("gates.all").target == "gates.all"
    assert traced.node_of("fc.bias") is next(n for n in traced.graph.nodes if n.target == "fc.bias")
    assert "gates.all" not in traced.module.state_dict()
    for read in (traced.parameter, traced.remove_parameter, traced.node_of):
        with pytest.raises(KeyError, match="nothing"):
            read("nothing")


def test_moves_casts_and_channels_last():
    model, traced = small()
    traced.module.to(torch.float32)
    check(traced)  # the example is still float64
    traced.to(torch.float64)
    assert traced.example_inputs[0].dtype == torch.float64
    last = traced.module.to(memory_format=torch.channels_last)
    assert last.conv.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    y = last(x.to(memory_format=torch.channels_last))
    y.sum().backward()
    torch.testing.assert_close(y, model.float().double().eval()(x), rtol=1e-12, atol=1e-12)


def test_float_types_that_are_written_in_the_graph_follow_a_cast():
    class Typed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            made = torch.zeros(x.shape[0], 4, dtype=x.dtype)
            return self.layer(x.to(self.layer.weight.dtype)) + made

    traced = trace(Typed().double(), (torch.randn(2, 3, dtype=torch.float64),))
    x = torch.randn(5, 3)
    before = traced.module(x.double())
    after = traced.to(torch.float32).module(x)
    assert after.dtype == torch.float32
    assert torch.allclose(after.double(), before, atol=1e-6)


def test_a_traced_module_can_be_traced_again():
    _, traced = small()
    again = trace(traced.module, traced.example_inputs)
    assert list(again.module.state_dict()) == list(traced.module.state_dict())
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(again.module(x), traced.module(x))


def test_symbolically_traced_modules_go_through_the_same_door():
    model = randomise(Small())
    traced = trace(torch.fx.symbolic_trace(model), torch.randn(1, 3, 6, 6))
    x = torch.randn(3, 3, 6, 6)
    assert torch.equal(traced.module(x), model.eval()(x))


def test_lazy_modules_are_given_their_shapes():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    assert trace(model, torch.randn(1, 3, 6, 6)).parameter("0.weight").shape == (4, 3, 3, 3)


def test_no_warning_leaves_the_trace():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(Small(), torch.randn(1, 3, 6, 6))


def test_tensors_that_the_graph_makes_follow_to_the_device():
    class Making(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x) + torch.arange(3, device=x.device)

    traced = trace(Making(), torch.randn(2, 3))
    text = show(traced)
    assert "device=cpu" in text
    traced.module.to(torch.float32)
    assert show(traced) == text
    traced.module.to("meta")
    assert show(traced) == text.replace("device=cpu", "device=meta")
    assert traced.module(torch.zeros(4, 3, device="meta")).shape == (4, 3)


def test_training_mode_of_a_traced_module_outlives_another_trace():
    _, traced = small()
    text = show(traced)
    traced.module.train()
    assert show(trace(traced.module, traced.example_inputs)).count("aten.") == text.count("aten.")
    assert traced.module.training
    assert "1e-05, True) : f64[2, 4, 6, 6]" in show(traced)
    assert "add_" in show(traced)
    traced.module.eval()
    assert show(traced) == text


def test_kinds_of_signature():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"a-b": nn.Linear(3, 3), "c d": nn.Linear(3, 3)})

        def forward(self, *inputs, scale=2.0):
            return self.parts["a-b"](inputs[0]) + scale * self.parts["c d"](inputs[1])

    model = Many()
    traced = trace(model, (torch.randn(1, 3), torch.randn(1, 3)))
    assert traced.dynamic_batch
    assert list(traced.module.state_dict()) == list(model.state_dict())
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(traced.module(x, y), model(x, y))


def test_buffers_that_change_in_inference_do_so():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    model = Counting()
    traced = trace(model, torch.randn(2, 3))
    assert model.calls == 0
    x = torch.randn(3, 3)
    assert torch.equal(traced.module(x), x)
    assert torch.equal(traced.module(x), 2 * x)


def test_an_average_of_the_weights_may_be_kept():
    _, traced = small()
    average = torch.optim.swa_utils.AveragedModel(traced.module)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    gradient_steps(traced.module, [x], lambda y: y.square().sum())
    before = average.module.fc.weight.clone()
    average.update_parameters(traced.module)
    average.update_parameters(traced.module)
    assert not torch.equal(average.module.fc.weight, before)
    assert average(x).shape == (4, 2)


def test_recurrent_layers():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 5, 2, batch_first=True, dropout=0.3)

        def forward(self, x):
            return self.lstm(x)[0]

    model = Recurrent()
    traced = trace(model, torch.randn(2, 6, 4))
    x = torch.randn(3, 6, 4)
    torch.testing.assert_close(traced.module(x), model.eval()(x))
    text = show(traced)
    traced.module.train()
    check(traced)
    assert show(traced) == text.replace("0.3, False, ", "0.3, True, ")


def test_a_trace_in_inference_mode_can_be_trained():
    model = Small()
    with torch.inference_mode():
        traced = trace(model, torch.randn(1, 3, 6, 6))
    assert not any(tensor.is_inference() for tensor in [*traced.tensors().values(), *traced.example_inputs])
    gradient_steps(traced.module, [torch.randn(4, 3, 6, 6)], lambda y: y.square().sum())
