"""Targets for the classes that are not the label, by their ranks, and the loss against them.

Shape letter: M = K - 1 classes, in their order, without the label's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.logits import kl_rows
from kdcompress.methods.losses.widening import full_precision


@torch.no_grad()
@full_precision
def dense_votes(map_BDHW: Tensor, weight_KD: Tensor, bias_K: Tensor | None, upsample: int = 1) -> Tensor:
    """Counts for each class the cells of a map that the classifier gives to it.

    Args:
        map_BDHW: `[B, D, H, W]`, the map whose average the classifier reads.
        weight_KD: `[K, D]` of the classifier.
        bias_K: `[K]`, or None.
        upsample: The map is enlarged so many times (bilinear) before its cells vote.

    Returns:
        `[B, K]`; a row sums to the number of cells.
    """
    if upsample > 1:
        map_BDHW = F.interpolate(map_BDHW, scale_factor=upsample, mode="bilinear", align_corners=False)
    scores_BPK = F.linear(map_BDHW.flatten(2).transpose(1, 2), weight_KD, bias_K)
    votes_BP = scores_BPK.argmax(2)
    return torch.zeros_like(scores_BPK[:, 0]).scatter_add(
        1, votes_BP, torch.ones_like(map_BDHW[:, 0].flatten(1))
    )


@torch.no_grad()
def zipf_targets(scores_BK: Tensor, labels_B: Tensor, power: float = 1.0) -> Tensor:
    """Computes rank^-power for every class but the label, divided by its sum.

    A rank is 1 + the number of classes with a higher score, the label's class included, so that equal scores
    share the better rank.

    Args:
        scores_BK: `[B, K]`; higher is better.
        labels_B: `[B]` int64.
        power: 0 gives equal weights.

    Returns:
        `[B, M]`.

    Source:
        Liang et al., Efficient One Pass Self-distillation with Zipf's Label Smoothing, ECCV 2022; the
        authors' code.
    """
    ordered_BK = scores_BK.sort(dim=1).values
    classes = scores_BK.shape[1]
    not_higher_BK = torch.searchsorted(ordered_BK, scores_BK.contiguous(), right=True)
    ranks_BK = (classes - not_higher_BK + 1).to(scores_BK.dtype)
    weights_BM = ranks_BK.gather(1, other_classes(labels_B, classes)) ** -power
    return weights_BM / weights_BM.sum(1, keepdim=True)


@full_precision
def other_classes_kl(
    logits_BK: Tensor, target_BM: Tensor, labels_B: Tensor, *, only_correct: bool = False
) -> Tensor:
    """Computes KL(target ‖ softmax over the classes that are not the label), mean over rows.

    Args:
        logits_BK: `[B, K]`; those of the labels get no gradient.
        target_BM: `[B, M]` probabilities.
        labels_B: `[B]` int64.
        only_correct: True: mean over the rows whose highest logit is the label's; 0 if there are none.

    Returns:
        Scalar ≥ 0.
    """
    others_BM = logits_BK.gather(1, other_classes(labels_B, logits_BK.shape[1]))
    rows_B = kl_rows(others_BM, target_BM.log(), 1.0)
    if not only_correct:
        return rows_B.mean()
    correct_B = (logits_BK.argmax(1) == labels_B).to(rows_B.dtype)
    return (rows_B * correct_B).sum() / correct_B.sum().clamp(min=1)


def other_classes(labels_B: Tensor, classes: int) -> Tensor:
    """Returns the classes other than each label, `[B, M]` int64 in ascending order."""
    first_M = torch.arange(classes - 1, device=labels_B.device)
    return first_M + (first_M >= labels_B.clamp(min=0).unsqueeze(1))
