"""The templates of this package, filled in: whatever is not markup already is escaped."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup


def fill(template: str, /, **values: object) -> Markup:
    """The file ``template``, a path below this package, with ``values``.

    Raises: jinja2.UndefinedError for a value that the template wants and does not get.
    """
    return Markup(_environment().get_template(template).render(values))  # noqa: S704 - the environment escapes


def text_of(name: str) -> str:
    """A file of this package as it is."""
    return files("curlfx.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str | tuple[str, str | None, Any] | None:
    return text_of(name)
