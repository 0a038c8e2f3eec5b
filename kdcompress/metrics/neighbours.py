"""Metrics of an embedding without a classifier, computed from the nearest neighbours of each image.

All by cosine, over the images themselves, each of them left out of its own neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 20
"""Number of neighbours that vote on an image's class."""
TEMPERATURE = 0.07
"""Temperature of a vote, exp(cosine / temperature)."""
ALIKE = 10
"""Neighbours that two embeddings are compared by."""
MOST_IMAGES = 5_000
"""Compared with each other; of more, so many are taken at even distances."""

_ROWS = 1_000
"""Rows of the cosine table that are in memory at a time."""


def knn_top1(features_ND: Tensor, labels_N: Tensor, *, most: int = MOST_IMAGES) -> float | None:
    """Computes the share of images whose neighbours vote for their class; a vote weighs exp(cosine / 0.07).

    Args:
        features_ND: One row per image.
        labels_N: Classes; images of -1 are left out.
        most: Images that are used.

    Returns:
        0 to 1; None with fewer than two labelled images. Of equal classes the one of the lower number wins.

    Source: Z. Wu, Y. Xiong, S. X. Yu and D. Lin, Unsupervised feature learning via non-parametric instance
        discrimination, CVPR 2018, section 3.4; leave-one-out, since the images are their own gallery.
    """
    known = labels_N >= 0
    features_ND, labels_N = _sample(features_ND[known], most), _sample(labels_N[known], most)
    count = len(labels_N)
    if count < 2:
        return None
    right = 0
    classes = int(labels_N.max()) + 1
    for rows, cosines, neighbours in _nearest(features_ND, min(NEIGHBOURS, count - 1)):
        voted = vote(cosines, labels_N[neighbours], classes)
        right += int((voted == labels_N[rows]).sum())
    return right / count


def vote(cosines_Rk: Tensor, labels_Rk: Tensor, num_classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """Predicts the class that neighbours vote for, each with the weight exp(cosine / temperature).

    Args:
        cosines_Rk: Nearest first.
        labels_Rk: int64, the neighbours' classes.
        num_classes: K.
        temperature: Divides the cosines; a lower one gives the nearest neighbours more of the vote.

    Returns:
        `[R]` int64. Of equal classes the one of the lower number wins.
    """
    return votes(cosines_Rk, labels_Rk, num_classes, temperature).argmax(1)


def votes(
    cosines_Rk: Tensor, labels_Rk: Tensor, num_classes: int, temperature: float = TEMPERATURE
) -> Tensor:
    """Counts the neighbours' weighted votes for each class; arguments as of `vote`.

    Returns:
        `[R, K]`, as multiples of the nearest neighbour's vote.
    """
    votes_RK = cosines_Rk.new_zeros(len(cosines_Rk), num_classes)
    # Scaled by the best vote, as a softmax is: exp(1 / 0.07) alone is 1.6 million.
    weights_Rk = ((cosines_Rk - cosines_Rk[:, :1]) / temperature).exp()
    return votes_RK.scatter_add_(1, labels_Rk, weights_Rk)


def overlap(features_ND: Tensor, others_ND: Tensor, *, most: int = MOST_IMAGES) -> float | None:
    """Computes the mean share of an image's ten nearest neighbours that two embeddings agree on.

    Args:
        features_ND: One row per image.
        others_ND: Embeddings of the same images in the same order; the width may differ.
        most: Images that are used.

    Returns:
        1 for embeddings of the same angles, near 10 / N for unrelated ones; None with fewer than two images.

    Source: M. Huh, B. Cheung, T. Wang and P. Isola, The platonic representation hypothesis, ICML 2024,
        mutual nearest-neighbour metric.
    """
    assert len(features_ND) == len(others_ND), f"{len(features_ND)} rows beside {len(others_ND)}"
    one, other = _sample(features_ND, most), _sample(others_ND, most)
    count = len(one)
    if count < 2:
        return None
    neighbours = min(ALIKE, count - 1)
    shared = 0
    for (_, _, mine), (_, _, theirs) in zip(
        _nearest(one, neighbours), _nearest(other, neighbours), strict=True
    ):
        shared += int((mine[:, :, None] == theirs[:, None, :]).sum())
    return shared / (count * neighbours)


def _nearest(features_ND: Tensor, neighbours: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of images, and the cosines and numbers of their nearest others, nearest first; chunk by chunk."""
    unit_ND = F.normalize(features_ND.float().cpu(), dim=1)
    for start in range(0, len(unit_ND), _ROWS):
        cosines_RN = unit_ND[start : start + _ROWS] @ unit_ND.T
        rows = torch.arange(start, start + len(cosines_RN))
        cosines_RN[torch.arange(len(rows)), rows] = -torch.inf
        cosines, numbers = cosines_RN.topk(neighbours, dim=1)
        yield rows, cosines, numbers


def _sample(rows: Tensor, most: int) -> Tensor:
    # At even distances: a split may be sorted by class.
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long().to(rows.device)]
