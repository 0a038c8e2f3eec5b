"""Losses that keep embeddings spread out, for learning from positive pairs without negatives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.maps import mse
from kdcompress.methods.losses.widening import full_precision

VARIANCE_FLOOR = 1e-4
"""Added to a variance before its root is taken; the authors' value."""


@full_precision
def variance_shortfall(rows_BD: Tensor) -> Tensor:
    """Computes how far each feature's standard deviation is below 1, mean over features.

    Args:
        rows_BD: `[B, D]`, B ≥ 2; variances are those with B − 1.

    Returns:
        Scalar in [0, 0.99]; 0 where every feature has a standard deviation of 1 or more.

    Source:
        Bardes, Ponce & LeCun, VICReg, ICLR 2022.
    """
    return F.relu(1 - (rows_BD.var(0) + VARIANCE_FLOOR).sqrt()).mean()


@full_precision
def covariance_energy(rows_BD: Tensor) -> Tensor:
    """Sums the squared covariances between different features and divides by D.

    Args:
        rows_BD: `[B, D]`, B ≥ 2; covariances are those with B − 1.

    Returns:
        Scalar ≥ 0; 0 where no two features are correlated.

    Source:
        Bardes, Ponce & LeCun, VICReg, ICLR 2022.
    """
    rows, features = rows_BD.shape
    centred_BD = rows_BD - rows_BD.mean(0)
    covariance_DD = centred_BD.T @ centred_BD / (rows - 1)
    # Without the diagonal by multiplication: subtracting its squares from the whole sum would cancel.
    return (covariance_DD.square() * (1 - covariance_DD.new_ones(features).diag())).sum() / features


@full_precision
def squeeze(
    generator_BD: Tensor,
    student_BD: Tensor,
    similarity_weight: float = 10.0,
    variance_weight: float = 10.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """Compares the student's embeddings of generated images with the generator's squeezed features.

    Args:
        generator_BD: `[B, D]`, squeezed features of the generator; only the similarity has a gradient to it.
        student_BD: `[B, D]` embeddings of the generated images.
        similarity_weight: Weight of the mean squared difference.
        variance_weight: Weight of `variance_shortfall`.
        covariance_weight: Weight of `covariance_energy`.

    Returns:
        Scalar ≥ 0.

    Source:
        Yang et al., Squeeze and Span, NeurIPS 2022; the authors' code.
    """
    spread = variance_weight * variance_shortfall(student_BD)
    spread = spread + covariance_weight * covariance_energy(student_BD)
    return similarity_weight * mse(generator_BD, student_BD) + spread


@full_precision
def span(
    first_BD: Tensor,
    second_BD: Tensor,
    similarity_weight: float = 10.0,
    variance_weight: float = 10.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """Compares the student's embeddings of two crops of an image and keeps both spread out.

    Args:
        first_BD: `[B, D]`.
        second_BD: `[B, D]`, of the same images.
        similarity_weight: Weight of the mean squared difference.
        variance_weight: Weight of the sum of both sides' `variance_shortfall`.
        covariance_weight: Weight of the sum of both sides' `covariance_energy`.

    Returns:
        Scalar ≥ 0; the same with the sides exchanged.

    Source:
        Yang et al., Squeeze and Span, NeurIPS 2022, after VICReg; the authors' code.
    """
    variance = variance_shortfall(first_BD) + variance_shortfall(second_BD)
    covariance = covariance_energy(first_BD) + covariance_energy(second_BD)
    return (
        similarity_weight * mse(first_BD, second_BD)
        + variance_weight * variance
        + covariance_weight * covariance
    )
