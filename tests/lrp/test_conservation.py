"""Relevance is neither made nor lost: for every family of ops, in float64, without biases, at every cut."""

import math
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from curlfx.errors import ModelError
from curlfx.graph import TracedModel, trace
from curlfx.lrp import Call, Relevance, relevance

CHANNELS, SIZE = 6, 9


class Between(nn.Module):
    """A convolution, something in between, and a head that pools."""

    def __init__(self, middle: Callable[[Tensor], Tensor], *, positive: bool, width: int = CHANNELS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
        self.head = nn.Linear(width, 5, bias=False)
        self.middle = middle
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.middle(torch.relu(x) if self.positive else x)
        return self.head(x.flatten(2).mean(2))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


class SelfAttention(nn.Module):
    """Over positions; written out or as one op."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).reshape(*tokens.shape[:2], 3, 2, CHANNELS // 2).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return mixed.transpose(1, 2).flatten(2).transpose(1, 2)


class SqueezeExcitation(nn.Module):
    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.squeeze, self.gate = nn.Conv2d(CHANNELS, CHANNELS, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)))


def branches(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    rolled = torch.cat([right, left.flip(3), x[:, ::2].roll(1, 2)], 1)[:, [0, 8, 2, 7, 4, 6]]
    return torch.stack(rolled.unbind(1), 1).transpose(2, 3)


def shuffled(x: Tensor) -> Tensor:
    return functional.pixel_unshuffle(functional.pixel_shuffle(x[:, :4], 2), 2).repeat(1, 2, 1, 1)[:, :CHANNELS]


def factor(x: Tensor, *shape: int) -> Tensor:
    """Numbers of both signs."""
    return torch.linspace(-1, 2, math.prod(shape), dtype=x.dtype).reshape(shape)


def conv(**options: object) -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False, **options)


MIDDLES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "convolution": conv,
    "strided, padded": lambda: conv(stride=2, padding=1),
    "padding as a word": lambda: conv(padding="same"),
    "dilated": lambda: conv(dilation=2),
    "grouped": lambda: conv(groups=3),
    "depthwise": lambda: conv(groups=CHANNELS),
    "reflected": lambda: conv(padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, 2, 1, 1, groups=2, bias=False),
    "one axis": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(CHANNELS, CHANNELS, 3, 2, bias=False)),
    "transposed, one axis": lambda: nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(CHANNELS, CHANNELS, 3, bias=False)),
    "three axes": lambda: nn.Sequential(
        nn.Unflatten(2, (3, 3)), nn.Conv3d(CHANNELS, CHANNELS, 2, bias=False), nn.Flatten(2)
    ),
    "linear": lambda: nn.Linear(SIZE, 4, bias=False),
    "matmul": lambda: lambda x: torch.matmul(x, torch.linspace(-1, 2, 36, dtype=x.dtype).reshape(SIZE, 4)),
    "mm": lambda: lambda x: torch.mm(x.flatten(0, 2), factor(x, SIZE, 4)).reshape(*x.shape[:3], 4),
    "mv": lambda: lambda x: torch.mv(x.flatten(0, 2), factor(x, SIZE)).reshape(x.shape[:3]),
    "addmm": lambda: lambda x: torch.addmm(x.new_zeros(4), x.flatten(0, 2), factor(x, SIZE, 4), alpha=-0.5).reshape(
        *x.shape[:3], 4
    ),
    "baddbmm": lambda: lambda x: torch.baddbmm(
        factor(x, 1, 1), x.flatten(2), x.flatten(2).transpose(1, 2), beta=2, alpha=-0.5
    ),
    "bmm of two": lambda: lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2)).unsqueeze(3),
    "einsum": lambda: lambda x: torch.einsum("nchw,nchv->ncwv", x, x),
    "attention": lambda: SelfAttention(fused=True),
    "attention, written out": lambda: SelfAttention(fused=False),
    "batch norm": lambda: nn.BatchNorm2d(CHANNELS),
    "layer norm": lambda: nn.LayerNorm(SIZE),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "activations": lambda: nn.Sequential(nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.PReLU(), nn.ELU()),
    "glu": lambda: lambda x: functional.glu(torch.cat([x, x + 1], 1), 1),
    "residual": lambda: Residual(conv(padding=1)),
    "difference": lambda: lambda x: torch.sub(x, x.flip(2), alpha=0.5),
    "number less": lambda: lambda x: 2 - x,
    "broadcast sum": lambda: lambda x: x + x.mean((2, 3), keepdim=True),
    "gate": lambda: SqueezeExcitation(torch.sigmoid),
    "gate of a ReLU": lambda: SqueezeExcitation(functional.relu6),
    "product of equals": lambda: lambda x: x * (x + 1),
    "scaled": lambda: lambda x: x * torch.linspace(-1, 2, SIZE, dtype=x.dtype) / 3,
    "concatenation and slices": lambda: branches,
    "shuffle": lambda: shuffled,
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "maximum": lambda: lambda x: torch.maximum(x, x.flip(3)).amax(3, keepdim=True),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d((4, 2)),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d((4, 2)),
    "sum": lambda: lambda x: x.sum(3, keepdim=True) + x.mean(3, keepdim=True),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "masked": lambda: lambda x: torch.where(x > 0, x, 0.1 * x).masked_fill(x > 1, 0),
}  # fmt: skip


def traced(name: str, *, positive: bool) -> tuple[TracedModel, Tensor]:
    torch.manual_seed(7)
    middle = MIDDLES[name]()
    width = CHANNELS
    module = Between(middle, positive=positive, width=width).double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    return trace(module, (images,)), images


@pytest.mark.parametrize("positive", [True, False], ids=["positive", "signed"])
@pytest.mark.parametrize("name", MIDDLES)
def test_alpha_beta_conserves_at_every_cut(name: str, positive: bool) -> None:
    network, images = traced(name, positive=positive)
    found = relevance(network, images, torch.tensor([1, 3]))
    sums = found.conservation()
    assert sums.seed == 2
    assert sums.error < 1e-9, sums.change
    assert sums.maps + sum(sums.absorbed.values()) == pytest.approx(2, rel=1e-9)
    per_image = found.maps.sum((1, 2, 3))
    assert not sums.absorbed
    torch.testing.assert_close(per_image, torch.ones_like(per_image), rtol=1e-9, atol=0)


def test_a_scalar_product_conserves() -> None:
    class Dot(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.dot(x[0], factor(x, 5))

    images = torch.randn(2, 5, dtype=torch.float64)
    sums = relevance(trace(Dot(), (images,)), images).conservation()
    assert sums.error < 1e-12
    assert sums.maps == pytest.approx(2, rel=1e-12)
    assert not sums.absorbed


@pytest.mark.parametrize("name", ["convolution", "transposed", "linear", "attention", "residual", "average pool"])
def test_epsilon_keeps_back_as_much_as_epsilon_is(name: str) -> None:
    network, images = traced(name, positive=False)
    errors = [relevance(network, images, rule="epsilon", epsilon=each).conservation().error for each in (1e-6, 1e-10)]
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] or errors[0] < 1e-12


def test_a_bias_gets_its_share_by_the_epsilon_rule_and_nothing_by_the_other() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    module = Biased().double()
    module.fc.weight.data = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    module.fc.bias.data = torch.tensor([1.0, 0.0], dtype=torch.float64)
    images = torch.tensor([[3.0, 2.0]] * 2, dtype=torch.float64)
    network = trace(module, (images,))
    found = relevance(network, images, torch.tensor([0, 0]), rule="epsilon", epsilon=1e-12)
    torch.testing.assert_close(found.maps, torch.tensor([[3 / 8, 4 / 8]] * 2, dtype=torch.float64))
    assert found.conservation().absorbed == pytest.approx({"fc_bias": 2 / 8})
    found = relevance(network, images, torch.tensor([0, 0]))
    torch.testing.assert_close(found.maps, torch.tensor([[3 / 7, 4 / 7]] * 2, dtype=torch.float64))


def test_a_class_token_keeps_what_it_is_given() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.full((1, 1, 4), 0.5))
            self.head = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            return self.head(tokens.sum(1))

    images = torch.rand(2, 5, 4, dtype=torch.float64)
    sums = relevance(trace(Token().double(), (images,)), images).conservation()
    assert sums.error < 1e-12
    (amount,) = sums.absorbed.values()
    assert amount != 0
    assert sums.maps + amount == pytest.approx(2, rel=1e-12)


FILLING: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "pad": (lambda x: functional.pad(x, (1, 0), value=3.0), 3 / 6),
    "masked_fill": (lambda x: x.masked_fill(x > 1, -3.0), 3 / 2),
    "where": (lambda x: torch.where(x > 1, 3.0, x), 3 / 4),
    "masked_fill by an integer": (lambda x: x.masked_fill(x > 1, torch.tensor(5)), 5 / 6),
    "padding by a copy": (lambda x: functional.pad(x, (1, 1), mode="replicate"), 0.0),
}
"""What is done with (1, 2), and the share of the numbers filled in in the sum behind it."""


@pytest.mark.parametrize("name", FILLING)
def test_numbers_that_are_filled_in_keep_what_they_are_given(name: str) -> None:
    fill, share = FILLING[name]

    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return fill(x.reshape(-1, 1, 2)).sum(2)

    images = torch.tensor([[1.0, 2.0]] * 2, dtype=torch.float64)
    sums = relevance(trace(Filled(), (images,)), images).conservation()
    assert sums.error < 1e-12
    assert not sums.change
    assert sum(sums.absorbed.values()) == pytest.approx(2 * share, abs=1e-12)
    assert sums.maps == pytest.approx(2 * (1 - share), abs=1e-12)


def test_a_bias_behind_zeros_keeps_what_it_is_given() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.stem(x)))

    module = Deaf().double()
    module.stem.weight.data = torch.tensor([[-1.0, -1.0], [-2.0, 0.0]], dtype=torch.float64)
    images = torch.rand(2, 2, dtype=torch.float64)
    found = relevance(trace(module, (images,)), images, torch.tensor([0, 0]))
    assert not found.maps.any()
    assert found.conservation().absorbed == {"linear_1": 2.0}
    assert found.conservation().error == 0


def test_a_seed_that_adds_up_to_nothing_has_an_error_all_the_same() -> None:
    network, images = traced("convolution", positive=True)
    seed = torch.tensor([[1.0, -1, 0, 0, 0], [0, 2, 0, 0, -2]], dtype=torch.float64)
    sums = relevance(network, images, seed=seed).conservation()
    assert (sums.seed, sums.scale) == (0, 6)
    assert sums.error < 1e-12
    assert not sums.change

    def half(call: Call, given: Tensor) -> dict[str, Tensor]:
        return {"self": given.clamp(min=0)}

    sums = relevance(network, images, seed=seed, rules={"aten::relu": half}).conservation()
    assert sums.error > 0.1
    assert sums.change["relu"] == pytest.approx(sums.error * 6)


def test_an_output_that_is_picked_twice_gets_both_parts() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, 1)
            return left * 2 + left * 3 + right

    images = torch.rand(2, 6, dtype=torch.float64)
    network = trace(Halves(), (images,))
    want = relevance(network, images).maps
    (first,) = (node for node in network.graph.nodes if node.target is operator.getitem and node.args[1] == 0)
    with network.graph.inserting_after(first):
        second = network.graph.call_function(operator.getitem, first.args)
    second.meta = dict(first.meta)
    list(first.users)[-1].replace_input_with(first, second)
    network.module.recompile()
    assert len(second.users) == len(first.users) == 1
    torch.testing.assert_close(relevance(network, images).maps, want)


def cancelling(images: Tensor) -> Relevance:
    class Cancelling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :2] + x[:, 2:]).flatten(1)

    return relevance(trace(Cancelling(), (images,)), images, torch.zeros(len(images), dtype=torch.long))


def test_summands_that_cancel_are_bounded_and_counted() -> None:
    images = torch.tensor([[1.0, 1, -1, 1], [1, 1, -1 + 1e-9, 1], [2, 1, 1, 1]], dtype=torch.float64)
    found = cancelling(images)
    assert found.clips == {"add": 2}
    assert found.maps.abs().max() <= 1001
    torch.testing.assert_close(found.maps.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.maps[2], torch.tensor([2 / 3, 0, 1 / 3, 0], dtype=torch.float64))


def test_an_op_without_a_rule_is_named_and_can_get_one() -> None:
    class Normed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.logcumsumexp(x, 1)

    images = torch.rand(2, 3, dtype=torch.float64)
    network = trace(Normed(), (images,))
    with pytest.raises(
        ModelError, match=r"node 'logcumsumexp' \(aten.logcumsumexp.default, .*test_conservation.py:\d+\)"
    ):
        relevance(network, images)

    with pytest.raises(ModelError, match=r"\(aten.logcumsumexp.default, .*gives relevance to 'x': want .* are self"):
        relevance(network, images, rules={"aten::logcumsumexp": lambda _, given: {"x": given}})

    def as_it_is(call: Call, given: Tensor) -> dict[str, Tensor]:
        return {"self": given}

    found = relevance(network, images, torch.tensor([1, 2]), rules={"aten::logcumsumexp": as_it_is})
    assert found.maps.tolist() == [[0, 1, 0], [0, 0, 1]]
