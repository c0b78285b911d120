"""The latency table: what is kept, what is refused, and which node of one network is which of another."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from curlfx.coupling import Coupling, couple
from curlfx.deploy import LatencyTable, NodeTime
from curlfx.deploy.latency_table import Sample, _aligned, sizes
from curlfx.errors import PlanError
from curlfx.graph import TracedModel, trace
from curlfx.planning import Fingerprint
from curlfx.planning.probes import random_widths

CPU = "CPUExecutionProvider"


def node(
    name: str,
    op_type: str,
    milliseconds: float = 1.0,
    output: tuple[int, ...] | None = (1, 8, 4, 4),
    *inputs: tuple[int, ...],
) -> NodeTime:
    return NodeTime(name, op_type, CPU, milliseconds, output, inputs)


def subject(*widths: int) -> tuple[TracedModel, Coupling]:
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
    traced = trace(nn.Sequential(*layers), (torch.randn(2, 3, 8, 8),))
    return traced, couple(traced)


def measured(coupling: Coupling, count: int = 6, **about: Any) -> LatencyTable:
    """Samples whose only node, the convolution between the two groups, takes time by its multiply-adds."""
    table = LatencyTable(about)
    for keep in ({}, *random_widths(coupling, count - 1, round_to=1, seed=0)):
        alive = coupling.alive(keep)
        read, written = (int(alive[group.channels].sum()) for group in coupling.groups)
        only = node("conv", "Conv", 9.0, (1, written, 8, 8), (1, read, 8, 8), (written, read, 3, 3))
        table.samples.append(Sample(alive, 0.25 + read * written / 100, (only,)))
    return table


@pytest.fixture(scope="module")
def network() -> tuple[TracedModel, Coupling]:
    return subject(3, 16, 24, 5)


def test_it_reads_back(network: tuple[TracedModel, Coupling], tmp_path: Path) -> None:
    _, coupling = network
    table = measured(coupling, provider="cpu", threads=1, cpu_flags=["avx2"])
    table.samples[1] = Sample(table.samples[1].alive, 0.5, (node("a", "Sum", 0.1, None), node("b", "Conv")))
    table.save(tmp_path / "table.json")
    found = LatencyTable.load(tmp_path / "table.json")
    assert found.about == table.about
    assert found.dense_ms == table.dense_ms == 0.25 + 16 * 24 / 100
    for one, other in zip(found.samples, table.samples, strict=True):
        assert one.alive.dtype == np.bool_
        assert np.array_equal(one.alive, other.alive)
        assert (one.milliseconds, one.nodes) == (other.milliseconds, other.nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: "{", "damaged"),
        (lambda found: "[]", "damaged"),
        (lambda found: "{}", "damaged one .'version'."),
        (lambda found: json.dumps({**found, "version": 2}), "version 2, want 1"),
        (lambda found: json.dumps({**found, "samples": [3]}), "damaged"),
        (lambda found: json.dumps({**found, "about": "this"}), "damaged"),
        (lambda found: json.dumps({**found, "samples": [{**found["samples"][0], "alive": "?"}]}), "damaged"),
        (lambda found: json.dumps({**found, "samples": [{**found["samples"][0], "alive": "/w=="}]}), "bits"),
        (lambda found: json.dumps({**found, "samples": [{**found["samples"][0], "nodes": [[1]]}]}), "damaged"),
        (lambda found: json.dumps({**found, "samples": [{**found["samples"][0], "milliseconds": "x"}]}), "damaged"),
    ],
)
def test_what_is_no_table(network: tuple[TracedModel, Coupling], tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "table.json"
    measured(network[1]).save(path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(
        PlanError, match=r"table\.json: no latency table, or a damaged one.*; measure it again"
    ) as caught:
        LatencyTable.load(path)
    assert caught.match(message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.json: no latency table"):
        LatencyTable.load(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"bytes\.json: no latency table"):
        LatencyTable.load(tmp_path / "bytes.json")


def test_known_times_are_predicted(network: tuple[TracedModel, Coupling]) -> None:
    traced, coupling = network
    table = measured(coupling, 8)
    costs = table.costs(traced, coupling)
    alive = coupling.alive({"0.weight": tuple(range(7)), "1.weight": tuple(range(5))})
    assert costs.evaluate(alive).latency_ms == pytest.approx(0.25 + 35 / 100, rel=1e-9)
    assert costs.dense.latency_ms == pytest.approx(table.dense_ms, rel=1e-9)
    assert table.model(traced, coupling).predict(alive) == costs.evaluate(alive).latency_ms
    error = table.prediction_error(traced, coupling)
    assert error.networks == 7
    assert 0 <= error.median <= error.worst < 1e-9
    assert table.relative_errors(traced, coupling).shape == (8,)


def test_too_little_was_measured(network: tuple[TracedModel, Coupling]) -> None:
    traced, coupling = network
    with pytest.raises(PlanError, match=r"nothing was measured; fill it with curlfx\.measure_latency"):
        _ = LatencyTable({}).dense_ms
    for ask in ("model", "costs", "prediction_error", "relative_errors"):
        with pytest.raises(PlanError, match="3 networks were measured; want 4 or more"):
            getattr(measured(coupling, 3), ask)(traced, coupling)


def test_a_table_of_another_network(network: tuple[TracedModel, Coupling]) -> None:
    table = measured(network[1])
    with pytest.raises(PlanError, match=r"of a network with 40 channels, this one has 44; measure it again"):
        table.costs(*subject(3, 20, 24, 5))
    other = subject(3, 24, 16, 5)  # as many channels
    table.about = {"network": Fingerprint.of(*network).sha256}
    for ask in ("model", "costs", "prediction_error", "relative_errors"):
        assert getattr(table, ask)(*network) is not None
        with pytest.raises(PlanError, match=r"it is of another network .*; measure it again"):
            getattr(table, ask)(*other)


def test_sizes_by_hand() -> None:
    convolution = node("c", "Conv", 1.0, (2, 16, 5, 5), (2, 8, 7, 7), (16, 4, 3, 3), (16,))
    assert sizes(convolution) == (2 * 16 * 25, 2 * 8 * 49, 16 * 4 * 9 * 25)
    linear = node("l", "Gemm", 1.0, (2, 10), (2, 64), (10, 64), (10,))
    assert sizes(linear) == (20, 128, 2 * 64 * 10)
    product = node("m", "MatMul", 1.0, (2, 4, 7, 7), (2, 4, 7, 16), (2, 4, 16, 7))
    assert sizes(product) == (2 * 4 * 49, 2 * 4 * 7 * 16, 2 * 4 * 7 * 16 * 7)
    assert sizes(node("r", "Relu", 1.0, (1, 8, 4, 4), (1, 8, 4, 4))) == (128, 128, 0)
    assert sizes(node("x", "Conv", 1.0, None, (1, 8, 4, 4), (8, 8, 1, 1))) == (0, 128, 0)
    assert sizes(node("k", "Constant", 1.0, None)) == (0, 0, 0)
    assert sizes(node("s", "ReduceSum", 1.0, (), (3, 4))) == (1, 12, 0)


def test_times_of_a_profile_are_shares_of_the_call() -> None:
    alive = np.ones(3, bool)
    found = Sample(alive, 8.0, (node("a", "Conv", 1.0), node("b", "Relu", 3.0))).scaled()
    assert [one.milliseconds for one in found] == [2.0, 6.0]
    quick = Sample(alive, 8.0, (node("a", "Conv", 0.0), node("b", "Relu", 0.0))).scaled()
    assert [one.milliseconds for one in quick] == [4.0, 4.0]  # below a microsecond
    assert Sample(alive, 8.0, ()).scaled() == ()


def kinds(text: str) -> list[NodeTime]:
    """Nodes like ``"Conv:a=2 Relu:r=1"``."""
    words = [word.replace("=", ":").split(":") for word in text.split()]
    return [node(name, kind, float(time), (1, len(text)), (1, 3)) for kind, name, time in words]


def aligned(*texts: str) -> dict[str, list[float]]:
    return {found.name: found.milliseconds.tolist() for found in _aligned([kinds(text) for text in texts])}


def test_nodes_of_one_kind_and_order_are_the_same_whatever_their_names() -> None:
    assert aligned("Conv:a=2 Relu:r=1", "Conv:x=5 Relu:y=4") == {"a": [2, 5], "r": [1, 4]}


def test_a_node_more_counts_with_the_one_behind_it() -> None:
    """The optimiser puts a reordering before a convolution that leaves the fast path, or behind the last node."""
    dense = "Conv:a=2 Conv:b=3 Sum:s=1"
    assert aligned(dense, "Conv:a=2 Reorder:t=7 Conv:b=3 Sum:s=1") == {"a": [2, 2], "b": [3, 10], "s": [1, 1]}
    assert aligned(dense, "Conv:a=2 Conv:b=3 Sum:s=1 Reorder:t=7") == {"a": [2, 2], "b": [3, 3], "s": [1, 8]}
    found = aligned(dense, "Reorder:t=7 Reorder:u=1 Conv:a=2 Conv:b=3 Sum:s=1")
    assert found == {"a": [2, 10], "b": [3, 3], "s": [1, 1]}


def test_a_node_less_takes_no_time() -> None:
    assert aligned("Conv:a=2 Reorder:t=7 Conv:b=3", "Conv:a=1 Conv:b=2") == {"a": [2, 1], "t": [7, 0], "b": [3, 2]}


def test_one_more_and_one_less() -> None:
    found = aligned("Conv:a=2 Reorder:t=7 Conv:b=3", "Conv:a=1 Conv:b=2 Copy:c=4")
    assert found == {"a": [2, 1], "t": [7, 0], "b": [3, 6]}


def test_no_time_is_lost_on_the_way() -> None:
    texts = ["Conv:a=2 Reorder:t=7 Conv:b=3 Sum:s=1", "Conv:a=2 Pad:p=5 Conv:b=3 Sum:s=1 Cast:c=9", "Sum:s=2 Conv:a=1"]
    found = np.array(list(aligned(*texts).values()))
    assert found.sum(axis=0).tolist() == [13, 20, 3]


def test_sizes_are_those_of_every_network() -> None:
    first, second = kinds("Conv:a=2"), [node("a", "Conv", 1.0, (1, 5), (1, 7))]
    (found,) = _aligned([first, second])
    assert found.sizes.tolist() == [[8.0, 5.0], [3.0, 7.0], [0.0, 0.0]]
