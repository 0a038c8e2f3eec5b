"""Quarter turns of a batch, for the methods that learn from rotated images."""

from __future__ import annotations

import torch
from torch import Tensor


def four_rotations(images_BCHW: Tensor) -> Tensor:
    """Rotates each image by 0, 90, 180 and 270 degrees.

    Args:
        images_BCHW: Square images, H = W.

    Returns:
        `[4·B, C, H, W]`, image by image: row 4·i + k is image i turned k times counter-clockwise.
    """
    turned = [torch.rot90(images_BCHW, k, dims=(2, 3)) for k in range(4)]
    return torch.stack(turned, dim=1).flatten(0, 1)
