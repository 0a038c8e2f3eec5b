"""Parts of a contrastive loss against a bank of remembered embeddings.

Shape letters: N images of the training set, E width of an embedding, M = 1 + K columns: a positive, then K
negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision

GUARD = 1e-7
"""Added to the denominators; the authors' value."""


@full_precision
def embedding(features_BD: Tensor, weight_ED: Tensor, bias_E: Tensor) -> Tensor:
    """Applies a linear map and divides each row by its L2 norm; returns `[B, E]`."""
    return F.normalize(F.linear(features_BD, weight_ED, bias_E), dim=1)


@full_precision
def bank_scores(embedding_BE: Tensor, bank_NE: Tensor, columns_BM: Tensor, temperature: float) -> Tensor:
    """Computes exp(⟨embedding, stored embedding⟩ / temperature), not normalised.

    Args:
        embedding_BE: `[B, E]` unit rows; gradients reach it.
        bank_NE: `[N, E]` unit rows, a constant.
        columns_BM: `[B, M]` int64, which rows of the bank each embedding meets.
        temperature: > 0; at 0.07 a score is at most 1.6e6.

    Returns:
        `[B, M]`.
    """
    return (bank_products(embedding_BE, bank_NE, columns_BM) / temperature).exp()


@full_precision
def bank_products(embedding_BE: Tensor, bank_NE: Tensor, columns_BM: Tensor) -> Tensor:
    """Computes the inner products `[B, M]` of embeddings with chosen rows of a bank.

    Args:
        embedding_BE: `[B, E]`; gradients reach it.
        bank_NE: `[N, E]`, a constant.
        columns_BM: `[B, M]` int64, which rows of the bank each embedding meets.
    """
    rows, width = bank_NE.shape
    if rows <= columns_BM.shape[1] * width:
        # All products and then the wanted ones: B·N numbers where reading the rows first takes B·M·E
        # (CIFAR-100 with 16,384 negatives of width 128: 3.2 million against 134 million).
        return (embedding_BE @ bank_NE.T).gather(1, columns_BM)
    return row_products(embedding_BE, bank_NE[columns_BM])


@full_precision
def row_products(embedding_BE: Tensor, rows_BME: Tensor) -> Tensor:
    """Computes the inner products `[B, M]` of each embedding with M rows of its own."""
    return torch.einsum("be,bme->bm", embedding_BE, rows_BME)


@full_precision
def noise_contrastive(scores_BM: Tensor, size: int) -> Tensor:
    """Computes the noise-contrastive loss of one positive and K negatives: sum over columns, mean over rows.

    With c = K/N, P the positive's score and P' a negative's:
    −log(P / (P + c + 1e-7)) − Σ log(c / (P' + c + 1e-7)).

    Args:
        scores_BM: `[B, 1 + K]` normalised scores, the positive in column 0.
        size: N, the number of images that negatives are drawn from.

    Returns:
        Scalar > 0; about K · 1e-7 / c where the positives' scores are huge and the negatives' vanish.

    Source:
        Tian, Krishnan & Isola, Contrastive Representation Distillation, ICLR 2020; guard and reduction are
        those of the authors' code.
    """
    noise = (scores_BM.shape[1] - 1) / size
    positive_B, negatives_BK = scores_BM[:, 0], scores_BM[:, 1:]
    right_B = (positive_B / (positive_B + noise + GUARD)).log()
    rejected_BK = (noise / (negatives_BK + noise + GUARD)).log()
    return -(right_B + rejected_BK.sum(1)).mean()
