"""Losses between feature maps of a student and a teacher: their values, energies, signs and similarities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Computes the mean squared difference over all elements.

    Args:
        student: Any shape, rows first.
        teacher: The same shape; the caller detaches it.

    Returns:
        Scalar ≥ 0; 0 when both are equal. The mean keeps its size whatever the batch or the map, so its
        weight is large (100 for FitNets).

    Source:
        Romero et al., FitNets, ICLR 2015, hint loss, which is half the squared norm of a map's difference;
        the mean is that of the RepDistiller code.
    """
    assert student.shape == teacher.shape, f"{tuple(student.shape)} against {tuple(teacher.shape)}"
    return (student - teacher).square().mean()


@full_precision
def attention_transfer(student_BCHW: Tensor, teacher_BCHW: Tensor, power: float = 2.0) -> Tensor:
    """Computes the squared difference of two attention maps, mean over rows and positions.

    An attention map is the mean over channels of |f|^power, flattened and divided by its L2 norm. Where the
    sizes differ, the larger map is averaged down to the smaller one first (adaptively).

    Args:
        student_BCHW: `[B, C, H, W]`.
        teacher_BCHW: `[B, C', H', W']`, any channels and size; the caller detaches it.
        power: At least 1.

    Returns:
        Scalar in [0, 2 / positions]; 0 where the maps are positive multiples of each other, and always at a
        single position.

    Source:
        Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017. The paper has the L2 norm
        of the difference, not squared; the authors' code has the mean of squares, as here and in
        RepDistiller, and the usual weight of 1000 belongs to it.
    """
    size = (
        min(student_BCHW.shape[2], teacher_BCHW.shape[2]),
        min(student_BCHW.shape[3], teacher_BCHW.shape[3]),
    )
    student_BP = _attention(student_BCHW, size, power)
    return (student_BP - _attention(teacher_BCHW, size, power)).square().mean()


def _attention(map_BCHW: Tensor, size: tuple[int, int], power: float) -> Tensor:
    if map_BCHW.shape[2:] != size:
        map_BCHW = F.adaptive_avg_pool2d(map_BCHW, size)
    return F.normalize(map_BCHW.abs().pow(power).mean(1).flatten(1), dim=1)


@full_precision
def activation_boundaries(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Computes the squared hinge loss of pre-activations to the teacher's signs: sum, mean over rows.

    An element costs max(0, margin - s)² where the teacher is above 0, and max(0, margin + s)² elsewhere (a
    teacher of exactly 0 counts as inactive).

    Args:
        student: `[B, ...]` before the activation function.
        teacher: The same shape, before the activation function; only its sign is read.
        margin: > 0.

    Returns:
        Scalar ≥ 0; 0 where every element is on the teacher's side by the margin or more. A sum over the
        map's elements: its weight is small (0.003).

    Source:
        Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
        AAAI 2019, the form with a margin; the authors' code divides by B.
    """
    assert student.shape == teacher.shape, f"{tuple(student.shape)} against {tuple(teacher.shape)}"
    side = (teacher > 0).to(student.dtype) * 2 - 1
    return F.relu(margin - side * student).square().sum() / student.shape[0]


@full_precision
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Computes the squared difference of two `[B, B]` similarity matrices, divided by B².

    A network's matrix is the Gram matrix `[B, B]` of its flattened maps, each row divided by its L2 norm.

    Args:
        student: `[B, ...]`, all rows of the global batch.
        teacher: `[B, ...]` of any other size; the caller detaches it.

    Returns:
        Scalar in [0, 4 / B]; 0 when the similarities agree, so for every rescaling or rotation of the
        features. It shrinks as 1/B: the usual weight of 3000 belongs to batches of 64 to 256.

    Source:
        Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019; the RepDistiller code.
    """
    rows = student.shape[0]
    return (_similarities(student) - _similarities(teacher)).square().sum() / rows**2


def _similarities(features: Tensor) -> Tensor:
    flat_BD = features.flatten(1)
    return F.normalize(flat_BD @ flat_BD.T, dim=1)
