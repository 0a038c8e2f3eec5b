"""Crops and mirror images of training images; every choice is a draw of (seed, view, index)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.data.prefetch import moved
from kdcompress.data.random_bits import integers, uniform, uniform_of_one

SCALE = (0.08, 1.0)
"""Share of the image's area that a random resized crop keeps."""
RATIO = (3 / 4, 4 / 3)
"""Width to height of a random resized crop, uniform in its logarithm."""

# Numbers of the draws within one view of one sample; those of colours begin at 64. A random resized crop
# takes four per attempt from _BOX on.
_TOP, _LEFT, _FLIP, _BOX = 0, 1, 2, 8
_ATTEMPTS = 10

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Computes the size of a picture whose longer side is made to fit, in whole numbers.

    Args:
        size: (width, height) in pixels of the picture.
        side: Pixels of the longer side afterwards.

    Returns:
        (width, height), each at least 1.
    """
    longer = max(size)
    return max(1, side * size[0] // longer), max(1, side * size[1] // longer)


def usual_pad(side: int) -> int:
    """Gives the pixels of padding for the random crop: an eighth of the side (4 of 32), at least 1."""
    return max(1, round(side / 8))


def crop_box(
    seed: int, view: int, index: int, width: int, height: int, scale: tuple[float, float] = SCALE
) -> tuple[Box, bool]:
    """Draws the part of an image that a random resized crop keeps, and whether it is mirrored.

    The law is that of Szegedy et al., "Going deeper with convolutions" (2015), as torchvision's
    RandomResizedCrop has it: area and ratio are drawn up to ten times until the box fits; then the largest
    central box of an allowed ratio is taken.

    Args:
        seed: The run's seed.
        view: Number of the replayable view.
        index: Position in the training set.
        width: Pixels of the upright image.
        height: Pixels of the upright image.
        scale: Least and largest share of the area.
    """
    flip = uniform_of_one(seed, view, index, _FLIP) < 0.5
    log_ratio = (math.log(RATIO[0]), math.log(RATIO[1]))
    for attempt in range(_ATTEMPTS):
        draws = [uniform_of_one(seed, view, index, _BOX + 4 * attempt + k) for k in range(4)]
        area = width * height * (scale[0] + draws[0] * (scale[1] - scale[0]))
        ratio = math.exp(log_ratio[0] + draws[1] * (log_ratio[1] - log_ratio[0]))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[2] * (width - w + 1)), int(draws[3] * (height - h + 1))
            return (left, top, left + w, top + h), flip
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h), flip


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes images, antialiased bilinear.

    Args:
        images: `[B, C, H, W]` uint8.
        size: (H, W).

    Returns:
        `[B, C, *size]` uint8; the images themselves if they have that size.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    smooth = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return smooth.round_().clamp_(0, 255).to(torch.uint8)


def crop_draws(ids: Tensor, *, seed: int, view: int, pad: int) -> Tensor:
    """Draws the windows of padded crops.

    Args:
        ids: `[B]` int64, which key the draws.
        seed: The run's seed.
        view: Number of the replayable view.
        pad: Pixels added to each side.

    Returns:
        `[B, 3]` int64 on the same device: top and left in the padded image, and 1 for a mirror image, else 0.
    """
    top = integers(seed, view, ids, _TOP, 2 * pad + 1)
    left = integers(seed, view, ids, _LEFT, 2 * pad + 1)
    return torch.stack([top, left, uniform(seed, view, ids, _FLIP) < 0.5], dim=1)


class CropTable:
    """Keeps `crop_draws` of a whole set for one view: a batch then takes its rows in a single operation."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._rows = torch.empty(0)

    def rows(self, ids: Tensor, device: torch.device, *, seed: int, view: int, pad: int) -> Tensor:
        """Returns `crop_draws` of all images, `[N, 3]` int64 on the device.

        Args:
            ids: `[N]` int64, always the same ones.
            device: Where the images are.
            seed: The run's seed.
            view: Number of the replayable view.
            pad: Pixels added to each side.
        """
        key = (device, seed, view, pad)
        if key != self._key:
            self._rows = crop_draws(moved(ids, device), seed=seed, view=view, pad=pad)
            self._key = key
        return self._rows


def padded_crop(images: Tensor, draws: Tensor, *, pad: int, mirror: bool) -> Tensor:
    """Cuts a random window of the old size out of each zero-padded image.

    Args:
        images: `[B, C, H, W]` uint8.
        draws: `[B, 3]` int64 on the same device (`crop_draws`).
        pad: Pixels added to each side before.
        mirror: Also mirror the images that were drawn for it: half of them.

    Returns:
        `[B, C, H, W]` uint8.
    """
    top, left, flip = draws.unbind(1)
    b, c, h, w = images.shape
    # Pixels as rows of one table, so that crop and mirror are a single gather (twice as fast as unfolding).
    table = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1).reshape(-1, c)
    sample = torch.arange(b, device=images.device)[:, None]
    rows = sample * (h + 2 * pad) + top[:, None] + torch.arange(h, device=images.device)
    columns = left[:, None] + torch.arange(w, device=images.device)
    if mirror:
        columns = torch.where(flip[:, None] > 0, columns.flip(1), columns)
    places = rows[:, :, None] * (w + 2 * pad) + columns[:, None, :]
    return table.index_select(0, places.reshape(-1)).view(b, h, w, c).permute(0, 3, 1, 2)


def resized_crop(
    images: Tensor, indices: Tensor, *, seed: int, view: int, scale: tuple[float, float]
) -> Tensor:
    """Resizes a random part of each image (`crop_box`) to the old size, half of them mirrored.

    Args:
        images: `[B, C, H, W]` uint8.
        indices: `[B]` int64, positions in the training set.
        seed: The run's seed.
        view: Number of the replayable view.
        scale: Least and largest share of the area.

    Returns:
        `[B, C, H, W]` uint8.
    """
    h, w = images.shape[-2:]
    parts = []
    for image, index in zip(images, indices.tolist(), strict=True):
        (left, top, right, bottom), flip = crop_box(seed, view, index, w, h, scale)
        part = resize_images(image[None, :, top:bottom, left:right], (h, w))
        parts.append(part.flip(3) if flip else part)
    return torch.cat(parts)
