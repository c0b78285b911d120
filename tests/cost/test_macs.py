"""MACs and parameters per node, against torch's own counter and by hand."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from curlfx.cost import macs, params
from curlfx.graph.trace import trace


def counted(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds for one image by torch's counter, on shapes alone."""
    meta = model.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(example[:1].to("meta"))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


def image(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("squeezenet1_1", 64),
        ("resnet18", 64),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in [
                ("mobilenet_v2", 64),
                ("mobilenet_v3_small", 64),
                ("shufflenet_v2_x0_5", 64),
                ("regnet_x_400mf", 64),
                ("mnasnet0_5", 64),
                ("vit_b_32", 224),
            ]
        ),
    ],
)
def test_torchvision_agrees_with_the_flop_counter(name: str, size: int) -> None:
    model = torchvision.models.get_model(name, weights=None)
    traced = trace(model, (image(size),))
    assert sum(params(traced).values()) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(macs(traced).values()) == counted(model, image(size))


@pytest.mark.slow
def test_resnet50_costs_what_its_authors_say() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    traced = trace(model, (torch.empty(2, 3, 224, 224, device="meta"),))
    assert sum(macs(traced).values()) == 4_089_184_256
    assert sum(params(traced).values()) == 25_557_032


class Ops(nn.Module):
    """Every op of the table that an ordinary layer does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 4, 3, stride=2, padding=1)
        self.up1 = nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2)
        self.conv2 = nn.Conv2d(3, 4, 3, padding="same")
        self.up2 = nn.ConvTranspose2d(4, 8, 3, stride=2, groups=4, output_padding=1)
        self.conv3 = nn.Conv3d(1, 2, (2, 3, 3), dilation=(1, 2, 2))
        self.up3 = nn.ConvTranspose3d(2, 3, 2)
        self.weight = nn.Parameter(torch.randn(5, 7))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        square = x[:, :, :8, :8]
        batched = square.flatten(1, 2)
        wide = batched @ batched.transpose(1, 2)
        bias = torch.zeros(1, 1, 8, dtype=x.dtype)
        return (
            self.up1(self.conv1(x.flatten(2))),
            self.up2(self.conv2(x)),
            self.up3(self.conv3(x[:, None, :, :, :])),
            torch.bmm(wide, batched),
            torch.baddbmm(bias, wide, batched),
            torch.mm(x[:, 0, 0, :5], self.weight),
            torch.addmm(self.weight[0], x[:, 0, 0, :5], self.weight),
            torch.einsum("nchw,nkhw->nck", square, square[:, :2]),
            torch.einsum("...hw,wv", square, self.weight[:, :8].T.new_ones(8, 6)),
            torch.einsum("nchw,vw->nv", square, x.new_ones(6, 8)),
            torch.einsum("nchw,kc,nk->nhw", square, x.new_ones(2, 3), x[:, 0, 0, :2]),
            torch.tensordot(square, self.weight[:3, :4], dims=([1], [0])),
            square @ square[:, :1],
            square[0, 0] @ square[:, 0],
            functional.scaled_dot_product_attention(square, square[:, :, :5], square[:, :, :5, :6]),
        )


@pytest.mark.slow
def test_every_op_agrees_with_the_flop_counter() -> None:
    example = torch.randn(1, 3, 10, 12)
    traced = trace(Ops(), (example,), dynamic_batch=False)
    named = {str(node.target): node.name for node in traced.graph.nodes if node.op == "call_function"}
    found = macs(traced)
    assert sum(found.values()) == counted(Ops(), example)
    assert found[named["aten.conv_transpose2d.input"]] == 10 * 12 * 4 * 2 * 9


class Vectors(nn.Module):
    """Products with vectors, which torch's counter leaves out."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        matrix, vector = x[0, 0], x[0, 0, 0]
        added = torch.addmv(vector[:4], matrix, vector)
        return torch.mv(matrix, vector), torch.dot(vector, vector), matrix @ vector, added


def test_products_with_vectors() -> None:
    traced = trace(Vectors(), (torch.randn(1, 1, 4, 5),), dynamic_batch=False)
    assert sorted(macs(traced).values()) == [5, 20, 20, 20]


def test_attention_with_grouped_queries() -> None:
    class Grouped(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    traced = trace(Grouped(), (torch.randn(2, 6, 5, 8), torch.randn(2, 2, 7, 8)))
    assert sum(macs(traced).values()) == 2 * 6 * 5 * 7 * 8


class TableBias(nn.Module):
    """Makes a bias from a constant table: work that no image asks for again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(9, 2))
        self.first = nn.Linear(2, 16)
        self.second = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x) + self.second(torch.relu(self.first(self.table))).mean(0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_macs_are_for_one_image_whatever_the_example(batch: int) -> None:
    traced = trace(TableBias(), (torch.randn(batch, 16),))
    assert sorted(macs(traced).values()) == [16 * 4, 9 * 2 * 16, 9 * 16 * 4]


def test_shared_and_unread_parameters_count_once_and_never() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(6, 4, bias=False)
            self.again = nn.Linear(6, 4, bias=False)
            self.again.weight = self.encode.weight
            self.unread = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x) + self.again(torch.relu(x))

    traced = trace(Shared(), (torch.randn(2, 6),))
    assert sum(params(traced).values()) == 24
    assert sum(macs(traced).values()) == 48


class OneFilterPerImage(nn.Module):
    """A convolution whose weights are computed from each image: as many groups as images."""

    def __init__(self):
        super().__init__()
        self.make = nn.Linear(4, 4 * 4 * 9)

    def forward(self, x):
        batch = x.shape[0]
        weight = self.make(x.mean((2, 3))).reshape(batch * 4, 4, 3, 3)
        return functional.conv2d(x.reshape(1, batch * 4, 6, 6), weight, groups=batch).view(batch, 4, 4, 4)


def test_as_many_groups_as_images():
    traced = trace(OneFilterPerImage(), torch.randn(3, 4, 6, 6))
    assert sum(macs(traced).values()) == 4 * 144 + 4 * 4 * 9 * 16
