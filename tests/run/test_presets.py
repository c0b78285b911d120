"""Presets stand below all that is said explicitly."""

from __future__ import annotations

from pathlib import Path

import pytest

from curlfx.errors import ConfigError
from curlfx.run.config import RunConfig
from curlfx.run.config.presets import PRESETS
from curlfx.run.settings import load_config, make_config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_says(name: str) -> None:
    config = load_config(None, [f"preset={name}"]).resolved()

    def require(values: dict, found: dict) -> None:
        for key, value in values.items():
            require(value, found[key]) if isinstance(value, dict) else None
            assert isinstance(value, dict) or found[key] == value

    require(dict(PRESETS[name]), config)  # type: ignore[index]


def test_the_default_preset_changes_nothing() -> None:
    assert load_config(None, ["preset=default"]) == load_config() == RunConfig()


def test_explicit_settings_win(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("preset: thorough\nrecovery: {epochs: 7}\nbench: {rounds: 5}\n")
    config = load_config(file, ["proxy_images=10"])
    assert (config.recovery.epochs, config.bench.rounds, config.proxy_images) == (7, 5, 10)
    assert (config.train.epochs, config.recovery.recalibrate_batches, config.bench.max_seconds) == (30, 100, 600.0)
    assert load_config(file, ["preset=fast"]).bench.runs == 3


def test_a_recipe_says_itself_how_long_it_is() -> None:
    for recipe in ("recovery=curl", "recovery.recipe=curl", "recovery=[overparam, curl]"):
        config = load_config(None, ["preset=fast", recipe])
        assert (config.recovery.epochs, config.train.epochs) == (150, 3)


def test_what_was_resolved_is_the_same_again() -> None:
    config = load_config(None, ["preset=fast", "train.epochs=9"])
    assert make_config(config.resolved()) == config


def test_the_defaults_of_train_stand_above_a_preset() -> None:
    defaults = {"gradual": {"interval": "auto"}, "recovery": {"epochs": 0}, "importance": "relevance"}
    config = load_config(None, ["preset=thorough"], defaults)
    assert (config.recovery.epochs, config.importance, config.train.epochs) == (0, "relevance", 30)


def test_refuses() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["preset=fsat"])
    wanted = "preset = fsat: want 'fast' or 'default' or 'thorough'; did you mean 'fast'?"
    assert str(caught.value) == wanted


def test_every_preset_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "run.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}

    def flat(values: dict, prefix: str = "") -> list[str]:
        parts = []
        for key, value in values.items():
            number = f"{value:g}" if isinstance(value, float) else value
            parts += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"`{prefix}{key}={number}`"]
        return parts

    for name, values in PRESETS.items():
        assert [one for one in flat(dict(values)) if one not in rows[name]] == []
