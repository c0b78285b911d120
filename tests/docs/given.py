"""What pages take for granted: names that their blocks use and do not make, and what is looked at afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import curlfx

Names = dict[str, Any]


def _traced() -> Names:
    """A small network with its channels, scores and plan; images of digits."""
    data = curlfx.load_data("digits", limit=64)
    images, labels = next(iter(data.loader("train", 64)))
    model = curlfx.load_model("curlfx:digits")
    traced = curlfx.trace(model, (images[:2],))
    coupling = curlfx.couple(traced)
    scores = curlfx.score(traced, coupling, "magnitude")
    plan = curlfx.plan(traced, coupling, scores, {"macs": "50%"})
    return {
        "curlfx": curlfx, "torch": torch, "Path": Path, "data": data, "images": images, "labels": labels,
        "model": model, "dense": model, "traced": traced, "coupling": coupling, "scores": scores, "plan": plan,
        "slim": curlfx.slim(traced, plan),
    }  # fmt: skip


def _plans() -> Names:
    model = curlfx.load_model("torchvision:resnet18")
    traced = curlfx.trace(model, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    coupling = curlfx.couple(traced)
    plan = curlfx.plan(traced, coupling, curlfx.score(traced, coupling, "magnitude"), {"macs": "50%"})
    return {"curlfx": curlfx, "plan": plan, "slim": curlfx.slim(traced, plan)}


def _planning() -> Names:
    def score(network: Any, coupling: Any) -> Any:
        return curlfx.score(network, coupling, "magnitude")

    return {**_traced(), "score": score}


def _gradual() -> Names:
    found = _traced()
    loader = DataLoader(TensorDataset(found["images"], found["labels"]), 16)
    return {**found, "loader": loader, "proxy": [(found["images"], found["labels"])]}


def _search() -> Names:
    found = _traced()
    data = found["data"]
    held_out = [found["images"][:32], found["labels"][:32]]
    return {**found, "loader": data.loader("train", 16), "held_out": [tuple(held_out)]}


GIVEN: Mapping[str, Callable[[], Names]] = {
    "gradual.md": _gradual,
    "planning.md": _planning,
    "plans.md": _plans,
    "search.md": _search,
}
"""Page to the names that it takes for granted; other pages begin with nothing."""


def _relevance(folder: Path, printed: str) -> None:
    assert float(printed.splitlines()[0]) < 1e-4
    assert (folder / "relevance.png").stat().st_size > 1000


AFTERWARDS: Mapping[str, Callable[[Path, str], None]] = {"relevance.md": _relevance}
"""Page to what must be there when all its blocks have run: its folder, and what it printed."""
