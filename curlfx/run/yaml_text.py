"""YAML from people one need not trust: no code, a sensible size, and no text that unfolds into a huge value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from curlfx.errors import first_line
from curlfx.files import read_text

MOST_BYTES = 2**20
MOST_NODES = 100_000
"""Values in one document, with what aliases stand for written out."""


class YamlError(ValueError):
    """A text that is no YAML, or not of this kind.

    Attributes:
        line: Where, from 1; None where that is not known.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def read_yaml_file(path: Path) -> Any:
    """The value in a file. Raises: OSError; YamlError."""
    try:
        return parse_yaml(read_text(path, MOST_BYTES))
    except UnicodeDecodeError as error:
        raise YamlError(str(error)) from error


def parse_yaml(text: str) -> Any:
    """The value of a text: mappings, lists, texts, numbers. Raises: YamlError."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > MOST_NODES:
                raise YamlError(f"more than {MOST_NODES} values, with its aliases written out")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise YamlError(error.problem or str(error), line) from error
    except yaml.YAMLError as error:
        raise YamlError(first_line(error)) from error
    except RecursionError as error:
        raise YamlError("nested too deeply") from error
    except YamlError:
        raise
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # PyYAML lets these through for values that do not fit their tag: !!bool 7, a number of 5000 digits
        raise YamlError(f"a value that cannot be read ({first_line(error)})") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in ``node``, aliases written out. Raises: YamlError for a value that holds itself; RecursionError."""
    size = known.get(id(node))
    if size is not None:
        if size == 0:
            raise YamlError("an alias stands for a value that it is in", node.start_mark.line + 1)
        return size
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]
