"""What was measured so far, in a file: a search that was killed finds its way back by asking the same questions."""

from __future__ import annotations

import json
from pathlib import Path

from curlfx.errors import OutputError
from curlfx.files import write_bytes
from curlfx.search.proxy import Part

FORMAT = 1


class Ledger:
    """Numbers by part, saved with every new one.

    Args:
        question: What the numbers depend on; a file with another question is not used.
        path: The file; None keeps nothing.

    Raises: OutputError for a file that is damaged.
    """

    def __init__(self, question: str = "", path: Path | None = None) -> None:
        self._question, self._path = question, path
        self._values: dict[str, float] = {}
        self.found = 0
        if path is not None and path.exists():
            self._values = self._read(path)
            self.found = len(self._values)

    def __contains__(self, part: Part) -> bool:
        return _name(part) in self._values

    def __getitem__(self, part: Part) -> float:
        return self._values[_name(part)]

    def __len__(self) -> int:
        return len(self._values)

    def add(self, part: Part, value: float) -> None:
        """Note a number, also on disk."""
        self._values[_name(part)] = value
        if self._path is not None:
            record = {"format": FORMAT, "question": self._question, "values": self._values}
            write_bytes(self._path, (json.dumps(record) + "\n").encode())

    def _read(self, path: Path) -> dict[str, float]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT or record["question"] != self._question:
                return {}
            return {str(name): float(value) for name, value in record["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path}: not the record of a search ({error}); delete it to start afresh") from error


def _name(part: Part) -> str:
    return ",".join(map(str, part))
