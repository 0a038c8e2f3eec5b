"""The pages of a run: the HTML report and the model card."""

from __future__ import annotations

from pathlib import Path

from kdcompress.report.card import NAME, write_card
from kdcompress.report.page import write_report

PAGES = ("report.html", NAME)


def write_pages(folder: Path) -> list[str]:
    """Writes the report and the model card of a run.

    Returns:
        Their names in the run folder.
    """
    write_report(folder)
    write_card(folder)
    return list(PAGES)
