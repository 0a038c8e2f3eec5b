"""Losses between logits and labels, and between logits and logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def cross_entropy(
    logits_BK: Tensor, labels_B: Tensor, class_weights_K: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Computes the cross-entropy with the labels, mean over the labelled rows.

    Args:
        logits_BK: `[B, K]`.
        labels_B: `[B]` int64; -1 rows contribute nothing.
        class_weights_K: `[K]`, of mean 1 over the training set: the mean here is over rows, not over weights,
            so that it splits over batches and processes.
        label_smoothing: In [0, 1): the share of the target that goes to all classes evenly.

    Returns:
        Scalar ≥ 0; 0 if no row has a label.
    """
    per_row = F.cross_entropy(
        logits_BK, labels_B, class_weights_K, reduction="none", ignore_index=-1,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return per_row.sum() / (labels_B >= 0).sum().clamp(min=1)


@full_precision
def kl(student_BK: Tensor, teacher_BK: Tensor, temperature: float | Tensor, *, shift: float = 0.0) -> Tensor:
    """Computes T² · KL(teacher ‖ student) of softened logits: sum over classes, mean over rows.

    Args:
        student_BK: `[B, K]` logits.
        teacher_BK: `[B, K]` logits; the caller detaches them where the target is a constant.
        temperature: T > 0, one number or `[B, 1]`.
        shift: Added to the target probabilities, which are not renormalised; the ONE family of repositories
            uses 1e-7.

    Returns:
        Scalar ≥ 0; 0 when both softmaxes are equal (and `shift` is 0).

    Source:
        Hinton, Vinyals & Dean 2015, section 2; the reduction is that of the RepDistiller code.
    """
    return kl_rows(student_BK, teacher_BK, temperature, shift=shift).mean()


def kl_rows(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float | Tensor, *, shift: float = 0.0
) -> Tensor:
    """Computes `kl` before its mean: `[B]`, each row with its factor T²."""
    log_student = F.log_softmax(student_BK / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_BK / temperature, dim=1)
    target = log_teacher.exp()
    if shift:
        target = target + shift
        log_teacher = target.log()
    return (temperature**2 * (target * (log_teacher - log_student)).sum(1, keepdim=True)).squeeze(1)


@full_precision
def guarded_kl(student_BK: Tensor, teacher_BK: Tensor, guard: float) -> Tensor:
    """Computes KL(teacher ‖ student) at T = 1 with the guards of the DML authors' TensorFlow code.

    Args:
        student_BK: `[B, K]` logits.
        teacher_BK: `[B, K]` logits.
        guard: Added to the student's probabilities and to the ratio; 1e-8 in the authors' code.

    Returns:
        Scalar: mean over rows of the sum over classes of q · log(guard + q / (p + guard)).

    Source:
        Zhang et al., Deep Mutual Learning, CVPR 2018; the authors' code.
    """
    student, teacher = student_BK.softmax(1), teacher_BK.softmax(1)
    return (teacher * (guard + teacher / (student + guard)).log()).sum(1).mean()


@full_precision
def soft_cross_entropy(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Computes the cross-entropy of softened distributions, mean over rows, without a factor of T².

    Its gradient is that of `kl` divided by T²; its value is larger by the target's entropy.

    Args:
        student_BK: `[B, K]` logits.
        teacher_BK: `[B, K]` logits, detached by the caller.
        temperature: T > 0.

    Source:
        Zhang et al., Self-Distillation (TPAMI 2022); the authors' code.
    """
    target = F.softmax(teacher_BK / temperature, dim=1)
    return -(target * F.log_softmax(student_BK / temperature, dim=1)).sum(1).mean()
