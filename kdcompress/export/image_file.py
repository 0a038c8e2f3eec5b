"""`--embed-preprocess resize`: `student.image.onnx` beside a proven `student.onnx`, checked on files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcompress.atomic import sha256_of, translated, write_json
from kdcompress.data.decode import decode_image, open_image, quiet_pillow
from kdcompress.data.input_spec import InputSpec
from kdcompress.data.source import FolderSource, Source
from kdcompress.deploy import image_gates, image_graph
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.gate import Gate, document
from kdcompress.deploy.golden_file import NAME as GOLDEN
from kdcompress.deploy.golden_file import read_golden
from kdcompress.deploy.image_gates import Checked
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.ship import FAILED, GATES
from kdcompress.errors import GateFailed, UserError
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection

OPTION = "--embed-preprocess resize"
KEY = "export.embed_preprocess: resize"
IMAGES = 64
Then = Callable[[dict[str, Any], Source, Source, BenchSection], dict[str, Any]]
"""Adds to what was exported, as `afterwards.Smaller`."""

_STAGING = ".image"
_QUALITY = 95
_STRETCHES = ((1.0, 1.0), (1.5, 1.5), (1.9, 1.3), (1.2, 2.6), (4.0, 3.0))
"""Widths and heights of test images that are no files, in parts of their own: to have something to resize."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What became of the file.

    Args:
        path: Where it is.
        gates: All of them.
        shape: (C, H, W) of images such as it is for.
    """

    path: Path
    gates: list[Gate]
    shape: tuple[int, int, int]

    @property
    def passed(self) -> bool:
        """Whether it has its final name."""
        return all(gate.passed for gate in self.gates)

    def failure(self) -> GateFailed | None:
        """What to raise once all else is written."""
        lost = [gate for gate in self.gates if not gate.passed]
        if not lost:
            return None
        count = f"{len(lost)} gate{'s' if len(lost) != 1 else ''} failed"
        head = f"{image_graph.NAME} does not ship: {count}; it is {self.path}"
        return GateFailed("\n  ".join([head, *map(str, lost)]))


def check_run(source: Path, formats: list[str]) -> None:
    """Refuses what cannot be had of a run, before anything is written.

    Args:
        source: A run folder, or a checkpoint, whose input its data says later.
        formats: That are written with it.

    Raises:
        UserError: It cannot.
    """
    if "onnx" not in formats:
        raise UserError(f"{OPTION}: is made from {GRAPH}; add onnx to --format")
    config = source / CONFIG
    if config.is_file():
        image_graph.check_spec(read_config(config).spec, OPTION)


def adder(progress: Progress, then: Then | None) -> Then:
    """Adds the file to what `export` has just written.

    Args:
        progress: What a watcher sees.
        then: What is made after it.
    """
    return functools.partial(_add, progress=progress, then=then)


def make(folder: Path, test: Source, progress: Progress, asked: str = OPTION) -> ImageFile:
    """Makes and proves the file; its gates join the others in `gates.json`.

    Args:
        folder: Holds `student.onnx`, proved, with its config and golden images.
        test: The test split.
        progress: What a watcher sees.
        asked: What asked for it, as the user has it.

    Raises:
        UserError: It cannot be had of this network.
    """
    spec = read_config(folder / CONFIG).spec
    image_graph.check_spec(spec, asked)
    staging = folder / _STAGING
    with translated(staging):
        shutil.rmtree(staging, ignore_errors=True)  # a killed process's
        staging.mkdir()
    try:
        with progress.counter() as tell, _images(test, spec) as (images, source):
            tell("image input", 0, 1)
            spread = read_golden(folder / GOLDEN).spread
            path = staging / image_graph.NAME
            gates = image_gates.make(folder / GRAPH, path, spec, images, spread, source)
            tell("image input", 1, 1)
        made = ImageFile(path, gates, (spec.channels, *image_gates.typical(images)))
        made = _placed(made, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    known = [Gate(**gate) for gate in json.loads((folder / GATES).read_text(encoding="utf-8"))["gates"]]
    kept = [gate for gate in known if not gate.gate.startswith("image_")]
    write_json(folder / GATES, document([*kept, *made.gates]))
    return made


def _add(
    exported: dict[str, Any],
    train: Source,
    test: Source,
    bench: BenchSection,
    *,
    progress: Progress,
    then: Then | None,
) -> dict[str, Any]:
    made = make(Path(exported["folder"]), test, progress)
    failed = made.failure()
    if failed is not None:
        raise failed
    entry = {"sha256": sha256_of(made.path), "bytes": made.path.stat().st_size}
    exported = {
        **exported,
        "files": {**exported["files"], made.path.name: entry},
        "gates": [*exported["gates"], *(gate.to_json() for gate in made.gates)],
    }
    return exported if then is None else then(exported, train, test, bench)


def _placed(made: ImageFile, folder: Path) -> ImageFile:
    """The file under its final name if it passed; else under `failed/`, and no older one has the name."""
    final, failed = folder / image_graph.NAME, folder / FAILED / image_graph.NAME
    target = final if made.passed else failed
    with translated(target):
        final.unlink(missing_ok=True)
        failed.unlink(missing_ok=True)
        target.parent.mkdir(exist_ok=True)
        os.replace(made.path, target)
    return dataclasses.replace(made, path=target)


@contextlib.contextmanager
def _images(test: Source, spec: InputSpec) -> Iterator[tuple[list[Checked], str]]:
    """Image files of all over the test split with what the evaluation makes of them, and what they are."""
    chosen = torch.linspace(0, len(test) - 1, min(IMAGES, len(test))).round().long()
    some = test.subset(chosen)
    if isinstance(some, FolderSource):
        yield _decoded(some), "image files of the test split"
        return
    with tempfile.TemporaryDirectory(prefix="kdcompress-images-") as folder:
        yield _decoded(_as_files(some, spec, Path(folder))), "JPEG files made of test images"


def _decoded(source: FolderSource) -> list[Checked]:
    made = source.evaluation_images(torch.arange(len(source)))
    checked = []
    with quiet_pillow():
        for file, expected in zip(source.files, made, strict=True):
            with open_image(source.root / file) as stored:
                image = decode_image(stored, source.channels)
            array = np.array(image)
            checked.append(Checked(array.reshape(*array.shape[:2], source.channels), expected))
    return checked


def _as_files(source: Source, spec: InputSpec, folder: Path) -> FolderSource:
    """Images of memory as a camera would have given them: JPEG files of several sizes and shapes."""
    images: Tensor = source.evaluation_images(torch.arange(len(source)))
    names = []
    for number, image in enumerate(images):
        across, down = _STRETCHES[number % len(_STRETCHES)]
        array = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array[:, :, 0] if spec.channels == 1 else array)
        size = (round(picture.width * across), round(picture.height * down))
        name = f"{number}.jpg"
        picture.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=_QUALITY)
        names.append(name)
    share = spec.height / image_graph.short_side(spec)
    return FolderSource(folder, names, source.labels, spec.height, spec.channels, "none", share)
