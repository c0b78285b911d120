"""The plan as a file: out and in again, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from curlfx.coupling import Coupling, couple
from curlfx.errors import OutputError, PlanError
from curlfx.graph import TracedModel, trace
from curlfx.importance import score
from curlfx.planning import SlimPlan, plan


def traced_and_coupled(*widths: int) -> tuple[TracedModel, Coupling]:
    first, second = widths
    net = nn.Sequential(
        nn.Conv2d(3, first, 1), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU(), nn.Conv2d(second, 2, 1)
    )
    traced = trace(net, (torch.randn(2, 3, 4, 4),))
    return traced, couple(traced)


@pytest.fixture
def made() -> SlimPlan:
    traced, coupling = traced_and_coupled(6, 8)
    return plan(traced, coupling, score(traced, coupling, "random", seed=7), {"macs": "50%"}, round_to=1)


def test_comes_back_from_text_and_file(made: SlimPlan, tmp_path: Path) -> None:
    assert SlimPlan.from_json(made.to_json()) == made
    made.save(tmp_path / "plan.json")
    assert SlimPlan.load(tmp_path / "plan.json") == made
    assert SlimPlan.load(str(tmp_path / "plan.json")).to_json() == made.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_the_text_is_for_people_too(made: SlimPlan) -> None:
    lines = made.to_json().splitlines()
    kept = list(made.keep["0.weight"])
    assert f'    "0.weight": {json.dumps(kept)},' in lines
    assert '  "importance": "random",' in lines
    assert made.provenance["seed"] == 7
    assert made.provenance["torch"] == torch.__version__
    assert made.provenance["class"] == "torch.nn.modules.container.Sequential"
    assert '      "aten.relu(%0) : [N, 6, 4, 4]",' in lines


def test_provenance_takes_more(made: SlimPlan) -> None:
    noted = made.noting(model="net.py:make", arguments={"num_classes": 2})
    assert noted.provenance == {**made.provenance, "model": "net.py:make", "arguments": {"num_classes": 2}}
    assert SlimPlan.from_json(noted.to_json()) == noted
    assert "model" not in made.provenance


def test_is_a_value(made: SlimPlan) -> None:
    with pytest.raises(ValidationError):
        made.importance = "kl"  # type: ignore[misc]


def changed(made: SlimPlan, path: str, value: Any) -> str:
    document = json.loads(made.to_json())
    *parents, last = path.split("/")
    target = document
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("version", 3, "plan: version: input should be 2"),
        ("version", 1, "plan: version: 1 is of an earlier curlfx and does not describe .*; make the plan again"),
        ("frozen", "0", "plan: frozen: "),
        ("provenance", [], "plan: provenance: "),
        ("keep", ..., "plan: keep: field required"),
        ("keep/0.weight", [0, -1], r"plan: keep.0.weight.1: "),
        ("keep/0.weight", [0.5], r"plan: keep.0.weight.0: "),
        ("keep/0.weight", ["0"], r"plan: keep.0.weight.0: "),
        ("keep/0.weight", [], r"keep\['0.weight'\]: want at least one, strictly increasing, in \[0, 6\)"),
        ("keep/0.weight", [1, 0], "strictly increasing"),
        ("keep/0.weight", [2, 2], "strictly increasing"),
        ("keep/0.weight", [6], r"in \[0, 6\)"),
        ("keep/9.weight", [0], r"keep\['9.weight'\]: fingerprint.groups has no such group"),
        ("floor", 1.5, "plan: floor: "),
        ("round_to", 0, "plan: round_to: "),
        ("allocation", "best", "plan: allocation: "),
        ("before/macs", "many", "plan: before.macs: "),
        ("speed", 3, "plan: speed: "),
        ("fingerprint/groups/0.weight", 7, "sha256 does not belong"),
        ("fingerprint/parameters/0.weight", [6, 3, 2, 2], "sha256 does not belong"),
        ("fingerprint/ops", [], "plan: fingerprint: sha256 does not belong"),
        ("fingerprint/ops", [1], "plan: fingerprint.ops.0: "),
        ("fingerprint/inputs", ..., "plan: fingerprint.inputs: field required"),
        ("fingerprint/batch", -1, "plan: fingerprint.batch: "),
    ],
)
def test_names_the_field_that_is_wrong(made: SlimPlan, path: str, value: Any, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        SlimPlan.from_json(changed(made, path, value))


@pytest.mark.parametrize(
    ("content", "match"), [(None, "cannot read a plan"), (b"{", "plan"), (b"\xff\xfe", "cannot read")]
)
def test_names_the_file_that_is_wrong(tmp_path: Path, content: bytes | None, match: str) -> None:
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=rf"broken.json: .*{match}"):
        SlimPlan.load(path)


def test_a_folder_that_is_not_there(made: SlimPlan, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        made.save(tmp_path / "missing" / "plan.json")


def test_refuses_another_network(made: SlimPlan) -> None:
    made.check(*traced_and_coupled(6, 8))
    for widths, match in (
        ((7, 8), r"parameter '0.weight' is \(6, 3, 1, 1\) in the plan's network, \(7, 3, 1, 1\) here"),
        ((6, 9), r"parameter '2.weight' is \(8, 6, 3, 3\) in the plan's network, \(9, 6, 3, 3\) here"),
    ):
        with pytest.raises(PlanError, match=f"this plan is for another network: {match}"):
            made.check(*traced_and_coupled(*widths))
    traced, _ = traced_and_coupled(6, 8)
    with pytest.raises(PlanError, match=r"it has no coupling group '0\.weight'"):
        made.check(traced, couple(traced, frozen=["0"]))
    small = trace(nn.Conv2d(3, 4, 1), (torch.randn(2, 3, 4, 4),))
    with pytest.raises(PlanError, match=r"it has no parameter '0\.weight'"):
        made.check(small, couple(small))
