"""`--embed-preprocess resize`: `student.image.onnx` beside a proven `student.onnx`, checked on files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcompress.data.decode import decode_image, open_image, quiet_pillow
from kdcompress.data.input_spec import InputSpec
from kdcompress.data.source import FolderSource, Source
from kdcompress.deploy import image_gates, image_graph
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.derived import DerivedFile, DerivedMaker
from kdcompress.deploy.gate import Gate
from kdcompress.deploy.golden_file import NAME as GOLDEN
from kdcompress.deploy.golden_file import read_golden
from kdcompress.deploy.image_gates import ReferenceImage
from kdcompress.deploy.load import GRAPH

OPTION = "--embed-preprocess resize"
KEY = "export.embed_preprocess: resize"
IMAGES = 64
_QUALITY = 95
_STRETCHES = ((1.0, 1.0), (1.5, 1.5), (1.9, 1.3), (1.2, 2.6), (4.0, 3.0))
"""Widths and heights of test images that are no files, in parts of their own: to have something to resize."""


@dataclass(frozen=True)
class ImageFile(DerivedFile):
    """`student.image.onnx` and its gates.

    Args:
        path: The file.
        gates: All of them.
        shape: (C, H, W) of typical images for it.
    """

    path: Path
    gates: list[Gate]
    shape: tuple[int, int, int]

    @property
    def prefix(self) -> str:
        """See the base."""
        return "image_"


def image_maker(test: Source, option: str = OPTION) -> DerivedMaker:
    """Describes how `student.image.onnx` is made and proved.

    Args:
        test: The test split.
        option: Option or key that requested it, for messages.
    """

    def make(folder: Path, staging: Path, _: dict[str, Any]) -> ImageFile:
        spec = read_config(folder / CONFIG).spec
        image_graph.check_spec(spec, option)
        path = staging / image_graph.NAME
        with _images(test, spec) as (images, source):
            spread = read_golden(folder / GOLDEN).spread
            gates = image_gates.make(folder / GRAPH, path, spec, images, spread, source)
        return ImageFile(path, gates, (spec.channels, *image_gates.typical(images)))

    return DerivedMaker("image", make)


@contextlib.contextmanager
def _images(test: Source, spec: InputSpec) -> Iterator[tuple[list[ReferenceImage], str]]:
    """Yields image files from all over the test split as the evaluation decodes them, and their kind."""
    chosen = torch.linspace(0, len(test) - 1, min(IMAGES, len(test))).round().long()
    some = test.subset(chosen)
    if isinstance(some, FolderSource):
        yield _decoded(some), "image files of the test split"
        return
    with tempfile.TemporaryDirectory(prefix="kdcompress-images-") as folder:
        yield _decoded(_as_files(some, spec, Path(folder))), "JPEG files made of test images"


def _decoded(source: FolderSource) -> list[ReferenceImage]:
    made = source.evaluation_images(torch.arange(len(source)))
    checked = []
    with quiet_pillow():
        for index, expected in enumerate(made):
            with open_image(source.file_list.place(source.root, index)) as stored:
                image = decode_image(stored, source.channels)
            array = np.array(image)
            checked.append(ReferenceImage(array.reshape(*array.shape[:2], source.channels), expected))
    return checked


def _as_files(source: Source, spec: InputSpec, folder: Path) -> FolderSource:
    """Writes images of memory as JPEG files of several sizes and shapes, as of a camera."""
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
    return FolderSource(folder, names, source.labels, spec.height, spec.channels, "none", share, fit=spec.fit)
