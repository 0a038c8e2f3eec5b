"""How well a network does on images it was not trained on, with labels or without."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.metrics.neighbours import knn_top1, overlap
from kdcompress.networks.activations import LOGITS, POOLED
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher

DECIDING = ("top1", "knn_top1", "agreement")
"""The figures that a choice is made by: the first of them that a score has. More is better."""


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
    """The figures of one network; which of them a choice is made by, `deciding` says.

    Args:
        outputs: `[N, K]` logits, or `[N, D]` features of a backbone.
        labels_N: -1 = none; such images count only where none has a label.
        backbone: Whether the outputs are features.
        teacher_outputs: The teacher's outputs on the same images in the same order, `[N, K]` logits or
            `[N, D']` pooled features; None: there is no teacher, or it is not needed.

    Returns:
        Of a classifier `top1` (0 to 1) and `loss` (mean cross-entropy in nats) on the labelled images; where
        there are none, `agreement` (share of images that get the teacher's class) and `kl` (mean divergence
        of its softmax from the teacher's, in nats). Of a backbone `knn_top1`, where there are labels, and
        `agreement` (`overlap` with the teacher's embedding), where there is a teacher. A loss that is not
        finite is None, which JSON can say. Empty where neither labels nor a teacher tell anything.
    """
    if backbone:
        figures = {"knn_top1": knn_top1(outputs, labels_N)}
        figures["agreement"] = None if teacher_outputs is None else overlap(outputs, teacher_outputs)
        return {name: figure for name, figure in figures.items() if figure is not None}
    known = labels_N >= 0
    if bool(known.any()):
        logits_NK, labels_N = outputs[known], labels_N[known]
        top1 = (logits_NK.argmax(1) == labels_N).double().mean().item()
        return {"top1": top1, "loss": _finite(F.cross_entropy(logits_NK, labels_N))}
    if teacher_outputs is None:
        return {}
    agreement = (outputs.argmax(1) == teacher_outputs.argmax(1)).double().mean().item()
    divergence = F.kl_div(
        outputs.log_softmax(1), teacher_outputs.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return {"agreement": agreement, "kl": _finite(divergence)}


def deciding(figures: dict[str, Any]) -> str | None:
    """The name of the figure that a choice is made by; None if the score has none."""
    return next((name for name in DECIDING if name in figures), None)


def _finite(figure: Tensor) -> float | None:
    value = figure.item()
    return value if math.isfinite(value) else None
