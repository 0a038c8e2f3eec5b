"""A second view of an image whose pixels are known to be which of the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.data.augment import pipeline_of
from kdcompress.data.crop import usual_pad


@dataclass(frozen=True, slots=True)
class View:
    """An augmentation that moves pixels and changes none.

    Noise on the original's pixels moves with them, so what is measured on this view lies in the original's
    coordinates by construction: nothing has to be mapped back, and both views are measured with equal noise.

    Args:
        name: For the record.
        of: Images `[B, C, H, W]` to the same images in this view.
        seen: (H, W) to `[H, W]` bool: the original's pixels that this view shows.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    seen: Callable[[int, int], Tensor]


def _all(height: int, width: int) -> Tensor:
    return torch.ones(height, width, dtype=torch.bool)


ORIGINAL = View("original", lambda images: images, _all)
FLIPPED = View("flipped", lambda images: images.flip(-1), _all)


def shifted(pixels: int) -> View:
    """Moves the image down and to the right and fills with zeros.

    Args:
        pixels: 1 or more.
    """

    def moved(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return F.pad(images, (pixels, 0, pixels, 0))[:, :, :height, :width]

    def seen(height: int, width: int) -> Tensor:
        kept = torch.zeros(height, width, dtype=torch.bool)
        kept[: height - pixels, : width - pixels] = True
        return kept

    return View(f"shifted by {pixels}", moved, seen)


def second_view(preset: str, side: int) -> View:
    """Makes a second view of an image that training might have shown: mirrored, else the farthest crop.

    Args:
        preset: The training images' augmentation. Without a flip in it mirror images may mean something
            else.
        side: Shorter side of the images in pixels.
    """
    return FLIPPED if pipeline_of(preset).mirror else shifted(usual_pad(side))
