"""Changes of the pixel values of training images: colour jitter, grey, blur and cut-out squares.

The sums are made element by element in a fixed order, so that an image's result does not depend on the batch
or the device it is computed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.data.prefetch import moved
from kdcompress.data.random_bits import integers, uniform

SIGMA = (0.1, 2.0)
"""Least and largest standard deviation of the blur in pixels."""
BLUR_SIDE = 64
"""Smaller images are not blurred: the blur is meant for photographs of 224 pixels, and the authors' recipes
for CIFAR-10 (32 pixels) leave it out."""
_SIGMAS = 1024  # equally spaced values that are drawn from: their kernels are a table
_RADIUS = 6  # three standard deviations
_RGB_TO_GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601

# Numbers of the draws within one view of one sample, beyond those of crops.
_JITTER, _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 64, 65, 66, 67, 68, 69
_GREY, _BLUR, _SIGMA, _CUT_Y, _CUT_X = 70, 71, 72, 73, 74
_ORDERS = (
    (0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 3, 2, 1),
    (1, 0, 2, 3), (1, 0, 3, 2), (1, 2, 0, 3), (1, 2, 3, 0), (1, 3, 0, 2), (1, 3, 2, 0),
    (2, 0, 1, 3), (2, 0, 3, 1), (2, 1, 0, 3), (2, 1, 3, 0), (2, 3, 0, 1), (2, 3, 1, 0),
    (3, 0, 1, 2), (3, 0, 2, 1), (3, 1, 0, 2), (3, 1, 2, 0), (3, 2, 0, 1), (3, 2, 1, 0),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Colours:
    """Strengths of the changes and shares of the images that they are made to.

    Args:
        brightness: b; the factor is uniform in [1 - b, 1 + b].
        contrast: Likewise.
        saturation: Likewise.
        hue: h; the hue is turned by a part of the circle that is uniform in [-h, h].
        jitter_share: Share of the images whose brightness, contrast, saturation and hue change, in an order
            of their own.
        grey_share: Share of the images that become grey.
        blur_share: Share of the images that are blurred, `SIGMA`.
        cutout: A square of half the side, its centre anywhere in the image, takes the image's mean colour.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_share: float
    grey_share: float = 0.0
    blur_share: float = 0.0
    cutout: bool = False


def adjust_colours(images: Tensor, indices: Tensor, colours: Colours, *, seed: int, view: int) -> Tensor:
    """Changes the pixel values of a batch.

    Args:
        images: `[B, C, H, W]` uint8. With one channel, saturation, hue and grey are left out.
        indices: `[B]` int64 on the CPU, positions in the training set. Which images change is drawn there, so
            that no step waits for the device to say it.
        colours: Strengths and shares of the changes.
        seed: The run's seed.
        view: Number of the replayable view.

    Returns:
        `[B, C, H, W]` uint8.
    """

    def draw(number: int) -> Tensor:
        return uniform(seed, view, indices, number)

    def to_device(tensor: Tensor) -> Tensor:
        return moved(tensor, images.device)

    changed = images.float().contiguous(memory_format=torch.channels_last)
    rows = (draw(_JITTER) < colours.jitter_share).nonzero().flatten()
    if len(rows):
        strengths = (colours.brightness, colours.contrast, colours.saturation)
        factors = [
            1 + strength * (2 * draw(number)[rows] - 1)
            for strength, number in zip(strengths, (_BRIGHTNESS, _CONTRAST, _SATURATION), strict=True)
        ]
        factors.append(colours.hue * (2 * draw(_HUE)[rows] - 1))
        order = torch.tensor(_ORDERS)[integers(seed, view, indices[rows], _ORDER, len(_ORDERS))]
        places = to_device(rows)
        changed[places] = _jitter(changed[places], order, factors)
    if images.shape[1] == 3 and colours.grey_share:
        places = to_device((draw(_GREY) < colours.grey_share).nonzero().flatten())
        changed[places] = grey(changed[places]).expand(-1, 3, -1, -1)
    if min(images.shape[2:]) >= BLUR_SIDE and colours.blur_share:
        rows = (draw(_BLUR) < colours.blur_share).nonzero().flatten()
        if len(rows):
            levels, places = to_device(integers(seed, view, indices[rows], _SIGMA, _SIGMAS)), to_device(rows)
            changed[places] = blur(changed[places], levels)
    if colours.cutout:
        changed = cut_out(changed, to_device(draw(_CUT_Y)), to_device(draw(_CUT_X)))
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def _jitter(images: Tensor, order: Tensor, factors: list[Tensor]) -> Tensor:
    """Applies the four changes by their factors, in the order `[B, 4]` of each image, both on the CPU."""
    changes = (brightness, contrast, saturation, hue) if images.shape[1] == 3 else (brightness, contrast)
    for turn in range(4):
        for number, change in enumerate(changes):
            rows = (order[:, turn] == number).nonzero().flatten()
            if len(rows):
                places = moved(rows, images.device)
                images[places] = change(images[places], moved(factors[number][rows], images.device))
    return images


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiplies the pixels by a factor.

    Args:
        images: `[B, C, H, W]` float32 in [0, 255].
        factors: `[B]`; 1 leaves an image as it is.

    Returns:
        `[B, C, H, W]` float32 in [0, 255].
    """
    return (images * factors[:, None, None, None]).clamp_(0, 255)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blends images with their mean grey; arguments as of `brightness`."""
    levels = grey(images).floor_() if images.shape[1] == 3 else images.floor()
    # A sum of whole numbers is the same in any order.
    mean = levels.to(torch.int64).sum((1, 2, 3), keepdim=True).float() / levels[0].numel()
    return _blend(images, mean, factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blends images with their grey version; arguments as of `brightness`, three channels."""
    return _blend(images, grey(images), factors)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue (HSV) of the pixels.

    Args:
        images: `[B, 3, H, W]` float32 in [0, 255].
        turns: `[B]` parts of the colour circle; 0 leaves an image as it is.

    Returns:
        `[B, 3, H, W]` float32 in [0, 255].
    """
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    divisor = torch.where(chroma == 0, 1, chroma)
    # Sixths of the circle, by which of the three is the largest.
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixths = sixths + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = torch.remainder(sixths + offset, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1).clamp_(0, 255)


def grey(images: Tensor) -> Tensor:
    """Gives the luma of colour images: `[B, 3, H, W]` float32 to `[B, 1, H, W]`."""
    red, green, blue = images.unbind(1)
    luma = red * _RGB_TO_GREY[0] + green * _RGB_TO_GREY[1] + blue * _RGB_TO_GREY[2]
    return luma[:, None]


def blur(images: Tensor, levels: Tensor) -> Tensor:
    """Blurs images with a Gaussian kernel of 13 × 13 pixels, mirrored at the borders.

    Args:
        images: `[B, C, H, W]` float32, H and W above 6.
        levels: `[B]` int64 in 0 … 1023, the rows of `blur_kernels`.

    Returns:
        `[B, C, H, W]` float32.
    """
    kernels = blur_kernels().to(images.device)[levels][:, :, None, None, None]
    height, width = images.shape[2:]
    # Slice by slice: a convolution's order of sums differs between devices and batch sizes.
    wide = F.pad(images, (0, 0, _RADIUS, _RADIUS), mode="reflect")
    images = _added([wide[:, :, i : i + height] * kernels[:, i] for i in range(2 * _RADIUS + 1)])
    wide = F.pad(images, (_RADIUS, _RADIUS, 0, 0), mode="reflect")
    return _added([wide[..., i : i + width] * kernels[:, i] for i in range(2 * _RADIUS + 1)])


@cache
def blur_kernels() -> Tensor:
    """Returns `[1024, 13]` float32: Gaussian kernels with standard deviations equally spaced over `SIGMA`."""
    sigmas = torch.linspace(*SIGMA, _SIGMAS, dtype=torch.float64)[:, None]
    kernels = torch.exp(-0.5 * (torch.arange(-_RADIUS, _RADIUS + 1) / sigmas) ** 2)
    return (kernels / kernels.sum(1, keepdim=True)).float()


def cut_out(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Gives a square of half the shorter side the image's mean colour.

    Args:
        images: `[B, C, H, W]` float32.
        y: `[B]` in [0, 1): height of the square's centre; the square is cut off at the image's border.
        x: `[B]` in [0, 1): its place across.

    Returns:
        `[B, C, H, W]` float32.
    """
    height, width = images.shape[2:]
    half = min(height, width) // 4
    mean = images.round().to(torch.int64).sum((2, 3), keepdim=True).float() / (height * width)

    def inside(centre: Tensor, length: int) -> Tensor:
        first = (centre * length).to(torch.int64)[:, None] - half
        position = torch.arange(length, device=images.device)
        return (position >= first) & (position < first + 2 * half)

    square = inside(y, height)[:, None, :, None] & inside(x, width)[:, None, None, :]
    return torch.where(square, mean, images)


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    factors = factors[:, None, None, None]
    return (images * factors + other * (1 - factors)).clamp_(0, 255)


def _added(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
