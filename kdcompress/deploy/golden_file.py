"""`golden.npz`: a few real images and what the network makes of them, for whoever runs a file elsewhere.

An acceptance test on another device, runtime or version needs no data set and no PyTorch: feed `images`,
compare with `logits` (of a backbone: `embedding`); with a float32 file nothing is further off than
`tolerance`.

| array | holds |
|---|---|
| `schema` | `kdcompress.golden/1` |
| `images` | `[N, C, H, W]` uint8, to be divided by 255 in float32, or float32 as they are; N ≤ 16 |
| `logits` or `embedding` | `[N, K]` float32, what the plain network gives in PyTorch |
| `labels` | `[N]` int64, the true classes; -1 where they are not known |
| `spread` | float64, S: how much the outputs differ between images of the test split |
| `tolerance` | float64, the largest error of an output: S times the limit of the parity gates |

No name of a file or a class is in it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.atomic import write_bytes
from kdcompress.data.npz import check_declared_sizes
from kdcompress.deploy.accuracy import Batches, spread
from kdcompress.documents import read_bytes
from kdcompress.errors import UserError
from kdcompress.tasks import CLASSIFICATION, TASKS, Task

NAME = "golden.npz"
SCHEMA = "kdcompress.golden/1"
IMAGES = 16


@dataclass(frozen=True, slots=True)
class Golden:
    """Images and what the network makes of them.

    Args:
        images: `[N, C, H, W]` float32 in [0, 1].
        outputs: `[N, K]` float32.
        labels: `[N]` int64; -1 = none.
        spread: S, of the outputs between images.
        tolerance: The largest error of an output of a float32 file.
        task: Kind of the outputs.
    """

    images: NDArray[np.float32]
    outputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    spread: float
    tolerance: float
    task: Task

    def error(self, run: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> float:
        """Computes the largest error of a file's outputs of the images; infinite for another shape."""
        got = run(self.images)
        if got.shape != self.outputs.shape:
            return math.inf
        return float(np.abs(got.astype(np.float64) - self.outputs).max())


class Picker:
    """Picks images spread evenly over a split while it is read for something else.

    Every image is taken until there are twice too many; then every second one is put back, and from there on
    only every second is taken. So a split in the order of its classes gives images of many classes, though
    nobody knew its length.

    Args:
        count: Count of images, or all that the split has.
    """

    def __init__(self, count: int = IMAGES) -> None:
        self.count = count
        self._taken: list[tuple[int, Tensor, int]] = []
        self._every = 1

    def through(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the same batches, and collects images of them."""
        position = 0
        for images, labels in batches:
            for image, label in zip(images, labels.tolist(), strict=True):
                if position % self._every == 0:
                    # A copy: a row alone would keep its whole batch in memory.
                    self._taken.append((position, image.detach().to("cpu", torch.float32, copy=True), label))
                    if len(self._taken) == 2 * self.count:
                        del self._taken[1::2]
                        self._every *= 2
                position += 1
            yield images, labels

    def picked(self) -> tuple[list[int], Tensor, Tensor]:
        """Returns (positions in the split, images `[N, C, H, W]` as they came, labels `[N]`); N ≥ 1."""
        last = len(self._taken) - 1
        count = min(self.count, last + 1)
        steps = [round(i * last / max(1, count - 1)) for i in range(count)]
        positions, images, labels = zip(*(self._taken[step] for step in steps), strict=True)
        return list(positions), torch.stack(images), torch.tensor(labels)


def write_golden(path: Path, picker: Picker, outputs_NK: Tensor, *, limit: float, task: Task) -> None:
    """Writes the images that were picked; equal images and outputs give equal bytes.

    Args:
        path: Destination.
        picker: Through which the split has gone.
        outputs_NK: Of the plain network, on the whole split.
        limit: Limit of an output's error, in parts of the spread S.
        task: Kind of the outputs.

    Raises:
        WorldError: The disk is full or fails.
    """
    positions, images, labels = picker.picked()
    signal = spread(outputs_NK)
    arrays: dict[str, Any] = {
        "schema": np.array(SCHEMA),
        "images": _compact(images).numpy(),
        task.output: outputs_NK[positions].to(torch.float32).numpy(),
        "labels": labels.numpy(),
        "spread": np.array(signal),
        "tolerance": np.array(limit * signal),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


_MOST_BYTES = 1 << 29
"""Of all arrays, unpacked."""
_MOST_VALUES = 1 << 27
"""Of an array: 16 images of 1,672 pixels by as many."""
_MOST_ARRAYS = 16


def read_golden(path: Path) -> Golden:
    """Reads what `write_golden` wrote; nothing in it is executed.

    Raises:
        UserError: It is absent, damaged, or of a newer version.
    """
    content = read_bytes(path, _MOST_BYTES)
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError(f"{path}: is damaged, or no file of golden images")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_ARRAYS or sum(entry.file_size for entry in entries) > _MOST_BYTES:
                raise ValueError("its arrays are too many or too large")
            check_declared_sizes(archive, most_values=_MOST_VALUES)
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except Exception as error:  # numpy's reader raises whatever the bytes lead it to
        raise UserError(f"{path}: is damaged, or no file of golden images ({error})") from None
    schema = str(arrays.get("schema"))
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema!r}, this version of kdcompress reads {SCHEMA!r}")
    task = next((task for task in TASKS if task.output in arrays), CLASSIFICATION)
    try:
        _check_arrays(arrays, task)
        images = arrays["images"]
        return Golden(
            images=_as_floats(images),
            outputs=arrays[task.output],
            labels=arrays["labels"],
            spread=float(arrays["spread"]),
            tolerance=float(arrays["tolerance"]),
            task=task,
        )
    except KeyError as error:
        raise UserError(f"{path}: lacks the array {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged, or no file of golden images ({error})") from None


def _as_floats(images: NDArray[Any]) -> NDArray[np.float32]:
    """Returns images in [0, 1]."""
    if images.dtype != np.uint8:
        return images
    floats = images.astype(np.float32)
    floats /= np.float32(255)  # in place: a second copy would take as much again
    return floats


def _check_arrays(arrays: dict[str, NDArray[Any]], task: Task) -> None:
    """Checks the shapes and kinds of the arrays.

    Raises:
        ValueError: One is of another shape or kind than was written.
        KeyError: One is absent.
    """
    images, outputs, labels = arrays["images"], arrays[task.output], arrays["labels"]
    if images.ndim != 4 or images.dtype not in (np.uint8, np.float32) or not images.size:
        raise ValueError(f"images of {images.dtype} {list(images.shape)}")
    if outputs.ndim != 2 or outputs.dtype != np.float32 or not np.isfinite(outputs).all():
        raise ValueError(f"{task.outputs} of {outputs.dtype} {list(outputs.shape)}, or not finite")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels of {labels.dtype} {list(labels.shape)}")
    if not len(images) == len(outputs) == len(labels):
        raise ValueError("arrays of different lengths")
    if not np.isfinite(images).all():
        raise ValueError("images that are not finite")
    for name in ("spread", "tolerance"):
        value = arrays[name]
        if value.ndim != 0 or value.dtype.kind != "f" or not 0 <= value < np.inf:
            raise ValueError(f"{name}: no finite number")


def _compact(images: Tensor) -> Tensor:
    """Converts images to uint8 if each value is a whole 255th; else returns them as they are."""
    whole = (images * 255).round().clamp(0, 255).to(torch.uint8)
    return whole if torch.equal(whole.to(torch.float32) / 255, images) else images
