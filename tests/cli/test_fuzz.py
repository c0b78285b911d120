"""Whatever a plan, a configuration or an ONNX file holds: an error of ours and exit status 2, no other exception.

Every command here is given a second fault, which it finds last: so none of them gets to work, however good the file is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import curlfx
from curlfx.errors import CurlfxError
from curlfx.planning import SlimPlan
from curlfx.run.settings import FIELDS, load_config, make_config
from tests.cli.conftest import Outcome, Program
from tests.run.tiny_networks import Residual

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""All examples share the folder of the test; each writes its own file over the last."""

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, 1e308, 5e-324])
LEAVES = (
    st.none() | st.booleans() | NUMBERS | st.text(max_size=12) | st.sampled_from(["50%", "auto", "1e999999999", "\0"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(FIELDS)) | st.text(alphabet="abcdeilnoprst._", max_size=12)


@pytest.fixture(scope="module")
def plan_text() -> str:
    """A good plan, for a tiny network."""
    traced = curlfx.trace(Residual(), (torch.randn(2, 1, 8, 8),))
    coupling = curlfx.couple(traced)
    scores = curlfx.score(traced, coupling, "magnitude")
    return curlfx.plan(traced, coupling, scores, target={"macs": "60%"}, round_to=4).to_json()


def refused(outcome: Outcome) -> None:
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.out == ""


def changed(document: Any, draw: Any) -> Any:
    """A JSON document with one of its values replaced, left out or put in."""
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    places = list(document) if isinstance(document, dict) else list(range(len(document)))
    place = draw(st.sampled_from(places))
    result = document.copy()
    match draw(st.sampled_from(["into", "into", "drop", "add"])):
        case "into":
            result[place] = changed(document[place], draw)
        case "drop":
            del result[place]
        case "add" if isinstance(result, dict):
            result[draw(st.text(max_size=8))] = draw(VALUES)
        case "add":
            result.append(draw(VALUES))
    return result


@pytest.mark.slow
@one_folder
@given(data=st.data())
def test_plans(program: Program, plan_text: str, data: st.DataObject) -> None:
    text = json.dumps(changed(json.loads(plan_text), data.draw))
    Path("plan.json").write_text(text)
    refused(program("slim", "nothing", "plan.json"))
    try:
        plan = SlimPlan.from_json(text)
    except CurlfxError:
        return
    assert SlimPlan.from_json(plan.to_json()) == plan
    assert all(width > 0 for width in plan.widths.values()) or plan.keep == {}


def spoiled(content: bytes, draw: Any) -> bytes:
    """Bytes with a few of them changed, taken away or put in."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(result) - 1, 0)))
        length = draw(st.integers(0, 4))
        result[at : at + length] = draw(st.binary(max_size=6))
    return bytes(result)


@pytest.mark.slow
@one_folder
@given(data=st.data())
def test_bytes_of_plans(program: Program, plan_text: str, data: st.DataObject) -> None:
    Path("plan.json").write_bytes(spoiled(plan_text.encode(), data.draw))
    refused(program("slim", "nothing", "plan.json"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": 1' + "0" * 5000 + "}", "\ufeff{}", ""])
def test_plans_that_are_meant_to_overwhelm(program: Program, text: str) -> None:
    Path("plan.json").write_text(text)
    refused(program("slim", "nothing", "plan.json"))
    Path("scores.json").write_text(text)
    refused(program("plan", "nothing"))


@pytest.mark.slow
@one_folder
@given(data=st.data())
def test_scores(program: Program, data: st.DataObject) -> None:
    good = {"version": 1, "criterion": "kl", "details": {"images": 3}, "values": {"a.weight": [0.5, 1, 2]}}
    Path("scores.json").write_text(json.dumps(changed(good, data.draw)))
    refused(program("plan", "nothing"))


def nested(settings_by_key: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted key as a nested mapping."""
    result: dict[str, Any] = {}
    for key, value in settings_by_key.items():
        *sections, last = key.split(".")
        inner = result
        for section in sections:
            old = inner.get(section)
            inner[section] = old if isinstance(old, dict) else {}
            inner = inner[section]
        inner[last] = value
    return result


@pytest.mark.slow
@one_folder
@given(found=st.dictionaries(KEYS, VALUES, max_size=4))
@example(found={"target.macs": "1e999999999"})
@example(found={"seed": 10**30, "limit": 2**31})
@example(found={"out": "a\0b"})
@example(found={"search": None, "recovery": {"recipe": [[]]}})
@example(found={"preset": ["fast"], "train": 3})
def test_settings(program: Program, found: dict[str, Any]) -> None:
    Path("job.yaml").write_text(yaml.safe_dump(nested(found)))
    refused(program("run", "job.yaml", "device=nonsense"))
    try:
        config = load_config(Path("job.yaml"))
    except CurlfxError:
        return
    assert make_config(config.resolved() | ({} if config.resume is None else {"resume": config.resume})) == config


@pytest.mark.slow
@one_folder
@given(content=st.text(max_size=40) | st.text(alphabet="{}[]:,-&*!|>'\"#% \nabt0", max_size=30))
def test_yaml(program: Program, content: str) -> None:
    Path("job.yaml").write_text(content, encoding="utf-8", errors="surrogatepass")
    refused(program("run", "job.yaml", "device=nonsense"))


@pytest.mark.slow
@one_folder
@given(key=KEYS, value=st.text(max_size=20))
def test_overrides(program: Program, key: str, value: str) -> None:
    refused(program("run", f"x{key}={value}", "device=nonsense"))
    refused(program("run", f"{key}={value}", "device=nonsense", "target.macs=-1"))


def onnx_bytes() -> bytes:
    """A tiny good network: one convolution and a ReLU."""
    weight = numpy_helper.from_array(torch.ones(2, 1, 3, 3).numpy(), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 6, 6])
    graph = helper.make_graph(nodes, "tiny", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def test_the_good_network_is_good(program: Program) -> None:
    Path("a.onnx").write_bytes(onnx_bytes())
    outcome = program("quantize", "a.onnx", "--data", "digit")
    refused(outcome)
    assert "did you mean 'digits'" in outcome.err


@pytest.mark.slow
@one_folder
@given(data=st.data())
def test_onnx_files(program: Program, data: st.DataObject) -> None:
    Path("a.onnx").write_bytes(spoiled(onnx_bytes(), data.draw))
    refused(program("quantize", "a.onnx", "--data", "digit"))


def in_the_graph(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.graph.initializer[0]


def in_a_node(model: onnx.ModelProto) -> onnx.TensorProto:
    constant = model.graph.node.add(op_type="Constant", output=["d"]).attribute.add(name="value")
    constant.type = onnx.AttributeProto.TENSOR
    constant.t.CopyFrom(model.graph.initializer[0])
    return constant.t


def in_a_branch(model: onnx.ModelProto) -> onnx.TensorProto:
    branch = model.graph.node.add(op_type="If", input=["w"], output=["d"]).attribute.add(name="then_branch")
    branch.type = onnx.AttributeProto.GRAPH
    branch.g.initializer.add().CopyFrom(model.graph.initializer[0])
    return branch.g.initializer[0]


@pytest.mark.parametrize("place", [in_the_graph, in_a_node, in_a_branch])
def test_an_onnx_file_that_wants_weights_from_elsewhere(
    program: Program, place: Callable[[onnx.ModelProto], onnx.TensorProto]
) -> None:
    model = onnx.load_from_string(onnx_bytes())
    weight = place(model)
    onnx.external_data_helper.set_external_data(weight, location="../../etc/passwd")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    Path("a.onnx").write_bytes(model.SerializeToString())
    outcome = program("quantize", "a.onnx", "--data", "digit")
    refused(outcome)
    assert "wants weights from outside its folder ('../../etc/passwd')" in outcome.err


def test_an_onnx_file_without_the_default_operators(program: Program) -> None:
    model = onnx.load_from_string(onnx_bytes())
    model.opset_import[0].domain = "com.example"
    Path("a.onnx").write_bytes(model.SerializeToString())
    refused(program("quantize", "a.onnx", "--data", "digit"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "curlfx:digits", "--shape", "1,8,²"),
        ("inspect", "curlfx:digits", "--shape", f"1,8,{'9' * 5000}"),
        ("inspect", "curlfx:digits", "--shape", "1,999999999,999999999"),
        ("plan", "curlfx:digits", "--width", "conv1.weight=²"),
        ("plan", "curlfx:digits", "--width", f"conv1.weight={'9' * 5000}"),
    ],
)
def test_numbers_that_are_none_or_too_large(program: Program, arguments: tuple[str, ...]) -> None:
    refused(program("--log-level", "error", *arguments))


def test_a_seed_that_is_too_large(program: Program) -> None:
    done = program("score", "curlfx:digits", "--importance", "random", "--seed", 2**64)
    assert done.code == 2
    assert "--seed" in done.err
