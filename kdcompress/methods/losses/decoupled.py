"""Decoupled distillation: how probable the labelled class is, and how the rest divides among the others."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.methods.losses.logits import kl_rows
from kdcompress.methods.losses.widening import full_precision


@full_precision
def tckd(student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float | Tensor) -> Tensor:
    """Computes T² · KL(teacher ‖ student) of (labelled class, all others summed), mean over labelled rows.

    Written in log space: the authors take the logarithm of a softmax, which is -inf once a class saturates.

    Args:
        student_BK: `[B, K]` logits.
        teacher_BK: `[B, K]` logits, detached by the caller.
        labels_B: `[B]` int64; -1 rows contribute nothing.
        temperature: T > 0.

    Returns:
        Scalar ≥ 0; 0 when both give the labelled class the same probability.

    Source:
        Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, equation 7; the factor T² is the code's.
    """
    student_B2 = _target_against_rest(student_BK / temperature, labels_B)
    teacher_B2 = _target_against_rest(teacher_BK / temperature, labels_B)
    return _labelled_mean(temperature**2 * kl_rows(student_B2, teacher_B2, 1.0), labels_B)


@full_precision
def nckd(student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float | Tensor) -> Tensor:
    """Computes T² · KL(teacher ‖ student) of the softmaxes over all classes but the labelled one.

    The labelled column is dropped. The authors push it down by 1000 instead, which leaves teacher
    probabilities of exactly 0 and with them a NaN gradient of a learnt temperature.

    Args:
        student_BK: `[B, K]` logits.
        teacher_BK: `[B, K]` logits, detached by the caller.
        labels_B: `[B]` int64; -1 rows contribute nothing.
        temperature: T > 0.

    Returns:
        Scalar ≥ 0, mean over labelled rows; 0 when the other classes' logits differ by a constant, and always
        0 for two classes.

    Source:
        Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, equation 7; the factor T² is the code's.
    """
    student_BR, teacher_BR = _without_target(student_BK, labels_B), _without_target(teacher_BK, labels_B)
    return _labelled_mean(kl_rows(student_BR, teacher_BR, temperature), labels_B)


def _target_against_rest(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Returns the logits `[B, 2]` of labelled class against all others."""
    target_B1 = logits_BK.gather(1, labels_B.clamp(min=0).unsqueeze(1))
    return torch.cat([target_B1, _without_target(logits_BK, labels_B).logsumexp(1, keepdim=True)], dim=1)


def _without_target(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Returns `[B, K - 1]`, by indices: a mask would make the device report its count."""
    columns = torch.arange(logits_BK.shape[1] - 1, device=logits_BK.device).unsqueeze(0)
    return logits_BK.gather(1, columns + (columns >= labels_B.clamp(min=0).unsqueeze(1)))


def _labelled_mean(values_B: Tensor, labels_B: Tensor) -> Tensor:
    labelled = labels_B >= 0
    return (values_B * labelled).sum() / labelled.sum().clamp(min=1)
