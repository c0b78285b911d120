"""The programs start, explain themselves, and one of them measures a small model and finds its row again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = ["accuracy.py", "compile_time.py", "coverage.py", "fuzz.py", "kl_scoring.py", "rivals.py", "scaling.py"]


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program):
    done = start(program, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_coverage_measures_once(tmp_path):
    options = ["--models", "squeezenet1_1", "--skip-onnx", "--record", str(tmp_path / "record.jsonl")]
    first = start("coverage.py", *options)
    assert first.returncode == 0, first.stderr
    assert "| squeezenet1_1 |" in first.stdout
    assert "1 of 1 models passed." in first.stdout
    record = (tmp_path / "record.jsonl").read_text(encoding="utf-8")
    assert json.loads(record)["gated_vs_slim"] <= 1e-9
    second = start("coverage.py", *options)
    assert second.stdout == first.stdout
    assert (tmp_path / "record.jsonl").read_text(encoding="utf-8") == record


def test_coverage_names_an_unknown_model(tmp_path):
    done = start("coverage.py", "--models", "resnet19", "--record", str(tmp_path / "record.jsonl"))
    assert done.returncode != 0
    assert "resnet19" in done.stderr


def test_fuzz_examines_once_and_repeats_one(tmp_path):
    options = ["--networks", "2", "--onnx-every", "0", "--record", str(tmp_path)]
    first = start("fuzz.py", *options, "--part", "2/2")
    assert first.returncode == 0, first.stderr
    (record,) = tmp_path.iterdir()
    row = json.loads(record.read_text(encoding="utf-8"))
    assert row["index"] == 1
    assert row["gated"] <= 1e-9
    again = start("fuzz.py", *options, "--part", "2/2")
    assert again.stdout == first.stdout
    assert "networks" not in again.stderr
    one = start("fuzz.py", "--only", "1", "--onnx-every", "0")
    assert one.stdout.splitlines()[0] == row["recipe"]
