"""Mixup: weighted means of the images of a batch and of the same images in another order."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from kdcompress.data.random_bits import uniform
from kdcompress.methods.gather import gather_rows, own_rows, world_size

MIXUP_STREAM = -4
"""Views of images count from 0; the draws of mixup have a stream of their own."""
BATCH_STRIDE = 1 << 20
CANDIDATES = 64


class Mixup(nn.Module):
    """Draws the share and the order of each batch, equal in all processes and after any resume.

    Both are determined by the run's seed and the number of the batch, and are computed on the device without
    a read of their values.

    Args:
        alpha: a of the distribution Beta(a, a) of the share, in (0, 1]; 1: uniform, towards 0: the ends 0 and
            1 only.
    """

    seed: Tensor
    batches: Tensor

    def __init__(self, alpha: float) -> None:
        super().__init__()
        assert 0 < alpha <= 1, alpha
        self._alpha = alpha
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def draw(self, rows: int) -> tuple[Tensor, Tensor]:
        """Draws for the next batch.

        Args:
            rows: B, number of this process's rows; equally many in every process.

        Returns:
            The share of a row itself, a float32 scalar in [0, 1], and for the A rows of all processes the row
            that each is mixed with, `[A]` int64.
        """
        first = self.seed + self.batches * BATCH_STRIDE
        self.batches += 1
        order_A = _draws(first, rows * world_size(), 2).argsort(stable=True)
        return beta(self._alpha, first), order_A

    def spread(self, images: Tensor) -> Tensor:
        """Interpolates each image of a batch with the next one, with shares spread as Beta(a, a) is.

        The same images give the same result, and nothing is drawn.

        Args:
            images: `[B, ...]`.

        Returns:
            `[B, ...]`.
        """
        middles = (np.arange(len(images)) + 0.5) / len(images)
        shares = images.new_tensor(stats.beta.ppf(middles, self._alpha, self._alpha))
        return torch.lerp(images.roll(1, 0), images, shares.view(-1, *[1] * (images.dim() - 1)))


def beta(alpha: float, first: Tensor) -> Tensor:
    """Draws one number of the distribution Beta(a, a).

    Args:
        alpha: a in (0, 1].
        first: int64 scalar that determines the number.

    Returns:
        Float32 scalar in [0, 1].

    Source:
        Jöhnk 1964: of uniform U and V, U^(1/a) / (U^(1/a) + V^(1/a)) if the sum is at most 1. At least half
        of the pairs are, so that none of 64 is happens less than once in 10^19 draws.
    """
    log_u, log_v = ((_draws(first, CANDIDATES, draw) + 2.0**-25).log() / alpha for draw in (0, 1))
    accepted = torch.logaddexp(log_u, log_v) <= 0
    chosen = accepted.to(torch.int8).argmax(0, keepdim=True)
    return (log_u - log_v).sigmoid().gather(0, chosen).squeeze(0)


def interpolate(rows: Tensor, share: Tensor | float, order_A: Tensor) -> Tensor:
    """Computes share · row + (1 - share) · the row that it is mixed with.

    Args:
        rows: `[B, ...]` of this process.
        share: Of the row itself.
        order_A: `[A]`, over the rows of all processes.

    Returns:
        `[B, ...]`, with gradients to every process's rows.
    """
    return share * rows + (1 - share) * partners(rows, order_A)


def partners(rows: Tensor, order_A: Tensor) -> Tensor:
    """Returns the rows `[B, ...]`, of whatever process, that this process's rows are mixed with."""
    return own_rows(gather_rows(rows)[order_A])


def _draws(first: Tensor, count: int, draw: int) -> Tensor:
    return uniform(0, MIXUP_STREAM, first + torch.arange(count, device=first.device), draw)
