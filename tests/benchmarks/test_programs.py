"""The programs start, explain themselves, and one of them measures a small model and finds its row again."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = [
    "accuracy.py",
    "compile_time.py",
    "coverage.py",
    "fuzz.py",
    "gradual.py",
    "kl_scoring.py",
    "latency.py",
    "limited_data.py",
    "recovery.py",
    "rivals.py",
    "stagewise.py",
]
PROGRAMS += ["export_quality.py", "scaling.py"]


def start(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(FOLDER / program), run_name="__main__")
    assert ended.value.code == 0
    assert f"usage: {program}" in capsys.readouterr().out


@pytest.mark.slow
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


@pytest.mark.slow
def test_coverage_names_an_unknown_model(tmp_path):
    done = start("coverage.py", "--models", "resnet19", "--record", str(tmp_path / "record.jsonl"))
    assert done.returncode != 0
    assert "resnet19" in done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
def test_gradual_measures_once(tmp_path):
    record = tmp_path / "results" / "record.jsonl"
    options = ["--data", "digits", "--model", "curlfx:digits", "--epochs", "3", "--train-limit", "200", "--seeds", "0"]
    options += ["--test-limit", "100", "--importance", "magnitude", "--proxy", "16", "--record", str(record)]
    first = start("gradual.py", *options)
    assert first.returncode == 0, first.stderr
    rows = {row["arm"]: row for row in map(json.loads, record.read_text(encoding="utf-8").splitlines())}
    gradual = ["masked", "physical", "physical-uniform", "physical-per-macs", "physical-random"]
    assert list(rows) == ["dense", *gradual, "fine-tuned"]
    assert rows["dense"]["training_ratio"] == rows["masked"]["training_ratio"] == 1.0
    assert rows["physical"]["training_ratio"] < 1.0
    assert rows["fine-tuned"]["training_ratio"] < 1.0
    assert all(row["macs_ratio"] <= 0.44 for arm, row in rows.items() if arm != "dense")
    second = start("gradual.py", *options)
    assert second.stdout == first.stdout
    assert not list((tmp_path / "results" / "record.work").iterdir())


@pytest.mark.slow
def test_limited_data_measures_once(tmp_path):
    record = tmp_path / "results" / "record.jsonl"
    network = f"{FOLDER.parent / 'tests' / 'run' / 'tiny_networks.py'}:residual"
    options = ["--data", "digits", "--model", network, "--small-model", network, "--per-class", "2"]
    options += ["--epochs", "1", "--refine-epochs", "1", "--proxy", "8", "--test-limit", "20", "--seeds", "0"]
    options += ["--arms", "plain,curl,scratch,small", "--record", str(record)]
    first = start("limited_data.py", *options)
    assert first.returncode == 0, first.stderr
    rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert [(row["arm"], row["steps"]) for row in rows] == [("plain", 1), ("curl", 5), ("scratch", 1), ("small", 1)]
    assert rows[0]["macs"] == rows[2]["macs"] <= 0.32 * rows[3]["macs"]
    assert rows[0]["accuracy_before"] == rows[1]["accuracy_before"]
    assert "| slimmed, cross-entropy " in first.stdout
    assert list((tmp_path / "results" / "record.work").iterdir()) == []
    second = start("limited_data.py", *options)
    assert second.stdout == first.stdout
    assert len(record.read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.slow
def test_recovery_measures_once(tmp_path):
    record = tmp_path / "results" / "record.jsonl"
    network = f"{FOLDER.parent / 'tests' / 'run' / 'tiny_networks.py'}:residual"
    options = ["--data", "digits", "--model", network, "--targets", "50%", "--seeds", "0", "--epochs", "1"]
    options += ["--train-limit", "64", "--test-limit", "20", "--proxy", "8", "--rate", "2", "--record", str(record)]
    first = start("recovery.py", *options)
    assert first.returncode == 0, first.stderr
    rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert [row["arm"] for row in rows][::5] == ["plain", "plain-longer"]
    assert len({(row["accuracy_slimmed"], row["macs_ratio"]) for row in rows}) == 1
    assert "| + similarities + distillation " in first.stdout
    assert list((tmp_path / "results" / "record.work").iterdir()) == []
    second = start("recovery.py", *options)
    assert second.stdout == first.stdout
    assert len(record.read_text(encoding="utf-8").splitlines()) == 6
    alone = start("recovery.py", *options, "--seeds", "1", "--arms", "plain-longer")
    assert alone.returncode != 0
    assert "needs the seconds of plain, overparam-spkd" in alone.stderr


@pytest.mark.slow
def test_accuracy_measures_once(tmp_path):
    rival = ["tp-magnitude"] if importlib.util.find_spec("torch_pruning") else []
    arms = ["taylor-per-macs", "uniform", "random", *rival]
    options = ["--model", "curlfx:digits", "--data", "digits", "--limit", "60", "--epochs", "1", "--proxy", "8"]
    options += ["--seeds", "0", "--targets", "60%", "--device", "cpu", "--threads", "1", "--arms", ",".join(arms)]
    options += ["--train-epochs", "1", "--record", str(tmp_path / "record.jsonl"), "--out", str(tmp_path / "table.md")]
    first = start("accuracy.py", *options)
    assert first.returncode == 0, first.stderr
    rows = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["arm"] for row in rows] == arms
    for row in rows:
        assert 0.4 < row["macs_ratio"] <= 0.6
        assert ("accuracy_absorbed_exact" in row) == (not row["arm"].startswith("tp-"))
    assert (tmp_path / "dense-curlfx-digits-digits-epochs1-images60.safetensors").exists()
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == first.stdout[:-1]
    second = start("accuracy.py", *options)
    assert second.stdout == first.stdout
    assert "recover" not in second.stderr
    far = start("accuracy.py", *(option if option != "60%" else "1%" for option in options))
    assert far.returncode == 0, far.stderr
    assert far.stderr.count("is left out: ") == len(arms)
