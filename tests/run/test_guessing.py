"""Weights that were given and know nothing of the data are noticed before hours of work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from curlfx.run.job import Job
from curlfx.run.training import judge_dense
from curlfx.sources import DataSource, load_data


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return load_data("digits", limit=200)


def nearest_mean(data: DataSource, *, shift: int) -> nn.Module:
    """The class whose mean image is nearest, its number turned by ``shift``: order of classes mixed up."""
    images, labels = next(iter(data.loader("train", 200)))
    pixels = images.flatten(1)
    means = torch.stack([pixels[labels == (label + shift) % 10].mean(0) for label in range(10)])
    linear = nn.Linear(pixels.shape[1], 10)
    linear.load_state_dict({"weight": means, "bias": -means.square().sum(1) / 2})
    return nn.Sequential(nn.Flatten(), linear)


def said_of(network: nn.Module, data: DataSource, weights: str | None) -> list[str]:
    said: list[str] = []
    job: Any = SimpleNamespace(
        config=SimpleNamespace(weights=weights), subject=SimpleNamespace(device="cpu"), data=data, dense=network,
        progress=None, say=said.append,
    )  # fmt: skip
    judge_dense(cast(Job, job))
    return said


def test_a_network_that_guesses_is_noted(digits: DataSource) -> None:
    accuracy, note = said_of(nearest_mean(digits, shift=1), digits, "w.safetensors")
    assert accuracy.startswith("accuracy of the dense network: 0.")
    assert note.startswith("note: no better than guessing among 10 classes; are the weights trained")


@pytest.mark.parametrize(("shift", "weights"), [(0, "w.safetensors"), (1, None)])
def test_others_are_not(shift: int, weights: str | None, digits: DataSource) -> None:
    assert len(said_of(nearest_mean(digits, shift=shift), digits, weights)) == 1
