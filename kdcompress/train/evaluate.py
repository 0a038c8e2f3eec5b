"""Computes the outputs of candidates and teachers on held-out images, all in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.metrics.split_rows import SplitRows
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
    labels: list[Tensor] = []

    def keep(outputs: Tensor, labels_B: Tensor) -> Tensor:
        labels.append(labels_B)
        return outputs

    outputs = predict_all({"": (module, like)}, batches, keep)
    return outputs[""], torch.cat(labels)


@torch.no_grad()
def predict_all(
    networks: Mapping[str, tuple[nn.Module, Tapped]],
    batches: Iterable[Batch],
    reduce: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Computes the outputs of several networks in one pass over the images, as `predict` does for one.

    Args:
        networks: Each candidate, and a network of its class, by name.
        batches: Un-augmented images with their labels.
        reduce: Takes outputs `[B, ...]` float32 and labels `[B]`, both on the CPU, and returns `[B, ...]`:
            what is kept of them.

    Returns:
        `[N, ...]` by name, of many numbers in a mapped file (`SplitRows`); `[0]` if there is no batch.
    """
    for module, _ in networks.values():
        module.eval()
    rows = {name: SplitRows() for name in networks}
    for batch in batches:
        outputs = {}
        for name, (module, like) in networks.items():
            with like.autocast(), like.forward_context():
                outputs[name] = module(like.normalise(batch.images)).float()
        labels = batch.labels.cpu()  # waits for the device once all networks' passes are under way
        for name, output in outputs.items():
            rows[name].add(reduce(output.cpu(), labels))
    return {name: collected.tensor() for name, collected in rows.items()}


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
    outputs, labels = SplitRows(), SplitRows()
    for batch in batches:
        outputs.add(teacher(batch.images, frozenset({task.activation})).output(task))
        labels.add(batch.labels)
    return outputs.tensor(), labels.tensor()
