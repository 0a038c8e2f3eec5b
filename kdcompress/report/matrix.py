"""The confusion matrix as inline SVG, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from kdcompress.report.charts import WIDTH, Chart, svg_element, text_element

NUMBERED = 12
"""Classes up to which each cell shows its count."""
_LEFT, _TOP, _BOTTOM = 118, 40, 8
_CHARACTERS = 15
"""That fit beside a row."""
_LETTER = 7.0
"""Width of a letter; columns whose names do not fit have numbers, which stand before the rows' names too."""
_FEW = 3
"""Classes up to which the columns have names in any case, cut if need be."""
_DARK = 0.3
"""Share from which a cell is dark enough for text in the colour of the page."""
_HIGHEST = 46


def matrix_chart(counts: Sequence[Sequence[int]], names: Sequence[str], *, key: str, title: str) -> Chart:
    """Draws counts by true class (rows) and given class (columns), shaded by the share of the row.

    Right answers and mistakes have different colours, so that a mistake shows in a matrix of few.

    Args:
        counts: `[K][K]`.
        names: K class names.
        key: Unique on the page.
        title: Its heading.
    """
    side = (WIDTH - _LEFT - 4) / len(counts)
    height = min(side, _HIGHEST)
    named = all(len(name) * _LETTER <= side for name in names) or len(names) <= _FEW
    parts = [text_element("label middle", (_LEFT + WIDTH - 4) / 2, 12, "given class")]
    step = 1 if len(counts) <= NUMBERED else -(-len(counts) // NUMBERED)
    for number, row in enumerate(counts):
        y = _TOP + height * number
        if number % step == 0:
            column = _fitted(names[number], int(side / _LETTER)) if named else str(number)
            label = names[number] if named else f"{number} {names[number]}"
            parts.append(text_element("tick middle", _LEFT + side * (number + 0.5), _TOP - 7, column))
            fitted = _fitted(label, _CHARACTERS)
            parts.append(text_element("row end", _LEFT - 8, y + height / 2 + 4, fitted))
        for place, count in enumerate(row):
            share = count / sum(row) if sum(row) else 0.0
            parts.append(_cell(_LEFT + side * place, y, side, height, share, place == number))
            if len(counts) <= NUMBERED and count:
                strong = " on" if share > _DARK else ""
                x = _LEFT + side * (place + 0.5)
                parts.append(text_element(f"row middle{strong}", x, y + height / 2 + 4, f"{count:,}"))
    wrong = sum(map(sum, counts)) - sum(row[i] for i, row in enumerate(counts))
    bottom = _TOP + height * len(counts) + _BOTTOM
    return Chart(svg_element(key, bottom, title, f"{wrong} images beside the diagonal", parts), title)


def _fitted(name: str, most: int) -> str:
    return name if len(name) <= most else name[: max(1, most - 1)] + "…"


def _cell(x: float, y: float, width: float, height: float, share: float, right: bool) -> Markup:
    # The root shows rare mistakes; an empty cell keeps the background.
    opacity = 0.0 if share == 0 else 0.12 + 0.88 * share**0.5
    return Markup(
        '<rect class="cell c{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"/>'
    ).format(0 if right else 2, x + 0.5, y + 0.5, width - 1, height - 1, opacity)
