"""NaN and infinity stop the work, and the place is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curlfx.errors import CheckError, DataError
from curlfx.recovery import TrainSettings, evaluate, fit
from curlfx.recovery.batches import batches, indexed_batches

NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def loader(value: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Three batches of two images; the second image of the second holds ``value``."""
    found = [(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1])) for _ in range(3)]
    found[1][0][1, 0, 1, 1] = value
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("draw", [batches, indexed_batches])
def test_an_image_that_is_not_finite_is_named(value: float, draw: object) -> None:
    with pytest.raises(DataError, match="epoch 3, batch 2: image 1 of the batch holds NaN or infinite values; mend or"):
        list(draw(loader(value), 2))  # type: ignore[operator]


def test_a_training_names_the_image_and_not_the_learning_rate() -> None:
    with pytest.raises(DataError, match="epoch 1, batch 2: image 1"):
        fit(NETWORK, loader(float("nan")), TrainSettings(epochs=1, device="cpu"))


def test_images_whose_sum_is_too_large_are_let_through() -> None:
    drawn = list(batches([(torch.full((2, 4), 3e38), torch.zeros(2, dtype=torch.int64))], 0))
    assert len(drawn) == 1


def test_an_answer_that_is_nan_is_no_wrong_answer() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.constant_(network[1].bias, float("nan"))
    with pytest.raises(CheckError, match="slim: the network answers NaN in 3 of 3 batches"):
        evaluate(network, loader(0.0), device="cpu", stage="slim")
