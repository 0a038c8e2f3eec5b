"""Losses between embeddings: of the same image in both networks, and of images among each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.logits import kl_rows
from kdcompress.methods.losses.widening import full_precision


@full_precision
def negative_cosine(predicted_BE: Tensor, target_BE: Tensor) -> Tensor:
    """Computes the mean over rows of the negative cosine of two vectors.

    Args:
        predicted_BE: `[B, E]`.
        target_BE: `[B, E]`, a constant.

    Returns:
        Scalar in [-1, 1]; -1 where all pairs have one direction.
    """
    return -F.cosine_similarity(predicted_BE, target_BE, dim=1).mean()


@full_precision
def cosine_alignment(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Computes 2 - 2 · cosine, mean over rows: the squared distance of unit vectors.

    Args:
        student_BD: `[B, D]`.
        teacher_BD: `[B, D]`, detached by the caller.

    Returns:
        Scalar in [0, 4]; 0 when all rows point the same way.

    Source:
        Ding et al., Multi-level Knowledge Distillation, arXiv 2012.00573; the authors' code.
    """
    return (2 - 2 * (_unit(student_BD) * _unit(teacher_BD)).sum(1)).mean()


@full_precision
def squared_alignment(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Computes the squared Euclidean distance: sum over features, mean over rows.

    Args:
        student_BD: `[B, D]`.
        teacher_BD: `[B, D]`, detached by the caller.

    Returns:
        Scalar ≥ 0; 0 when equal. Grows with D.

    Source:
        Ding et al., Multi-level Knowledge Distillation, arXiv 2012.00573, equation 2 as its wording reads.
    """
    return (student_BD - teacher_BD).square().sum(1).mean()


@full_precision
def relation_kl(
    student_AD: Tensor,
    student_ND: Tensor,
    teacher_AE: Tensor,
    teacher_NE: Tensor,
    temperature: float,
) -> Tensor:
    """Computes KL(teacher ‖ student) of each row's softmaxed cosines with the N plain images, without T².

    Args:
        student_AD: `[A, D]`, of augmented images.
        student_ND: `[N, D]`, of the plain images.
        teacher_AE: `[A, E]`, detached by the caller.
        teacher_NE: `[N, E]`, detached by the caller.
        temperature: Divides the cosines.

    Returns:
        Scalar ≥ 0, sum over N, mean over A; 0 when both networks have equal cosines.

    Source:
        Ding et al., Multi-level Knowledge Distillation, arXiv 2012.00573, equations 3-5; the authors' code.
    """
    student_AN = _unit(student_AD) @ _unit(student_ND).T
    teacher_AN = _unit(teacher_AE) @ _unit(teacher_NE).T
    return kl_rows(student_AN / temperature, teacher_AN / temperature, 1.0).mean()


@full_precision
def supervised_contrast(
    student_BD: Tensor,
    teacher_BD: Tensor,
    labels_B: Tensor,
    temperature: float,
    *,
    across: bool = False,
) -> Tensor:
    """Computes the supervised contrastive loss, with anchors from both networks.

    Args:
        student_BD: `[B, D]`, not yet of unit length.
        teacher_BD: `[B, D]`, not yet of unit length; not detached where the teacher's embedding is learnt.
        labels_B: `[B]` int64; -1 rows are neither anchors nor compared with.
        temperature: Divides the cosines.
        across: Compare only with the other network's rows, the same image's among them, and take the mean of
            both directions. Else with the rows of both networks, all but the anchor itself; 1e-7 is added to
            the denominators, which are taken relative to the largest term.

    Returns:
        Scalar ≥ 0: mean over an anchor's positives (rows of its class), then over the anchors.

    Source:
        Ding et al., Multi-level Knowledge Distillation, arXiv 2012.00573: the authors' code, and with
        `across` one of two readings of equation 6. The form is that of Khosla et al. 2020.
    """
    student_BD, teacher_BD = _unit(student_BD), _unit(teacher_BD)
    if across:
        present = (labels_B >= 0).expand(len(labels_B), -1)
        same = (labels_B == labels_B.unsqueeze(1)) & present
        cosines = student_BD @ teacher_BD.T / temperature
        return (_contrast(cosines, same, present, 0.0) + _contrast(cosines.T, same, present, 0.0)) / 2
    rows, labels = torch.cat([student_BD, teacher_BD]), torch.cat([labels_B, labels_B])
    others = (labels >= 0) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return _contrast(rows @ rows.T / temperature, (labels == labels.unsqueeze(1)) & others, others, 1e-7)


def _contrast(cosines_AN: Tensor, positive_AN: Tensor, compared_AN: Tensor, guard: float) -> Tensor:
    cosines_AN = cosines_AN - cosines_AN.detach().amax(1, keepdim=True)
    denominator_A1 = (cosines_AN.exp() * compared_AN).sum(1, keepdim=True) + guard
    # An anchor without a positive has no term; it may lack anything to compare with, too.
    positives_A = positive_AN.sum(1)
    anchors = positives_A > 0
    log_A1 = torch.where(anchors.unsqueeze(1), denominator_A1, 1).log()
    surprise_A = -((cosines_AN - log_A1) * positive_AN).sum(1) / positives_A.clamp(min=1)
    return surprise_A.sum() / anchors.sum().clamp(min=1)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)
