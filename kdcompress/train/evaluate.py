"""How well a network does on images it was not trained on, with labels or without."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.networks.activations import LOGITS, POOLED
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher
from kdcompress.tasks import task_of
from kdcompress.tasks.figures import DECIDING, deciding

__all__ = ["DECIDING", "deciding", "mean_prediction", "predict", "predict_teacher", "score"]


@torch.no_grad()
def predict(module: nn.Module, like: Tapped, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Computes a candidate's outputs in eval mode, in the precision of the training.

    Args:
        module: The candidate; left in eval mode.
        like: A network of its class; its normalisation and precision are used.
        batches: Un-augmented images with their labels.

    Returns:
        `[N, K]` float32 logits, or `[N, D]` features of a backbone, and `[N]` labels, both on the CPU.
    """
    module.eval()
    outputs, labels = [], []
    for batch in batches:
        with like.autocast(), like.forward_context():
            outputs.append(module(like.normalise(batch.images)).float().cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(outputs), torch.cat(labels)


def predict_teacher(
    teacher: Teacher, batches: Iterable[Batch], *, pooled: bool = False
) -> tuple[Tensor, Tensor]:
    """Computes a teacher's outputs, in the form of `predict`.

    Args:
        teacher: Frozen.
        batches: Un-augmented images with their labels.
        pooled: True reads its pooled features; those of a backbone are always read.
    """
    pooled = pooled or teacher.backbone
    outputs, labels = [], []
    for batch in batches:
        read = teacher(batch.images, POOLED if pooled else LOGITS)
        output = read.pooled if pooled else read.logits
        assert output is not None
        outputs.append(output.cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(outputs), torch.cat(labels)


def mean_prediction(outputs: Sequence[Tensor]) -> Tensor:
    """Averages the predictions of an ensemble's members.

    Args:
        outputs: `[N, K]` logits of each member.

    Returns:
        `[N, K]` log of the mean of the members' softmax probabilities, which are logits again: their softmax
        is that mean.
    """
    stacked = torch.stack([logits.log_softmax(1) for logits in outputs])
    return stacked.logsumexp(0) - math.log(len(outputs))


def score(
    outputs: Tensor, labels_N: Tensor, *, backbone: bool = False, teacher_outputs: Tensor | None = None
) -> dict[str, Any]:
    """Computes a network's figures, as its task does (`Task.score`).

    Args:
        outputs: `[N, K]` logits, or `[N, D]` features of a backbone.
        labels_N: -1 = none.
        backbone: Whether the outputs are features.
        teacher_outputs: The teacher's outputs of the same images; None: there is no teacher.
    """
    return task_of(0 if backbone else outputs.shape[1]).score(outputs, labels_N, teacher_outputs)
