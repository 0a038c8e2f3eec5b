"""Draws, for each image of a batch, images of its own class and of other classes from the training set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.data.random_bits import uniform

STREAM = -4
"""Views of images count from 0; these draws have a stream of their own."""


class ClassDraws(nn.Module):
    """Chooses the bank rows that each image is compared with, on the device and without reading a value.

    A draw is determined by the seed, the step and the image, whichever process makes it.

    Args:
        labels: `[N]` int64, the training set's.
        negatives: Images of other classes per row, with replacement. No more are drawn than there are
            distinct ones for the largest class: with more, a contrastive loss grows and teaches nothing new.
        itself_too: The image itself is among the images of its class that can be drawn.

    Attributes:
        negatives: K after that bound.
        steps: Number of `advance` calls so far.
    """

    seed: Tensor
    steps: Tensor
    labels: Tensor
    by_class: Tensor
    place: Tensor
    first_of_class: Tensor
    class_sizes: Tensor

    def __init__(self, labels: Tensor, negatives: int, itself_too: bool = False) -> None:
        super().__init__()
        self._least_step = 0 if itself_too else 1
        sizes = labels.bincount()
        self.negatives = min(negatives, len(labels) - int(sizes.max()))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        by_class = labels.argsort(stable=True)
        of_data = {
            "labels": labels,
            "by_class": by_class,
            "place": by_class.argsort(),
            "first_of_class": sizes.cumsum(0) - sizes,
            "class_sizes": sizes,
        }
        for name, values in of_data.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, indices_B: Tensor) -> Tensor:
        """Draws the columns of a batch.

        Args:
            indices_B: `[B]` positions in the training set.

        Returns:
            `[B, 2 + K]` int64: the image itself; another image of its class (itself if there is none, or
            with `itself_too`); K of other classes.
        """
        size, width = len(self.labels), 1 + self.negatives
        draws_BM = ((self.steps * size + indices_B) * width).unsqueeze(1)
        draws_BM = self.seed + draws_BM + torch.arange(width, device=indices_B.device)
        chance_BM = uniform(0, STREAM, draws_BM, 0)
        labels_B1 = self.labels[indices_B].unsqueeze(1)
        first_B1, own_B1 = self.first_of_class[labels_B1], self.class_sizes[labels_B1]
        least = self._least_step
        steps_B1 = least + (chance_BM[:, :1] * (own_B1 - least)).to(torch.int64)
        place_B1 = self.place[indices_B].unsqueeze(1) - first_B1
        same_B1 = self.by_class[first_B1 + (place_B1 + steps_B1) % own_B1]
        # Places in the order by class: those of the own class are stepped over.
        places_BK = (chance_BM[:, 1:] * (size - own_B1)).to(torch.int64)
        places_BK = places_BK + own_B1 * (places_BK >= first_B1)
        return torch.cat([indices_B.unsqueeze(1), same_B1, self.by_class[places_BK]], 1)

    def advance(self) -> None:
        """Makes the next call draw other columns."""
        self.steps += 1
