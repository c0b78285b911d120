"""Plans with widths that are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from curlfx.planning import SlimPlan
from tests.cli.conftest import Program

NETWORKS = Path(__file__).parent.parent / "run" / "tiny_networks.py"
TINY = (f"{NETWORKS}:residual", "--shape", "1,8,8")

CURL = {
    "layer1": (212, 43, 41, 19, 25, 19, 62),
    "layer2": (345, 92, 102, 38, 44, 38, 52, 38, 46),
    "layer3": (390, 203, 148, *[76] * 10),
    "layer4": (2048, *[153] * 6),
}
"""Kept channels of CURL's ImageNet network: the stage, then the inner layers of its blocks."""


def curl_widths() -> dict[str, int]:
    widths = {}
    for stage, (outer, *inner) in CURL.items():
        widths[f"{stage}.0.conv3.weight"] = outer
        for position, width in enumerate(inner):
            widths[f"{stage}.{position // 2}.conv{position % 2 + 1}.weight"] = width
    return widths


@pytest.mark.slow
def test_the_golden_structure_of_curl(program: Program) -> None:
    """MACs and parameters of the released network (methods: README and logs of the official code)."""
    Path("widths.yaml").write_text(yaml.safe_dump(curl_widths()))
    done = program("plan", "torchvision:resnet50", "--widths", "widths.yaml")
    assert done.code == 0, done.err
    assert "the first channels of every group stay" in done.err
    plan = SlimPlan.load("plan.json")
    assert (plan.before.macs, plan.before.params) == (4_089_184_256, 25_557_032)
    assert (plan.after.macs, plan.after.params) == (1_110_843_275, 6_668_506)
    assert (plan.importance, plan.allocation, plan.target) == ("first", "widths", {})
    assert plan.keep["layer1.1.conv1.weight"] == tuple(range(19))


@pytest.mark.slow
def test_widths_above_a_file_and_the_best_scores_stay(program: Program) -> None:
    assert program("score", *TINY, "--importance", "random", "--seed", "3").code == 0
    scores = json.loads(Path("scores.json").read_text())["values"]["stem.weight"]
    Path("widths.json").write_text('{"*": "50%", "stem.weight": 12}')
    done = program("plan", *TINY, "--widths", "widths.json", "--width", "stem.weight=5")
    assert (done.code, done.err) == (0, "")
    plan = SlimPlan.load("plan.json")
    assert list(plan.widths.values()) == [5, 8]
    best = torch.tensor(scores).argsort(descending=True)[:5].sort().values
    assert plan.keep["stem.weight"] == tuple(best.tolist())
    assert "stem.weight       16      5" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--width", "stem"), "--width stem: want GROUP=N"),
        (("--width", "=4"), "--width =4: want GROUP=N"),
        (("--width", "stem.weight=40"), "widths['stem.weight'] = 40: want in [1, 16]"),
        (("--width", "sten.weight=4"), "no free coupling group has this name; did you mean 'stem.weight'"),
        (("--width", "stem.weight=4", "--target", "macs=50%"), "--target: --width and --widths stand in place"),
        (("--width", "stem.weight=4", "--floor", "0.1"), "--floor: --width and --widths stand in place"),
        (("--widths", "missing.yaml"), "missing.yaml: cannot read"),
        (("--widths", "list.yaml"), "list.yaml: stem.weight: [4]: want a number of channels"),
        (
            ("--width", "stem.weight=4", "--scores", "none.json"),
            "none.json: cannot read scores: No such file or directory;",
        ),
        (("--per", "seconds"), "latency"),
    ],
)
def test_bad_widths(program: Program, options: tuple[str, ...], message: str) -> None:
    Path("list.yaml").write_text("stem.weight: [4]\n")
    done = program("plan", *TINY, *options)
    assert done.code == 2
    assert message in done.err
    assert not Path("plan.json").exists()


def test_a_file_without_widths_is_refused(program: Program) -> None:
    Path("empty.yaml").write_text("")
    done = program("plan", *TINY, "--widths", "empty.yaml")
    assert done.code == 2
    assert "empty.yaml: no widths in it" in done.err
