"""Computes the outputs of candidates and teachers on held-out images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher
from kdcompress.tasks import Task


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
    teacher: Teacher, batches: Iterable[Batch], task: Task | None = None
) -> tuple[Tensor, Tensor]:
    """Computes a teacher's outputs, in the form of `predict`.

    Args:
        teacher: The frozen teacher.
        batches: Un-augmented images with their labels.
        task: The student's: for one without classes, the teacher's pooled features are read; None: the
            teacher's own.
    """
    if task is None or not teacher.task.has_classes:
        task = teacher.task
    outputs, labels = [], []
    for batch in batches:
        outputs.append(teacher(batch.images, frozenset({task.activation})).output(task).cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(outputs), torch.cat(labels)
