"""Fast scores: all channels from a few backward passes, by how the logits of every image depend on every gate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curlfx.importance.divergence import Bernoulli, Divergence, Softmax
from curlfx.importance.gated import GatedNetwork
from curlfx.importance.together import fitting, matching, memory, vectorised

Floats = npt.NDArray[np.float64]
Pull = Callable[[Tensor], Tensor]
"""``v`` ``(B, C, *S)`` to ``J·v`` ``(B, N + 1)``: one backward pass for all images."""

TOP = 3
INSIDE_REST = 4
REST_THAT_COUNTS = 0.05
PROJECTIONS = 8
SAMPLES = 512
MOST_PROJECTIONS = 32
LABELS = 8
KEPT = 1 << 30
"""Bytes that the values kept for backward passes may take."""


class Fast:
    """First-order divergences of all channels, of any number of images.

    A gate of every image is a variable of its own, so one backward pass of ``Σ_n v_n · logits_n`` gives ``J_n · v_n``
    for all images n, where J is the Jacobian of the logits in the gates. Closing channel j moves the logits by about
    ``-J[:, j]``. The cost does not depend on the number of channels.

    Args:
        network: The gated network; pure, and its images do not influence each other.
        seed: Of the random directions.
        images: How many there will be in all; with few of them, more directions are drawn, for `SAMPLES` in all.
    """

    def __init__(self, network: GatedNetwork, seed: int, images: int) -> None:
        self._network = network
        self._least = min(MOST_PROJECTIONS, -(-SAMPLES // images))
        self._random = torch.Generator().manual_seed(seed)
        self._vectorises = True

    def parts(self, batch: Tensor) -> list[Tensor]:
        """A batch in parts that run at once."""
        network = self._network
        copies = network.fixed_batch or 1
        near = network.per_image(network.intact.bytes_at_once()) * copies
        kept = network.per_image(network.gated.bytes_written()) * copies
        return list(batch.split(max(1, int(min(memory(network) / max(near, 1), KEPT / max(kept, 1))))))

    def add(self, images: Tensor, sums: Floats) -> None:
        """Add the divergences of some images to ``sums`` ``(N + 1,)``. Raises: DataError, ModelError."""
        network = self._network
        with fitting(images):
            gates = network.ones().repeat(len(images), 1).requires_grad_()
            with matching(images):
                logits = self._logits(gates, images)
            intact = logits.detach()
            network.divergence.check(intact, len(images))

            def pull(direction: Tensor) -> Tensor:
                (found,) = torch.autograd.grad(logits, gates, direction.to(logits.dtype), retain_graph=True)
                return found.double()

            found = self._divergences(network.divergence, intact.double(), pull)
        sums += found.sum(0).cpu().numpy()

    def _divergences(self, divergence: Divergence, intact: Tensor, pull: Pull) -> Tensor:
        """The divergence of every image and channel ``(B, N + 1)``."""
        if isinstance(divergence, Softmax) and intact.ndim == 2:
            return self._by_class(divergence, intact, pull)
        if isinstance(divergence, Bernoulli) and intact.ndim == 2 and intact.shape[1] <= LABELS:
            moved = torch.stack([pull(one.expand_as(intact)) for one in torch.eye(intact.shape[1]).to(intact)], -1)
            return divergence.each((intact[:, None] - moved).transpose(0, 1), intact).T
        return self._projected(PROJECTIONS, pull, lambda noise: divergence.direction(intact, noise), intact)

    def _by_class(self, divergence: Softmax, intact: Tensor, pull: Pull) -> Tensor:
        """Softmax over classes ``(B, C)``: the `TOP` most likely ones as they are, the rest merged into one.

        By the chain rule of KL the divergence is that between the merged classes, plus that inside the rest times the
        probability of the rest. What moves inside the rest is estimated to second order, and left out where the rest
        has little probability.
        """
        top = intact.topk(min(TOP, intact.shape[1]), dim=1).indices
        single = torch.zeros(top.shape[1], *intact.shape).to(intact).scatter(2, top.T[:, :, None], 1.0)
        merged, ways = [intact.gather(1, top)], [one - single[0] for one in single[1:]]
        inside = intact.scatter(1, top, -torch.inf)
        rest = intact.shape[1] - top.shape[1]
        if rest:
            merged.append(inside.logsumexp(1, keepdim=True))
            ways.append(inside.softmax(1) - single[0])
        moved = torch.stack([pull(way) for way in ways], -1)
        before = torch.cat(merged, 1)
        after = before[:, None].repeat(1, moved.shape[1], 1)
        after[..., 1:] -= moved
        found = divergence.each(after.transpose(0, 1), before).T
        if rest > 1 and float(before.softmax(1)[:, -1].mean()) >= REST_THAT_COUNTS:
            within = self._projected(INSIDE_REST, pull, lambda noise: divergence.direction(inside, noise), intact)
            found = found + after.softmax(-1)[..., -1] * within
        return found

    def _projected(self, count: int, pull: Pull, direction: Callable[[Tensor], Tensor], intact: Tensor) -> Tensor:
        """``½ J·H·J`` for every image and channel, H the Hessian: the mean of ``½ (J·v)²`` over random ``v``.

        Source: Hutchinson's estimator; with random signs its variance is the least.
        """
        count = max(count, self._least)
        found = torch.zeros(len(intact), self._network.total + 1).to(intact)
        for _ in range(count):
            signs = 2.0 * torch.randint(0, 2, intact.shape, generator=self._random) - 1
            found += pull(direction(signs.to(intact))).square()
        return found / (2 * count)

    def _logits(self, gates: Tensor, images: Tensor) -> Tensor:
        """Logits ``(B, C, …)`` for gates ``(B, N + 1)``, a row for every image."""
        if len(images) > 1 and self._vectorises:
            found = vectorised(self._single, gates, images)
            if found is not None:
                return found
            self._vectorises = False
        return torch.stack([self._single(*each) for each in zip(gates, images, strict=True)])

    def _single(self, gates: Tensor, image: Tensor) -> Tensor:
        """Logits ``(C, …)`` of an image alone; a graph with a fixed batch gets it as often as it wants."""
        batch = image[None].expand(self._network.fixed_batch or 1, *image.shape)
        logits: Tensor = self._network.gated.run(self._network.values(batch, gates))
        return logits[0]
