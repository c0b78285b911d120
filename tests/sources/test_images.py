"""Batches: nothing lost, nothing twice, the same for the same seed and epoch, and changed as asked."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curlfx.sources.images import (
    ArrayImages,
    Augmentation,
    Loader,
    Normalisation,
    augmented,
    balanced,
    epoch_seed,
    held_out,
)

PLAIN = Normalisation(mean=(0.0,), std=(1.0,), scale=1.0)


def numbered(count: int, augmentation: Augmentation = Augmentation()) -> ArrayImages:  # noqa: B008 — frozen
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 2, 2)
    return ArrayImages(pixels, torch.arange(count), PLAIN, augmentation)


@given(st.integers(1, 60), st.integers(1, 70), st.booleans(), st.integers(0, 3))
def test_an_epoch_is_a_permutation_in_even_batches(count: int, batch: int, shuffle: bool, epoch: int) -> None:
    loader = Loader(numbered(count), batch, seed=1, shuffle=shuffle)
    batches = list(loader.epoch(epoch))
    assert len(batches) == len(loader)
    assert max(len(x) for x, _ in batches) <= batch
    assert max(len(x) for x, _ in batches) - min(len(x) for x, _ in batches) <= 1
    labels = torch.cat([y for _, y in batches])
    assert labels.sort().values.tolist() == list(range(count))
    assert shuffle or labels.tolist() == list(range(count))
    assert all(torch.equal(x[:, 0, 0, 0].long(), y) for x, y in batches)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = Loader(numbered(50), 8, seed=seed, shuffle=True, augment=True)
        torch.rand(3)
        return torch.cat([y for _, y in loader.epoch(epoch)]).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}) == 9
    assert len({epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}) == 900


def test_normalisation() -> None:
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(Normalisation()(pixels), expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 2])
def test_augmentation_is_a_crop_of_the_padded_image_or_its_mirror(pad: int, flip: bool) -> None:
    images = torch.randint(1, 256, (64, 3, 5, 6), dtype=torch.uint8)
    changed = augmented(images, Augmentation(pad, flip), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    mirrored, moved = 0, set()
    for image, whole in zip(changed, padded, strict=True):
        crops = {(y, x): whole[:, y : y + 5, x : x + 6] for y in range(2 * pad + 1) for x in range(2 * pad + 1)}
        straight = [place for place, crop in crops.items() if torch.equal(crop, image)]
        mirror = [place for place, crop in crops.items() if torch.equal(crop.flip(2), image)]
        assert straight or (mirror and flip)
        mirrored += not straight
        moved |= set(straight or mirror)
    assert mirrored == 0 if not flip else 20 < mirrored < 44
    assert len(moved) == 1 if pad == 0 else len(moved) > 15


def test_evaluation_is_not_augmented() -> None:
    images = numbered(10, Augmentation(pad=1, flip=True))
    assert torch.equal(*(torch.cat([x for x, _ in Loader(images, 3).epoch(epoch)]) for epoch in (0, 1)))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70))
def test_balanced(labels: list[int], limit: int) -> None:
    numbers = torch.tensor(labels)
    chosen = balanced(numbers, limit)
    assert len(chosen) == min(limit, len(labels))
    assert torch.equal(chosen, chosen.unique())
    kept, all_ = numbers[chosen].bincount(minlength=5), numbers.bincount(minlength=5)
    for a in range(5):  # no class has two more than another that could still give
        assert all(kept[b] == all_[b] or kept[a] - kept[b] <= 1 for b in range(5))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1))
def test_held_out(labels: list[int], share: float) -> None:
    numbers = torch.tensor(labels)
    stay, out = held_out(numbers, share)
    assert torch.cat([stay, out]).sort().values.tolist() == list(range(len(labels)))
    for label in set(labels):
        assert int((numbers[out] == label).sum()) == round(share * labels.count(label))
