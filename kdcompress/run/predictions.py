"""Stores the predictions of a run's exported file on the test split, which a baseline is compared by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from kdcompress.atomic import write_bytes
from kdcompress.errors import RunFolderError

NAME = "test_predictions.safetensors"
"""In the folder of checkpoints; runs are compared by it image by image."""
_SUM = "sha256"


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


def right_predictions(checkpoints: Path) -> tuple[Tensor, Tensor]:
    """Reads which labelled test images a run's exported file classified correctly, and their labels.

    Args:
        checkpoints: Folder of the run's checkpoints.

    Returns:
        `[N]` bool, and `[N]` int64.

    Raises:
        RunFolderError: The file is gone or damaged.
    """
    path = checkpoints / NAME
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        classes, labels = tensors["classes"], tensors["labels"]
        # Runs of before there were sums have none.
        if classes.shape != labels.shape or (metadata or {}).get(_SUM, _sum_of(tensors)) != _sum_of(tensors):
            raise ValueError("its tensors are not those that were written")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunFolderError(
            f"{path}: is gone or damaged ({reason}); delete {checkpoints.parent} and go on with --resume"
        ) from None
    known = labels >= 0
    return (classes == labels)[known], labels[known]


def check_predictions(checkpoints: Path) -> None:
    """Checks the stored predictions, if there are any, before a training is compared by them.

    Raises:
        RunFolderError: They are damaged.
    """
    if (checkpoints / NAME).exists():
        right_predictions(checkpoints)


def _sum_of(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()
