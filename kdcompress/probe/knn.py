"""How far features go without any training: the weighted vote of the nearest labelled images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.metrics.neighbours import NEIGHBOURS, TEMPERATURE, vote
from kdcompress.probe.features import Features

_CHUNK = 512  # queries at a time: bounds the similarities to 512 × N


def knn(
    bank: Features,
    queries_QD: Tensor,
    num_classes: int,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Predicts the class that the k most similar labelled images vote for.

    A vote has the weight exp(cosine / temperature).

    Args:
        bank: Bank of the labelled images; not empty.
        queries_QD: Features of the images to be classified.
        num_classes: K.
        k: Neighbours that vote; a smaller bank votes as a whole.
        temperature: Divides the cosines of a vote.

    Returns:
        `[Q]` int64.

    Source: Z. Wu, Y. Xiong, S. Yu, D. Lin, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018, section 3.4 (weights and temperature, with k = 200); M. Caron et al.,
    "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021 (k = 20).
    """
    bank_ND = F.normalize(bank.values, dim=1)
    k = min(k, len(bank_ND))
    predicted = []
    for chunk_QD in torch.split(queries_QD, _CHUNK):
        cosines_QN = F.normalize(chunk_QD, dim=1) @ bank_ND.T
        nearest_Qk, at_Qk = cosines_QN.topk(k, dim=1)
        predicted.append(vote(nearest_Qk, bank.labels[at_Qk], num_classes, temperature))
    return torch.cat(predicted)
