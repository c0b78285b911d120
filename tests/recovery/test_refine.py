"""Soft labels follow their gradient, a killed recovery ends in the same bits, recipes do as they say."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from curlfx.errors import ConfigError, DataError, OutputError, WeightsError
from curlfx.recovery import (
    RECIPES,
    Checkpoint,
    Recipe,
    SoftLabels,
    TrainingData,
    TrainSettings,
    evaluate,
    fit,
    recover,
    refine,
    teacher_logits,
)
from curlfx.sources import from_datasets, load_data
from tests.killed import Killed

CLASSES, COUNT = 3, 20
REFINING = TrainSettings(
    epochs=3, batch_size=8, lr=0.05, momentum=0.9, nesterov=False, temperature=1.0, label_lr=1.0, amp="off"
)
SHORT = Recipe(TrainSettings(epochs=2, batch_size=8, lr=0.05, warmup_epochs=0.5, mixup=1.0, amp="off"), refine=REFINING)


class Murderer:
    """Ends the process at a step of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def on_step(self, event: object) -> None:
        if (event.stage, event.step) == (self.stage, self.step):  # type: ignore[attr-defined]
            raise Killed


class Indexed(Dataset[tuple[torch.Tensor, int, int]]):
    """A data set as a user may have it: items end in their own index."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.randn(COUNT, 3, 6, 6, generator=generator)
        self.labels = torch.randint(CLASSES, (COUNT,), generator=generator)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return self.images[index], int(self.labels[index]), index


def network(seed: int = 0, classes: int = CLASSES, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def loader(shuffle: bool = True, batch_size: int = 8) -> DataLoader[tuple[torch.Tensor, int, int]]:
    return DataLoader(Indexed(), batch_size, shuffle=shuffle, generator=torch.Generator())


def started(path: Path | None = None) -> SoftLabels:
    labels = SoftLabels(path)
    labels.start(teacher_logits(network(9), loader(shuffle=False)))
    return labels


def digits(count: int = 20) -> TrainingData:
    return load_data("digits", limit=count)


def test_teacher_logits_are_in_the_order_of_positions() -> None:
    teacher = network(9)
    found = teacher_logits(teacher, loader(shuffle=True, batch_size=7))
    with torch.inference_mode():
        expected = teacher.eval()(Indexed().images)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32


def test_one_step_moves_the_rows_of_the_batch_along_the_gradient() -> None:
    labels, student = started(), network(2)
    before = labels.values.copy()
    one = [Indexed()[index] for index in (3, 17, 4)]
    batch = (torch.stack([item[0] for item in one]), torch.tensor([item[1] for item in one]), torch.tensor([3, 17, 4]))
    with torch.inference_mode():  # train mode and no dropout: what the step sees
        student[3].p = 0.0
        seen = copy.deepcopy(student).train()(batch[0])
    fit(student, [batch], replace(REFINING, epochs=1, label_lr=2.0), soft=labels)
    moved = before.copy()
    soft = torch.from_numpy(before[[3, 17, 4]])
    moved[[3, 17, 4]] -= 2.0 * 0.7 / 3 * (soft.softmax(1) - seen.softmax(1)).numpy()
    np.testing.assert_allclose(labels.values, moved, rtol=1e-5, atol=1e-6)
    untouched = [row for row in range(COUNT) if row not in (3, 17, 4)]
    assert np.array_equal(labels.values[untouched], before[untouched])
    assert not np.array_equal(labels.values[[3, 17, 4]], before[[3, 17, 4]])


def test_an_image_that_is_twice_in_a_batch_gets_both_steps() -> None:
    labels = SoftLabels()
    labels.start(np.zeros((4, 2), np.float32))
    labels.descend(torch.tensor([1, 1, 3]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 0.5)
    assert labels.values.tolist() == [[0, 0], [-2, -3], [0, 0], [-2.5, -3]]


@pytest.mark.slow
def test_labels_drift_towards_the_student() -> None:
    labels, student = started(), network(2)
    start = torch.from_numpy(labels.values.copy())
    fit(student, loader(), replace(REFINING, epochs=60, label_lr=5.0), soft=labels)
    with torch.inference_mode():
        judged = student.eval()(Indexed().images).softmax(1)
    after = torch.from_numpy(np.array(labels.values)).softmax(1)
    assert (after - judged).abs().mean() < 0.5 * (start.softmax(1) - judged).abs().mean()


def test_in_memory_and_in_a_file_are_the_same_bits(tmp_path: Path) -> None:
    here, there = started(), started(tmp_path / "refine.pt")
    assert (type(here.values), type(there.values)) == (np.ndarray, np.memmap)
    first, second = network(2), network(2)
    fit(first, loader(), REFINING, soft=here)
    fit(second, loader(), REFINING, soft=there, checkpoint=tmp_path / "refine.pt")
    assert same(first, second)
    assert np.array_equal(here.values, there.values)
    assert here.file is None
    assert there.file == tmp_path / "refine.labels-3.npy"
    assert np.array_equal(np.load(there.file), here.values)
    assert {path.name for path in tmp_path.iterdir()} == {"refine.pt", "refine.labels-3.npy"}


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8])
def test_a_killed_refinement_ends_in_the_same_bits(step: int, tmp_path: Path) -> None:
    """Three steps an epoch: killed before the first checkpoint, between epochs, and within them."""
    whole, labels = network(2), started()
    fit(whole, loader(), REFINING, soft=labels)
    path = tmp_path / "refine.pt"
    with pytest.raises(Killed):
        fit(
            network(2), loader(), REFINING, soft=started(path), checkpoint=path, stage="refine",
            progress=Murderer("refine", step),
        )  # fmt: skip
    resumed = network(2 if step <= 3 else 7)
    again = SoftLabels(path) if path.exists() else started(path)
    result = fit(resumed, loader(), REFINING, soft=again, checkpoint=path, resume=True)
    assert result.resumed_after == (step - 1) // 3
    assert same(resumed, whole)
    assert np.array_equal(again.values, labels.values)
    assert {file.name for file in tmp_path.iterdir()} == {"refine.pt", "refine.labels-3.npy"}


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_killed_between_the_labels_and_the_checkpoint(
    epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels of the new epoch are there already; the checkpoint is that of the old one, or none."""
    whole, labels = network(2), started()
    fit(whole, loader(), REFINING, soft=labels)
    path, save = tmp_path / "refine.pt", Checkpoint.save

    def save_or_die(checkpoint: Checkpoint, to: Path) -> None:
        if checkpoint.epoch == epoch:
            raise Killed
        save(checkpoint, to)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_or_die)
        with pytest.raises(Killed):
            fit(network(2), loader(), REFINING, soft=started(path), checkpoint=path)
    assert (tmp_path / f"refine.labels-{epoch}.npy").exists()
    resumed = network(2)
    again = SoftLabels(path) if path.exists() else started(path)
    assert fit(resumed, loader(), REFINING, soft=again, checkpoint=path, resume=True).resumed_after == epoch - 1
    assert same(resumed, whole)
    assert np.array_equal(again.values, labels.values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "step"), [("recover", 3), ("recover", 5), ("recover, refine", 2), ("recover, refine", 40)]
)
def test_a_killed_recovery_ends_in_the_same_bits(stage: str, step: int, tmp_path: Path) -> None:
    teacher, data = network(9, 10, 1), digits()
    whole, resumed = network(2, 10, 1), network(2, 10, 1)
    expected = recover(whole, data, SHORT, teacher=teacher)
    path = tmp_path / "recover.pt"
    with pytest.raises(Killed):
        recover(network(2, 10, 1), data, SHORT, teacher=teacher, checkpoint=path, progress=Murderer(stage, step))
    found = recover(resumed, data, SHORT, teacher=teacher, checkpoint=path, resume=True)
    assert same(resumed, whole)
    assert expected.labels is not None
    assert found.labels is not None
    assert np.array_equal(found.labels.values, expected.labels.values)
    assert found.labels.values.shape == (6 * 20, 10)
    assert found.labels.file == tmp_path / "recover-refine.labels-3.npy"


def test_labels_begin_as_the_teachers_logits_of_plain_images() -> None:
    teacher, data = network(9, 10, 1), digits()
    student = network(2, 10, 1)
    recipe = replace(SHORT, refine=replace(REFINING, label_lr=0.0))
    _, labels = refine(student, data, recipe, teacher=teacher)
    images = load_data("digits", limit=20).expanded(0).images("train")
    batch, _ = next(iter(images.batches([torch.arange(120)], augment=False, seed=0)))
    with torch.inference_mode():
        np.testing.assert_allclose(labels.values, teacher.eval()(batch).numpy(), rtol=1e-5, atol=1e-6)


def test_torch_data_sets_are_data_too() -> None:
    part = TensorDataset(Indexed().images, Indexed().labels)
    data = from_datasets({"train": part, "test": part})
    student = network(2)
    result = recover(student, data, SHORT, teacher=network(9), validation=data.loader("test", 10))
    assert result.labels is not None
    assert result.labels.values.shape == (6 * COUNT, CLASSES)
    np.testing.assert_allclose(
        result.labels.values[:COUNT], teacher_logits(network(9), loader(shuffle=False)), atol=0.2
    )
    assert result.refined is not None
    assert result.accuracy == result.refined.accuracy == evaluate(student, data.loader("test", 10))
    assert result.seconds == result.trained.seconds + result.refined.seconds


def test_refinement_without_expansion_has_a_label_per_image() -> None:
    _, labels = refine(network(2, 10, 1), digits(), replace(SHORT, expand_refine=False), teacher=network(9, 10, 1))
    assert labels.values.shape == (20, 10)


def test_expansion_in_the_first_training_makes_six_times_the_steps() -> None:
    recipe = replace(SHORT, expand=True, refine=replace(REFINING, epochs=0))
    steps: list[int] = []

    class Watch:
        def on_step(self, event: object) -> None:
            steps.append(event.total)  # type: ignore[attr-defined]

    result = recover(network(2, 10, 1), digits(), recipe, teacher=network(9, 10, 1), progress=Watch())
    assert set(steps) == {2 * 15}  # 120 images in batches of 8, two epochs
    assert result.refined is None
    assert result.labels is None


def test_recipes_are_the_published_ones() -> None:
    small, large = RECIPES["curl"], RECIPES["curl-large"]
    train = small.train
    assert (train.epochs, train.batch_size, train.lr, train.warmup_epochs) == (150, 32, 0.01, 5)
    assert (train.distillation, train.temperature, train.mixup) == (0.7, 2.0, 1.0)
    assert (train.momentum, train.nesterov, train.weight_decay, train.decay_vectors) == (0.9, False, 4e-5, True)
    refining = small.refine
    assert (refining.epochs, refining.batch_size, refining.lr, refining.warmup_epochs) == (16, 32, 1e-4, 0)
    assert (refining.distillation, refining.temperature, refining.label_lr, refining.mixup) == (0.7, 1.0, 1.0, 0)
    assert (small.expand, small.expand_refine) == (False, True)
    assert (large.train.epochs, large.train.batch_size, large.train.lr) == (100, 512, 0.1)
    assert (large.train.distillation, large.train.mixup, large.refine.epochs) == (0, 0, 0)
    # Per iteration: a linear rise over five epochs, then half a cosine.
    rates = [large.train.learning_rate(step, 10) for step in range(1000)]
    assert rates[49] == pytest.approx(0.1 * 50 / 51)
    assert rates[:50] == sorted(rates[:50])
    assert rates[525] == pytest.approx(0.05)
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_the_teacher_sees_the_mixed_images() -> None:
    seen: list[torch.Tensor] = []

    class Watched(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.clone())
            return self.inner(x)

    student, teacher = Watched(network(2)), Watched(network(3))
    batch = (Indexed().images[:8], Indexed().labels[:8])
    settings = TrainSettings(epochs=1, mixup=1.0, amp="off", memory_format="contiguous")
    fit(student, [batch], settings, teacher=teacher)
    judged, learnt = seen[-2], seen[-1]
    assert torch.equal(judged, learnt)
    assert not torch.equal(judged, batch[0])
    torch.testing.assert_close(judged.mean(0), batch[0].mean(0))  # blending within the batch keeps its mean


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    pairs = [(Indexed().images, Indexed().labels)]
    with pytest.raises(DataError, match="without positions"):
        fit(network(), pairs, REFINING, soft=started())
    with pytest.raises(ConfigError, match=r"mixup = 1\.0: .*want mixup=0"):
        fit(network(), loader(), replace(REFINING, mixup=1.0), soft=started())
    few = SoftLabels()
    few.start(np.zeros((5, CLASSES), np.float32))
    with pytest.raises(DataError, match="there are 5 soft labels"):
        fit(network(), loader(), REFINING, soft=few)
    few.start(np.zeros((COUNT, CLASSES + 1), np.float32))
    with pytest.raises(DataError, match=r"soft labels of shape \(8, 4\)"):
        fit(network(), loader(), REFINING, soft=few)
    with pytest.raises(DataError, match="positions of 8 images are not 0 to 7"):
        teacher_logits(network(), [tuple(next(iter(loader())))])
    with pytest.raises(ConfigError, match="wants the data itself"):
        recover(network(), loader(), "curl", teacher=network(1))
    with pytest.raises(ConfigError, match="recipe = 'curll': want one of distillation, curl"):
        recover(network(), loader(), "curll", teacher=network(1))
    with pytest.raises(OutputError, match="cannot write"):
        started(tmp_path / "absent" / "refine.pt")


def test_labels_that_are_gone_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "refine.pt"
    fit(network(2), loader(), replace(REFINING, epochs=1), soft=started(path), checkpoint=path)
    file = tmp_path / "refine.labels-1.npy"
    settings = replace(REFINING, epochs=1)
    for damage in (file.read_bytes()[:150], b"", b"nonsense"):
        file.write_bytes(damage)
        with pytest.raises(WeightsError, match=r"refine\.labels-1\.npy: .*delete the checkpoint beside it"):
            fit(network(2), loader(), settings, soft=SoftLabels(path), checkpoint=path, resume=True)
    file.unlink()
    with pytest.raises(WeightsError, match="cannot read the soft labels"):
        fit(network(2), loader(), settings, soft=SoftLabels(path), checkpoint=path, resume=True)
    np.save(file, np.zeros(3))
    with pytest.raises(WeightsError, match="holds no soft labels"):
        fit(network(2), loader(), settings, soft=SoftLabels(path), checkpoint=path, resume=True)
