"""`export` of a finished run: writes the files of its student again and proves them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompress import discovery
from kdcompress.atomic import translated
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data, open_data
from kdcompress.data.loader import EvaluationLoader
from kdcompress.data.source import Source
from kdcompress.deploy.accuracy import Batches
from kdcompress.deploy.files import check_installed
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.deploy.image_graph import NAME as IMAGE_GRAPH
from kdcompress.deploy.load import GRAPH, WEIGHTS
from kdcompress.deploy.variants import NAMES
from kdcompress.errors import UserError, suggest
from kdcompress.export.subject import Subject, write_subject
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection, DataSection, Recipe
from kdcompress.report import documents
from kdcompress.report.documents import read_json
from kdcompress.run_folder import RunFolder, check_writable, create_folder

EXPORT_SCHEMA = "kdcompress.export/1"

Addition = Callable[[dict[str, Any], Source, Source, BenchSection], dict[str, Any]]
"""Adds files to an export: takes its document, the training and the test images, and how files are timed;
returns the document with the files in it."""


def export(
    source: Path,
    out: Path | None,
    formats: list[str],
    progress: Progress,
    *,
    root: str | None = None,
    opset: int | None = None,
    additions: Sequence[Addition] = (),
    allow_code: bool,
) -> dict[str, Any]:
    """Writes a run's student again and proves the files, in a folder of their own.

    Args:
        source: A run folder, finished or with its files under `failed/`.
        out: Destination; None: `RUN/export`.
        formats: Names from `discovery.names("format")`.
        progress: Progress display.
        root: Folder of the data; None: the recipe's.
        opset: ONNX opset; None: the exporter's choice.
        additions: Make more files of the ONNX file, in this order.
        allow_code: True: a `python:` network may be built.

    Raises:
        UserError: There is no run, or an unknown format.
        GateFailed: A gate failed.
    """
    check_formats(formats, opset)
    if not source.is_dir():
        raise UserError(f"{source}: no such run folder or checkpoint")
    check_single(source)
    folder = out or source / "export"
    check_writable(folder)
    if folder.exists() and folder.samefile(source):
        raise UserError(f"--out {out}: is the run itself, whose files stay as its manifest says they are")
    check_folder(folder)
    recipe = RunFolder(source).recorded_recipe(allow_code)
    if recipe is None:
        raise UserError(f"{source}: holds no recipe.yaml, so it is no run of kdcompress")
    file = next((f for f in (source / WEIGHTS, source / "failed" / WEIGHTS) if f.exists()), None)
    if file is None:
        raise UserError(f"{source}: holds no {WEIGHTS}; finish the run with --resume first")
    network, config = safetensors.read(file, allow_code=allow_code)
    data = data_of(recipe, root, (config.spec.height, config.spec.width), config.spec.channels, progress)
    metadata = documents.file_metadata(recipe, _teacher_of(source))
    with batches_of(data.test) as test:
        subject = Subject(network, config.model, config.spec, config.class_names, test, metadata)
        document = write_files(subject, folder, formats, opset=opset, allow_code=allow_code)
    for add in additions:
        document = add(document, data.train, data.test, recipe.bench)
    return document


def check_folder(folder: Path) -> None:
    """Refuses to write a network's files where they must not go; creates nothing.

    Raises:
        UserError: It cannot be written to, or is a run.
    """
    check_writable(folder)
    if (folder / "recipe.yaml").exists():
        raise UserError(
            f"{folder}: is a run, whose files stay as its manifest says they are; choose another with --out"
        )


def check_formats(formats: list[str], opset: int | None) -> None:
    """Refuses what cannot be written, before anything is.

    Raises:
        UserError: An unknown format or one whose package is missing, or an opset that the exporter cannot
            write or that no file would have.
    """
    known = discovery.names("format")
    for name in formats:
        if name not in known:
            raise UserError(f"--format: unknown format {name!r}{suggest(name, known)}")
    check_installed(formats, "--format")
    if opset is not None and "onnx" not in formats:
        raise UserError("--opset: belongs to ONNX files, and --format asks for none")
    onnx.check_opset(opset)


def write_files(
    subject: Subject, folder: Path, formats: list[str], *, opset: int | None, allow_code: bool
) -> dict[str, Any]:
    """Writes a network in every format and proves the files.

    Args:
        subject: The network to write.
        folder: Destination; made if it is not there.
        formats: Names from `discovery.names("format")`.
        opset: ONNX opset; None: the exporter's choice.
        allow_code: True: a `python:` network may be built.

    Raises:
        UserError: The exporter cannot write this opset.
        GateFailed: A gate failed.
    """
    made = not folder.exists()
    create_folder(folder)
    try:
        shipped, _ = write_subject(subject, folder, formats, opset=opset, allow_code=allow_code)
    except UserError:
        if made:
            with contextlib.suppress(OSError):  # it is kept if something is in it
                folder.rmdir()
        raise
    _drop_stale(folder, shipped.files)
    return {
        "schema": EXPORT_SCHEMA,
        "folder": str(folder),
        "files": shipped.files,
        "gates": [gate.to_json() for gate in shipped.gates],
        "student": shipped.student,
    }


def _drop_stale(folder: Path, shipped: Container[str]) -> None:
    """Removes files, and their timings, that were made from what an earlier export wrote here."""
    names = [name for name in (*NAMES.values(), IMAGE_GRAPH) if name not in shipped]
    stale = [folder / name for name in names if (folder / name).exists()]
    for path in (*stale, folder / "bench.json") if stale else ():
        with translated(path):
            path.unlink(missing_ok=True)


def _teacher_of(run: Path) -> dict[str, Any] | None:
    """Reads the teacher's entry in the run's manifest; a run that did not finish has no manifest."""
    file = run / "manifest.json"
    return read_json(file)["teacher"] if file.exists() else None


def artefact(source: Path, names: tuple[str, ...] = (GRAPH, WEIGHTS)) -> Path:
    """The file that is meant.

    Args:
        source: A file, or a finished run folder.
        names: Names of a run's files, the wanted one first.

    Raises:
        UserError: There is none.
    """
    if not source.is_dir():
        if not source.exists():
            raise UserError(f"{source}: no such file or run folder")
        if source.suffix not in {onnx.SUFFIX, safetensors.SUFFIX}:
            raise UserError(f"{source}: expected a run folder, a .onnx or a .safetensors file")
        return source
    check_single(source)
    for name in names:
        if (source / name).is_file():
            return source / name
    raise UserError(f"{source}: holds neither {GRAPH} nor {WEIGHTS}, so it is no finished run")


def check_single(source: Path) -> None:
    """Refuses the folder of several seeds' runs.

    Raises:
        UserError: It is one.
    """
    if (source / "seeds").is_dir():
        raise UserError(
            f"{source}: holds the runs of several seeds; name one, such as {source / 'seeds' / '0'}"
        )


def data_of(
    recipe: Recipe, root: str | None, size: tuple[int, int], channels: int, progress: Progress
) -> Data:
    """The recipe's data as a network of this input wants it."""
    return open_section(recipe.data, root, size[0], frozenset({channels}), progress)


def open_section(
    section: DataSection, root: str | None, side: int | None, channels: frozenset[int], progress: Progress
) -> Data:
    """The data of a section, from another folder or in another size where one is given."""
    update = {"root": root or section.root, "image_size": side or section.image_size}
    with progress.counter() as tell:
        return open_data(section.model_copy(update=update), channels=channels, progress=tell)


@contextlib.contextmanager
def batches_of(split: Source) -> Iterator[Callable[[], Batches]]:
    """Opens a split for several passes with one loader, whose processes take a while to start."""
    loader = EvaluationLoader(split, device=torch.device("cpu"), workers=granted_cores())
    try:
        yield lambda: ((batch.images, batch.labels) for batch in loader)
    finally:
        loader.close()


def images_of(split: Source, *, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Un-augmented batches: images `[B, C, H, W]` in [0, 1] and labels `[B]`, on the CPU."""
    for batch in EvaluationLoader(split, device=torch.device("cpu"), workers=workers):
        yield batch.images, batch.labels
