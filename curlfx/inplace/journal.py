"""Changes to a module that can be taken back, to the very same objects."""

from __future__ import annotations

from typing import Any, Protocol


class Slots(Protocol):
    """A dictionary or list whose entries are replaced."""

    def __getitem__(self, key: Any, /) -> Any: ...

    def __setitem__(self, key: Any, value: Any, /) -> None: ...


class Journal:
    """Replaces entries that exist, and remembers what was there."""

    def __init__(self) -> None:
        self._other: list[tuple[Slots, Any, Any]] = []

    def put(self, slots: Slots, key: Any, value: Any) -> None:
        """Replace an entry. Raises: KeyError or IndexError when there is none."""
        self._other.append((slots, key, slots[key]))
        slots[key] = value

    def undo(self) -> None:
        """Put everything back, last change first."""
        self._swap()

    def redo(self) -> None:
        """Make the changes again, after :meth:`undo`."""
        self._swap()

    def _swap(self) -> None:
        swapped = []
        for slots, key, value in reversed(self._other):
            swapped.append((slots, key, slots[key]))
            slots[key] = value
        self._other = swapped
