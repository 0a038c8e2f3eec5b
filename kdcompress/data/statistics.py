"""Mean and standard deviation of the pixels, by which networks normalise their input."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.data.source import FolderSource, MemorySource

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Taken for image folders, whose networks mostly start from weights trained with them."""
_CHUNK = 4096  # images whose pixels are added up at once


def normalisation(
    source: MemorySource | FolderSource, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gives the mean and standard deviation per channel of the images in [0, 1].

    Args:
        source: The training images as they come. Pixels in memory are measured; files take the figures of
            ImageNet.
        channels: Channels that the networks see, 1 or 3.

    Returns:
        (mean, std).
    """
    if isinstance(source, MemorySource):
        mean, std = channel_statistics(source.images)
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return _of_channels(mean, channels), _of_channels(std, channels)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measures mean and standard deviation per channel of images in [0, 1], rounded to six decimals.

    Args:
        images: `[N, C, H, W]` uint8.

    Returns:
        (mean, std); the std of a channel that is the same everywhere is 1, so that it can be divided by.
    """
    channels = images.shape[1]
    total, squares = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    for part in torch.split(images, _CHUNK):  # whole numbers: the sums are exact, in whatever order
        # Through a histogram: 256 products instead of one per pixel.
        for channel in range(channels):
            counts = torch.bincount(part[:, channel].reshape(-1), minlength=256)
            values = torch.arange(256)
            total[channel] += (counts * values).sum()
            squares[channel] += (counts * values * values).sum()
    pixels = images.numel() // channels
    mean = total.double() / pixels / 255
    std = (squares.double() / pixels / 255**2 - mean**2).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())


def _of_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    # Grey repeated on three channels, or colour files decoded to grey.
    return values * channels if len(values) == 1 else (round(sum(values) / len(values), 3),)
