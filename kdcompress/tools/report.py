"""`report`: the pages of one run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcompress.export.reexport import check_single
from kdcompress.report.pages import write_pages
from kdcompress.run_folder import RunFolder

FILES_SCHEMA = "kdcompress.files/1"
BENCH = "bench.json"


def report(source: Path) -> dict[str, Any]:
    """Writes the pages of a run again and updates their hashes in its manifest.

    So is that of `bench.json`, whose place a measurement on another device may have taken.

    Args:
        source: A run folder that has come to results.

    Raises:
        UserError: It is no such run.
    """
    check_single(source)
    names = write_pages(source)
    timed = [BENCH] if (source / BENCH).is_file() else []
    RunFolder(source).update_manifest_hashes([*names, *timed])
    return {"schema": FILES_SCHEMA, "folder": str(source), "files": names}
