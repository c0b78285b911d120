"""Reading a configuration: YAML file, dotted ``key=value`` overrides, and messages that name the key at fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from curlfx.errors import ConfigError, did_you_mean, near_names
from curlfx.run.config import RunConfig
from curlfx.run.config.presets import above
from curlfx.run.config.section import LARGEST
from curlfx.run.yaml_text import YamlError, parse_yaml, read_yaml_file

WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}


def load_config(
    file: Path | None = None, overrides: Sequence[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> RunConfig:
    """The configuration of ``file`` (none: defaults) with ``overrides`` like ``"target.macs=40%"`` on top.

    ``defaults`` stand below both, unless an earlier run goes on, with its own settings (``resume``).

    Raises: ConfigError naming the file or the override, the key, the value found and what is wanted; TargetError.
    """
    settings = {} if file is None else read_yaml(file)
    changes: dict[str, Any] = {}
    for override in overrides:
        _assign(changes, override)
    if "target" in changes:  # a target is one choice: a new one replaces the file's, it does not join it
        settings.pop("target", None)
    given = above(changes, settings)
    return make_config(given if given.get("resume") is not None else above(given, defaults))


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """The checked configuration of a nested mapping. Raises: ConfigError, one line per fault; TargetError."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        faults = [_explain(fault) for fault in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read without running any code in it. Raises: ConfigError."""
    try:
        settings = read_yaml_file(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the configuration: {error.strerror}") from error
    except YamlError as error:
        line = "" if error.line is None else f":{error.line}"
        raise ConfigError(f"{file}{line}: not a YAML file: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: want keys with values, like 'seed: 1'; found {type(settings).__name__}")
    return settings


def _assign(settings: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    names = key.split(".")
    if not separator or not all(names):
        raise ConfigError(f"{override!r}: want key=value, like target.macs=50%")
    try:
        value = parse_yaml(text)
    except YamlError:
        value = text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):  # "imagefolder:" is text, not a mapping
        value = text
    for name in names[:-1]:
        inner = settings.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {name} was given a plain value before")
        settings = inner
    settings[names[-1]] = value


def _explain(fault: ErrorDetails) -> str:
    path = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        return _unknown(".".join(path))
    key, found = _known_part(path), fault["input"]
    shown = "" if isinstance(found, BaseModel | Mapping) else f" = {_show(found)}"
    if fault["type"] == "value_error":
        return f"{key}{shown}: {fault['msg'].removeprefix('Value error, ')}"
    if fault["type"] == "less_than_equal" and fault["ctx"]["le"] == LARGEST:
        return f"{key}{shown}: want at most {LARGEST}"
    if key not in FIELDS:
        return f"{key}{shown}: want {fault['msg']}"
    hint = did_you_mean(found, _words(FIELDS[key].annotation)) or _example(key)
    return f"{key}{shown}: want {wanted(FIELDS[key])}{hint}"


def _example(key: str) -> str:
    """How the first key of the section ``key`` is given; nothing where that is no section."""
    first = next((name for name in FIELDS if name.startswith(f"{key}.")), None)
    return "" if first is None else f", like {first}=…"


def _show(value: object) -> str:
    return value if isinstance(value, str) and value else repr(value)


def _known_part(path: Sequence[str]) -> str:
    """The dotted key without the branch names that pydantic adds for unions."""
    lengths = range(len(path), 0, -1)
    return next((key for length in lengths if (key := ".".join(path[:length])) in FIELDS), ".".join(path))


def _unknown(key: str) -> str:
    section, _, last = key.rpartition(".")
    close = near_names(key, FIELDS)
    if not close:  # the right name under the wrong section, or without one
        close = [name for name in FIELDS if name.rpartition(".")[2] == last][:1]
    if close:
        return f"unknown key {key!r}; did you mean {close[0]!r}?"
    names = [name.rpartition(".")[2] for name in FIELDS if name.rpartition(".")[0] == section]
    return f"unknown key {key!r}; known{f' in {section}' if section else ''}: {', '.join(names)}"


def _words(annotation: Any) -> list[str]:
    """The texts that a key takes, where it takes certain ones only."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [value for value in arguments if isinstance(value, str)]
    return [word for argument in arguments for word in _words(argument)]


def wanted(info: FieldInfo) -> str:
    """What a key takes, in words: ``a number in [0, 1)``, ``a whole number >= 1, or 'auto'``."""
    if info.description is not None:
        return info.description
    return ", or ".join(dict.fromkeys(_alternatives(info.annotation, info.metadata)))


def _alternatives(annotation: Any, limits: Sequence[Any]) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield " or ".join(repr(value) for value in arguments)
    elif origin is Annotated:
        info = next((limit for limit in arguments[1:] if isinstance(limit, FieldInfo)), None)
        if info is not None and info.description is not None:
            yield info.description
        else:
            yield from _alternatives(arguments[0], info.metadata if info is not None else ())
    elif origin is not None:
        for argument in arguments:
            yield from _alternatives(argument, limits)
    elif annotation in WORDS:
        yield WORDS[annotation] + _range(limits)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield f"keys with values: {', '.join(annotation.model_fields)}"


def _range(limits: Sequence[Any]) -> str:
    ends = {name: getattr(limit, name) for limit in limits for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)}
    if ends.get("le") == LARGEST:  # said to those alone who exceed it
        del ends["le"]
    low = f"[{ends['ge']}" if "ge" in ends else f"({ends['gt']}" if "gt" in ends else None
    high = f"{ends['le']}]" if "le" in ends else f"{ends['lt']})" if "lt" in ends else None
    if low is not None and high is not None:
        return f" in {low}, {high}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return "".join(f" {signs[name]} {end}" for name, end in ends.items())


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in section.model_fields.items():
        yield prefix + name, info
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields(info.annotation, f"{prefix}{name}.")


FIELDS: Mapping[str, FieldInfo] = dict(_fields(RunConfig))
