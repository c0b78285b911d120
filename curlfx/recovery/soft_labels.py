"""Soft labels that are trained along with a network: one vector of logits per training image, on the host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curlfx.errors import DataError, WeightsError
from curlfx.files import discard, written
from curlfx.recovery.batches import Loader, indexed_batches
from curlfx.recovery.hardware import choose_device, evaluating, reproducible
from curlfx.recovery.loss import logits_of
from curlfx.recovery.processes import Processes

Logits = NDArray[np.float32]


class SoftLabels:
    """Trainable logits ``(N, K)`` float32, in memory or mapped from a file.

    With a ``path`` like ``refine.pt``, the labels after epoch e are ``refine.labels-e.npy`` beside it. An epoch works
    on a copy that gets its name when the epoch is over; the one before is kept until `forget`. So whenever a process
    dies, the labels that belong to the checkpoint at ``path`` are there.

    Args:
        path: Checkpoint of the training; None keeps the labels in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._epoch = 0
        self._values: Logits = np.zeros((0, 0), np.float32)

    @property
    def values(self) -> Logits:
        """The labels as they are now, ``(N, K)``."""
        return self._values

    @property
    def file(self) -> Path | None:
        """Where the labels of the last finished epoch are; None in memory."""
        return None if self._path is None else self._file(self._path, self._epoch)

    def start(self, values: Logits) -> None:
        """Begin with ``values`` ``(N, K)``. Raises: OutputError."""
        self._epoch = 0
        if self._path is None:
            self._values = values.astype(np.float32, copy=True)
            return
        file = self._file(self._path, 0)
        with written(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, values.astype(np.float32, copy=False))
        self._values = _mapped(file)

    def follow(self, group: Processes) -> None:
        """Take over the labels of the first process, in memory; its own stay where they are."""
        values = group.on_leader(lambda: self._values)
        if not group.leads:
            self._path = None
            self.start(values)

    def restore(self, epoch: int) -> None:
        """Take up the labels after ``epoch`` epochs. Raises: WeightsError when they are not there or damaged."""
        if self._path is None:
            raise WeightsError("soft labels in memory cannot be taken up again; give them the checkpoint's path")
        self._values, self._epoch = _mapped(self._file(self._path, epoch)), epoch

    @contextmanager
    def learning(self) -> Iterator[None]:
        """One epoch, within which `descend` may be called. An unfinished one leaves the files of the last."""
        if self._path is None:
            yield
            return
        before, after = (self._file(self._path, epoch) for epoch in (self._epoch, self._epoch + 1))
        try:
            with written(after) as temporary:
                shutil.copyfile(before, temporary)
                working = _mapped(temporary, "r+")
                self._values = working
                yield
                working.flush()
            self._epoch += 1
        finally:
            self._values = _mapped(self._file(self._path, self._epoch))

    def forget(self) -> None:
        """Remove the files of earlier epochs, once the checkpoint of this one is written."""
        if self._path is not None:
            for file in self._path.parent.glob(f"{self._path.stem}.labels-*.npy"):
                if file != self.file:
                    discard(file)

    def rows(self, positions: Tensor) -> Tensor:
        """Labels of some images, ``(B, K)``, a copy. Raises: DataError for positions outside ``[0, N)``."""
        if positions.numel() and not 0 <= int(positions.min()) <= int(positions.max()) < len(self._values):
            raise DataError(
                f"positions from {int(positions.min())} to {int(positions.max())}: there are {len(self._values)} "
                "soft labels; train on the images that they were made for"
            )
        return torch.from_numpy(np.array(self._values[positions.numpy()]))

    def descend(self, positions: Tensor, gradient: Tensor, rate: float) -> None:
        """``Y[positions] -= rate * gradient``; an image that is there twice gets both steps."""
        np.subtract.at(self._values, positions.numpy(), rate * gradient.detach().cpu().numpy())

    @staticmethod
    def _file(path: Path, epoch: int) -> Path:
        return path.with_name(f"{path.stem}.labels-{epoch}.npy")


def teacher_logits(teacher: nn.Module, loader: Loader, *, device: str = "auto") -> Logits:
    """Logits of every training image, ``(N, K)`` in the order of positions, in eval mode and float32.

    Args:
        loader: Triples (images, labels, positions), every image once, as in evaluation.

    Raises: DataError unless the positions are 0 to N - 1, each once; ModelError for outputs without logits.
    """
    place = choose_device(device)
    positions: list[Tensor] = []
    found: list[Tensor] = []
    with reproducible(place), evaluating(teacher, place), torch.inference_mode():
        for batch in indexed_batches(loader, 0):
            found.append(logits_of(teacher(batch.images.to(place, non_blocking=True))).float().cpu())
            positions.append(batch.positions)
    if not found:
        raise DataError("no image to make soft labels for; want at least one")
    order = torch.cat(positions)
    if not torch.equal(order.sort().values, torch.arange(len(order))):
        raise DataError(f"positions of {len(order)} images are not 0 to {len(order) - 1}, each once")
    logits = torch.cat(found)
    if logits.dim() != 2:
        raise DataError(f"logits of shape {tuple(logits.shape)}: labels are refined for one answer per image, (N, K)")
    values: Logits = torch.empty_like(logits).index_copy_(0, order, logits).numpy()
    return values


def _mapped(path: Path, mode: Literal["r", "r+"] = "r") -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
    try:
        values = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(
            f"{path}: cannot read the soft labels ({error}); delete the checkpoint beside it to start afresh"
        ) from error
    if not isinstance(values, np.memmap) or values.ndim != 2 or values.dtype != np.float32:
        raise WeightsError(f"{path}: holds no soft labels (N, K) float32; delete the checkpoint beside it")
    return values
