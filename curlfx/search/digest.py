"""Hashes of what measured numbers and checkpoints depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(tensors: Iterable[Tensor], *words: bytes) -> str:
    """SHA-256 of some bytes and of tensors with their types and shapes, wherever these are, in hexadecimal."""
    found = hashlib.sha256(b"".join(words))
    for tensor in tensors:
        found.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
