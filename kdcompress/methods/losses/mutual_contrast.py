"""Contrast of embeddings by class, and imitation of another network's similarities.

Shape letters: A anchors (images), N columns that each anchor is compared with, E width of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompress.methods.losses.logits import kl_rows
from kdcompress.methods.losses.widening import full_precision


@dataclass(frozen=True, slots=True)
class ContrastColumns:
    """Positives of each anchor, and the columns of its denominator.

    Args:
        positive_AN: 1/|P| at the |P| positives of an anchor, 0 elsewhere; `[1, N]` if all anchors have the
            same columns.
        anchor_A: Share of each anchor in the mean over anchors; 0 for an anchor without a positive.
        compared_AN: True in the columns of the denominator; None: all.
    """

    positive_AN: Tensor
    anchor_A: Tensor
    compared_AN: Tensor | None = None


def batch_columns(labels_B: Tensor, dtype: torch.dtype = torch.float32) -> ContrastColumns:
    """Finds the positives among the images of a batch: those of the anchor's class, not the anchor itself.

    Args:
        labels_B: `[B]` int64; a row of -1 has no positives.
        dtype: Number format of the embeddings.

    Returns:
        Denominators are over all images but the anchor.
    """
    others = ~torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    same = (labels_B == labels_B.unsqueeze(1)) & others & (labels_B >= 0)
    counts_B1 = same.sum(1, keepdim=True)
    anchors = (counts_B1 > 0).squeeze(1).to(dtype)
    return ContrastColumns(
        same.to(dtype) / counts_B1.clamp(min=1), anchors / anchors.sum().clamp(min=1), others
    )


def bank_columns(anchors: int, columns: int, positives: int, like: Tensor) -> ContrastColumns:
    """Describes columns of a bank, the first ones positive; every anchor counts.

    Args:
        anchors: A.
        columns: N.
        positives: Number of columns that are positive.
        like: A tensor of the embeddings' number format and device.
    """
    place_N = torch.arange(columns, device=like.device)
    positive_N = (place_N < positives).to(like.dtype) / positives
    return ContrastColumns(positive_N.unsqueeze(0), like.new_full((anchors,), 1 / anchors))


@full_precision
def class_contrast(
    similarities_AN: Tensor, columns: ContrastColumns, weights_A: Tensor | None = None
) -> Tensor:
    """Computes the contrastive loss: mean over an anchor's positives of -log softmax, mean over anchors.

    Args:
        similarities_AN: `[A, N]`, divided by the temperature.
        columns: Positives and denominators.
        weights_A: `[A]` factor on each anchor's loss; None: 1.

    Returns:
        Scalar ≥ 0; 0 where no anchor has a positive.

    Source:
        Yang et al., Mutual Contrastive Learning, AAAI 2022. The authors' code divides by a batch's images and
        returns NaN if a class stands in it once; here such an anchor is left out of the mean.
    """
    compared_AN = similarities_AN
    if columns.compared_AN is not None:
        compared_AN = similarities_AN.masked_fill(~columns.compared_AN, float("-inf"))
    # The shares of an anchor's positives add up to 1, so its denominator counts once.
    surprise_A = compared_AN.logsumexp(1) - (similarities_AN * columns.positive_AN).sum(1)
    share_A = columns.anchor_A if weights_A is None else columns.anchor_A * weights_A
    return (surprise_A * share_A).sum()


@full_precision
def similarity_imitation(
    learner_AN: Tensor, target_AN: Tensor, temperature: float, weights_A: Tensor | None = None
) -> Tensor:
    """Computes T² · KL between softened similarities to all columns, mean over anchors.

    Args:
        learner_AN: `[A, N]`.
        target_AN: `[A, N]`; a constant here.
        temperature: T, on top of the temperature that the similarities were divided by.
        weights_A: `[A]` factor on each anchor's divergence; None: 1.

    Returns:
        Scalar ≥ 0; 0 when the softmaxes are equal.
    """
    rows_A = kl_rows(learner_AN, target_AN.detach(), temperature)
    return (rows_A if weights_A is None else rows_A * weights_A).mean()


@full_precision
def similarities(anchors_AE: Tensor, compared_NE: Tensor, temperature: float) -> Tensor:
    """Computes inner products of unit rows over a temperature: `[A, N]`."""
    return anchors_AE @ compared_NE.T / temperature


@full_precision
def match(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    """Computes sigmoid(inner product) of each pair of unit rows: `[B]`, in 0.27 … 0.73.

    Source:
        Yang et al., Online Knowledge Distillation via Mutual Contrastive Learning for Visual Recognition,
        TPAMI 2023; the authors' code.
    """
    return (one_BE * other_BE).sum(1).sigmoid()


@full_precision
def mixed_logits(scores_BS: Tensor, logits_BSK: Tensor) -> Tensor:
    """Mixes logits `[B, S, K]` of S sources to `[B, K]`, with softmax(scores) of each row as weights."""
    return (scores_BS.softmax(1).unsqueeze(2) * logits_BSK).sum(1)
