"""Visual concepts: where a network keeps clearly more of an image than elsewhere, and whether it stays there.

Source: X. Cheng, Z. Rao, Y. Chen, Q. Zhang, CVPR 2020 (arXiv 2003.03622), and its authors' program: a pixel
belongs to a visual concept where its entropy lies below the mean entropy of the background by more than
b = 0.2 nats. Reconstruction: their background is what lies outside of a segmentation mask, averaged over all
images of the network; without masks it is here the whole of the image itself. The overlap of the concepts of
two views (Ding et al., arXiv 2012.00573, section 4) is taken as intersection over union; its views are
rotations by right angles, here it is a view that the training might have shown (`second_view`).
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 0.2
"""b, in nats."""


def concepts(entropy_NHW: Tensor, seen_HW: Tensor, margin: float = MARGIN) -> Tensor:
    """Returns `[N, H, W]` bool: the pixels of the images' visual concepts.

    Args:
        entropy_NHW: In nats.
        seen_HW: Bool; the pixels that count, at least one.
        margin: Below the mean over those pixels.
    """
    background_N = entropy_NHW[:, seen_HW].mean(1)
    return (entropy_NHW < background_N[:, None, None] - margin) & seen_HW


def overlap(first_NHW: Tensor, second_NHW: Tensor) -> Tensor:
    """Computes the intersection over union of two views' concepts, for each image.

    Args:
        first_NHW: Bool.
        second_NHW: Bool, in the same coordinates.

    Returns:
        `[N]` float32 in [0, 1]; NaN where neither view has a concept.
    """
    both = (first_NHW & second_NHW).sum((1, 2))
    either = (first_NHW | second_NHW).sum((1, 2))
    return torch.where(either > 0, both / either.clamp(min=1), torch.nan)
