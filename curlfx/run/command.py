"""The command that does a run again: every setting that is not the default, for a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from curlfx.run.config import RunConfig
from curlfx.run.settings import make_config
from curlfx.run.yaml_text import YamlError, parse_yaml

ELSEWHERE = ("out", "resume")
"""Settings that say where a run is, not what it does."""


def command(settings: Mapping[str, Any]) -> str:
    """``curlfx run key=value …`` for the settings of a run directory. Raises: ConfigError."""
    config = make_config(settings)
    given = config.model_dump(mode="json", exclude=set(ELSEWHERE))
    changes = [f"{key}={_text(value)}" for key, value in _changes(given, _defaults(given))]
    return shlex.join(["curlfx", "run", *changes])


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What keys are that nobody names: other ones stand below the preset, and below the recipe of the recovery."""
    plain = RunConfig().model_dump(mode="json")
    named: dict[str, Any] = {"preset": given["preset"]}
    if given["recovery"]["recipe"] != plain["recovery"]["recipe"]:
        named["recovery"] = {"recipe": given["recovery"]["recipe"]}
    defaults = make_config(named).model_dump(mode="json")
    defaults["preset"], defaults["recovery"]["recipe"] = plain["preset"], plain["recovery"]["recipe"]
    return defaults


def _changes(given: Mapping[str, Any], defaults: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys whose value is not the default. A target is one choice: all of it is given, or nothing."""
    for key, value in given.items():
        if value == defaults[key]:
            continue
        if path + key == "target":
            yield from ((f"target.{name}", amount) for name, amount in value.items() if amount is not None)
        elif isinstance(value, dict):
            yield from _changes(value, defaults[key], f"{path}{key}.")
        else:
            yield path + key, value


def _text(value: object) -> str:
    """How ``value`` is written behind an equals sign: as YAML reads it, plain where that is the same text."""
    if isinstance(value, str):
        try:
            plain = parse_yaml(value)
        except YamlError:
            plain = None
        if plain == value or (isinstance(plain, dict) and not value.lstrip().startswith("{")):
            return value
    return json.dumps(value, ensure_ascii=False)
