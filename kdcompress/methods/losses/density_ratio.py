"""Trains a network to say how much likelier an image is among the real ones than among the generated ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def density_ratio(real_B: Tensor, generated_B: Tensor, penalty_weight: float) -> Tensor:
    """Softplus loss of estimated density ratios, with a penalty that holds their mean to 1.

    With σ the logistic function, r the ratios of real and f those of generated images:
    mean(σ(f) · f − softplus(f)) − mean(σ(r)) + penalty_weight · (mean(f) − 1)².

    Args:
        real_B: `[B]` or `[B, 1]`, the network's ratios p_real / p_generated ≥ 0 of real images.
        generated_B: `[B']` or `[B', 1]`, the ratios of generated images.
        penalty_weight: ≥ 0; 0.01 in the paper. Under the generated images' density the true ratio has mean 1.

    Returns:
        Scalar; smallest where the ratios are the true ones, −ln(1 + e) where those are all 1.

    Source:
        Ding et al., cGAN-KD (Distilling and transferring knowledge via cGAN-generated samples), 2021, the
        cDR-RS sub-sampling; the authors' code.
    """
    likeness = generated_B.sigmoid() * generated_B - F.softplus(generated_B)
    softplus_loss = likeness.mean() - real_B.sigmoid().mean()
    return softplus_loss + penalty_weight * (generated_B.mean() - 1) ** 2
