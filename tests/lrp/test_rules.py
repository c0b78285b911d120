"""Relevance rules by hand, against formulas written out, and against zennit."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import AlphaBeta, Epsilon, Pass
from zennit.types import Activation

import curlfx
from curlfx.errors import ConfigError, DataError, ModelError, UsageError
from curlfx.graph import show, trace
from curlfx.lrp import relevance


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    return layer


def of_linear(weight: list[list[float]], x: list[float], **options: object) -> list[float]:
    """Relevance of class 0 for one image, given twice, as `trace` wants it for any batch size."""
    images = torch.tensor([x, x], dtype=torch.float64)
    found = relevance(trace(linear(weight), (images,)), images, torch.tensor([0, 0]), **options).maps
    assert torch.equal(found[0], found[1])
    return found[0].tolist()


@pytest.mark.parametrize(
    ("weights", "x", "want"),
    [
        ([2.0, -1.0], [1.0, 1.0], [2.0, -1.0]),  # z+ = 2, z- = -1
        ([2.0, 3.0, -1.0], [1.0, 2.0, 4.0], [2 * 2 / 8, 2 * 6 / 8, -1.0]),
        ([2.0, -1.0], [1.0, -3.0], [2 / 5, 3 / 5]),  # both raise: alpha = 1
        ([2.0, -1.0], [-1.0, 3.0], [2 / 5, 3 / 5]),  # both lower: they get R
        ([2.0, 1.0, -1.0], [3.0, -2.0, 1.0], [2.0, -2 / 3, -1 / 3]),  # four terms
        ([1.0, 1.0], [0.0, 0.0], [0.0, 0.0]),  # nothing there, nothing to hand on
    ],
)
def test_alpha_beta_by_hand(weights: list[float], x: list[float], want: list[float]) -> None:
    assert of_linear([weights, [1.0] * len(x)], x) == pytest.approx(want)


@pytest.mark.parametrize("alpha", [1, 2])
def test_differences_by_hand(alpha: int) -> None:
    class Difference(nn.Module):
        def __init__(self, *, reverse: bool) -> None:
            super().__init__()
            self.reverse = reverse

        def forward(self, x: Tensor) -> Tensor:
            less, more = x[:, :1], x[:, 1:]
            return torch.rsub(less, more, alpha=alpha) if self.reverse else torch.sub(more, less, alpha=alpha)

    images = torch.tensor([[1.0, 4.0]] * 2, dtype=torch.float64)
    for reverse in (True, False):
        network = trace(Difference(reverse=reverse), (images,))
        assert ("aten.rsub" in show(network)) == reverse
        found = relevance(network, images, torch.tensor([0, 0])).maps
        assert found[0].tolist() == pytest.approx([-alpha / (4 - alpha), 4 / (4 - alpha)])


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        weight = torch.tensor([[2.0, 1.0], [-1.0, 1.0]], dtype=x.dtype)
        return torch.addmm(torch.zeros(2, dtype=x.dtype), x, weight, alpha=-1)


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ -torch.tensor([[2.0, 1.0], [-1.0, 1.0]], dtype=x.dtype)


@pytest.mark.parametrize("rule", ["alpha-beta", "epsilon"])
def test_a_factor_below_zero_turns_the_weights_around(rule: str) -> None:
    images, classes = torch.tensor([[1.0, 1.0], [2.0, 1.0]], dtype=torch.float64), torch.tensor([0, 0])
    scaled, negated = (
        relevance(trace(module, (images,)), images, classes, rule=rule).maps for module in (Scaled(), Negated())
    )
    torch.testing.assert_close(scaled, negated)
    if rule == "alpha-beta":
        torch.testing.assert_close(scaled, torch.tensor([[-1.0, 2.0], [-1.0, 2.0]], dtype=torch.float64))


def test_other_alphas_and_epsilon_by_hand() -> None:
    assert of_linear([[2.0, -1.0], [1.0, 1.0]], [1.0, 1.0], alpha=1.0, beta=0.0) == pytest.approx([1.0, 0.0])
    found = of_linear([[2.0, -1.0], [1.0, 1.0]], [1.0, 1.0], rule="epsilon", epsilon=0.25)
    assert found == pytest.approx([2 / 1.25, -1 / 1.25])


def test_a_linear_net_with_one_hidden_unit_gives_each_input_what_it_contributes() -> None:
    net = nn.Sequential(linear([[0.5, 2.0, 1.0]]), linear([[3.0], [1.0]]))
    images = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.5, 1.0]], dtype=torch.float64)
    found = relevance(trace(net, (images,)), images, torch.tensor([0, 0])).maps
    contributions = images * net[0].weight
    torch.testing.assert_close(found, contributions / contributions.sum(1, keepdim=True))


class ResidualBlock(nn.Module):
    """With a positive weight everywhere, so that the branches can be followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x + self.inner(x)).mean((2, 3)))


def test_the_branches_of_a_sum_share_element_by_element() -> None:
    net, images = ResidualBlock().double(), torch.rand(2, 4, 5, 5, dtype=torch.float64)
    found = relevance(trace(net, (images,)), images)
    y = images + net.inner(images)
    alive = y.abs() > 1e-3 * (images.abs() + net.inner(images).abs())
    behind, branch = found.at("add"), found.at("conv2d")
    torch.testing.assert_close(branch[alive], (behind * net.inner(images) / y)[alive])
    assert float(alive.double().mean()) > 0.9
    assert found.nodes[0] == "linear"
    assert found.nodes[-1] == "x"


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"dilation": 2}, {"groups": 2}], ids=str)
def test_the_vector_jacobian_product_is_the_transposed_convolution(options: dict[str, int]) -> None:
    layer = nn.Conv2d(4, 6, 3, bias=False, **options).double()
    images = torch.rand(2, 4, 9, 9, dtype=torch.float64)
    seed = torch.rand_like(layer(images))
    found = relevance(trace(layer, (images,)), images, seed=seed).maps
    positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    want = torch.zeros_like(images)
    for weight, share in ((positive, 2.0), (negative, -1.0)):
        z = functional.conv2d(images, weight, **options)
        want += images * functional.conv_transpose2d(share * seed / z, weight, **options)
    torch.testing.assert_close(found, want.detach(), rtol=1e-10, atol=1e-14)


class ShortNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(8 * 9, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


@pytest.mark.parametrize("rule", ["alpha-beta", "epsilon"])
def test_zennit_agrees(rule: str) -> None:
    net = ShortNet().double().eval()
    images, classes = torch.randn(4, 3, 14, 14, dtype=torch.float64), torch.tensor([0, 3, 2, 4])
    bare = AlphaBeta(alpha=2, beta=1, stabilizer=1e-12, zero_params="bias")
    layers = bare if rule == "alpha-beta" else Epsilon(epsilon=1e-6)
    composite = LayerMapComposite([(Activation, Pass()), ((nn.Conv2d, nn.Linear), layers)])
    with Gradient(net, composite) as attributor:
        _, want = attributor(images, torch.eye(5, dtype=torch.float64)[classes])
    found = relevance(trace(net, (images,)), images, classes, rule=rule)
    torch.testing.assert_close(found.maps, want, rtol=1e-6, atol=1e-9)
    assert float(want.abs().max()) > 1e-3


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu_(self.norm(self.conv(x))).mean((2, 3)))


def test_fold_is_the_network_with_folded_normalisation() -> None:
    net = Normalised().double().eval()
    nn.init.normal_(net.norm.weight)
    net.norm.running_var.uniform_(0.5, 2)
    net.norm.running_mean.normal_()
    images, classes = torch.randn(2, 3, 7, 7, dtype=torch.float64), torch.tensor([1, 2])
    folded = Normalised().double().eval()
    folded.load_state_dict(net.state_dict())
    folded.conv = nn.utils.fuse_conv_bn_eval(net.conv, net.norm)
    folded.norm = nn.Identity()
    by_pass, by_hand, faithful = (
        relevance(trace(module, (images,)), images, classes, batch_norm=treatment).maps
        for module, treatment in ((net, "fold"), (folded, "identity"), (net, "identity"))
    )
    torch.testing.assert_close(by_pass, by_hand)
    assert not torch.allclose(by_pass, faithful)


def test_logits_are_taken_before_a_softmax_and_pixels_share_the_seed() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).softmax(1)

    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    classes = torch.randint(4, (2, 4, 4))
    found = relevance(trace(Dense().double(), (images,)), images, classes)
    assert found.nodes[0] == "conv2d"
    per_pixel = torch.full((2, 4, 4), 1 / 16, dtype=torch.float64)
    torch.testing.assert_close(found.at("conv2d").sum(1), per_pixel)
    torch.testing.assert_close(found.maps.sum(1), per_pixel)


def test_the_network_is_left_as_it_was() -> None:
    net = Normalised()
    images = torch.rand(2, 3, 7, 7)
    network = trace(net, (images,))
    network.module.train()
    before = show(network), {name: (id(t), t.clone()) for name, t in network.tensors().items()}
    curlfx.relevance(network, images, rule="epsilon")
    assert show(network) == before[0]
    for name, tensor in network.tensors().items():
        assert id(tensor) == before[1][name][0]
        assert torch.equal(tensor, before[1][name][1])
        assert tensor.grad is None


class Writing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = 0
        return y


def test_bad_requests_are_refused() -> None:
    images = torch.rand(2, 3, 7, 7)
    network = trace(Normalised(), (images,))
    for options, error, match in (
        ({"rule": "gamma"}, ConfigError, "rule = gamma: want one of alpha-beta, epsilon"),
        ({"batch_norm": "drop"}, ConfigError, "batch_norm = drop"),
        ({"alpha": 2.0, "beta": 0.5}, ConfigError, r"alpha = 2.0, beta = 0.5: want beta >= 0 and alpha - beta = 1"),
        ({"epsilon": 0.0}, ConfigError, "epsilon = 0.0: want a number above 0"),
        ({"y": torch.tensor([0, 4])}, DataError, r"want one of 0 to 3 for every image"),
        ({"y": torch.tensor([0])}, DataError, r"classes \(1,\) of torch.int64 do not fit the logits \(2, 4\)"),
        ({"y": torch.tensor([0, 1]), "seed": torch.ones(2, 4)}, UsageError, "y and seed"),
        ({"seed": torch.ones(2, 3)}, DataError, r"seed is \(2, 3\), want the shape of the logits \(2, 4\)"),
    ):
        with pytest.raises(error, match=match):
            relevance(network, images, **options)
    with pytest.raises(DataError, match=r"images \(2, 4, 7, 7\) do not fit the network at node 'conv2d'"):
        relevance(network, torch.rand(2, 4, 7, 7))
    with pytest.raises(DataError, match="want floating-point numbers"):
        relevance(network, torch.ones(2, 3, 7, 7, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"at\('conv9'\): this node got no relevance"):
        relevance(network, images).at("conv9")
    with pytest.raises(ModelError, match=r"writes into a tensor that others may read; write that line"):
        relevance(trace(Writing(), (torch.rand(2, 3),)), torch.rand(2, 3))


def test_relevance_that_grows_without_bounds_is_refused() -> None:
    layers = [nn.Linear(2, 2, bias=False) for _ in range(12)]
    for layer in layers:
        layer.weight.data = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    images = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ModelError, match="relevance grew beyond all numbers"):
        relevance(trace(nn.Sequential(*layers), (images,)), images, rule="epsilon", epsilon=1e-30, seed=images * 1e30)
