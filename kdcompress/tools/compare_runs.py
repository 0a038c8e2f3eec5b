"""`report` of several runs: which they are, and how far they differ on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcompress.errors import UserError
from kdcompress.report import verdict
from kdcompress.report.comparison import Compared, document, figure_of, write_comparison
from kdcompress.report.predictions import read_predictions
from kdcompress.report.record import read_run

NAME = "comparison.html"
OF_IMAGES = ("top1", "balanced_top1")
"""Figures that are made of one answer for each test image, so that two runs can be paired by image."""


def compare(sources: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Writes the page that compares runs.

    Args:
        sources: Run folders, or folders of the same run with several seeds. One of the latter alone is
            compared with its baseline, or if it has none seed by seed.
        out: Path of the page; None: `comparison.html` in the folder that holds the first, or in the only one.

    Returns:
        The document of schema `kdcompress.comparison/1`, with the page's path as `file`.

    Raises:
        UserError: One of them is no run that has come to results, or they have nothing to be compared by.
    """
    only = Path(sources[0]).absolute()
    path = (only if len(sources) == 1 else only.parent) / NAME if out is None else out
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    if len(sources) == 1:
        rows = _of_one(Path(sources[0]))
    else:
        names = _names(sources)
        rows = [
            Compared(name, tuple(read_run(folder) for folder in _runs(source)))
            for name, source in zip(names, sources, strict=True)
        ]
    try:
        _, key = figure_of(rows)
    except ValueError:
        raise UserError(
            "the runs have no figure in common: one of a classifier, one of a backbone or of data without "
            "labels; compare runs of one kind"
        ) from None
    rows = [rows[0], *(against(rows[0], row, key) for row in rows[1:])]
    advice = _causes(rows) if len(sources) == 1 else []
    write_comparison(rows, path, advice=advice)
    return {**document(rows), "advice": advice, "file": str(path)}


def _of_one(source: Path) -> list[Compared]:
    """Returns the rows of one run with several seeds: baseline and student, or without one each seed."""
    folders = _runs(source)
    plain = [folder / "baseline" for folder in folders]
    if all((folder / "results.json").is_file() for folder in plain):
        return [
            Compared("baseline", tuple(map(read_run, plain))),
            Compared("student", tuple(map(read_run, folders))),
        ]
    if len(folders) == 1:
        raise UserError(
            f"{source}: is of one seed and has no baseline, so there is nothing to compare it with"
        )
    return [Compared(folder.name, (read_run(folder),)) for folder in folders]


def _causes(rows: Sequence[Compared]) -> list[str]:
    """Returns the likely causes of a gain that is not shown, as the seeds' own gains name them, each once."""
    student = rows[-1]
    if student.difference is None or student.difference["verdict"] == "better":
        return []
    gains = [record.results.get("gain") or {} for record in student.records]
    causes = [gain["cause"] for gain in gains if gain.get("cause")]
    # What to do is the same where only the numbers differ; those of the first seed stand for all.
    each = {cause["advice"]: cause["sentence"] for cause in reversed(causes)}
    return [f"Most likely: {sentence}. Next: {advice}." for advice, sentence in each.items()]


def _runs(source: Path) -> list[Path]:
    """Returns the run folders of one source: itself, or its seeds in order."""
    seeds = Path(source) / "seeds"
    if not seeds.is_dir():
        return [Path(source)]
    return sorted((run for run in seeds.iterdir() if run.name.isdecimal()), key=lambda run: int(run.name))


def _names(sources: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the folders' paths that differ."""
    paths = [Path(source).resolve() for source in sources]
    if len(set(paths)) < len(paths):
        raise UserError("a run is given twice; give each once")
    deepest = max(len(path.parts) for path in paths)
    return next(
        names
        for depth in range(1, deepest + 1)
        if len(set(names := ["/".join(path.parts[-depth:]) for path in paths])) == len(names)
    )


def against(reference: Compared, row: Compared, key: str) -> Compared:
    """Adds to the row its difference to the reference, or the reason why there is none.

    Args:
        reference: The row that the other is compared with.
        row: The other.
        key: The figure that they are compared by.
    """
    if row.incomplete or reference.incomplete:
        return dataclasses.replace(row, why_not="a run of it did not ship")
    images = [entry.first.manifest.get("data") or {} for entry in (reference, row)]
    if images[0].get("listing_sha256") != images[1].get("listing_sha256"):
        return dataclasses.replace(row, why_not="other data: not comparable")
    if len(reference.records) != len(row.records):
        return dataclasses.replace(row, why_not="another number of seeds")
    if len(row.records) > 1:
        pairs = list(zip(row.shares(key), reference.shares(key), strict=True))
        points = [100 * (own - other) for own, other in pairs]
        errors = _image_errors(reference, row, key)
        return dataclasses.replace(row, difference=verdict.gain_over_seeds(points, errors))
    if key not in OF_IMAGES:
        points_alone = 100 * (row.shares(key)[0] - reference.shares(key)[0])
        return dataclasses.replace(row, why_not=f"{points_alone:+.2f} points, without an interval")
    try:
        (difference,) = _on_images(reference, row, key)
    except _NotComparable as error:
        return dataclasses.replace(row, why_not=str(error))
    return dataclasses.replace(row, difference=difference)


class _NotComparable(Exception):
    """Says why runs cannot be compared image by image."""


def _on_images(reference: Compared, row: Compared, key: str) -> list[dict[str, Any]]:
    """Returns the difference of each pair of runs on the same test images, in one of `OF_IMAGES`.

    Raises:
        _NotComparable: With the reason.
    """
    differences = []
    for theirs, ours in zip(reference.records, row.records, strict=True):
        own, other = (read_predictions(run.folder / "checkpoints") for run in (ours, theirs))
        if own is None or other is None:
            raise _NotComparable("its predictions are gone")
        if not own.labels.equal(other.labels):
            raise _NotComparable("other test images: not comparable")
        if not bool((own.labels >= 0).any()):
            raise _NotComparable("no test image has a label")
        classes = own.labelled().labels if key == "balanced_top1" else None
        differences.append(verdict.gain(own.right(), other.right(), classes))
    return differences


def _image_errors(reference: Compared, row: Compared, key: str) -> list[float]:
    """Returns the standard errors over the test images; none if they cannot be known."""
    if key not in OF_IMAGES:
        return []
    try:
        return [verdict.image_error(difference) for difference in _on_images(reference, row, key)]
    except _NotComparable:
        return []
