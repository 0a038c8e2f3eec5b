"""Logits on a common scale, so that only their order and proportions are imitated."""

from __future__ import annotations

from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def standardized(logits_BK: Tensor) -> Tensor:
    """Computes z-scores of each row; gradients go through mean and deviation.

    Args:
        logits_BK: `[B, K]`, K ≥ 2.

    Returns:
        `[B, K]` rows of mean 0 and (unbiased) standard deviation 1; 0 for a row of equal logits.

    Source:
        Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024; the 1e-7 and the unbiased
        deviation are the code's.
    """
    centred = logits_BK - logits_BK.mean(1, keepdim=True)
    return centred / (logits_BK.std(1, keepdim=True) + 1e-7)


def maybe_standardized(student_BK: Tensor, teacher_BK: Tensor, *, standardize: bool) -> tuple[Tensor, Tensor]:
    """Returns the logits of both networks, standardized if asked for."""
    if not standardize:
        return student_BK, teacher_BK
    return standardized(student_BK), standardized(teacher_BK)
