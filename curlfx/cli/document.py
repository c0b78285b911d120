"""What ``--json`` prints: one JSON document that any parser reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path


def print_json(value: object) -> None:
    """Print mappings, sequences, numbers, texts and paths as JSON; a number that is not finite is ``null``.

    Source: RFC 8259, section 6: JSON has neither NaN nor infinity.
    """
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
