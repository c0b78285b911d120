"""Networks of torchvision are narrowed where they stand, and stay ordinary modules of theirs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from benchmarks.trial import randomise, relative_error
from curlfx.inplace import InPlaceWarning, slim_
from tests.inplace import zoo
from tests.oracles import train_a_step


def in_float64(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(module).eval().double()(inputs.double())


def says_what_it_is(module: nn.Module) -> bool:
    """Whether the attributes of the layers of torch.nn are those of its tensors."""
    match module:
        case nn.Conv2d():
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            return module.weight.shape == shape and module.in_channels % module.groups == 0
        case nn.Linear():
            return module.weight.shape == (module.out_features, module.in_features)
        case nn.BatchNorm2d():
            return module.weight.shape == module.running_mean.shape == (module.num_features,)
        case nn.LayerNorm():
            return module.weight.shape == module.normalized_shape
        case nn.MultiheadAttention():
            return module.in_proj_weight.shape == (3 * module.num_heads * module.head_dim, module.embed_dim)
    return True


@pytest.fixture(scope="module", params=sorted(zoo.NETS))
def narrowed(request):
    torch.manual_seed(0)
    net = randomise(zoo.NETS[request.param]()).train()
    inputs = zoo.image()
    plan = zoo.planned(net, inputs)
    before = dict(net.named_parameters())
    return net, slim_(net, plan.made, traced=plan.traced), plan.slim, before, inputs


@pytest.mark.slow
def test_the_module_itself_is_narrow_and_computes_what_the_slim_graph_does(narrowed):
    net, result, reference, before, inputs = narrowed
    assert result is net
    assert net.training
    assert all(module.training for module in net.modules())
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == {
        name: tensor.shape for name, tensor in reference.module.state_dict().items() if not name.startswith("curlfx_")
    }
    assert sum(p.numel() for p in net.parameters()) < 0.7 * sum(p.numel() for p in before.values())
    assert relative_error(in_float64(net, inputs), in_float64(reference.module, inputs)) <= 1e-9


def test_only_what_changes_is_replaced(narrowed):
    net, _, _, before, _ = narrowed
    for name, tensor in net.named_parameters():
        assert (tensor is before[name]) == (tensor.shape == before[name].shape), name


def test_the_layers_say_how_wide_they_are(narrowed):
    net = narrowed[0]
    assert [name for name, module in net.named_modules() if not says_what_it_is(module)] == []


def test_it_goes_on_as_a_module(narrowed):
    net, _, _, _, inputs = narrowed
    expected = in_float64(net, inputs)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(in_float64(twin, inputs), expected)
        twin.load_state_dict(net.state_dict())
        before, after = train_a_step(twin, (inputs,))
        assert after < before


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(zoo.WHOLE))
def test_whole_networks(name):
    net, inputs = randomise(zoo.WHOLE[name]()).eval(), zoo.image(64)
    plan = zoo.planned(net, inputs)
    assert slim_(net, plan.made, traced=plan.traced) is net
    assert relative_error(in_float64(net, inputs), in_float64(plan.slim.module, inputs)) <= 1e-9
    assert [name for name, module in net.named_modules() if not says_what_it_is(module)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "widths"),
    [(zoo.vision_transformer, {"*.mlp.0.weight": 20}), (zoo.swin, {"*.mlp.0.weight": 20})],
)
def test_the_layers_between_attention(make, widths):
    net, inputs = make().eval(), zoo.image()
    plan = zoo.planned(net, inputs, widths)
    assert slim_(net, plan.made, traced=plan.traced) is net
    assert {m.out_features for name, m in net.named_modules() if name.endswith("mlp.0")} == {20}
    assert relative_error(in_float64(net, inputs), in_float64(plan.slim.module, inputs)) <= 1e-9


@pytest.mark.slow
def test_a_transformer_with_fewer_heads():
    net, inputs = zoo.vision_transformer().eval(), zoo.image()
    plan = zoo.planned(net, inputs, {"conv_proj.weight": 24, "*.in_proj_weight#blocks": 3})
    assert slim_(net, plan.made, traced=plan.traced) is net
    attention = net.encoder.layers[0].self_attention
    assert (attention.num_heads, attention.head_dim, attention.embed_dim, net.hidden_dim) == (3, 8, 24, 24)
    assert (attention.kdim, attention.vdim, attention.out_proj.in_features) == (24, 24, 24)
    assert relative_error(in_float64(net, inputs), in_float64(plan.slim.module, inputs)) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "widths", "line", "reason"),
    [
        (
            zoo.vision_transformer,
            {"conv_proj.weight": 20, "*.in_proj_weight": 40},
            "models/vision_transformer.py:",
            "scaled_dot_product_attention computes something else here than in the slim graph",
        ),
        (zoo.swin, {"*.attn.qkv.weight": 0.5}, "models/swin_transformer.py:", "is invalid for input of size"),
    ],
)
def test_narrow_heads_are_left_to_the_graph(make, widths, line, reason):
    net, inputs = make().train(), zoo.image()
    plan = zoo.planned(net, inputs, widths)
    before, text = dict(net.named_parameters()), repr(net)
    with pytest.warns(InPlaceWarning, match=reason) as caught:
        result = slim_(net, plan.made, inputs, traced=plan.traced)
    assert caught[0].filename == __file__
    assert caught[0].message.fault.line.startswith(line)
    assert "att" in caught[0].message.fault.module
    assert result is not net
    assert result.training
    assert repr(net) == text
    assert all(tensor is before[name] for name, tensor in net.named_parameters())
    assert relative_error(in_float64(result, inputs), in_float64(plan.slim.module, inputs)) <= 1e-9


@pytest.mark.slow
def test_a_network_of_timm():
    timm = pytest.importorskip("timm", reason="timm is an extra")
    net, inputs = randomise(timm.create_model("resnet10t", num_classes=5)).eval(), zoo.image(64)
    plan = zoo.planned(net, inputs)
    assert slim_(net, plan.made, traced=plan.traced) is net
    assert relative_error(in_float64(net, inputs), in_float64(plan.slim.module, inputs)) <= 1e-9
