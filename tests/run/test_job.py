"""The whole job in miniature: what it leaves, that it repeats itself, and that an interrupted one ends the same."""

from __future__ import annotations

import errno
import functools
import json
import operator
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
import pytest
import torch
from markupsafe import escape
from safetensors.torch import load_file

import curlfx
from curlfx.errors import ConfigError, OutputError, VerificationError
from curlfx.graph.trace import trace
from curlfx.planning import SlimPlan
from curlfx.planning.apply import slim
from curlfx.progress import StepEvent
from curlfx.report.layers import from_csv
from curlfx.run import deployment, directory, gradual, training
from curlfx.run.config import RunConfig
from curlfx.run.directory import RunDirectory
from curlfx.run.job import Job
from curlfx.run.recheck import recheck
from curlfx.run.reporting import read_summary, write_page
from curlfx.run.results import damage
from curlfx.run.runner import STAGES, RunResult, run
from curlfx.run.verify import Check
from curlfx.sources import load_data, load_model
from tests.killed import Killed

FILES = {
    "config.yaml",
    "plan.json",
    "slim.safetensors",
    "slim.pt2",
    "network.json",
    "dense.onnx",
    "slim.onnx",
    "summary.json",
    "layers.csv",
    "report.html",
    "log.txt",
    "checkpoints",
    "state.json",
    ".lock",
}
SUMMARY_KEYS = [
    "model",
    "seed",
    "versions",
    "device",
    "dense",
    "slim",
    "speedup",
    "speedup_interval",
    "verification",
    "target",
    "importance",
    "recovery",
    "seconds",
    "files",
]
NETWORK_KEYS = ["macs", "padded_macs", "params", "size_bytes", "accuracy", "latency_ms"]


def repeatable(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What of a summary must be the same in every run of a job."""
    networks = {
        name: {key: value for key, value in summary[name].items() if key != "latency_ms"} for name in ("dense", "slim")
    }
    return {**{key: summary[key] for key in ("seed", "verification", "target", "importance", "recovery")}, **networks}


def test_a_run_leaves_what_it_promises(finished: RunResult) -> None:
    assert {path.name for path in finished.directory.iterdir()} == FILES
    summary = json.loads((finished.directory / "summary.json").read_text())
    assert summary == finished.summary
    assert list(summary) == SUMMARY_KEYS
    for network in (summary["dense"], summary["slim"]):
        assert list(network) == NETWORK_KEYS
        assert list(network["latency_ms"]) == ["median", "p90", "p99", "min", "mean"]
        assert 0 <= network["accuracy"] <= 1
    interval = summary["speedup_interval"]
    assert interval["low"] <= summary["speedup"] <= interval["high"]
    assert interval["confidence"] == 0.95
    shown = interval["low"], interval["high"]
    low, high = shown if summary["speedup"] >= 1 else (1 / shown[1], 1 / shown[0])
    assert f"({low:.2f}–{high:.2f})</span>" in (finished.directory / "report.html").read_text()
    assert list(summary["verification"]) == ["gated_vs_slim", "torch_vs_onnx", "passed"]
    assert summary["verification"]["passed"] is True
    assert summary["verification"]["gated_vs_slim"] <= 1e-9
    assert summary["verification"]["torch_vs_onnx"] <= 1e-4
    assert summary["slim"]["macs"] <= 0.6 * summary["dense"]["macs"]
    assert summary["dense"]["size_bytes"] == (finished.directory / "dense.onnx").stat().st_size
    assert set(summary["seconds"]) == set(STAGES) - {"report"}
    assert summary["target"] == {"macs": "60%"}
    assert summary["importance"] == "kl"


def test_the_page_is_one_file_and_names_what_matters(finished: RunResult) -> None:
    page = (finished.directory / "report.html").read_text()
    assert "src=" not in page
    assert "href=" not in page
    for text in ("stem.weight", "an output of the network", "passed", "torch vs onnx", "Padded MACs", "proxy_images"):
        assert text in page


def test_layers_add_up_to_the_summary(finished: RunResult) -> None:
    rows = from_csv((finished.directory / "layers.csv").read_text())
    for key in ("macs", "params"):
        assert sum(int(row[f"{key}_before"]) for row in rows) == finished.summary["dense"][key]
        assert sum(int(row[f"{key}_after"]) for row in rows) == finished.summary["slim"][key]


def test_files_of_a_run_make_the_network_again(finished: RunResult) -> None:
    """Plan and safetensors alone, without the run directory's state, against what onnxruntime computes."""
    model = load_model(finished.summary["model"])
    traced = trace(model, (torch.randn(2, 1, 8, 8),))
    network = slim(traced, SlimPlan.load(finished.directory / "plan.json"))
    network.module.load_state_dict(load_file(finished.directory / "slim.safetensors"))
    images = next(iter(load_data("digits").loader("test", 5)))[0]
    session = onnxruntime.InferenceSession(finished.directory / "slim.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(network.module.eval()(images).numpy(), found, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_biases_absorb_what_goes_when_the_job_says_so(
    tiny_job: dict[str, Any], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: dict[str, dict[str, torch.Tensor]] = {}

    def judge(job: Job, network: torch.nn.Module, stage: str, which: str) -> float:
        judged[which] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        return len(judged) / 10

    monkeypatch.setattr(training, "_accuracy", judge)
    found = run(
        {**tiny_job, "absorb_bias": "exact", "per": "macs", "importance": "magnitude", "recovery": {"epochs": 0}}
    )
    log = (found.directory / "log.txt").read_text()
    assert "absorbed what removed channels would emit in" in log
    plan = SlimPlan.load(found.directory / "plan.json")
    assert plan.per == "macs"
    saved = load_file(found.directory / "slim.safetensors")
    dense = load_model(found.summary["model"])
    dense.load_state_dict(load_file(found.directory / "checkpoints" / "dense.safetensors"))
    traced = trace(dense, (torch.randn(2, 1, 8, 8),))
    plain, absorbed = (dict(slim(traced, plan, absorb_bias=way).module.state_dict()) for way in ("none", "exact"))
    torch.testing.assert_close(saved, absorbed)
    assert any(not torch.equal(plain[name], saved[name]) for name in saved)
    assert list(judged) == [
        "of the dense network",
        "straight after slimming, no biases absorbed",
        "straight after slimming",
        "of the slim network",
    ]
    torch.testing.assert_close(judged["straight after slimming, no biases absorbed"], plain)
    torch.testing.assert_close(judged["straight after slimming"], absorbed)
    recovery = found.summary["recovery"]
    assert (recovery["accuracy_before_without_absorbing"], recovery["accuracy_before"]) == (0.2, 0.3)
    page = (found.directory / "report.html").read_text()
    assert "(without absorbed biases 0.2000)" in page
    refusals = json.loads((found.directory / "state.json").read_text())["done"]["slim"]["absorbed"]["refused"]
    assert refusals
    assert escape(refusals[0]) in page
    assert all(f"note: {refusal}" in log for refusal in refusals)


@pytest.mark.slow
def test_a_run_repeats_itself(finished: RunResult, tiny_job: dict[str, Any], elsewhere: Path) -> None:
    again = run(tiny_job)
    assert again.directory == Path("runs") / "residual-1"
    assert repeatable(again.summary) == repeatable(finished.summary)
    for name in ("plan.json", "layers.csv", "slim.safetensors", "slim.onnx"):
        assert (again.directory / name).read_bytes() == (finished.directory / name).read_bytes(), name


@pytest.mark.slow
def test_killed_after_every_stage(
    finished: RunResult, tiny_job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunDirectory.record

    def record_and_die(directory: RunDirectory, *arguments: Any) -> NoReturn:
        record(directory, *arguments)
        raise Killed

    monkeypatch.setattr(RunDirectory, "record", record_and_die)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run({**tiny_job, "out": out})
    for stage in list(STAGES)[1:]:
        with pytest.raises(Killed):
            run({"resume": out})
        assert list(json.loads((out / "state.json").read_text())["done"])[-1] == stage
    result = run({"resume": out})
    assert repeatable(result.summary) == repeatable(finished.summary)
    assert (out / "slim.onnx").read_bytes() == (finished.directory / "slim.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "epoch"),
    [
        pytest.param("train", 2, marks=pytest.mark.slow),
        pytest.param("recover", 2, marks=pytest.mark.slow),
        ("score", 0),
    ],
)
def test_killed_within_a_stage(
    finished: RunResult, tiny_job: dict[str, Any], tmp_path: Path, stage: str, epoch: int
) -> None:
    class Murderer:
        def on_step(self, event: StepEvent) -> None:
            if (event.stage, event.epoch) == (stage, epoch):
                raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed) as caught:
        run({**tiny_job, "out": out}, progress=Murderer())
    assert f"curlfx run resume={out}" in "".join(caught.value.__notes__)
    assert not (out / "summary.json").exists()
    assert repeatable(run({"resume": out}).summary) == repeatable(finished.summary)


@pytest.mark.slow
def test_a_disk_that_is_full_once_for_every_file(
    finished: RunResult, tiny_job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename, failed = tmp_path / "run", Path.replace, list[str]()

    def rename_or_fail(path: Path, target: Path) -> Path:
        if target.name not in failed:
            failed.append(target.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rename_or_fail)
        while not (out / "summary.json").exists():
            begun, finished_stages = (out / "state.json").exists(), stages_done(out)
            with pytest.raises(OutputError, match=r"cannot write .*: No space left on device; free some space"):
                run({"resume": out} if begun else {**tiny_job, "out": out})
            assert not list(tmp_path.rglob("*partial*"))
            assert stages_done(out)[: len(finished_stages)] == finished_stages
    assert {"config.yaml", "state.json", "train.pt", "plan.json", "slim.onnx", "slim.pt2", "summary.json"} <= set(
        failed
    )
    assert repeatable(run({"resume": out}).summary) == repeatable(finished.summary)


def stages_done(out: Path) -> list[str]:
    """Stages on record in a run directory; none where there is none."""
    state = out / "state.json"
    return list(json.loads(state.read_text())["done"]) if state.exists() else []


@pytest.mark.slow
def test_a_failed_verification(tiny_job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [Check("torch vs onnx, slim, output, batch 1", 0.5, 1e-4)]
    monkeypatch.setattr(deployment, "torch_vs_onnx", lambda *_: bad)
    with pytest.raises(VerificationError, match=r"FAILED .*torch vs onnx 5\.0e-01.*see .*report\.html"):
        run({**tiny_job, "train": {"epochs": 0}, "recovery": {"epochs": 0}, "out": tmp_path / "run"})
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["verification"]["passed"] is False


@pytest.mark.slow
def test_recheck_reads_the_files_alone(finished: RunResult) -> None:
    report = recheck(finished.directory)
    assert report.passed
    assert len(report.checks) == 6


def damaged(finished: RunResult, folder: Path, stages: int) -> Path:
    """A copy of a finished run whose record ends after so many stages."""
    out = folder / "run"
    shutil.copytree(finished.directory, out)
    record = json.loads((out / "state.json").read_text())
    for key in ("done", "seconds"):
        record[key] = dict(list(record[key].items())[:stages])
    (out / "state.json").write_text(json.dumps(record))
    return out


def without(summary: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """``summary`` less the key at ``path``."""
    head, *rest = path
    return {
        key: without(value, *rest) if key == head else value for key, value in summary.items() if rest or key != head
    }


def test_stages_have_one_order() -> None:
    assert tuple(STAGES) == directory.STAGES


@pytest.mark.parametrize(
    "path",
    [
        ("model",),
        ("dense",),
        ("slim", "latency_ms", "median"),
        ("recovery", "accuracy_before"),
        ("recovery", "accuracy_after"),
        ("seconds",),
    ],
)
def test_a_summary_that_lacks_a_key(finished: RunResult, tmp_path: Path, path: tuple[str, ...]) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(without(finished.summary, *path)))
    with pytest.raises(OutputError, match=rf"summary\.json: key '{'.'.join(path)}' is missing; restore the file, or"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}", "key 'model' is missing"),
        ("[]", "it holds a list"),
        ("{", "cannot read it"),
    ],
)
def test_a_damaged_summary(finished: RunResult, tmp_path: Path, text: str, fault: str) -> None:
    out = damaged(finished, tmp_path, len(STAGES))
    (out / "summary.json").write_text(text)
    with pytest.raises(OutputError, match=rf"summary\.json: {fault}"):
        run({"resume": out})


def test_a_value_in_a_summary_that_is_no_number(finished: RunResult, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**finished.summary, "speedup": "fast"}))
    with pytest.raises(OutputError, match=r"summary\.json: key 'speedup' = 'fast': input should be a valid number"):
        read_summary(tmp_path)


def test_a_summary_of_an_earlier_version(finished: RunResult, tmp_path: Path) -> None:
    older = {key: value for key, value in finished.summary.items() if key != "speedup_interval"}
    (tmp_path / "summary.json").write_text(json.dumps(older))
    assert read_summary(tmp_path) == older


def test_an_interval_in_a_summary_without_an_end(finished: RunResult, tmp_path: Path) -> None:
    ends = {"low": 1.0, "confidence": 0.95}
    (tmp_path / "summary.json").write_text(json.dumps({**finished.summary, "speedup_interval": ends}))
    with pytest.raises(OutputError, match=r"summary\.json: key 'speedup_interval\.(Interval\.)?high' is missing"):
        read_summary(tmp_path)


def test_no_page_of_a_run_that_is_not_done(finished: RunResult, tmp_path: Path) -> None:
    out = damaged(finished, tmp_path, 6)
    opened, _ = RunDirectory.reopen(out)
    with (
        opened,
        pytest.raises(OutputError, match=r"state\.json: stage 'slim' is not done; go on with curlfx run resume="),
    ):
        write_page(opened)


@pytest.mark.parametrize(
    "path",
    [
        "train.epochs", "dense.accuracy", "trace.notes", "plan.dense.macs", "plan.slim.params", "slim.check",
        "slim.groups.0.kept", "slim.statistics_change", "unrecovered.accuracy", "recalibrate.batches",
        "overparam.epochs", "recover.accuracy", "accuracy.images", "export.slim.size_bytes", "verify.checks.0.error",
        "bench.speedup", "bench.latency_ms.dense.p99", "bench.timings.0.median", "bench.speedup_interval.low",
    ],
)  # fmt: skip
def test_a_record_that_lacks_what_a_later_stage_reads(finished: RunResult, tmp_path: Path, path: str) -> None:
    out = damaged(finished, tmp_path, len(STAGES) - 1)
    sound = (out / "state.json").read_text()
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    for value, said in ((None, "missing"), ([3, {}], r"input should be .*")):
        record = json.loads(sound)
        holder = functools.reduce(operator.getitem, parents, record["done"])
        del holder[last]
        if value is not None:
            holder[last] = value
        (out / "state.json").write_text(json.dumps(record))
        wanted = rf"state\.json: cannot read its record \(done\['{parents[0]}'\].*{last}.*: {said}\); restore the file"
        with pytest.raises(OutputError, match=wanted):
            run({"resume": out})


def test_a_record_that_lacks_the_speed_in_8_bits(finished: RunResult) -> None:
    done = json.loads((finished.directory / "state.json").read_text())["done"]
    assert damage(done) is None
    done["export"]["int8"] = {"size_bytes": 1, "accuracy": 0.5}
    assert damage(done) == "done['bench'].int8_speedup: missing"
    done["bench"]["int8_speedup"] = 2.0
    assert damage(done) == "done['bench'].latency_ms.int8: missing"
    done["bench"]["latency_ms"]["int8"] = done["bench"]["latency_ms"]["slim"]
    assert damage(done) is None


def test_a_record_that_lacks_the_pruning_of_a_training(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", "digits", {}) as opened:
        opened.record("train", {"epochs": 2}, 1.0)
        job = Job(RunConfig(), None, opened, None, lambda _: None)
        with pytest.raises(OutputError, match=r"state\.json: done\['train'\]\.gradual: missing, though .*; restore"):
            gradual.score(job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "stages"),
    [
        ("checkpoints/scores.json", "{", 5),
        ("checkpoints/scores.json", '{"version": 1, "criterion": "kl", "details": {}, "values": {}}', 5),
        ("checkpoints/scores.json", None, 5),
        ("plan.json", "{}", 6),
        ("plan.json", None, 6),
    ],
)
def test_a_damaged_file_of_an_earlier_stage(
    finished: RunResult, tmp_path: Path, name: str, text: str | None, stages: int
) -> None:
    out = damaged(finished, tmp_path, stages)
    (out / name).unlink() if text is None else (out / name).write_text(text)
    with pytest.raises(
        OutputError, match=rf"{name}: cannot read what an earlier stage wrote .*; restore it, or start a new run"
    ):
        run({"resume": out})


def test_a_page_without_its_table(finished: RunResult, tmp_path: Path) -> None:
    out = damaged(finished, tmp_path, len(STAGES))
    (out / "layers.csv").unlink()
    opened, _ = RunDirectory.reopen(out)
    with opened, pytest.raises(OutputError, match=r"layers\.csv: cannot read what an earlier stage wrote"):
        write_page(opened)


def test_recheck_names_a_plan_of_another_network(finished: RunResult, tmp_path: Path) -> None:
    out = damaged(finished, tmp_path, len(STAGES))
    plan = json.loads((out / "plan.json").read_text())
    plan["fingerprint"]["sha256"] = "0" * 64
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(OutputError, match=r"plan\.json: cannot read what an earlier stage wrote \("):
        recheck(out)


def test_resume_takes_no_other_settings(finished: RunResult) -> None:
    with pytest.raises(ConfigError, match="goes on with that run's own settings; leave out seed"):
        run({"resume": finished.directory, "seed": 3})
    assert run({"resume": finished.directory}).summary == finished.summary


def test_the_package_can_be_called() -> None:
    with pytest.raises(ConfigError, match="unknown key 'bogus'"):
        curlfx.run({"bogus": 1})
