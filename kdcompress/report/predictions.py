"""Stores the predictions of a run's exported file on the test split, by which runs are compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kdcompress.atomic import write_bytes
from kdcompress.errors import RunFolderError, UserError
from kdcompress.native_paths import utf8_path

NAME = "test_predictions.safetensors"
"""In the folder of checkpoints; runs are compared by it image by image."""
_SUM = "sha256"


@dataclass(frozen=True, slots=True)
class StoredPredictions:
    """Predicted and true classes of the test images.

    Args:
        classes: `[N]` int64.
        labels: `[N]` int64; -1 means no label.
    """

    classes: Tensor
    labels: Tensor

    def labelled(self) -> StoredPredictions:
        """Returns those of the images that have a label."""
        known = self.labels >= 0
        return StoredPredictions(self.classes[known], self.labels[known])

    def right(self) -> Tensor:
        """Returns `[M]` bool: which of the labelled images are classified correctly."""
        known = self.labelled()
        return known.classes == known.labels


def write_predictions(checkpoints: Path, classes: Tensor, labels: Tensor) -> None:
    """Writes the predicted and the true classes.

    Args:
        checkpoints: Folder of the run's checkpoints.
        classes: `[N]` int64.
        labels: `[N]` int64; -1 means no label.

    Raises:
        WorldError: The disk is full or fails.
    """
    tensors = {"classes": classes.contiguous(), "labels": labels.contiguous()}
    write_bytes(checkpoints / NAME, safetensors.torch.save(tensors, {_SUM: _sum_of(tensors)}))


def read_predictions(checkpoints: Path) -> StoredPredictions | None:
    """Reads the predictions; None: the run stored none.

    Args:
        checkpoints: Folder of the run's checkpoints.

    Raises:
        UserError: The file is damaged.
    """
    path = checkpoints / NAME
    if not path.exists():
        return None
    if not path.is_file():
        raise UserError(f"{path}: cannot be read: it is no regular file")
    try:
        with utf8_path(path) as place, safetensors.safe_open(place, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: is damaged: {reason}") from None
    for name in ("classes", "labels"):
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex():
            raise UserError(f"{path}: is damaged: its {name} are no list of class numbers")
    if len(tensors["classes"]) != len(tensors["labels"]):
        raise UserError(f"{path}: is damaged: its labels and classes are not of the same images")
    own_sum = _sum_of(tensors)
    if (metadata or {}).get(_SUM, own_sum) != own_sum:  # runs of before there were sums have none
        raise UserError(f"{path}: is damaged: its tensors are not those that were written")
    return StoredPredictions(tensors["classes"].to(torch.int64), tensors["labels"].to(torch.int64))


def compared_predictions(checkpoints: Path, like: StoredPredictions | None = None) -> StoredPredictions:
    """Reads the predictions that a run is compared with its baseline by.

    Args:
        checkpoints: Folder of the checkpoints of either.
        like: Predictions of the same images; None: not known.

    Raises:
        RunFolderError: The file is gone or damaged, or of other images.
    """
    try:
        stored = read_predictions(checkpoints)
    except UserError as error:
        raise RunFolderError(f"{error}; delete {checkpoints.parent} and go on with --resume") from None
    problem = None
    if stored is None:
        problem = "is gone"
    elif like is not None and not stored.labels.equal(like.labels):
        problem = "is of other images"
    if stored is None or problem is not None:
        raise RunFolderError(
            f"{checkpoints / NAME}: {problem}; delete {checkpoints.parent} and go on with --resume"
        )
    return stored


def _sum_of(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()
