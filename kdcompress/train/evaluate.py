"""How well a network does on images it was not trained on, with labels or without."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.networks.activations import LOGITS, POOLED
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher
from kdcompress.tasks import task_of
from kdcompress.tasks.figures import DECIDING, deciding

__all__ = ["DECIDING", "deciding", "predict", "predict_teacher", "score"]


@torch.no_grad()
def predict(module: nn.Module, like: Tapped, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """What a module gives in eval mode, in the precision of the training.

    Args:
        module: The candidate; left in eval mode.
        like: Whose normalisation and precision are used.
        batches: Un-augmented images with their labels.

    Returns:
        `[N, K]` float32 logits, or `[N, D]` features of a backbone, and `[N]` labels, both on the CPU.
    """
    module.eval()
    outputs, labels = [], []
    for batch in batches:
        with like.autocast(), like.around():
            outputs.append(module(like.normalise(batch.images)).float().cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(outputs), torch.cat(labels)


def predict_teacher(
    teacher: Teacher, batches: Iterable[Batch], *, pooled: bool = False
) -> tuple[Tensor, Tensor]:
    """What a teacher gives, as `predict` gives it.

    Args:
        teacher: Frozen.
        batches: Un-augmented images with their labels.
        pooled: Whether its pooled features are meant; those of a backbone always are.
    """
    pooled = pooled or teacher.backbone
    outputs, labels = [], []
    for batch in batches:
        read = teacher(batch.images, POOLED if pooled else LOGITS)
        seen = read.pooled if pooled else read.logits
        assert seen is not None
        outputs.append(seen.cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(outputs), torch.cat(labels)


def score(
    outputs: Tensor, labels_N: Tensor, *, backbone: bool = False, taught: Tensor | None = None
) -> dict[str, Any]:
    """Computes a network's figures, as its task does (`Task.score`).

    Args:
        outputs: `[N, K]` logits, or `[N, D]` features of a backbone.
        labels_N: -1 = none.
        backbone: Whether the outputs are features.
        taught: The teacher's outputs of the same images; None: there is no teacher.
    """
    return task_of(0 if backbone else outputs.shape[1]).score(outputs, labels_N, taught)
