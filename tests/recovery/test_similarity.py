"""Similarity-preserving distillation against a hand number and the invariances of its formula."""

from __future__ import annotations

import math

import pytest
import torch

from curlfx.errors import DataError
from curlfx.recovery.similarity import similarities, similarity_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    """Q = (1, 0), (1, 1): Q Qᵀ = (1, 1), (1, 2), rows of length √2 and √5; the teacher's images share nothing."""
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    half, first, second = 1 / math.sqrt(2), 1 / math.sqrt(5), 2 / math.sqrt(5)
    torch.testing.assert_close(similarities(student), torch.tensor([[half, half], [first, second]]))
    wanted = ((1 - half) ** 2 + half**2 + first**2 + (1 - second) ** 2) / 4
    found = similarity_loss([similarities(student)], [similarities(teacher)])
    assert float(found) == pytest.approx(wanted)
    both = similarity_loss([similarities(student)] * 2, [similarities(teacher), similarities(student)])
    assert float(both) == pytest.approx(wanted / 2)


def test_identical_features_cost_nothing_and_mixing_or_scaling_changes_nothing() -> None:
    features = drawn(6, 5, 3, 3)
    rotation = torch.linalg.qr(drawn(5, 5, seed=1)).Q
    mixed = torch.einsum("oc,bchw->bohw", 7.0 * rotation, features)
    wanted, found = similarities(features), similarities(mixed)
    torch.testing.assert_close(found, wanted)
    assert float(similarity_loss([wanted], [wanted])) == 0
    assert float(similarity_loss([found], [wanted])) < 1e-12


def test_other_widths_and_sizes_but_not_other_batches() -> None:
    loss = similarity_loss([similarities(drawn(4, 3, 2, 2))], [similarities(drawn(4, 8, 5, 5))])
    assert loss > 0
    with pytest.raises(DataError, match="similarities of 4 and of 3 images"):
        similarity_loss([similarities(drawn(4, 3))], [similarities(drawn(3, 3))])


def test_never_in_half_precision() -> None:
    features = 300 * drawn(4, 64, 8, 8).float()
    flat = features.double().flatten(1)
    wanted = torch.nn.functional.normalize(flat @ flat.mT, dim=1)
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=kind):
            assert (flat.float() @ flat.float().mT).dtype == kind
            found = similarities(features)
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)
    assert (features.half().flatten(1) @ features.half().flatten(1).mT).isinf().any()
    torch.testing.assert_close(similarities(features.half()), wanted.float(), rtol=1e-3, atol=1e-3)


def test_gradient_and_memory_layout() -> None:
    features = drawn(4, 3, 2, 5).float()
    last = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = features.clone().requires_grad_()
    similarities(last).square().mul(drawn(4, 4, seed=2)).sum().backward()
    flat = plain.flatten(1)
    torch.nn.functional.normalize(flat @ flat.mT, dim=1).square().mul(drawn(4, 4, seed=2)).sum().backward()
    torch.testing.assert_close(last.grad, plain.grad)
