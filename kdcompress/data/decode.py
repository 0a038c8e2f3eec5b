"""Decodes image files to upright 8-bit pixels, whatever camera, scanner or drawing program wrote them."""

from __future__ import annotations

import errno
import importlib.util
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kdcompress.data.shard_member import ShardMember
from kdcompress.errors import UnreadableImage

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".dib",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".tga",
    ]
)
"""File names that are taken for images, in lower case; other files are passed over."""
_AVIF = () if importlib.util.find_spec("PIL.AvifImagePlugin") is None else ("AVIF",)  # from Pillow 11.3 on
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", *_AVIF, "TGA")
"""Formats of these files, and AVIF, which many a .jpg of the web holds. Pillow would try all that it knows,
and starts Ghostscript for EPS. TGA has no mark at its start, so it is tried last."""

# What Pillow's readers raise on damaged files; they have no common base.
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError,
    OverflowError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

# EXIF orientation -> what sets the image upright (1 is upright already).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ORIENTATION_TAG = 0x0112
_TILE = 1024
"""Height and width in pixels of the part that is converted at once: whole scans would take gigabytes."""


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keeps Pillow's remarks on odd but readable files off the terminal; for the main thread of a process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def open_regular(path: Path | ShardMember) -> BufferedReader:
    """Opens a file or a member of a shard for reading, without waiting for a pipe or a device.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    if isinstance(path, ShardMember):
        return path.open()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


@contextmanager
def open_image(path: Path | ShardMember) -> Iterator[Image.Image]:
    """Opens an image file: its header is read, its pixels are not yet.

    Args:
        path: Image file, or one in a shard.

    Raises:
        UnreadableImage: The file cannot be read, here or within the block; the message is `path: why`.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except _UNREADABLE as error:
        raise UnreadableImage(f"{path}: {why_unreadable(error)}") from None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (width, height) in pixels of the upright image."""
    return (image.height, image.width) if orientation(image) >= 5 else image.size


def decode_image(image: Image.Image, channels: int) -> Image.Image:
    """Decodes an image to upright pixels with 8 bits per channel.

    EXIF orientation is applied; 16-bit greys are scaled (not clipped); transparency is laid on white;
    palettes, CMYK and other colour spaces become RGB; of an animation the first frame is taken.

    Args:
        image: Image of `open_image`; after its `draft`, a JPEG is decoded at a half, a quarter or an eighth.
        channels: 3 gives mode RGB, 1 gives mode L.

    Returns:
        An image of that mode, which stays readable when the file is closed: perhaps `image` itself.
    """
    image.load()
    turn = _TURNS.get(orientation(image))
    flat = _flattened(image, "RGB" if channels == 3 else "L")
    return flat if turn is None else flat.transpose(turn)


def problem_of(path: Path | ShardMember) -> str | None:
    """Gives the reason why the file cannot be decoded to its end, or None if it can."""
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            image.draft(None, (1, 1))  # a JPEG's whole stream is still read, at an eighth of the size
            image.load()
            _flattened(image, "RGB")
    except _UNREADABLE as error:
        return why_unreadable(error)
    return None


def why_unreadable(error: Exception) -> str:
    """Shortens an error to a reason without the path, which the caller names."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged at its start"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split("\n", 1)[0]
    return text or type(error).__name__


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Returns `[C, H, W]` uint8 of an image of mode L or RGB, as a view of its rows of whole pixels."""
    array = np.array(image)  # a copy: PIL's buffer is read-only
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def pixels_upright(pixels_HWC: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Sets stored pixels upright.

    Args:
        pixels_HWC: As they are stored.
        turn: EXIF orientation.

    Returns:
        A view of them.
    """
    if turn >= 5:  # stored by columns
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if turn in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright as it is stored) to 8."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _UNREADABLE:
        return 1  # a damaged EXIF block beside sound pixels: viewers show the image as it is stored
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "RGBa", "La"}:
        return _on_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    flat = Image.new(mode, image.size)
    for box in _tiles(image.size):
        clear = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        white.alpha_composite(clear)
        opaque = white.convert("RGB")
        flat.paste(opaque if mode == "RGB" else opaque.convert(mode), box)
    return flat


def _tiles(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields boxes (left, top, right, bottom) that cover an image of (width, height) pixels."""
    width, height = size
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield left, top, min(left + _TILE, width), min(top + _TILE, height)


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow's own convert("L") clips 16-bit greys at 255, which turns nearly every pixel white. 65535 = 255 ·
    # 257.
    grey = np.empty((image.height, image.width), np.uint8)
    for left, top, right, bottom in _tiles(image.size):
        values = np.asarray(image.crop((left, top, right, bottom)))
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("32-bit pixels have no known range; save the image with 8 or 16 bits")
        grey[top:bottom, left:right] = (values.astype(np.int64) + 128) // 257
    return Image.fromarray(grey)
