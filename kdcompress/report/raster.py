"""The charts' SVG as PNG: lines, circles and texts, which is all that they are made of."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

SCALE = 2
"""Pixels per unit of the drawing, for a sharp picture on a dense screen."""
_SMOOTH = 3
"""Drawn so many times larger and then reduced, since Pillow draws with jagged edges."""

_STROKES = {"grid": ("rule", 1.0), "axis": ("soft", 1.0), "mark": ("soft", 1.0)}
_COLOURED = {"stem": (1.5, 0.4), "whisker": (2.0, 1.0), "line": (2.2, 1.0)}
"""Width and opacity, as in page.css."""
_ANCHORS = {"middle": "ms", "end": "rs"}
_SIZES = {"title": 14, "note": 11}
_REPLACED = str.maketrans({"−": "-", "×": "x", "·": "|", "\N{NO-BREAK SPACE}": " ", "…": "..."})
"""What Pillow's font, which every machine has, lacks."""


def to_png(svg: str, colours: dict[str, str]) -> bytes:
    """Draws an SVG of charts.py as a PNG.

    Args:
        svg: A whole document, its elements under translated groups at the most.
        colours: By name: `paper`, `ink`, `soft`, `rule`, `c0` to `c5`.
    """
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    size = (round(width * SCALE), round(height * SCALE))
    page = Image.new("RGB", (size[0] * _SMOOTH, size[1] * _SMOOTH), colours["paper"])
    sheet = _Sheet(page, colours)
    sheet.draw(root, 0.0, 0.0)
    page = page.resize(size, Image.Resampling.BOX)
    sheet.write(page)  # letters have smooth edges of their own
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


class _Sheet:
    def __init__(self, page: Image.Image, colours: dict[str, str]) -> None:
        self.pen, self.colours = ImageDraw.Draw(page), colours
        self.texts: list[tuple[float, float, str, Sequence[str]]] = []

    def draw(self, parent: ET.Element, left: float, top: float) -> None:
        """Draws the child elements in their order; texts are drawn later by `write`."""
        for element in parent:
            name = element.tag.rpartition("}")[2]
            classes = element.get("class", "").split()
            if name == "g":
                moved = re.fullmatch(r"translate\(([\d.]+),([\d.]+)\)", element.attrib["transform"])
                assert moved is not None
                self.draw(element, left + float(moved[1]), top + float(moved[2]))
            elif name == "line":
                x1, y1, x2, y2 = (float(element.attrib[key]) for key in ("x1", "y1", "x2", "y2"))
                self.segment(classes, [(left + x1, top + y1), (left + x2, top + y2)])
            elif name == "polyline":
                pairs = (point.split(",") for point in element.attrib["points"].split())
                self.segment(classes, [(left + float(x), top + float(y)) for x, y in pairs])
            elif name == "circle":
                x, y, radius = (float(element.attrib[key]) for key in ("cx", "cy", "r"))
                self.circle(classes, left + x, top + y, radius)
            elif name == "text":
                x, y = (float(element.attrib[key]) for key in ("x", "y"))
                self.texts.append((left + x, top + y, element.text or "", classes))

    def segment(self, classes: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
        """Draws a line in its style's width and colour."""
        if classes[0] in _STROKES:
            colour, width = _STROKES[classes[0]]
            fill = self.mixed(self.colours[colour], 1.0)
        else:
            width, opacity = _COLOURED[classes[0]]
            fill = self.mixed(self.colour(classes), opacity)
        factor = SCALE * _SMOOTH
        self.pen.line([(x * factor, y * factor) for x, y in points], fill, round(width * factor), "curve")

    def circle(self, classes: Sequence[str], x: float, y: float, radius: float) -> None:
        """Draws a dot with its pale rim; the dot of a round is faint and has none."""
        factor = SCALE * _SMOOTH
        box = [(x - radius) * factor, (y - radius) * factor, (x + radius) * factor, (y + radius) * factor]
        if "round" in classes:
            self.pen.ellipse(box, self.mixed(self.colour(classes), 0.3))
        else:
            self.pen.ellipse(box, self.colour(classes), self.colours["paper"], round(1.2 * factor))

    def write(self, page: Image.Image) -> None:
        """Draws the texts at the page's own size."""
        pen = ImageDraw.Draw(page)
        for x, y, text, classes in self.texts:
            size = next((_SIZES[name] for name in classes if name in _SIZES), 12)
            dark = {"row", "title"} & set(classes)
            anchor = next((_ANCHORS[name] for name in classes if name in _ANCHORS), "ls")
            pen.text(
                (x * SCALE, y * SCALE),
                text.translate(_REPLACED),
                self.colours["ink" if dark else "soft"],
                ImageFont.load_default(size * SCALE),
                anchor,
            )

    def colour(self, classes: Sequence[str]) -> str:
        """Returns the colour of the class `c0` to `c5`."""
        return next(self.colours[name] for name in classes if re.fullmatch(r"c\d", name))

    def mixed(self, colour: str, opacity: float) -> tuple[int, ...]:
        """Blends the colour with the background."""
        pairs = zip(ImageColor.getrgb(colour), ImageColor.getrgb(self.colours["paper"]), strict=True)
        return tuple(round(opacity * above + (1 - opacity) * below) for above, below in pairs)
