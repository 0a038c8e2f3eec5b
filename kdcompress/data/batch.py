"""What a training step is given: views of images, their labels and where they stand in the training set.

Shape letters, here and everywhere: B images of a batch, C channels, H height, W width, K classes, D features,
N images of the training set, V views.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation of the images of a batch.

    Args:
        images: `[B, C, H, W]`, float32 in [0, 1], not normalised (every network normalises for itself).
        indices: `[B]` int64, positions in the training set.
        number: Which replayable view of those samples this is: epoch × V + k. With the seed and an index it
            determines the augmentation.
    """

    images: Tensor
    indices: Tensor
    number: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step.

    Args:
        views: V views of the same images (V ≥ 1).
        labels: `[B]` int64; -1 means no label.
        indices: `[B]` int64, positions in the training set.
    """

    views: tuple[View, ...]
    labels: Tensor
    indices: Tensor

    @property
    def images(self) -> Tensor:
        """`[B, C, H, W]`: the first view's images."""
        return self.views[0].images

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True, slots=True)
class DataInfo:
    """What a method may know of the data before training.

    Args:
        num_classes: K.
        labels: `[N]` int64, the training set's labels (-1 = none).
        image_size: (H, W) of the training views.
        channels: C.
        held_out: Batches of the held-out split, one un-augmented view each; empty when nothing is held out.
        class_weights: `[K]` float32 whose mean over the training labels is 1, or None.
        label_smoothing: In [0, 1), uniform over all classes.
        batch_size: Images of a training batch in all processes together; 0: not known.
    """

    num_classes: int
    labels: Tensor
    image_size: tuple[int, int]
    channels: int
    held_out: Iterable[Batch] = ()
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    batch_size: int = 0

    @property
    def labelled_classes(self) -> int:
        """How many of the K classes have a labelled training image."""
        return int((self.labels[self.labels >= 0].bincount() > 0).sum())


def no_labels(count: int) -> Tensor:
    """`[count]` labels that say: none."""
    return torch.full((count,), -1, dtype=torch.int64)
