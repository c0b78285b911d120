"""The benchmark's arithmetic, its protocol against a false session, its refusals; no assertion about real time."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from curlfx.deploy import BenchSettings, Latency, Speedup, bench, environment
from curlfx.deploy.environment import _cpu, cores
from curlfx.deploy.session import open_session, provider_name
from curlfx.errors import ConfigError, ModelError

QUICK = BenchSettings(rounds=4, runs=2, warmup=1)


def write(path, shape=("batch", 3, 4, 4), kind=TensorProto.FLOAT, op="Neg"):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])], "g", [value("x", kind, shape)], [value("y", kind, shape)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def test_report(tmp_path):
    paths = [write(tmp_path / "dense.onnx"), write(tmp_path / "slim.onnx", op="Abs")]
    seen = []
    report = bench(paths, BenchSettings(rounds=4, runs=2, batch_size=5), progress=SimpleNamespace(on_step=seen.append))
    assert [event.step for event in seen] == [1, 2, 3, 4]
    dense, slim = report.entries
    assert dense.speedup is None
    assert slim.speedup is not None
    assert slim.speedup.low <= slim.speedup.ratio <= slim.speedup.high
    assert slim.latency_ms.runs == 8
    assert slim.latency_ms.min <= slim.latency_ms.median <= slim.latency_ms.p90 <= slim.latency_ms.p99
    assert slim.throughput == pytest.approx(5000 / slim.latency_ms.median)
    assert slim.file.operators == {"Abs": 1}
    shown = json.loads(json.dumps(report.to_json()))
    assert shown["entries"][1]["size_bytes"] == paths[1].stat().st_size
    assert shown["settings"]["batch_size"] == 5
    assert shown["environment"]["cpu"]
    assert shown["rounds"] == 4


def test_profile_and_memory_are_measured_where_asked_for(tmp_path):
    paths = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", op="Abs")]
    plain = bench(paths, QUICK)
    assert {entry.profile for entry in plain.entries} == {entry.memory_mib for entry in plain.entries} == {None}
    report = bench(paths, replace(QUICK, profile=True, memory=True))
    assert [[node.op_type for node in entry.profile.nodes] for entry in report.entries] == [["Neg"], ["Abs"]]
    assert all(0 <= entry.memory_mib < 50 for entry in report.entries)
    shown = json.loads(json.dumps(report.to_json()))
    assert shown["entries"][1]["profile"]["operators"][0]["op_type"] == "Abs"
    assert shown["entries"][1]["memory_mib"] == report.entries[1].memory_mib
    assert shown["settings"]["profile"] is True


def test_slow_convolutions_are_said(tmp_path):
    path = tmp_path / "odd.onnx"
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((32, 30, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "mine")],
        "g",
        [value("x", TensorProto.FLOAT, ("batch", 30, 6, 6))],
        [value("y", TensorProto.FLOAT, None)],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    report = bench([path], replace(QUICK, profile=True))
    (said,) = (one for one in report.warnings if "fast path" in one)
    assert said.startswith("odd.onnx: 1 convolution left the fast path (input channels no multiple of 4), ")
    assert said.endswith("% of the time: mine (30)")


def test_rounds_alternate_and_each_turn_has_one_untimed_call(tmp_path, monkeypatch):
    calls, paths = [], [write(tmp_path / f"{name}.onnx") for name in "abc"]

    def fake(path, **_):
        def run(_outputs, feed):
            assert feed["x"].shape == (1, 3, 4, 4)
            calls.append(path.stem)

        value = SimpleNamespace(name="x", shape=["batch", 3, 4, 4], type="tensor(float)")
        return SimpleNamespace(run=run, get_inputs=lambda: [value])

    monkeypatch.setitem(bench.__globals__, "open_session", fake)
    bench(paths, BenchSettings(rounds=3, runs=2, warmup=4))
    assert "".join(calls) == "aaaabbbbcccc" + "aaabbbccc" + "cccbbbaaa" + "aaabbbccc"


def test_a_time_limit_still_makes_the_fewest_rounds(tmp_path):
    report = bench([write(tmp_path / "a.onnx")], BenchSettings(rounds=10**6, runs=1, max_seconds=1e-9))
    assert report.rounds == 10
    assert report.entries[0].latency_ms.runs == 10


def test_latency_of_known_timings():
    latency = Latency.of(np.arange(1.0, 101.0).reshape(20, 5))
    assert (latency.median, latency.min, latency.mean, latency.runs) == (50.5, 1.0, 50.5, 100)
    assert latency.p10 == pytest.approx(10.9)
    assert latency.p90 == pytest.approx(90.1)
    assert latency.p99 == pytest.approx(99.01)
    assert latency.cov == pytest.approx(29.011 / 50.5, rel=1e-4)


def test_speedup_of_known_timings():
    noise = np.random.default_rng(0).normal(0, 0.01, (40, 5))
    clear = Speedup.between(2 + noise, 1 + noise / 2)
    assert clear.ratio == pytest.approx(2, abs=1e-6)
    assert not clear.is_noise
    other = np.random.default_rng(1).normal(0, 0.3, (40, 5))
    assert Speedup.between(1 + noise, 1 + other - np.median(other)).is_noise
    slow = 1 + np.repeat(np.arange(40.0), 5).reshape(40, 5)  # the machine slows down; both feel it
    paired = Speedup.between(3 * slow, slow)
    assert (paired.low, paired.ratio, paired.high) == pytest.approx((3, 3, 3))


def test_noise_is_said(tmp_path, monkeypatch):
    paths = [write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx")]

    def same(*_, **options):
        return np.random.default_rng(0).uniform(1, 2, (2, 20, 5))

    monkeypatch.setitem(bench.__globals__, "take_turns", same)
    report = bench(paths, BenchSettings(threads=2 * cores()))
    assert any("b.onnx: the speed-up" in one and "within the noise" in one for one in report.warnings)
    assert any("latency varies" in one for one in report.warnings)
    assert any("threads share" in one for one in report.warnings)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32])
def test_kinds_of_input(kind, tmp_path):
    bench([write(tmp_path / "a.onnx", kind=kind)], QUICK)


def test_open_shapes(tmp_path):
    path = write(tmp_path / "a.onnx", shape=("batch", 3, "height", "width"))
    with pytest.raises(ModelError, match=r"leaves its shape open.*height"):
        bench([path], QUICK)
    bench([path], QUICK, shapes={"x": (2, 3, 5, 5)})
    with pytest.raises(ConfigError, match="does not fit"):
        bench([path], QUICK, shapes={"x": (2, 4, 5, 5)})
    with pytest.raises(ConfigError, match="no input 'z'; its inputs are x"):
        bench([path], QUICK, shapes={"z": (2, 3, 5, 5)})
    fixed = write(tmp_path / "b.onnx", shape=(2, 3))
    with pytest.raises(ConfigError, match="takes batch 2 only"):
        bench([fixed], QUICK)
    bench([fixed], BenchSettings(rounds=2, runs=1, batch_size=2))
    with pytest.raises(ModelError, match=r"is a tensor\(string\)"):
        bench([write(tmp_path / "c.onnx", kind=TensorProto.STRING, op="Identity")], QUICK)


def test_files_that_are_no_onnx(tmp_path):
    with pytest.raises(ModelError, match=r"absent\.onnx: No such file"):
        bench([tmp_path / "absent.onnx"], QUICK)
    with pytest.raises(ModelError, match="Is a directory"):
        bench([tmp_path], QUICK)
    for content in (b"", b"not onnx at all", write(tmp_path / "a.onnx").read_bytes()[:40]):
        path = tmp_path / "broken.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.onnx"):
            bench([path], QUICK)
    unknown = write(tmp_path / "unknown.onnx", op="NoSuchOperator")
    with pytest.raises(ModelError, match=r"onnxruntime refuses it.*NoSuchOperator"):
        bench([unknown], QUICK)
    with pytest.raises(ConfigError, match="at least one"):
        bench([], QUICK)


def test_providers(tmp_path, monkeypatch):
    path = write(tmp_path / "a.onnx")
    assert provider_name("cpu") == provider_name("CPUExecutionProvider") == "CPUExecutionProvider"
    with pytest.raises(ConfigError, match=r"provider = 'abacus': this onnxruntime has .*CPUExecutionProvider"):
        bench([path], BenchSettings(provider="abacus"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="install onnxruntime-gpu"):
        bench([path], BenchSettings(provider="cuda"))
    for threads in (-1, 10**6):
        with pytest.raises(ConfigError, match=f"threads = {threads}"):
            open_session(path, threads=threads)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"threads": 0}, {"rounds": 1}, {"runs": 0}, {"warmup": -1}, {"max_seconds": 0}]
)
def test_settings_refuse(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BenchSettings(**wrong)


def test_environment_is_json_and_names_what_matters(tmp_path):
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"torch", "onnx", "onnxruntime"} <= found["versions"].keys()
    assert found["cores"] >= 1
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nflags\t: fpu\n"
    )
    assert _cpu(cpuinfo) == ("A CPU", {"fpu", "avx2", "avx512f"})
    assert _cpu(tmp_path / "absent")[1] == frozenset()
