"""The entropy maps as one picture: a row for each image, a column for each network, one colour scale."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ROWS = 16
"""Images shown, at most."""
_CELL, _GAP, _MARGIN = 112, 10, 24
_TITLE, _HEAD, _LEGEND = 64, 46, 84
_INK, _PALE, _PAPER = (20, 24, 28), (96, 102, 110), (255, 255, 255)
_BAR = 16

_COLOURS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
    ],
    dtype=np.float64,
)  # fmt: skip
"""Equally spaced colours of viridis, whose lightness grows evenly, to the colour-blind too."""


@dataclass(frozen=True, slots=True)
class Column:
    """The maps of one network.

    Args:
        name: Its part in the run.
        caption: A second line, such as its mean.
        entropy: `[N, H, W]`, in nats.
    """

    name: str
    caption: str
    entropy: Tensor


def picture(images_NCHW: Tensor, columns: Sequence[Column], title: str, subtitle: str) -> bytes:
    """Draws a PNG.

    Args:
        images_NCHW: In [0, 1]; one or three channels. The first `ROWS` are shown.
        columns: At least one, of as many images.
        title: Title of the drawing. As in `caption`, Latin letters only.
        subtitle: Description of the measurement.
    """
    shown = min(len(images_NCHW), ROWS)
    low, high = scale([column.entropy[:shown] for column in columns])
    width = 2 * _MARGIN + (len(columns) + 1) * (_CELL + _GAP) - _GAP
    width = max(width, *(2 * _MARGIN + _width(text, size) for text, size in ((title, 18), (subtitle, 13))))
    height = _MARGIN + _TITLE + _HEAD + shown * (_CELL + _GAP) + _LEGEND
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), title, _INK, _font(18))
    draw.text((_MARGIN, _MARGIN + 28), subtitle, _PALE, _font(13))
    top = _MARGIN + _TITLE
    heads = [("input", ""), *((column.name, column.caption) for column in columns)]
    for number, (name, caption) in enumerate(heads):
        left = _MARGIN + number * (_CELL + _GAP)
        draw.text((left, top), name, _INK, _font(15))
        draw.text((left, top + 20), caption, _PALE, _font(13))
    for row in range(shown):
        at = top + _HEAD + row * (_CELL + _GAP)
        cells = [_pixels(images_NCHW[row])]
        cells += [coloured(column.entropy[row], low, high) for column in columns]
        for number, cell in enumerate(cells):
            page.paste(_enlarged(cell), (_MARGIN + number * (_CELL + _GAP), at))
    _draw_legend(draw, page, low, high, top + _HEAD + shown * (_CELL + _GAP) + 8)
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def scale(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Returns (low, high) in nats for all maps: multiples of 0.5 around the 1st to 99th percentile."""
    values = torch.cat([entropy.flatten() for entropy in maps]).double().numpy()
    low, high = np.quantile(values, [0.01, 0.99])
    ends = float(np.floor(2 * low) / 2), float(np.ceil(2 * high) / 2)
    return ends if ends[1] > ends[0] else (ends[0], ends[0] + 0.5)


def coloured(entropy_HW: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """Returns `[H, W, 3]`: dark at `low` and below, light at `high` and above."""
    place = (entropy_HW.double().numpy() - low) / (high - low)
    place = np.clip(place, 0, 1) * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = (place - below)[..., None]
    mixed = _COLOURS[below] * (1 - share) + _COLOURS[below + 1] * share
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def _draw_legend(draw: ImageDraw.ImageDraw, page: Image.Image, low: float, high: float, top: int) -> None:
    width = page.width - 2 * _MARGIN
    ramp = torch.linspace(low, high, width)[None].expand(_BAR, -1)
    page.paste(Image.fromarray(coloured(ramp, low, high)), (_MARGIN, top))
    halves = round(2 * (high - low))
    every = max(1, -(-halves // 8))  # eight labels at most
    for number in range(0, halves + 1, every):
        x = _MARGIN + round(width * number / halves)
        draw.line((x, top + _BAR, x, top + _BAR + 4), _INK)
        draw.text((x, top + _BAR + 6), f"{low + number / 2:.1f}", _INK, _font(13), anchor="ma")
    draw.text((_MARGIN, top + _BAR + 26), "information kept", _PALE, _font(13))
    end = (page.width - _MARGIN, top + _BAR + 26)
    draw.text(end, "discarded", _PALE, _font(13), anchor="ra")


def _pixels(image_CHW: Tensor) -> NDArray[np.uint8]:
    scaled = image_CHW.clamp(0, 1).permute(1, 2, 0).numpy() * 255
    pixels: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _enlarged(cell: NDArray[np.uint8]) -> Image.Image:
    # Small images keep their pixels visible; photographs are made smaller without jags.
    way = Image.Resampling.NEAREST if max(cell.shape[:2]) <= _CELL else Image.Resampling.BOX
    return Image.fromarray(cell).resize((_CELL, _CELL), way)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own, which every machine has; it has neither Greek letters nor a minus sign.
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    return int(_font(size).getlength(text)) + 1
