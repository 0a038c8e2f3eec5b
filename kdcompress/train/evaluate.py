"""How well a network does on images it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcompress.data.batch import Batch
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher


@torch.no_grad()
def predict(module: nn.Module, like: Tapped, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Logits of a module in eval mode, in the precision of the training.

    Args:
        module: The candidate; left in eval mode.
        like: Whose normalisation and precision are used.
        batches: Un-augmented images with their labels.

    Returns:
        `[N, K]` float32 logits and `[N]` labels, both on the CPU.
    """
    module.eval()
    logits, labels = [], []
    for batch in batches:
        with like.autocast():
            logits.append(module(like.normalise(batch.images)).float().cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(logits), torch.cat(labels)


def predict_teacher(teacher: Teacher, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """A teacher's logits, as `predict` gives them."""
    logits, labels = [], []
    for batch in batches:
        seen = teacher(batch.images).logits
        assert seen is not None
        logits.append(seen.cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(logits), torch.cat(labels)


def score(logits_NK: Tensor, labels_N: Tensor) -> dict[str, Any]:
    """Top-1 (0 to 1) and mean cross-entropy in nats; None if that is not finite, which JSON cannot say."""
    top1 = (logits_NK.argmax(1) == labels_N).double().mean().item()
    loss = F.cross_entropy(logits_NK, labels_N).item()
    return {"top1": top1, "loss": loss if math.isfinite(loss) else None}
