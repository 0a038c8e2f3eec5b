"""Cosines between rotated and upright images, and the pretext task of finding a rotated image's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


def turned_views(views_BCHW: Sequence[Tensor]) -> Tensor:
    """Rotates view k of each image by k quarter turns, for four views.

    Args:
        views_BCHW: Four views of square images, H = W.

    Returns:
        `[4·B, C, H, W]`, image by image: row 4·i + k is view k of image i, turned k times counter-clockwise.
    """
    turned = [torch.rot90(view, k, dims=(2, 3)) for k, view in enumerate(views_BCHW)]
    assert len(turned) == 4, len(turned)
    return torch.stack(turned, dim=1).flatten(0, 1)


def rotation_rows(rows_RD: Tensor) -> Tensor:
    """Selects the `[3·B, D]` rows of rotated images from the `[4·B, D]` rows of `turned_views`."""
    return rows_RD.reshape(-1, 4, rows_RD.shape[1])[:, 1:].flatten(0, 1)


@full_precision
def turned_cosines(rows_RD: Tensor) -> Tensor:
    """Computes the cosine between each turned image and each upright one.

    Args:
        rows_RD: `[4·B, D]`, of what `turned_views` gives.

    Returns:
        `[3·B, B]` cosines; the rows of `rotation_rows`, the images as columns.
    """
    return F.normalize(rotation_rows(rows_RD), dim=1) @ F.normalize(rows_RD[0::4], dim=1).T


def own_images(cosines_AB: Tensor) -> Tensor:
    """Returns the column of each row's own image in `turned_cosines`: `[3·B]` int64."""
    return torch.arange(cosines_AB.shape[1], device=cosines_AB.device).repeat_interleave(3)


@full_precision
def own_image_cross_entropy(rows_RD: Tensor) -> Tensor:
    """Computes the cross-entropy of finding a rotated image's upright version among those of the batch.

    Args:
        rows_RD: `[4·B, D]`, of what `turned_views` gives.

    Returns:
        Scalar, mean over the 3·B turned rows of the softmax over cosines, which no temperature divides;
        log B when all cosines are equal.

    Source:
        Xu et al., Knowledge Distillation Meets Self-Supervision, ECCV 2020; the authors' code.
    """
    cosines_AB = turned_cosines(rows_RD)
    return F.cross_entropy(cosines_AB, own_images(cosines_AB))
