"""Figures as text, and as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import pytest
import torch

from curlfx.cost import CostModel
from curlfx.coupling import couple, places
from curlfx.graph.trace import trace
from curlfx.models import MODELS
from curlfx.passes.slim import Slim
from curlfx.report.layers import COLUMNS, from_csv, frozen_rows, group_rows, layer_rows, to_csv, width_rows
from curlfx.report.text import columns, count, folded, headline, share, verdict
from tests.report.example import SUMMARY


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1234, "1.23 k"), (4_089_184_256, "4.09 G"), (25.5e6, "25.5 M")]
)
def test_count(number: float, text: str) -> None:
    assert count(number) == text


def test_share_of_nothing() -> None:
    assert share(1, 4) == "25.0 %"
    assert share(0, 0) == "-"


def test_columns_line_up() -> None:
    assert columns([("name", "x"), ("a", "10")]) == ["name   x", "a     10"]
    assert columns([("1", "word"), ("10", "w")], text=(1,)) == [" 1  word", "10  w"]
    assert columns([]) == []


def test_names_that_differ_in_numbers_fold() -> None:
    assert folded([f"layers.{i}.fc{j}.weight[0]" for i in (0, 1, 2, 5) for j in (1, 2)]) == [
        "layers.{0-2,5}.fc{1-2}.weight[0]"
    ]
    assert folded(["a.1", "b", "a.1[0]", "a.1[1]"]) == ["a.1", "b", "a.1[0]", "a.1[1]"]
    assert folded(["a.0.0", "a.0.1", "a.1.0"]) == ["a.{0-1}.{0-1} (3 of these)"]
    assert folded([]) == []


def test_headline() -> None:
    rows = {row[0]: row[1:] for row in headline(SUMMARY)}
    assert rows["accuracy"] == ("0.9800", "0.9700", "-0.0100")
    assert rows["MACs"] == ("2 M", "1 M", "50.0 %")
    assert rows["latency median"] == ("1.000 ms", "0.500 ms", "2.00x faster")


def test_headline_without_what_was_not_measured() -> None:
    networks = {name: {**SUMMARY[name], "accuracy": None, "latency_ms": None} for name in ("dense", "slim")}
    rows = {row[0]: row[1:] for row in headline({**SUMMARY, **networks})}
    assert rows["accuracy"] == ("–", "–", "–")
    assert rows["latency median"] == ("–", "–", "–")
    assert rows["latency p90"] == ("–", "–", "")
    assert rows["MACs"] == ("2 M", "1 M", "50.0 %")


def test_verdict() -> None:
    assert verdict(SUMMARY) == "passed (gated vs slim 1.0e-16, torch vs onnx 1.0e-06)"
    failed = {**SUMMARY, "verification": {**SUMMARY["verification"], "passed": False}}
    assert verdict(failed).startswith("FAILED")


@pytest.mark.slow
def test_layers_of_a_slim_network() -> None:
    traced = trace(MODELS["digits"](), (torch.randn(2, 1, 8, 8),))
    coupling = couple(traced)
    keep = {coupling.groups[0].id: tuple(range(0, coupling.groups[0].width, 2))}
    cost = CostModel(traced, coupling)
    rows = layer_rows(traced, Slim(coupling, keep)(traced), coupling, cost, coupling.alive(keep))
    first = rows[0]
    assert (first["layer"], first["shape_before"], first["shape_after"]) == ("conv1.weight", "64x1x3x3", "32x1x3x3")
    assert first["groups"] == "axis 0: conv1.weight"
    assert (first["macs_before"], first["macs_after"]) == (str(64 * 9 * 64), str(64 * 9 * 32))
    head = next(row for row in rows if row["layer"] == "head.weight")
    assert head["frozen"] == "axis 0: an output of the network"
    assert from_csv(to_csv(rows)) == rows
    assert next(csv.reader(io.StringIO(to_csv(rows)))) == list(COLUMNS)
    assert group_rows(coupling, keep)[0] == {"id": "conv1.weight", "members": 19, "width": 64, "kept": 32}
    assert frozen_rows(coupling)[0]["site"] == "head.weight axis 0"


def widths(network: torch.nn.Module, keep: Mapping[str, Sequence[int]]) -> list[tuple[str, int, int]]:
    """Name, width before and width after of every layer, and that the slim network computes as many channels."""
    traced = trace(network, (torch.randn(2, 1, 8, 8),))
    coupling = couple(traced)
    slim, alive = Slim(coupling, keep)(traced), coupling.alive(keep)
    rows = layer_rows(traced, slim, coupling, CostModel(traced, coupling), alive)
    found = [(row["layer"], row["before"], row["after"]) for row in width_rows(coupling, rows, alive)]
    for place, of in ((1, traced), (2, slim)):
        computed = [node.meta["val"].shape[1] for node in of.graph.nodes if "conv" in str(node.target)]
        assert [one[place] for one in found] == computed
    return found


def test_widths_are_those_of_the_axis_that_makes_channels() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.ConvTranspose2d(4, 6, 2), torch.nn.Conv2d(6, 2, 1))
    assert widths(network, {"0.weight": (0, 1, 3), "1.weight": (0, 1, 2, 3, 5)}) == [
        ("0", 4, 3), ("1", 6, 5), ("2", 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("groups", "outputs", "keep", "after"),
    [
        (2, 8, {"1.weight": (0, 1, 2, 4, 6, 7)}, 6),  # three channels of each group
        (4, 8, {"0.weight#blocks": (0, 2, 3)}, 6),  # three groups
        (4, 8, {"0.weight#blocks": (0, 2), "1.weight": (0, 2, 4, 6)}, 2),  # two groups, one channel of each
        (4, 4, {"0.weight#blocks": (1, 2, 3)}, 3),  # groups of one output
        (8, 16, {"0.weight#blocks": (1, 2, 3)}, 6),  # groups of one input
    ],
)
def test_the_width_of_a_grouped_transposed_convolution(
    groups: int, outputs: int, keep: dict[str, Sequence[int]], after: int, bias: bool
) -> None:
    """Its weight has the channels of one group along axis 1."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 1),
        torch.nn.ConvTranspose2d(8, outputs, 2, groups=groups, bias=bias),
        torch.nn.Conv2d(outputs, 2, 1),
    )
    first, second, last = widths(network, keep)
    assert (second, last) == (("1", outputs, after), ("2", 2, 2))
    assert first == ("0", 8, 8 * len(keep["0.weight#blocks"]) // groups if "0.weight#blocks" in keep else 8)


def test_a_grouped_transposed_convolution_makes_the_channels_behind_it() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), torch.nn.ConvTranspose2d(8, 8, 2, groups=2))
    known = places(couple(trace(network, (torch.randn(2, 1, 8, 8),))))
    assert {axis: (known[f"1.weight[{axis}]"].role, known[f"1.weight[{axis}]"].width) for axis in (0, 1)} == {
        0: ("reads", 8),
        1: ("makes", 8),
    }
    grouped = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), torch.nn.Conv2d(8, 8, 1, groups=2))
    known = places(couple(trace(grouped, (torch.randn(2, 1, 8, 8),))))
    assert [known[f"1.weight[{axis}]"].role for axis in (0, 1)] == ["makes", "reads"]
