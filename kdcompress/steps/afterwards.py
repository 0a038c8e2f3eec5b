"""What can be done with a run once it is over: write its files again, and score a file on data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompress import discovery, documents
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data, open_data
from kdcompress.data.loader import EvaluationLoader
from kdcompress.data.source import Source
from kdcompress.deploy.accuracy import predict
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.deploy.load import GRAPH, WEIGHTS, spec_of
from kdcompress.deploy.ship import ship
from kdcompress.errors import DataError, UserError, suggest
from kdcompress.progress import Progress
from kdcompress.recipe import Recipe, load_recipe
from kdcompress.run_folder import RunFolder, check_writable
from kdcompress.steps.deliver import read_json, write_pages

EVALUATION_SCHEMA = "kdcompress.evaluation/1"
FILES_SCHEMA = "kdcompress.files/1"
EXPORT_SCHEMA = "kdcompress.export/1"


def export(
    source: Path, out: Path | None, formats: list[str], progress: Progress, *, allow_code: bool
) -> dict[str, Any]:
    """Writes a run's student again and proves the files, in a folder of their own.

    Args:
        source: A run folder, finished or with its files under `failed/`.
        out: Where to; None: `RUN/export`.
        formats: Of `discovery.names("format")`.
        progress: What a watcher sees.
        allow_code: Whether a `python:` network may be built.

    Raises:
        UserError: There is no run, or an unknown format.
        GateFailed: A gate failed.
    """
    known = discovery.names("format")
    for name in formats:
        if name not in known:
            raise UserError(f"--format: unknown format {name!r}{suggest(name, known)}")
    if not source.is_dir():
        what = "is a file; expected a run folder" if source.exists() else "no such run folder"
        raise UserError(f"{source}: {what}")
    check_single(source)
    folder = out or source / "export"
    if folder.resolve() == source.resolve():
        raise UserError(f"--out {out}: is the run itself, whose files stay as its manifest says they are")
    check_writable(folder)
    recipe = RunFolder(source).recorded_recipe(allow_code)
    if recipe is None:
        raise UserError(f"{source}: holds no recipe.yaml, so it is no run of kdcompress")
    file = next((f for f in (source / WEIGHTS, source / "failed" / WEIGHTS) if f.exists()), None)
    if file is None:
        raise UserError(f"{source}: holds no {WEIGHTS}; finish the run with --resume first")
    network, config = safetensors.read(file, allow_code=allow_code)
    data = data_of(recipe, None, (config.spec.height, config.spec.width), config.spec.channels, progress)
    folder.mkdir(parents=True, exist_ok=True)
    shipped = ship(
        network,
        config.model,
        config.spec,
        config.class_names,
        lambda: images_of(data.test, workers=granted_cores()),
        folder,
        formats=list(dict.fromkeys(formats)),
        metadata=documents.file_metadata(recipe, _teacher_of(source)),
        allow_code=allow_code,
    )
    return {
        "schema": EXPORT_SCHEMA,
        "folder": str(folder),
        "files": shipped.files,
        "gates": [gate.to_json() for gate in shipped.gates],
        "student": shipped.student,
    }


def evaluate(
    source: Path,
    progress: Progress,
    *,
    recipe: str,
    data: str | None,
    overrides: tuple[str, ...],
    split: str,
    allow_code: bool,
) -> dict[str, Any]:
    """Scores a `.onnx` or `.safetensors` file on the data of a recipe.

    Args:
        source: The file, or a run folder: its ONNX file, else its safetensors.
        progress: What a watcher sees.
        recipe: Whose `data:` section says which images, cut how.
        data: Folder of the data; goes before the recipe's.
        overrides: As for `distill`.
        split: test or held_out.
        allow_code: Whether a `python:` network may be built.

    Raises:
        UserError: Nothing to evaluate, or it does not fit the data.
    """
    file = artefact(source)
    run: onnx.OnnxModel | safetensors.SafetensorsModel
    threads = torch.get_num_threads()
    if file.suffix == onnx.SUFFIX:
        graph = onnx.open_(file, threads)
        run, spec = graph, spec_of(graph)
    else:
        network = safetensors.open_(file, threads, allow_code=allow_code)
        run, spec = network, network.config.spec
    if run.backbone:
        raise UserError(
            f"{file}: is a backbone, which gives features and tells no classes apart; see what they are "
            "worth with --probe"
        )
    resolved = load_recipe(recipe, overrides, allow_code=allow_code)
    opened = data_of(resolved, data, (spec.height, spec.width), spec.channels, progress)
    images = opened.test if split == "test" else opened.held_out
    if images is None:
        raise DataError("--split held_out: the recipe holds nothing out (data.held_out: 0)")
    if not bool((images.labels >= 0).any()):
        raise DataError(f"--split {split}: none of its images has a label to score by")
    one_image = images.subset(torch.tensor([0]))
    outputs = run(next(images_of(one_image, workers=0))[0].numpy()).shape[1]
    if outputs != opened.num_classes:
        raise UserError(f"{file}: tells {outputs} classes apart, the data has {opened.num_classes}")
    score = predict(run, images_of(images, workers=granted_cores())).score(opened.num_classes)
    return {"schema": EVALUATION_SCHEMA, "file": str(file), "split": split, **score}


def report(source: Path) -> dict[str, Any]:
    """Writes the pages of a run again; its manifest then vouches for the new ones.

    Args:
        source: A run folder that has come to results.

    Raises:
        UserError: It is none.
    """
    check_single(source)
    names = write_pages(source)
    RunFolder(source).vouch_again(names)
    return {"schema": FILES_SCHEMA, "folder": str(source), "files": names}


def _teacher_of(run: Path) -> dict[str, Any] | None:
    """What the run's manifest says of its teacher; a run that did not finish has no manifest."""
    file = run / "manifest.json"
    return read_json(file)["teacher"] if file.exists() else None


def artefact(source: Path, names: tuple[str, ...] = (GRAPH, WEIGHTS)) -> Path:
    """The file that is meant.

    Args:
        source: A file, or a finished run folder.
        names: Of a run's files, the wanted one first.

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
    update = {"root": root or recipe.data.root, "image_size": size[0]}
    with progress.counter() as tell:
        return open_data(recipe.data.model_copy(update=update), channels=frozenset({channels}), progress=tell)


def images_of(split: Source, *, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Un-augmented batches: images `[B, C, H, W]` in [0, 1] and labels `[B]`, on the CPU."""
    for batch in EvaluationLoader(split, device=torch.device("cpu"), workers=workers):
        yield batch.images, batch.labels
