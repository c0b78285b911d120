"""YAML that one need not trust: no code, bounded, and every fault is an error of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from curlfx.errors import ConfigError
from curlfx.run.settings import load_config, read_yaml
from curlfx.run.yaml_text import MOST_NODES, YamlError, parse_yaml, read_yaml_file

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 12)]
)
"""Ten to the twelfth values in half a kilobyte ("billion laughs")."""


@pytest.mark.parametrize("text", ["", "3", "a: {b: [1, 2.5, true, null, x]}", "a: &a {b: 1}\nc: *a", "- 2026-01-02"])
def test_agrees_with_the_library(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BOMB, f"more than {MOST_NODES} values"),
        ("a: &a [*a]", "an alias stands for a value that it is in"),
        ("[" * 600, "nested too deeply"),
        ("!!python/object/apply:os.mkdir [boom]", "could not determine a constructor"),
        ("!!bool 7", "a value that cannot be read"),
        ("!!int ''", "a value that cannot be read"),
        ("!!timestamp x", "a value that cannot be read"),
        ("9" * 5000, "a value that cannot be read"),
        ("{[]: 1}", "found unhashable key"),
        ("a: b: c", "mapping values are not allowed here"),
        ("\x00", "unacceptable character"),
    ],
    ids=["bomb", "loop", "deep", "code", "bool", "int", "timestamp", "digits", "key", "syntax", "nul"],
)
def test_refuses(text: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(YamlError, match=fault):
        parse_yaml(text)
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"job\.yaml(:\d+)?: not a YAML file: .*{fault}"):
        load_config(tmp_path / "job.yaml")
    assert not (tmp_path / "boom").exists()


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/zero: cannot read the configuration: larger than 1 MiB"):
        read_yaml(Path("/dev/zero"))
    (tmp_path / "latin.yaml").write_bytes(b"name: h\xe4")
    with pytest.raises(YamlError, match="codec can't decode"):
        read_yaml_file(tmp_path / "latin.yaml")


def test_an_override_that_is_no_yaml_is_text() -> None:
    assert load_config(overrides=["data=imagefolder:&x"]).data == "imagefolder:&x"
    with pytest.raises(ConfigError, match=r"seed = \d+: want a whole number"):
        load_config(overrides=["seed=" + "9" * 5000])
