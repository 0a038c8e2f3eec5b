"""Takes the pictures of a report in headless Chromium: light and dark, wide and narrow.

    python docs/screenshots.py PAGE FOLDER

Writes NAME-THEME-WIDTH.png of the whole page, light and dark, 1200 and 390 pixels wide, and NAME-top.png of
what is above the fold.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))

import chromium

FOLD = 900
"""Pixels of height of what is seen without scrolling."""


def main() -> None:
    """Takes them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if chromium.PROGRAM is None:
        parser.error("there is no chromium here")
    options.folder.mkdir(parents=True, exist_ok=True)
    name = options.page.stem
    with chromium.browser() as page:
        page.open(options.page)
        page.call("Emulation.setScrollbarsHidden", hidden=True)
        for width in (1200, 390):
            for dark in (False, True):
                page.look(width, FOLD, dark=dark)
                theme = "dark" if dark else "light"
                page.picture(options.folder / f"{name}-{theme}-{width}.png")
        page.look(1200, FOLD)
        page.picture(options.folder / f"{name}-top.png", whole=False)


if __name__ == "__main__":
    main()
