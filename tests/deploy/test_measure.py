"""Filling a latency table: what is measured, kept, found again and gone on with. Nothing here looks at how long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from curlfx.coupling import Coupling, couple
from curlfx.deploy import LatencyTable, TableSettings, measure, measure_latency
from curlfx.deploy.latency_table import Sample
from curlfx.deploy.measure import Stopwatch, cache_folder
from curlfx.errors import ConfigError, OutputError
from curlfx.graph import TracedModel, trace
from curlfx.planning.probes import random_widths
from curlfx.progress import StepEvent
from tests.killed import Killed

Subject = tuple[TracedModel, Coupling]
SETTINGS = TableSettings(probes=4, round_to=4)


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
    traced = trace(nn.Sequential(net, nn.Conv2d(16, 4, 1)), (torch.randn(2, 3, 8, 8),))
    return traced, couple(traced)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few calls as there can be."""
    monkeypatch.setattr(measure, "ROUNDS", 2)
    monkeypatch.setattr(measure, "RUNS", (1, 1))
    monkeypatch.setattr(measure, "PROFILED", 1)
    monkeypatch.setattr(measure, "ODD", np.inf)


class Steps:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def on_step(self, event: StepEvent) -> None:
        self.seen.append((event.stage, event.step, event.total))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: None


def never(self: Stopwatch, keep: Mapping[str, tuple[int, ...]], dense_ms: float | None) -> Sample:
    raise Killed


@pytest.mark.slow
def test_every_network_is_there_and_is_found_again(
    subject: Subject, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced, coupling = subject
    steps = Steps()
    table = measure_latency(traced, coupling, SETTINGS, cache=tmp_path / "new" / "folder", progress=steps)
    keeps = [{}, *random_widths(coupling, 4, round_to=4, seed=0)]
    assert len(table.samples) == 5
    for keep, sample in zip(keeps, table.samples, strict=True):
        assert np.array_equal(sample.alive, coupling.alive(keep))
        assert sample.milliseconds > 0
        assert [node.op_type for node in sample.nodes].count("Conv") == 3
    assert table.dense_ms == table.samples[0].milliseconds
    assert steps.seen == [("latency", done, 5) for done in range(1, 6)]
    assert table.prediction_error(traced, coupling).networks == 4
    assert (table.about["provider"], table.about["probes"], table.about["round_to"]) == ("cpu", 4, 4)

    monkeypatch.setattr(Stopwatch, "sample", never)
    monkeypatch.setattr(Stopwatch, "__enter__", never)
    again = measure_latency(traced, coupling, SETTINGS, cache=tmp_path / "new" / "folder")
    assert again.about == table.about
    assert [sample.milliseconds for sample in again.samples] == [sample.milliseconds for sample in table.samples]
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert [sample.nodes for sample in LatencyTable.load(file).samples] == [sample.nodes for sample in table.samples]


def counted(monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> list[Mapping[str, tuple[int, ...]]]:
    """Replace measuring by a number for each call; from `kill_at` calls on the process ends. Returns what was asked."""
    asked: list[Mapping[str, tuple[int, ...]]] = []

    def sample(self: Stopwatch, keep: Mapping[str, tuple[int, ...]], dense_ms: float | None) -> Sample:
        if len(asked) == kill_at:
            raise Killed
        asked.append(keep)
        return Sample(self.coupling.alive(keep), float(len(asked)), ())

    monkeypatch.setattr(Stopwatch, "sample", sample)
    monkeypatch.setattr(Stopwatch, "__enter__", lambda self: self)
    monkeypatch.setattr(measure, "_measure_odd_ones", lambda *given: None)
    return asked


def test_an_interrupted_table_goes_on(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced, coupling = subject
    keeps = [{}, *random_widths(coupling, 4, round_to=4, seed=0)]
    for _ in range(2):
        asked = counted(monkeypatch, kill_at=2)
        with pytest.raises(Killed):
            measure_latency(traced, coupling, SETTINGS, cache=tmp_path)
        (file,) = tmp_path.iterdir()
    assert [sample.milliseconds for sample in LatencyTable.load(file).samples] == [1, 2, 1, 2]
    assert asked == keeps[2:4]
    asked = counted(monkeypatch)
    table = measure_latency(traced, coupling, SETTINGS, cache=tmp_path)
    assert asked == keeps[4:]
    assert [sample.milliseconds for sample in table.samples] == [1, 2, 1, 2, 1]
    for keep, sample in zip(keeps, table.samples, strict=True):
        assert np.array_equal(sample.alive, coupling.alive(keep))


def test_a_damaged_table_is_measured_again(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch)
    measure_latency(*subject, SETTINGS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-9])
    asked = counted(monkeypatch)
    assert len(measure_latency(*subject, SETTINGS, cache=tmp_path).samples) == len(asked) == 5


@pytest.mark.parametrize(
    "other", [{"threads": 2}, {"batch_size": 2}, {"probes": 5}, {"round_to": 8}, {"seed": 1}, {"network": True}]
)
def test_every_question_has_a_table_of_its_own(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, int]
) -> None:
    counted(monkeypatch)
    measure_latency(*subject, SETTINGS, cache=tmp_path)
    asked = counted(monkeypatch)
    if "network" in other:
        traced = trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), (torch.randn(2, 3, 8, 8),))
        measure_latency(traced, couple(traced), SETTINGS, cache=tmp_path)
    else:
        measure_latency(*subject, TableSettings(**{"probes": 4, "round_to": 4, **other}), cache=tmp_path)  # type: ignore[arg-type]
    assert asked[:1] == [{}]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_others_predict_badly_is_measured_again(
    subject: Subject, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle one of three stands, whichever the first was."""
    traced, coupling = subject
    monkeypatch.setattr(measure, "ODD", 0.08)
    monkeypatch.setattr(LatencyTable, "relative_errors", lambda *given: np.array([0, 0.01, -0.2, 0.07, 0.09]))
    monkeypatch.setattr(Stopwatch, "__enter__", lambda self: self)
    given = iter([10, 9, 8, 7, 6, 1, 2, 30, 3])

    def sample(self: Stopwatch, keep: Mapping[str, tuple[int, ...]], dense_ms: float | None) -> Sample:
        return Sample(self.coupling.alive(keep), float(next(given)), ())

    monkeypatch.setattr(Stopwatch, "sample", sample)
    table = measure_latency(traced, coupling, SETTINGS, cache=tmp_path)
    assert [sample.milliseconds for sample in table.samples] == [10, 9, 2, 7, 6]
    (file,) = tmp_path.iterdir()
    assert [sample.milliseconds for sample in LatencyTable.load(file).samples] == [10, 9, 2, 7, 6]


@pytest.mark.slow
def test_times_are_scaled_to_the_first_dense_one(
    subject: Subject, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is half as fast by then; the ratio of the two is what counts, its median over the rounds."""
    _, coupling = subject
    narrow = {coupling.groups[0].id: (0, 1, 2, 3)}
    monkeypatch.setattr(Stopwatch, "_profile", lambda self, path, feeds: ())
    with Stopwatch(*subject, SETTINGS) as stopwatch:
        turns = np.array([[[8.0, 9.0], [4.0, 4.5], [8.0, 8.0]], [[2.0, 7.0], [2.0, 2.5], [1.0, 5.0]]])
        monkeypatch.setattr(measure, "take_turns", lambda *given, **more: turns[: len(given[0])])
        assert stopwatch.sample({}, None).milliseconds == 8.0
        found = stopwatch.sample(narrow, 16.0)
        assert found.milliseconds == 16.0 * 0.25  # of 0.25, 0.5 and 0.125
        assert np.array_equal(found.alive, coupling.alive(narrow))
        assert stopwatch.sample(narrow, None).milliseconds == 8.0 * 0.25


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURLFX_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own" / "latency"
    monkeypatch.delenv("CURLFX_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "curlfx" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "curlfx" / "latency"


def test_without_a_folder_the_cache_is_taken(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch)
    monkeypatch.setenv("CURLFX_CACHE", str(tmp_path))
    measure_latency(*subject, SETTINGS)
    assert len(list((tmp_path / "latency").iterdir())) == 1


def test_refusals(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="probes = 2: want 3 or more"):
        TableSettings(probes=2)
    with pytest.raises(ConfigError, match="threads = -1: want"):
        measure_latency(*subject, TableSettings(threads=-1), cache=tmp_path)
    with pytest.raises(ConfigError, match="provider"):
        measure_latency(*subject, TableSettings(provider="abacus"), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        measure_latency(*subject, SETTINGS, cache=tmp_path / "file")


def test_a_table_killed_before_the_odd_ones_were_measured_again_is_not_complete(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(monkeypatch)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure, "_measure_odd_ones", killed)
        with pytest.raises(KeyboardInterrupt):
            measure_latency(*subject, SETTINGS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    assert (len(LatencyTable.load(file).samples), LatencyTable.load(file).complete) == (5, False)
    looked: list[int] = []
    monkeypatch.setattr(measure, "_measure_odd_ones", lambda table, *_: looked.append(len(table.samples)))
    assert measure_latency(*subject, SETTINGS, cache=tmp_path).complete
    assert looked == [5]
    assert measure_latency(*subject, SETTINGS, cache=tmp_path).complete
    assert looked == [5]
