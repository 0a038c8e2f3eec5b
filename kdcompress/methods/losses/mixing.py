"""Weighted means of several predictions, and the weights: a gate's, or attention between features.

Beside the usual shape letters: M predictors.
"""

from __future__ import annotations

from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def mix_logits(weights_BAM: Tensor, logits_BMK: Tensor) -> Tensor:
    """Computes A weighted sums of M predictors' logits, each row with weights of its own.

    Args:
        weights_BAM: `[B, A, M]`.
        logits_BMK: `[B, M, K]`.

    Returns:
        `[B, A, K]`.
    """
    return weights_BAM @ logits_BMK


@full_precision
def gate_weights(scores_BM: Tensor) -> Tensor:
    """Computes the weights `[B, M]` of M branches from a gate's scores: ReLU, then softmax.

    Source:
        Lan, Zhu & Gong, Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018; authors' code.
    """
    return scores_BM.relu().softmax(1)


@full_precision
def peer_attention(queries_BMD: Tensor, keys_BMD: Tensor) -> Tensor:
    """Computes the softmax over peers c of the products (query of a) · (key of c), a itself included.

    The products are not scaled by 1 / √D.

    Args:
        queries_BMD: `[B, M, D]`.
        keys_BMD: `[B, M, D]`.

    Returns:
        `[B, M, M]`; each row adds up to 1.

    Source:
        Chen et al., Online Knowledge Distillation with Diverse Peers, AAAI 2020; the authors' code.
    """
    return (queries_BMD @ keys_BMD.transpose(1, 2)).softmax(2)
