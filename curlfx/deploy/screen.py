"""Look through a ``.pt2`` file before torch reads it: torch would unpickle and evaluate whatever it holds.

`torch.export.load` falls back to a full pickle for example inputs, takes weights marked as pickled, evaluates sizes as
Python text and looks operators up by any dotted name below ``torch``. A file that `curlfx.deploy.program` wrote needs
none of it, so a file that does is refused.

Source: torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py.
"""

from __future__ import annotations

import io
import json
import operator
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch._ops import OpOverload

from curlfx.errors import SavedError, first_line

NOTES = "curlfx.json"
EXAMPLES = "data/sample_inputs/model.pt"
GRAPH = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORD = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|\.\w+(/\w+)?"
)
_KNOWN = frozenset({EXAMPLES, GRAPH, *CONFIGS, f"extra/{NOTES}"})
_ARITHMETIC = frozenset(
    f"_operator.{name}"
    for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "getitem",
        "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_",
    )
)  # fmt: skip
_SIZES = re.compile(r"torch\.sym_\w+|math\.(ceil|floor|trunc|sqrt)|torch\._sym_sqrt")
_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|'[A-Za-z]+\d+'|\d+(?:\.\d+)?|[-+*/%(),=<>])")
_WORDS = frozenset(
    {
        "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor", "ceiling",
        "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv", "ModularIndexing", "IntTrueDiv", "FloatTrueDiv", "ToFloat",
        "TruncToInt", "CeilToInt", "FloorToInt", "RoundToInt", "TruncToFloat", "PowByNatural", "FloatPow", "Identity",
        "Where", "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan",
        "positive", "nonnegative", "integer", "real", "finite", "True", "False",
    }
)  # fmt: skip


def screen(content: bytes) -> None:
    """Refuse a file that reading could do more than make tensors and a graph of known operators.

    Raises: SavedError saying what was found.
    """
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(content))
        names = list(reader.get_all_records())
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # what torch falls back to must hold the same
            others = [name.partition("/")[2] for name in archive.namelist()]
        if sorted(names) != sorted(others) or len(set(names)) != len(names):
            raise SavedError("its two tables of contents differ")
        strange = next((name for name in names if name not in _KNOWN and not _RECORD.fullmatch(name)), None)
        if strange is not None:
            raise SavedError(f"it holds '{strange}', which curlfx does not write")
        if reader.get_record(EXAMPLES):
            raise SavedError(f"it holds a pickle, '{EXAMPLES}', which could execute code")
        for name in CONFIGS:
            _check_payloads(name, json.loads(reader.get_record(name)))
        _check_graph(json.loads(reader.get_record(GRAPH)))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as cause:
        raise SavedError(f"it is no readable .pt2 file ({first_line(cause)})") from cause


def _check_payloads(name: str, payloads: Any) -> None:
    for tensor, entry in payloads["config"].items():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise SavedError(f"{name}: '{tensor}' is pickled, which could execute code")


def _check_graph(document: Any) -> None:
    if document["guards_code"]:
        raise SavedError("it holds guards, which are Python code")
    for entry in _mappings(document):
        if "expr_str" in entry:
            _check_expression(entry["expr_str"])
        if "target" in entry and "inputs" in entry:
            _check_operator(entry["target"])


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _check_expression(text: str) -> None:
    """Sizes are arithmetic on symbols, like ``Mul(Integer(4), Symbol('s77', integer=True))``."""
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or (token["name"] is not None and token["name"] not in _WORDS):
            raise SavedError(f"the size {text[:80]!r} is no arithmetic on sizes")
        position = token.end()


def _check_operator(name: str) -> None:
    if name in _ARITHMETIC and hasattr(operator, name.removeprefix("_operator.")):
        return
    if _SIZES.fullmatch(name):
        return
    found: Any = torch.ops if name.startswith("torch.ops.") else None
    for part in name.split(".")[2:]:
        found = getattr(found, part, None)
    if not isinstance(found, OpOverload):
        raise SavedError(f"'{name}' is no operator here; import the package that defines it")
    if any(argument.name in ("filename", "path") for argument in found._schema.arguments):
        raise SavedError(f"'{name}' opens files; a network has no use for it")
