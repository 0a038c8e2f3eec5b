"""The batch of a training step: views of images, their labels and their positions in the training set.

Shape letters, here and everywhere: B images of a batch, C channels, H height, W width, K classes, D features,
N images of the training set, V views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation of the images of a batch.

    Args:
        images: `[B, C, H, W]`, float32 in [0, 1], not normalised (every network normalises for itself).
        indices: `[B]` int64, positions in the training set.
        number: Number of this replayable view of the samples: epoch × V + k. With the seed and an image's id
            it determines the augmentation.
        ids: `[B]` int64 on the CPU, the images' ids (`Source.ids`), if views repeat (`Replay`), so that
            outputs of earlier epochs can be found by id and number; None: every view is new.
    """

    images: Tensor
    indices: Tensor
    number: int
    ids: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TurnedViews:
    """Views of a batch, each turned by its own number of quarter turns, as rows of one tensor.

    Args:
        images: `[T·B, C, H, W]`, as of a view; row T·i + k is view k of image i, turned k times.
        views: The T views, not turned.
    """

    images: Tensor
    views: tuple[View, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """A finite set of views that repeat: view n is number n modulo their count.

    Args:
        views: Their count.
        seed: Seed of their augmentation, whatever the run's, so that runs with several seeds share them.
    """

    views: int
    seed: int


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


def _no_batches() -> Iterable[Batch]:
    return ()


@dataclass(frozen=True, slots=True)
class DataInfo:
    """Facts about the data that a method may use before training.

    Args:
        num_classes: K.
        labels: `[N]` int64, the training set's labels (-1 = none).
        image_size: (H, W) of the training views.
        channels: C.
        held_out: Opens the batches of the held-out split, one view each without augmentation; none if nothing
            is held out. Processes that decode images end with the iteration (or its `close`).
        class_weights: `[K]` float32 whose mean over the training labels is 1, or None.
        label_smoothing: In [0, 1), uniform over all classes.
        batch_size: Images of a training batch in all processes together; 0: not known.
    """

    num_classes: int
    labels: Tensor
    image_size: tuple[int, int]
    channels: int
    held_out: Callable[[], Iterable[Batch]] = _no_batches
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    batch_size: int = 0

    @property
    def labelled_classes(self) -> int:
        """Number of the K classes that have a labelled training image."""
        return int((self.labels[self.labels >= 0].bincount() > 0).sum())


def no_labels(count: int) -> Tensor:
    """Gives `[count]` labels of -1: no label."""
    return torch.full((count,), -1, dtype=torch.int64)
