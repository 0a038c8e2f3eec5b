"""Selection of teacher rows: all that it classifies right, and those of least error among the others."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.methods.losses.logits import kl_rows
from kdcompress.methods.losses.widening import full_precision


def rank_of(scores_RK: Tensor, columns_R: Tensor) -> Tensor:
    """Counts the columns of a row that score higher than the given one; of equals the earlier ones count too.

    Args:
        scores_RK: `[R, K]`.
        columns_R: `[R]` int64, the right column of each row; -1 where nobody knows it.

    Returns:
        `[R]` int64: 0 where the right column scores highest. 0 too where it is unknown, since no error of
        the teacher is known there.
    """
    columns_R1 = columns_R.unsqueeze(1)
    own_R1 = scores_RK.gather(1, columns_R1.clamp(min=0))
    earlier_RK = torch.arange(scores_RK.shape[1], device=scores_RK.device) < columns_R1
    above_RK = (scores_RK > own_R1) | ((scores_RK == own_R1) & earlier_RK)
    return above_RK.sum(1) * (columns_R >= 0)


def top_ratio_correct(ranks_R: Tensor, ratio: float) -> Tensor:
    """Selects all rows of rank 0 and, of the W others, the floor(ratio · W) of least rank.

    Args:
        ranks_R: `[R]` int64, from `rank_of`.
        ratio: In [0, 1]; 1 keeps all.

    Returns:
        `[R]` bool. Of equal ranks the earlier rows are kept.

    Source:
        Xu et al., Knowledge Distillation Meets Self-Supervision, ECCV 2020; the authors' code, whose sort
        leaves open which of equal ranks are kept.
    """
    wrong = (ranks_R > 0).sum()
    # Stays on the device: reading the count would wait for it. In float64, like a Python number.
    count = len(ranks_R) - wrong + (wrong.double() * ratio).floor()
    place_R = torch.empty_like(ranks_R)
    place_R[ranks_R.argsort(stable=True)] = torch.arange(len(ranks_R), device=ranks_R.device)
    return place_R < count


@full_precision
def masked_kl(student_RK: Tensor, teacher_RK: Tensor, kept_R: Tensor, temperature: float) -> Tensor:
    """Computes T² · KL(teacher ‖ student) of softened scores: sum over columns, mean over kept rows.

    Args:
        student_RK: `[R, K]` logits or similarities.
        teacher_RK: `[R, K]`, detached by the caller.
        kept_R: `[R]` bool, from `top_ratio_correct`.
        temperature: T > 0.

    Returns:
        Scalar ≥ 0; 0 when both softmaxes are equal in the kept rows, and when none is kept.
    """
    rows_R = kl_rows(student_RK, teacher_RK, temperature)
    return torch.where(kept_R, rows_R, 0).sum() / kept_R.sum().clamp(min=1)
