"""Training views by simplejpeg and torch instead of Pillow.

JPEG files are decoded by simplejpeg, which stands on libjpeg-turbo like Pillow and gives the same pixels;
they then stay arrays, and the part is resized by torch. Its pixels differ from Pillow's by rounding, and at
the edges of the part, beyond which Pillow reads on and torch does not. Other files, and JPEG files that
simplejpeg finds anything wrong with (Pillow reads some of these, and says what is wrong with the others), are
decoded by Pillow.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import Tensor

from kdcompress.data.border import FloatBox, part_on_border
from kdcompress.data.decode import decode_image, orientation, pixels_upright, upright_size
from kdcompress.data.input_spec import BORDER

PACKAGE = "simplejpeg"
LEAST_VERSION = (1, 7)
EXTRA = "kdcompress[fast]"
_SCALES = (8, 4, 2, 1)
"""What Pillow's draft divides a JPEG's sides by. simplejpeg takes more, and gets these."""

Pixels = NDArray[np.uint8]
"""`[H, W, C]`, upright."""


class Picture(Protocol):
    """A picture whose size is known and whose pixels are not decoded yet."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""

    def pixels(self, least: int) -> Pixels:
        """Decodes it, perhaps smaller, with both sides of at least so many pixels if it has them."""


def version() -> str | None:
    """Returns the version of simplejpeg; None: it is not installed, or too old."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    found = importlib.metadata.version(PACKAGE)
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    return found if numbers >= LEAST_VERSION else None


@dataclass(frozen=True, slots=True)
class OpenPicture:
    """A picture of an open file.

    Args:
        image: From `decode.open_image`.
        channels: 1 or 3.
    """

    image: Image.Image
    channels: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        return upright_size(self.image)

    def pixels(self, least: int) -> Pixels:
        """Decodes it, perhaps smaller.

        Raises:
            UnreadableImage: See `decode.open_image`, within whose block this runs.
        """
        image = self.image
        image.draft(None, (least, least))
        file = image.fp if isinstance(image, ImageFile) and image.format == "JPEG" else None
        if file is not None and image.mode == ("RGB" if self.channels == 3 else "L"):
            file.seek(0)
            decoded = decoded_jpeg(file.read(), image.size, self.channels)
            if decoded is not None:
                return pixels_upright(decoded, orientation(image))
            file.seek(0)
        array = np.asarray(decode_image(image, self.channels))
        return array.reshape(*array.shape[:2], self.channels)


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture of the pixel cache, in memory.

    Args:
        content: Raw pixels `[H, W, C]`, or a JPEG file.
        size: (width, height) in pixels.
        channels: 1 or 3.
        raw: True for raw pixels.
    """

    content: bytes
    size: tuple[int, int]
    channels: int
    raw: bool

    def pixels(self, least: int) -> Pixels:
        """Decodes it, perhaps smaller."""
        width, height = self.size
        if self.raw:
            return np.frombuffer(self.content, np.uint8).reshape(height, width, self.channels)
        scale = next(scale for scale in _SCALES if scale <= max(1, min(width // least, height // least)))
        small = (-(-width // scale), -(-height // scale))
        decoded = decoded_jpeg(self.content, small, self.channels)
        if decoded is not None:
            return decoded
        with Image.open(io.BytesIO(self.content), formats=("JPEG",)) as image:
            return OpenPicture(image, self.channels).pixels(least)


def decoded_jpeg(content: bytes, size: tuple[int, int], channels: int) -> Pixels | None:
    """Decodes a JPEG file as it is stored.

    Args:
        content: The file.
        size: (width, height): the whole size, or a half, a quarter or an eighth, rounded up.
        channels: 3 for a colour file, 1 for a grey one.

    Returns:
        Its pixels; None: something is wrong with it.
    """
    import simplejpeg

    try:
        decoded: Pixels = simplejpeg.decode_jpeg(
            content, "RGB" if channels == 3 else "GRAY", min_width=size[0], min_height=size[1], strict=True
        )
    except ValueError:
        return None
    return decoded if decoded.shape == (size[1], size[0], channels) else None


def part(picture: Pixels, size: tuple[int, int], box: FloatBox, side: int) -> Pixels:
    """Cuts a part out of a picture and resizes it to a square.

    Args:
        picture: Perhaps decoded smaller than it is.
        size: (width, height) of the picture as it is.
        box: The part, in pixels of the picture as it is.
        side: Pixels of the square.
    """
    x, y = picture.shape[1] / size[0], picture.shape[0] / size[1]
    return _resized(picture, (box[0] * x, box[1] * y, box[2] * x, box[3] * y), (side, side))


def part_with_border(picture: Pixels, size: tuple[int, int], box: FloatBox, side: int) -> Pixels:
    """Does the same with a picture amid a grey border: the part is one of the padded square."""
    place = part_on_border((picture.shape[1], picture.shape[0]), box, max(size), side)
    square = np.full((side, side, picture.shape[2]), BORDER, np.uint8)
    (width, height), row, column = place.size, place.row, place.column
    square[row : row + height, column : column + width] = _resized(picture, place.box, place.size)
    return square


def _resized(picture: Pixels, box: FloatBox, size: tuple[int, int]) -> Pixels:
    """Cuts a part out and resizes it: bilinear, antialiased.

    Args:
        picture: The picture.
        box: (left, top, right, bottom) in its pixels; rounded to whole ones, at least one.
        size: (width, height) of the result.
    """
    height, width, _ = picture.shape
    left, right = _whole(box[0], box[2], width)
    top, bottom = _whole(box[1], box[3], height)
    part = np.ascontiguousarray(picture[top:bottom, left:right])
    if (right - left, bottom - top) == size:
        return part
    images: Tensor = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
    images = F.interpolate(images, size=(size[1], size[0]), mode="bilinear", antialias=True)
    return images[0].permute(1, 2, 0).numpy()


def _whole(first: float, last: float, length: int) -> tuple[int, int]:
    """Rounds the ends of a span to whole pixels within a length; it keeps at least one."""
    start = min(max(round(first), 0), length - 1)
    return start, min(max(round(last), start + 1), length)
