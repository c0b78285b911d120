"""What a row on record and a file of weights are told apart by, and memory that a system does not tell."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
NEIGHBOURS = ("records", "subjects", "tables", "peak_memory", "accuracy_arms", "rivals_tools")


@pytest.fixture
def program(monkeypatch):
    """Imports a program, whose neighbours have bare names."""

    def load(name):
        for one in (name, *NEIGHBOURS):
            monkeypatch.delitem(sys.modules, one, raising=False)
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(str(FOLDER))
    return load


@pytest.mark.parametrize(
    ("name", "rest"),
    [("recovery", ("plain", 0, "50%")), ("accuracy", ("uniform", 0, "50%")), ("limited_data", ("plain", 0))],
)
def test_rows_of_other_data_and_networks_are_others(program, name, rest):
    module = program(name)

    def key(*options):
        return module.key(module.parse(["--data", "here/birds", "--weights", "here/a.safetensors", *options]), *rest)

    assert key() == key("--data", "elsewhere/birds", "--weights", "elsewhere/a.safetensors")
    changes = [("--data", "here/fish"), ("--weights", "here/b.safetensors"), ("--proxy", "7"), ("--test-limit", "9")]
    changes += [("--small-weights", "c.safetensors")] * (name == "limited_data")
    assert len({str(key(*change)) for change in [(), *changes]}) == len(changes) + 1


def test_files_of_dense_networks_are_told_apart(program):
    recovery, subjects = program("recovery"), program("subjects")

    def name(*options):
        return subjects.dense_file(recovery.parse(["--data", "here/birds", "--train-epochs", "3", *options]))

    assert name() == name("--data", "elsewhere/birds")
    assert name().name == "dense-curlfx-resnet56-birds-epochs3.safetensors"
    changes = [
        ("--data", "fish"), ("--model", "curlfx:resnet20"), ("--train-epochs", "33"), ("--train-limit", "3"),
        ("--size", "3"), ("--weights", "a.safetensors"),
    ]  # fmt: skip
    assert len({name(*change) for change in [(), *changes]}) == len(changes) + 1


@pytest.mark.parametrize(
    ("status", "grown", "wanted"),
    [("VmRSS: 2048 kB\nVmHWM: 9000 kB\n", "VmRSS: 4096 kB\nVmHWM: 5120 kB\n", 3.0), ("VmRSS: 2048 kB\n", None, None)],
)
def test_peak_memory_where_the_system_tells_it(program, monkeypatch, tmp_path, status, grown, wanted):
    module, file = program("peak_memory"), tmp_path / "status"
    monkeypatch.setattr(module, "_STATUS", file)
    monkeypatch.setattr(module, "_RESET", tmp_path / "clear_refs")
    file.write_text(status, encoding="ascii")
    with module.PeakMemory(torch.device("cpu")) as memory:
        file.write_text(grown or status, encoding="ascii")
    assert memory.mib == wanted
