"""Similarities of embeddings to a queue of earlier ones.

Shape letters: D width of an embedding, Q embeddings in the queue, M = 1 + Q columns: the teacher's
embedding of the image itself, then the queue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def unit_rows(rows_BD: Tensor) -> Tensor:
    """Divides the rows `[B, D]` by their L2 norms; a row of zeros stays zero."""
    return F.normalize(rows_BD, dim=1)


@full_precision
def queue_logits(embedding_BD: Tensor, own_BD: Tensor, queue_DQ: Tensor, temperature: float) -> Tensor:
    """Computes inner products with the image's own target and with the queue, over the temperature.

    Never in half precision: at a temperature of 1e-4 its rounding alone is ±10 in a logit.

    Args:
        embedding_BD: `[B, D]` unit rows; gradients reach it.
        own_BD: `[B, D]` unit rows, the teacher's embeddings of the same images; for the teacher itself
            `embedding_BD` again, so that its first column is 1 / temperature.
        queue_DQ: `[D, Q]` unit columns, a constant.
        temperature: > 0.

    Returns:
        `[B, 1 + Q]`, each within ±1 / temperature.

    Source:
        Fang et al., SEED, ICLR 2021, equations 2-4; the authors' code.
    """
    own_B1 = (embedding_BD * own_BD).sum(1, keepdim=True)
    return torch.cat([own_B1, embedding_BD @ queue_DQ], 1) / temperature


@full_precision
def own_column_cross_entropy(logits_BM: Tensor) -> Tensor:
    """Computes the cross-entropy with column 0 as the class of every row (InfoNCE), mean over rows.

    Args:
        logits_BM: `[B, 1 + Q]`, from `queue_logits`.

    Returns:
        Scalar ≥ 0; ln(1 + Q) where all columns are equal.

    Source:
        He et al., Momentum Contrast, CVPR 2020, equation 1; the authors' code.
    """
    return -logits_BM.log_softmax(1)[:, 0].mean()
