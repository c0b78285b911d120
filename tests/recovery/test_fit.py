"""The training loop: it learns, repeats, resumes to the same bits, and stops where it must."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from curlfx.errors import CheckError, ConfigError, DataError, ModelError, OutputError, WeightsError
from curlfx.graph import trace
from curlfx.recovery import TrainSettings, evaluate, fit, loop, recover
from curlfx.recovery.checkpoint import Checkpoint
from curlfx.recovery.supplement import Supplement


class Clouds:
    """Batches of noisy images of ``classes`` fixed patterns; a function of the epoch."""

    def __init__(self, batches: int = 4, size: int = 16, classes: int = 3) -> None:
        self.batches, self.size, self.classes = batches, size, classes
        self.patterns = torch.randn(classes, 3, 8, 8, generator=torch.Generator().manual_seed(7))

    def __len__(self) -> int:
        return self.batches

    def epoch(self, number: int):
        generator = torch.Generator().manual_seed(100 + number)
        for _ in range(self.batches):
            labels = torch.randint(self.classes, (self.size,), generator=generator)
            yield self.patterns[labels] + 0.5 * torch.randn(self.size, 3, 8, 8, generator=generator), labels


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip


def traced(seed: int = 0, classes: int = 3) -> nn.Module:
    return trace(network(seed, classes), (torch.randn(2, 3, 8, 8),)).module


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


QUICK = TrainSettings(epochs=4, lr=0.1, warmup_epochs=0.5)
FULL = TrainSettings(
    epochs=4, lr=0.1, warmup_epochs=1, ema_decay=0.9, clip_gradient=1.0, label_smoothing=0.1, amp="bfloat16", mixup=0.5
)


def test_learns_and_reports():
    module, seen = network(), []

    class Watch:
        def on_step(self, event):
            seen.append(event)

    result = fit(module, Clouds(), QUICK, validation=Clouds(2), progress=Watch())
    assert result.accuracy is not None
    assert result.accuracy > 0.9
    assert result.accuracy == evaluate(module, Clouds(2))
    assert [event.step for event in seen] == list(range(1, 17))
    assert {event.total for event in seen} == {16}
    assert seen[-1].epoch == 4
    assert seen[-1].seconds_left == 0
    assert seen[-1].loss == pytest.approx(result.history[-1].loss)
    assert not module.training


@pytest.mark.parametrize("settings", [QUICK, FULL])
def test_same_seed_same_bits(settings):
    first, second, other = network(), network(), network()
    teacher = network(5)
    fit(first, Clouds(), settings, teacher=teacher)
    torch.manual_seed(999)  # the caller's random state does not matter
    fit(second, Clouds(), settings, teacher=teacher)
    fit(other, Clouds(), replace(settings, seed=1), teacher=teacher)
    assert same(first, second)
    assert not same(first, other)  # dropout draws differently


@pytest.mark.parametrize("settings", [QUICK, FULL])
@pytest.mark.parametrize("network", [network, traced])
@pytest.mark.parametrize("as_dataloader", [False, True])
def test_resumes_to_the_same_bits(settings, network, as_dataloader, tmp_path):
    def loader():
        if not as_dataloader:
            return Clouds()
        images, labels = next(iter(Clouds(1, 64).epoch(0)))
        data = torch.utils.data.TensorDataset(images, labels)
        return torch.utils.data.DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(3))

    whole = network()
    expected = fit(whole, loader(), settings, validation=Clouds(1))

    class StopError(Exception):
        pass

    class Kill:
        def on_step(self, event):
            if event.step == 11:
                raise StopError

    path = tmp_path / "train.pt"
    with pytest.raises(StopError):
        fit(network(), loader(), settings, validation=Clouds(1), checkpoint=path, progress=Kill())
    resumed = network(17)
    result = fit(resumed, loader(), settings, validation=Clouds(1), checkpoint=path, resume=True)
    assert result.resumed_after == 2
    assert same(resumed, whole)
    for ours, theirs in zip(result.history, expected.history, strict=True):
        assert (ours.loss, ours.accuracy, ours.validation, ours.lr) == (
            theirs.loss, theirs.accuracy, theirs.validation, theirs.lr,
        )  # fmt: skip
    again = network(18)
    assert fit(again, loader(), settings, checkpoint=path, resume=True).resumed_after == 4
    assert same(again, whole)


@pytest.mark.parametrize("settings", [QUICK, FULL])
def test_a_traced_network_trains_like_the_module(settings):
    settings = replace(settings, amp="off")
    module, graph = network(), traced()
    fit(module, Clouds(), settings)
    fit(graph, Clouds(), settings)
    ours, theirs = graph.state_dict(), module.state_dict()
    for name in ours:
        if "num_batches" not in name:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_leaves_the_callers_random_state_alone():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    wanted = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    torch.manual_seed(3)
    fit(module, Clouds(1), TrainSettings(epochs=1))
    assert (torch.rand(1), random.random(), np.random.rand()) == wanted  # noqa: NPY002


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_distillation_follows_the_teacher_alone(mixup):
    teacher, student = network(1), network(2)
    fit(teacher, Clouds(), QUICK)
    settings = TrainSettings(epochs=6, lr=0.1, distillation=1.0, mixup=mixup)

    class Mislabelled(Clouds):
        def epoch(self, number):
            for images, labels in super().epoch(number):
                yield images, (labels + 1) % 3

    recover(student, Mislabelled(), settings, teacher=teacher)
    assert evaluate(student, Clouds(2)) > 0.9


def test_teacher_and_frozen_parameters_stay():
    teacher, student = network(1), network(2)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student[0].weight.requires_grad_(False)
    weight = student[0].weight.clone()
    recover(student, Clouds(), QUICK, teacher=teacher)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert torch.equal(weight, student[0].weight)
    assert student[0].weight.is_contiguous()


def test_a_network_that_fits_no_channels_last_trains_all_the_same():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 3)

        def forward(self, x):
            return self.head(self.conv(x).view(-1, 512))

    module = Viewing()
    fit(module, Clouds(1), TrainSettings(epochs=1))
    with pytest.raises(RuntimeError, match="view size"):
        fit(module, Clouds(1), TrainSettings(epochs=1, memory_format="channels_last"))


def test_dense_labels_and_structured_outputs():
    class Segment(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return {"out": self.conv(x)}

    images = torch.randn(4, 3, 8, 8)
    batches = [(images, (images[:, 0] > 0).long())]
    module = Segment()
    result = fit(module, batches, TrainSettings(epochs=100, lr=0.3), validation=batches)
    assert result.accuracy > 0.9


def test_probabilities_as_labels():
    images = torch.randn(4, 3, 8, 8)
    soft = torch.softmax(torch.randn(4, 3), 1)
    fit(network(), [(images, soft)], TrainSettings(epochs=1))
    with pytest.raises(DataError, match="want probabilities"):
        fit(network(), [(images, soft[:, :2])], TrainSettings(epochs=1))


def test_a_loss_that_explodes_names_the_step_and_the_remedy(tmp_path):
    path = tmp_path / "train.pt"
    with pytest.raises(CheckError, match=r"epoch \d, step \d+ of 4: the loss is not finite.*lr=1e\+18"):
        fit(network(), Clouds(), TrainSettings(epochs=3, lr=1e19), checkpoint=path)
    if path.exists():
        assert all(torch.isfinite(value).all() for value in Checkpoint.load(path).model.values())


def test_refuses_unfit_data():
    with pytest.raises(DataError, match="labels run from 0 to 2, the network has 2 classes"):
        fit(network(classes=2), Clouds(), QUICK)
    with pytest.raises(DataError, match="no batch"):
        fit(network(), Clouds(0), QUICK)
    with pytest.raises(DataError, match=r"yields torch\.float32 \(1,\); want pairs"):
        fit(network(), [torch.zeros(1)], QUICK)
    images, labels = next(iter(Clouds(1).epoch(0)))
    with pytest.raises(DataError, match=r"torch\.float32 \(16,\)\); want pairs"):
        fit(network(), [(images, labels, torch.ones(16))], QUICK)  # weights of the images, it seems
    with pytest.raises(ModelError, match="class logits"):
        fit(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(0)), Clouds(), QUICK)
    with pytest.raises(ModelError, match="nothing to train"):
        fit(nn.Flatten(0), Clouds(), QUICK)


def test_refuses_unfit_checkpoints(tmp_path):
    path = tmp_path / "train.pt"
    fit(network(), Clouds(), TrainSettings(epochs=1), checkpoint=path)
    with pytest.raises(ConfigError, match=r"lr=0\.05, not 0\.01"):
        fit(network(), Clouds(), TrainSettings(epochs=1, lr=0.01), checkpoint=path, resume=True)
    with pytest.raises(ConfigError, match="4 batches per epoch"):
        fit(network(), Clouds(5), TrainSettings(epochs=1), checkpoint=path, resume=True)
    with pytest.raises(WeightsError, match="another network"):
        fit(network(classes=4), Clouds(), TrainSettings(epochs=1), checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not a checkpoint"):
        fit(network(), Clouds(), TrainSettings(epochs=1), checkpoint=path, resume=True)
    torch.save(torch.ones(3), path)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        fit(network(), Clouds(), TrainSettings(epochs=1), checkpoint=path, resume=True)


def test_checkpoint_into_a_missing_folder(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        fit(network(), Clouds(), TrainSettings(epochs=1), checkpoint=tmp_path / "absent" / "train.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"lr": -0.1}, {"lr": math.nan}, {"momentum": 1.5}, {"distillation": 2.0}, {"temperature": 0.0},
     {"mixup": -0.5}, {"label_lr": -1.0},
     {"amp": "float8"}, {"memory_format": "nhwc"}, {"batch_size": 0}, {"momentum": 0.0},
     {"warmup_epochs": 11.0}],
)  # fmt: skip
def test_settings_refuse(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainSettings(**wrong)


@pytest.mark.parametrize("device", ["cuda:99", "banana", "mps"])
def test_devices_that_are_not_there(device):
    with pytest.raises(ConfigError, match=f"device = '{device}'"):
        fit(network(), Clouds(), TrainSettings(epochs=1, device=device))


def test_learning_rate_rises_then_falls_to_nothing():
    settings = TrainSettings(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [settings.learning_rate(step, 5) for step in range(50)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == pytest.approx(0.4)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[30] == pytest.approx(0.2)
    assert 0 < rates[-1] < 0.002


def test_no_epochs_change_nothing():
    module, untouched = network(), network()
    assert fit(module, Clouds(), TrainSettings(epochs=0)).history == ()
    assert same(module, untouched)


@pytest.mark.parametrize("fault", ["optimizer", "supplement"])
def test_what_was_moved_comes_back_when_nothing_can_begin(fault, monkeypatch):
    """The device of the training is `meta` here, from which nothing comes back by itself."""

    class Faulty(Supplement):
        def start(self, optimizer):
            raise RuntimeError("no start")

    student, teacher = network(), network(1)
    if fault == "optimizer":
        student.requires_grad_(False)
    moves = {id(student): [], id(teacher): []}
    for one in (student, teacher):
        monkeypatch.setattr(one, "to", lambda device, one=one: moves[id(one)].append(device.type) or one)
    monkeypatch.setattr(loop, "choose_device", lambda _: torch.device("meta"))
    with pytest.raises((RuntimeError, ModelError), match=r"no start|nothing to train"):
        fit(student, Clouds(), QUICK, teacher=teacher, supplement=Faulty())
    assert list(moves.values()) == [["meta", "cpu"]] * 2
