"""`export` of a finished run: writes the files of its student again and proves them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress import discovery
from kdcompress.atomic import write_json
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data, open_data
from kdcompress.data.input_spec import Fit
from kdcompress.data.loader import EvaluationLoader
from kdcompress.data.source import Source
from kdcompress.deploy.accuracy import Batches, as_input
from kdcompress.deploy.derived import DerivedFile, failure
from kdcompress.deploy.ensemble import NAME as ENSEMBLE
from kdcompress.deploy.exits import NAME as EXITS
from kdcompress.deploy.files import check_installed, gives_probabilities
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.deploy.load import GRAPH, WEIGHTS
from kdcompress.deploy.ship import Shipped, Subject
from kdcompress.documents import read_document
from kdcompress.errors import UserError, suggest
from kdcompress.export.compressed import CompressedFiles, time_compressed, verdict_entries
from kdcompress.export.derived import DerivedRequest
from kdcompress.export.subject import write_subject
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection, DataSection, Recipe
from kdcompress.report import documents
from kdcompress.run_folder import RunFolder, check_writable
from kdcompress.schemas.run import Manifest
from kdcompress.tasks import task_of

EXPORT_SCHEMA = "kdcompress.export/1"
_MOST_IMAGES, _MOST_NUMBERS = 256, 1 << 27
"""Largest batch, in images and in numbers: 85 images of 724 x 724 pixels in colour, 512 MiB in float32."""


def export(
    source: Path,
    out: Path | None,
    formats: list[str],
    progress: Progress,
    *,
    root: str | None = None,
    opset: int | None = None,
    derived: DerivedRequest | None = None,
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
        derived: Derived files to make; None: none.
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
    recipe = RunFolder(source).recorded_recipe(allow_code=True)
    if recipe is None:
        raise UserError(f"{source}: holds no recipe.yaml, so it is no run of kdcompress")
    file = next((f for f in (source / WEIGHTS, source / "failed" / WEIGHTS) if f.exists()), None)
    if file is None:
        raise UserError(f"{source}: holds no {WEIGHTS}; finish the run with --resume first")
    network, config = safetensors.read(file, allow_code=allow_code)
    spec = config.spec
    data = data_of(recipe, root, (spec.height, spec.width), spec.channels, progress, spec.known_fit)
    for name in (ENSEMBLE, EXITS):
        if (source / name).exists():
            progress.warn(
                f"{name}: is not written again, since it has weights that are in the run's checkpoint alone; "
                f"it stays as it is in {source}"
            )
    for name in formats if recipe.export.calibrate else ():
        if name != "safetensors" and not gives_probabilities(name):
            progress.warn(f"export.calibrate: a file of the format {name!r} has one output, its logits")
    metadata = documents.file_metadata(recipe, _teacher_of(source))
    request = derived or DerivedRequest()
    with batches_of(data.test) as test:
        task = task_of(config.num_classes, config.task)
        subject = Subject(
            network, config.model, config.spec, config.class_names, test, metadata,
            task=task, test_name=data.test_name,
            temperature=config.temperature, probabilities=recipe.export.calibrate,
        )  # fmt: skip
        makers = request.makers(data.train, data.test, test, workers=granted_cores(), allow_code=allow_code)
        written = write_subject(
            subject, folder, formats, makers, progress, opset=opset, allow_code=allow_code
        )
    return finish_export(folder, *written, data.test, request.timing(recipe.bench), progress)


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


def finish_export(
    folder: Path,
    shipped: Shipped,
    derived: Sequence[DerivedFile],
    test: Source,
    bench: BenchSection,
    progress: Progress,
) -> dict[str, Any]:
    """Times the smaller files of an export into its `bench.json`, and makes the document of the export.

    Args:
        folder: Folder of the files.
        shipped: The network's own files.
        derived: The files derived from them.
        test: The test split.
        bench: How they are timed.
        progress: Progress display.

    Raises:
        GateFailed: A derived file failed a gate; it is under `failed/`.
    """
    compressed = CompressedFiles.of(derived)
    entries: dict[str, Any] = {}
    if compressed is not None:
        timed = time_compressed(compressed, timing_images(test), bench, shipped.student, progress)
        write_json(folder / "bench.json", timed)
        entries = {"variants": verdict_entries(compressed, timed)}
    failed = failure(derived)
    if failed is not None:
        raise failed
    return {**export_document(folder, derived, shipped.student, shipped), **entries}


def export_document(
    folder: Path, derived: Sequence[DerivedFile], student: dict[str, Any], shipped: Shipped | None = None
) -> dict[str, Any]:
    """Makes the document of `export`.

    Args:
        folder: Folder of the files.
        derived: The derived files, which passed.
        student: The float32 file's figures.
        shipped: The network's own files; None: they were not written now.
    """
    files, gates = ({}, []) if shipped is None else (shipped.files, shipped.gates)
    return {
        "schema": EXPORT_SCHEMA,
        "folder": str(folder),
        "files": {**files, **{file.path.name: file.entry() for file in derived}},
        "gates": [gate.to_json() for own in (gates, *(file.gates for file in derived)) for gate in own],
        "student": student,
    }


def _teacher_of(run: Path) -> dict[str, Any] | None:
    """Reads the teacher's entry in the run's manifest; a run that did not finish has no manifest."""
    file = run / "manifest.json"
    return read_document(file, Manifest).get("teacher") if file.exists() else None


def artefact(source: Path, names: tuple[str, ...] = (GRAPH, WEIGHTS)) -> Path:
    """Finds the file to read: the source itself, or the first of names in a run folder.

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
    recipe: Recipe,
    root: str | None,
    size: tuple[int, int],
    channels: int,
    progress: Progress,
    fit: Fit | None = None,
) -> Data:
    """Opens a recipe's data for a network of this size and number of channels.

    Args:
        recipe: Its `data:` names the images.
        root: Folder or table of the data; None: the recipe's.
        size: (H, W) in pixels.
        channels: C.
        progress: Terminal output.
        fit: How the network's pictures become squares; None: as the recipe says.
    """
    return open_section(recipe.data, root, size[0], frozenset({channels}), progress, fit)


def open_section(
    section: DataSection,
    root: str | None,
    side: int | None,
    channels: frozenset[int],
    progress: Progress,
    fit: Fit | None = None,
) -> Data:
    """Opens the data of a section; root and side replace its own."""
    update = {
        "root": root or section.root,
        "image_size": side or section.image_size,
        "resize": fit or section.resize,
    }
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
    """Yields un-augmented images [B, C, H, W] in [0, 1] and labels [B], on the CPU."""
    size = max(1, min(_MOST_IMAGES, _MOST_NUMBERS // (split.channels * math.prod(split.image_size))))
    for batch in EvaluationLoader(split, batch_size=size, device=torch.device("cpu"), workers=workers):
        yield batch.images, batch.labels


def timing_images(split: Source) -> NDArray[np.float32]:
    """Returns the first test batch [N, C, H, W] in [0, 1], for timings; no decoding process is left."""
    return as_input(next(images_of(split, workers=0))[0])
