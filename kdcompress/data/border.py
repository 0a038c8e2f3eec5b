"""Pictures amid a grey border: whole ones, and random parts of them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from kdcompress.data.input_spec import BORDER

FloatBox = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of a picture that may be scaled, so not always whole."""


@dataclass(frozen=True, slots=True)
class PlaceOnBorder:
    """A part of a picture and its place in a square with a border.

    Args:
        box: The part, in pixels of the picture.
        size: (width, height) in pixels that it is resized to.
        column: First column of the square that it covers.
        row: First row.
    """

    box: FloatBox
    size: tuple[int, int]
    column: int
    row: int


def part_on_border(size: tuple[int, int], box: FloatBox, longer: int, side: int) -> PlaceOnBorder:
    """Places a part of a picture on its border, moved so that its centre is on the picture.

    Args:
        size: (width, height) of the picture, perhaps decoded smaller than it is.
        box: The part, in pixels of the padded square of the picture as it is.
        longer: Pixels of that square's side.
        side: Pixels of the result.
    """
    scale = max(size) / longer
    left, top, right, bottom = (edge * scale for edge in box)
    spans = []
    for start, end, length in ((left, right, size[0]), (top, bottom, size[1])):
        start, end = (edge - (max(size) - length) / 2 for edge in (start, end))  # in the picture
        centre = (start + end) / 2
        move = min(max(centre, 0), length) - centre
        start, end = start + move, end + move
        first, last = max(start, 0.0), min(end, float(length))
        places = [round((edge - start) * side / (end - start)) for edge in (first, last)]
        spans.append((first, last, min(places[0], side - 1), max(places[1], min(places[0], side - 1) + 1)))
    (x, x_end, column, last_column), (y, y_end, row, last_row) = spans
    return PlaceOnBorder((x, y, x_end, y_end), (last_column - column, last_row - row), column, row)


def on_border(image: Image.Image, side: int) -> Image.Image:
    """Puts an image in the middle of a grey square."""
    square = _grey(image.mode, side)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def cut_on_border(image: Image.Image, box: FloatBox, longer: int, side: int) -> Image.Image:
    """Cuts a part out of a picture on its border and resizes it to a square (`part_on_border`)."""
    place = part_on_border(image.size, box, longer, side)
    part = image.resize(place.size, Image.Resampling.BILINEAR, box=place.box)
    square = _grey(image.mode, side)
    square.paste(part, (place.column, place.row))
    return square


def _grey(mode: str, side: int) -> Image.Image:
    return Image.new(mode, (side, side), BORDER if mode == "L" else (BORDER,) * 3)
