"""Every public name says what it is: shapes, units, errors and source as far as it has any."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytest

import curlfx

PACKAGES = (
    "coupling", "cost", "deploy", "errors", "gradual", "graph", "importance", "inplace", "lrp", "planning", "recovery",
    "search", "sources",
)  # fmt: skip
WITHOUT_ERRORS = ("run", "show")
"""The package that can be called, which hands on to the function; and what refuses nothing."""


def public() -> dict[str, Any]:
    """Public functions and classes of ours by their full names; aliases of types have no docstring of their own."""
    found = {f"curlfx.{name}": getattr(curlfx, name) for name in curlfx.EXPORTS}
    for package in PACKAGES:
        module = importlib.import_module(f"curlfx.{package}")
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    return {name: each for name, each in found.items() if inspect.isclass(each) or inspect.isroutine(each)}


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name])
    assert text is not None, f"{name}: no docstring"
    assert not text.startswith(f"{name.rpartition('.')[2]}("), f"{name}: that is what dataclass writes by itself"
    assert len(text.splitlines()[0]) > 15, f"{name}: {text!r}"


@pytest.mark.parametrize("name", [name for name in curlfx.EXPORTS if inspect.isroutine(getattr(curlfx, name))])
def test_public_function_says_what_it_raises(name: str) -> None:
    text = inspect.getdoc(getattr(curlfx, name)) or ""
    assert ("Raises:" in text) == (name not in WITHOUT_ERRORS)


@pytest.mark.parametrize("name", [name for name, each in PUBLIC.items() if dataclasses.is_dataclass(each)])
def test_public_value_says_what_its_fields_are(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    if "as in `" in text:  # documented there
        return
    missing = [field.name for field in dataclasses.fields(PUBLIC[name]) if not re.search(rf"\b{field.name}\b", text)]
    assert not [field for field in missing if not field.startswith("_")], f"{name}: {missing}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_annotated(name: str) -> None:
    each = PUBLIC[name]
    if inspect.isfunction(each):
        parameters = inspect.signature(each).parameters.values()
        bare = [parameter.name for parameter in parameters if parameter.annotation is inspect.Parameter.empty]
        assert not bare
        assert inspect.signature(each).return_annotation is not inspect.Signature.empty
