"""What every part of the configuration is, and the kinds of numbers in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
LARGEST = 2**31 - 1
"""No number of things is larger; what lies below in other libraries counts in 64 bits, or 32."""
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Natural = Annotated[int, Field(ge=0, le=LARGEST)]


def _usable(path: Path) -> Path:
    """The path, if any file can be called so. Raises: ValueError."""
    if "\0" in str(path):
        raise ValueError("want a path without the character NUL")
    return path


FilePath = Annotated[Path, Field(description="a path"), AfterValidator(_usable)]


class Section(BaseModel):
    """A part of the configuration: immutable, and without room for a misspelt key."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
