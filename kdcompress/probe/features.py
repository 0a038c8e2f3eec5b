"""A frozen network's features of whole splits, and how much they vary."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompress.errors import DataError, NonFiniteOutputs
from kdcompress.networks.activations import POOLED
from kdcompress.networks.tapped import Tapped

Read = Callable[[Tensor], Tensor]
"""Images `[B, C, H, W]` float32 in [0, 1], not normalised, to features `[B, D]` float32."""


@dataclass(frozen=True, slots=True)
class Features:
    """The features and outputs of a network on a split.

    Args:
        values: `[N, D]` float32.
        labels: `[N]` int64; -1 means no label.
    """

    values: Tensor
    labels: Tensor

    def labelled(self) -> Features:
        """Returns the rows that have a label."""
        known = self.labels >= 0
        return Features(self.values[known], self.labels[known])


def pooled(tapped: Tapped) -> Read:
    """Reads the classifier's input, or a backbone's output; the network is frozen, in place.

    Gradients reach the images, not the parameters.

    Args:
        tapped: Computes in float32 from then on.
    """
    tapped.network.requires_grad_(False)
    tapped.train_mode(False)
    tapped.precision = None

    def read(images: Tensor) -> Tensor:
        values = tapped(images, POOLED).pooled
        assert values is not None
        return values

    return read


def features(read: Read, batches: Iterable[tuple[Tensor, Tensor]]) -> Features:
    """Computes the features of a split in one pass.

    Args:
        read: The network.
        batches: Images and labels; not empty.

    Raises:
        NonFiniteOutputs: A feature is not finite.
    """
    parts = []
    with torch.no_grad():
        for images, labels in batches:
            parts.append((read(images), labels))
    values, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    if not bool(values.isfinite().all()):
        raise NonFiniteOutputs(
            "the network's features are not finite (NaN or infinite); its weights are damaged"
        )
    return Features(values, labels)


def variance(values_ND: Tensor) -> float:
    """Computes the features' total variance over images, `mean ‖f − mean f‖²`.

    Raises:
        DataError: All images have the same features.
    """
    wide_ND = values_ND.double()
    total = float((wide_ND - wide_ND.mean(0)).square().sum(1).mean())
    # Rounding leaves a little of features that are all alike.
    if total <= 1e-12 * float(wide_ND.square().sum(1).mean()) or total == 0:
        raise DataError("the network gives every image the same features, so nothing can be measured on them")
    return total
