"""Rules of ops that read, write or sort by computed positions."""

import pytest
import torch

from tests.networks.net import Net, between, pointwise, tokens
from tests.ops.rules import PASSES, check, frozen

PICKED = frozen("picked by a computed index along this axis")
WRITTEN = frozen("written at computed positions along this axis")
ROWS = torch.tensor([0, 1, 3, 2])


def over(op: str) -> list[str]:
    return frozen(f"aten.{op}.default runs over these channels")


def joined(function):
    return Net(lambda m, x: m.h(function(m.a(x), m.b(x))), a=pointwise(3, 8), b=pointwise(3, 8), h=pointwise(8, 2))


TIED = ["8: a.weight[0] b.weight[0] h.weight[1]"]

CASES = {
    "gather_rows": (between(lambda m, y: y.gather(2, y.argsort(2))), PASSES),
    "gather_channels": (between(lambda m, y: y.gather(1, y.argsort(1))), over("argsort")),
    "gather_channels_by_another": (
        joined(lambda a, b: a.gather(1, b.argmax(1, keepdim=True)).expand(-1, 8, -1, -1)),
        [*PICKED, "b.weight[0] stays, 8: aten.argmax.default runs over these channels"],
    ),
    "gather_some_channels": (
        between(lambda m, y: y.gather(2, torch.zeros_like(y[:, :4]).long()), outputs=4),
        ["a.weight[0] stays, 8: only part of these channels is picked or written"],
    ),
    "gather_anything": (
        between(lambda m, y: y * torch.take_along_dim(y, torch.zeros(1, dtype=torch.long))),
        frozen("picked by a computed index"),
    ),
    "take_along_rows": (between(lambda m, y: torch.take_along_dim(y, y.argsort(2), 2)), PASSES),
    "scatter_rows": (between(lambda m, y: torch.zeros_like(y).scatter(2, y.argsort(2), y)), PASSES),
    "scatter_a_number": (between(lambda m, y: y.scatter(2, y.argmax(2, keepdim=True), 0.5)), PASSES),
    "scatter_channels": (
        between(lambda m, y: y.scatter(1, y.argmax(1, keepdim=True), 0.5)),
        over("argmax"),
    ),
    "scatter_add_rows": (between(lambda m, y: torch.zeros_like(y).scatter_add(2, y.argsort(2), y)), PASSES),
    "scatter_maximum": (
        joined(lambda a, b: a.scatter_reduce(2, a.argsort(2), b, "amax")),
        TIED,
    ),
    "index_add": (joined(lambda a, b: a.index_add(2, ROWS, b)), TIED),
    "index_add_channels": (
        between(lambda m, y: torch.ones_like(y).index_add(1, torch.tensor([0, 1, 3, 2, 4, 6, 7, 5]), y)),
        WRITTEN,
    ),
    "index_copy": (joined(lambda a, b: a.index_copy(2, ROWS, b)), TIED),
    "index_fill": (between(lambda m, y: y.index_fill(2, ROWS[:2], 0.5)), PASSES),
    "write_a_slice": (joined(lambda a, b: torch.slice_scatter(a, b[:, :, :2], 2, 1, 3)), TIED),
    "write_a_row": (joined(lambda a, b: torch.select_scatter(a, b[:, :, 0], 2, 1)), TIED),
    "write_a_slice_of_channels": (
        joined(lambda a, b: torch.slice_scatter(a, b[:, :2], 1, 1, 3)),
        ["6: b.weight[0]", *WRITTEN, "b.weight[0] stays, 2: written at computed positions along this axis"],
    ),
    "sort_rows": (between(lambda m, y: y.sort(2)[0]), PASSES),
    "sort_channels": (between(lambda m, y: y.sort(1)[0]), over("sort")),
    "best_rows": (between(lambda m, y: y.topk(2, dim=2)[0]), PASSES),
    "best_channels": (between(lambda m, y: y.topk(4, dim=1)[0], outputs=4), over("topk")),
    "running_maximum": (between(lambda m, y: y.cummax(2)[0]), PASSES),
    "running_maximum_of_channels": (between(lambda m, y: y.cummax(1)[0]), over("cummax")),
    "running_logsumexp": (between(lambda m, y: y.logcumsumexp(2)), PASSES),
    "median": (between(lambda m, y: y.median(2, keepdim=True)[0]), PASSES),
    "kth_value": (between(lambda m, y: y.kthvalue(2, 2)[0][..., None]), PASSES),
    "extremes": (between(lambda m, y: y - torch.aminmax(y, dim=2, keepdim=True)[0]), PASSES),
    "sum_without_nan": (between(lambda m, y: y.nansum(2, keepdim=True)), PASSES),
    "count": (between(lambda m, y: y * y.relu().count_nonzero(2)[:, :, None]), PASSES),
    "bins": (between(lambda m, y: y * torch.bucketize(y, torch.tensor([0.0, 1.0]).double())), PASSES),
    "search": (between(lambda m, y: y * torch.searchsorted(torch.tensor([0.0, 1.0]).double(), y)), PASSES),
    "search_in_rows": (
        joined(lambda a, b: a * torch.searchsorted(a.sort(3)[0], b)),
        [
            f"{site}.weight[0] stays, 8: searched {why}"
            for site, why in (("a", "by value"), ("b", "in rows of their own"))
        ],
    ),
    "difference": (between(lambda m, y: y.diff(dim=2)), PASSES),
    "difference_of_channels": (between(lambda m, y: y.diff(dim=1), outputs=7), over("diff")),
    "difference_with_a_first_row": (
        between(lambda m, y: y.diff(dim=2, prepend=y[:, :, :1])),
        frozen("a difference with something put in front or behind"),
    ),
    "triangle": (between(lambda m, y: y.tril() + y.triu(1).exp()), PASSES),
    "triangle_of_tokens": (tokens(lambda m, y: y.tril()), frozen("a triangle of the matrix, by position")),
    "diagonal": (between(lambda m, y: y.diagonal(dim1=2, dim2=3)[..., None]), PASSES),
    "diagonal_of_tokens": (
        tokens(lambda m, y: y.diagonal(dim1=1, dim2=2), outputs=5),
        frozen("a diagonal along this axis"),
    ),
    "one_hot_of_each": (
        tokens(lambda m, y: torch.nn.functional.one_hot((y > 0).long(), 2)[..., 0].double()),
        PASSES,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    check(*CASES[name])
