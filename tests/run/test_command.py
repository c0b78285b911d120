"""The command of a report does the same run again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from curlfx.run.command import command
from curlfx.run.settings import load_config, make_config


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "timm:resnet18", "weights": "default", "data": "imagefolder:my images/of 1", "seed": 3},
        {"target": {"params": "40%", "latency_ms": 2.5}, "per": "latency"},
        {"ignored_layers": ["fc", "layer4.*", "it's"], "round_to": 8, "threads": 2},
        {"recovery": "curl"},
        {"recovery": {"recipe": ["overparam", "curl"], "epochs": 7, "lr": 1e-05, "overparam": {"rate": 2}}},
        {"recovery": {"recipe": "curl", "refine": {"epochs": 0}}},
        {"gradual": {"interval": "auto"}, "recovery": {"epochs": 0}, "importance": "relevance"},
        {"search": {"enabled": True, "cuts": [], "train": {"epochs": 1}, "controls": True}},
        {"model": "a: b", "data": "null", "importance": "1e3", "bench": {"max_seconds": None}},
        {"name": "mine", "out": "somewhere"},
        {"name": "2026-13-45"},
        {"preset": "fast", "train": {"epochs": 8}, "importance": "kl"},
        {"preset": "thorough", "recovery": {"epochs": 8}},
        {"preset": "thorough", "recovery": {"recipe": "distillation"}},
        {"preset": "fast", "recovery": {"recipe": "curl", "epochs": 8}},
    ],
)
def test_the_same_settings_come_out(settings: dict[str, Any]) -> None:
    config = make_config(settings)
    words = shlex.split(command(config.resolved()))
    assert words[:2] == ["curlfx", "run"]
    assert load_config(None, words[2:]) == config.model_copy(update={"out": None})


def test_only_what_is_not_the_default_is_said() -> None:
    assert command(make_config({}).resolved()) == "curlfx run"
    changed = make_config({"seed": 1, "target": {"macs": "30%"}, "train": {"epochs": 2}, "out": Path("x")})
    assert command(changed.resolved()) == "curlfx run seed=1 target.macs=30% train.epochs=2"
    preset = make_config({"preset": "fast", "train": {"epochs": 8}})
    assert command(preset.resolved()) == "curlfx run preset=fast train.epochs=8"
