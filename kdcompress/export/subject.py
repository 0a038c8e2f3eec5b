"""Writes and proves a network's files, and then makes the derived files; every export goes through here."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Sequence
from pathlib import Path

from kdcompress.atomic import translated
from kdcompress.deploy.derived import DerivedFile, DerivedMaker, derived_files, place
from kdcompress.deploy.image_graph import NAME as IMAGE_GRAPH
from kdcompress.deploy.ship import Shipped, Subject, ship
from kdcompress.deploy.variants import NAMES
from kdcompress.errors import UserError
from kdcompress.progress import Progress
from kdcompress.run_folder import create_folder


def write_subject(
    subject: Subject,
    folder: Path,
    formats: Sequence[str],
    makers: Sequence[DerivedMaker],
    progress: Progress,
    *,
    opset: int | None = None,
    allow_code: bool = False,
) -> tuple[Shipped, list[DerivedFile]]:
    """Writes a network in every format, proves and names the files, and makes the derived files.

    Args:
        subject: The network.
        folder: Destination; made if it is not there.
        formats: Names from `discovery.names("format")`.
        makers: Makers of derived files, in this order.
        progress: Progress display.
        opset: ONNX opset; None: the exporter's choice.
        allow_code: True: a `python:` network may be built.

    Returns:
        The proven files, and the derived files, those that failed a gate among them (see
        `deploy.derived.failure`).

    Raises:
        UserError: The exporter cannot write this opset, or a derived file cannot be had.
        GateFailed: A gate of the network's own files failed.
    """
    is_new = not folder.exists()
    create_folder(folder)
    try:
        names = list(dict.fromkeys(formats))
        with progress.announce(f"Exporting and proving the files of {subject.model} ({', '.join(names)})"):
            shipped = ship(subject, folder, formats=names, opset=opset, allow_code=allow_code)
    except UserError:
        if is_new:
            with contextlib.suppress(OSError):  # it is kept if something is in it
                folder.rmdir()
        raise
    _drop_stale(folder, shipped.files)
    with derived_files(folder, makers, shipped.student, progress, subject.test_name) as files:
        return shipped, place(files, folder)


def _drop_stale(folder: Path, shipped: Container[str]) -> None:
    """Removes files, and their timings, that were made from what an earlier export wrote here."""
    names = [name for name in (*NAMES.values(), IMAGE_GRAPH) if name not in shipped]
    stale = [folder / name for name in names if (folder / name).exists()]
    for path in (*stale, folder / "bench.json") if stale else ():
        with translated(path):
            path.unlink(missing_ok=True)
