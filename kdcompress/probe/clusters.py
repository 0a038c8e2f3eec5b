"""How far features go without any label: clusters of them beside the classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from kdcompress.metrics.clustering import cluster_figures
from kdcompress.metrics.kmeans import Whitening, cluster
from kdcompress.probe.features import Features

MOST_PIXELS = 1024
"""Numbers of an image that are clustered: 32 × 32 grey or 18 × 18 coloured pixels. Larger images are shrunk
to the square that has at most so many, or k-means on their pixels would take longer than all the rest."""


@dataclass(frozen=True, slots=True)
class ClusterProbe:
    """Figures of clusters of the features, and of the pixels as their floor.

    Args:
        figures: Of `metrics.clustering.cluster_figures`, of features of unit length.
        whitened: The same of whitened features (`metrics.kmeans.Whitening`).
        pixels: The same of the pixels.
    """

    figures: dict[str, float | None]
    whitened: dict[str, float | None]
    pixels: dict[str, float | None]


def clusters(queries: Features, pixels: Features, num_classes: int, seed: int) -> ClusterProbe:
    """Clusters features, as they are and whitened, and pixels by k-means and compares with the labels.

    Args:
        queries: Features of the images.
        pixels: `pixel_values` of the same images.
        num_classes: K, the number of clusters.
        seed: Seed of k-means.

    Raises:
        DataError: There are fewer distinct images, or features, than classes.
    """
    ours = cluster(queries.values, num_classes, seed)
    whitened = cluster(Whitening.of(queries.values)(queries.values), num_classes, seed)
    floor = cluster(pixels.values, num_classes, seed, normalise=False)
    return ClusterProbe(
        cluster_figures(ours.assigned, queries.labels),
        cluster_figures(whitened.assigned, queries.labels),
        cluster_figures(floor.assigned, pixels.labels),
    )


def pixel_values(images: Tensor) -> Tensor:
    """Returns the pixels of images `[B, C, H, W]` as vectors `[B, P]`, shrunk to at most `MOST_PIXELS`."""
    channels, height, width = images.shape[1:]
    if channels * height * width > MOST_PIXELS:
        side = int((MOST_PIXELS / channels) ** 0.5)
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return images.flatten(1)
