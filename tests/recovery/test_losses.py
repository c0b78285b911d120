"""Losses against numbers worked out by hand, and the gradient of soft labels against its closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from curlfx.errors import DataError
from curlfx.recovery import TrainSettings
from curlfx.recovery.loss import drawn_to, loss_of, refining_loss, supervised
from curlfx.recovery.mixup import Mix, Mixup

CURL = TrainSettings(distillation=0.7, temperature=2.0)
REFINING = replace(CURL, temperature=1.0)


def logits_for(*odds: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax is in these proportions."""
    return torch.tensor(odds).log()


def test_mixup_and_distillation_by_hand() -> None:
    # Softmax at T = 2 of log(1, 9) is (1, 3) / 4, that of the teacher's log(1, 1) is (1, 1) / 2.
    student, teacher = logits_for((1, 9), (1, 9)), logits_for((1, 1), (1, 1))
    labels, mix = torch.tensor([0, 1]), Mix(0.75, torch.tensor([1, 0]))
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    own = (-math.log(0.1) - math.log(0.9)) / 2  # both orders hold one image of each class
    found = float(loss_of(student, labels, teacher, CURL, mix.blend(labels)))
    assert found == pytest.approx(0.7 * 4 * kl + 0.3 * own, rel=1e-6)
    labels = torch.tensor([0, 0, 1])
    student, mix = logits_for((1, 9), (1, 1), (1, 9)), Mix(0.75, torch.tensor([2, 0, 1]))
    own = (-math.log(0.1) - math.log(0.5) - math.log(0.9)) / 3
    partners = (-math.log(0.9) - math.log(0.5) - math.log(0.1)) / 3
    expected = 0.75 * own + 0.25 * partners
    assert float(supervised(student, labels, CURL, mix.blend(labels))) == pytest.approx(expected, rel=1e-6)
    # Labels (0, 0, 1) and partners' labels (1, 0, 0): the first image is asked for both answers.
    assert float(supervised(student[:1], labels[:1], CURL)) == pytest.approx(-math.log(0.1), rel=1e-6)


def test_lam_of_one_and_a_student_like_its_teacher_leave_the_cross_entropy() -> None:
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    loss = loss_of(logits, labels, logits.clone(), CURL, Mix(1.0, torch.randperm(5)).blend(labels))
    torch.testing.assert_close(loss, 0.3 * functional.cross_entropy(logits, labels))


def test_mixed_probabilities_are_the_mixture_of_the_labels() -> None:
    """The cross-entropy is linear in the target, so mixed targets give the same number."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(6, 3, generator=generator), torch.randint(3, (6,), generator=generator)
    mix = Mix(0.3, torch.randperm(6, generator=generator))
    hard = functional.one_hot(labels, 3).float()
    target = 0.3 * hard + 0.7 * hard[mix.order]
    for wanted in (labels, hard):
        found = supervised(logits, wanted, CURL, mix.blend(wanted))
        torch.testing.assert_close(found, functional.cross_entropy(logits, target))


def test_refining_by_hand_puts_the_student_first() -> None:
    student, soft, labels = logits_for((1, 3)), logits_for((1, 1)), torch.tensor([0])
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    other_way = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl != pytest.approx(other_way, rel=1e-3)
    found = refining_loss(student, labels, soft, REFINING)
    assert float(found) == pytest.approx(0.7 * kl + 0.3 * math.log(4), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_of_soft_labels_is_the_closed_form(temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 5, generator=generator, dtype=torch.float32)
    soft = torch.randn(8, 5, generator=generator).requires_grad_()
    labels = torch.randint(5, (8,), generator=generator)
    settings = replace(REFINING, temperature=temperature)
    refining_loss(logits, labels, soft, settings).backward()
    expected = 0.7 / 8 * temperature * ((soft / temperature).softmax(1) - (logits / temperature).softmax(1))
    assert soft.grad is not None
    torch.testing.assert_close(soft.grad, expected.detach(), rtol=1e-5, atol=1e-7)
    assert soft.grad.abs().max() <= 0.7 / 8 * temperature


def test_soft_labels_equal_to_the_student_stay() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    soft = (logits + 7.5).requires_grad_()  # a shift of all logits is the same softmax
    refining_loss(logits, torch.tensor([0, 1, 2, 0]), soft, REFINING).backward()
    assert soft.grad is not None
    assert soft.grad.abs().max() < 1e-7
    assert float(drawn_to(logits, soft.detach(), 1.0)) == pytest.approx(0, abs=1e-6)


def test_refining_refuses_other_shapes() -> None:
    with pytest.raises(DataError, match=r"soft labels of shape \(2, 3\) beside logits \(2, 4\)"):
        refining_loss(torch.zeros(2, 4), torch.tensor([0, 1]), torch.zeros(2, 3), REFINING)


def test_mix_by_hand() -> None:
    mix = Mix(0.25, torch.tensor([2, 0, 1]))
    images = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    assert mix.images(images).flatten().tolist() == [0.25 + 2.25, 0.5 + 0.75, 0.75 + 1.5]
    assert mix.dominant(torch.tensor([5, 6, 7])).tolist() == [7, 5, 6]
    assert mix.blend(torch.tensor([5, 6, 7]), slice(1, 3)).labels.tolist() == [5, 6]
    assert replace(mix, share=0.5).dominant(torch.tensor([5, 6, 7])).tolist() == [5, 6, 7]
    with pytest.raises(DataError, match=r"torch\.uint8: mixup wants floats"):
        mix.images(images.to(torch.uint8))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_lam_is_drawn_from_the_beta_distribution(alpha: float) -> None:
    mixup = Mixup(alpha, seed=0, epoch=0)
    mixes = [mixup.draw(4) for _ in range(2000)]
    fit = stats.kstest([mix.share for mix in mixes], stats.beta(alpha, alpha).cdf)
    assert fit.pvalue > 0.01
    assert all(sorted(mix.order.tolist()) == [0, 1, 2, 3] for mix in mixes)
    assert len({tuple(mix.order.tolist()) for mix in mixes}) == 24


def test_blends_follow_from_seed_and_epoch() -> None:
    def draws(seed: int, epoch: int) -> tuple[object, ...]:
        mixup = Mixup(1.0, seed, epoch)
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        return tuple((mix.share, tuple(mix.order.tolist())) for mix in (mixup.draw(5), mixup.draw(3)))

    assert draws(1, 2) == draws(1, 2)
    assert len({draws(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
