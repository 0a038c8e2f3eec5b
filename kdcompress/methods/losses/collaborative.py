"""Targets that are computed from the logits of several networks and the labels.

M networks; `stacked` holds the logits of all of them, detached by the caller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision

_STEPS = 30
"""Newton steps of `mixture_weights`. Each leaves about a tenth of the gap, which begins near 1."""
_SMALLEST_GAP = 1e-13
_LENGTHS = 8


@full_precision
def most_certain_logits(stacked_MBK: Tensor, labels_B: Tensor) -> Tensor:
    """Returns, for every row, the logits of the network with the lowest cross-entropy.

    Args:
        stacked_MBK: `[M, B, K]` logits.
        labels_B: `[B]` int64, none of them -1.

    Returns:
        `[B, K]`; of several equal networks the first.
    """
    rows = torch.arange(len(labels_B), device=labels_B.device)
    best_B = F.log_softmax(stacked_MBK, 2)[:, rows, labels_B].argmax(0)
    return stacked_MBK[best_B, rows]


@full_precision
def minimum_logits(stacked_MBK: Tensor, labels_B: Tensor) -> Tensor:
    """Returns the smallest logit of every class over the networks, each relative to its true class.

    Args:
        stacked_MBK: `[M, B, K]` logits.
        labels_B: `[B]` int64, none of them -1.

    Returns:
        `[B, K]`, 0 for the true class.
    """
    return _relative(stacked_MBK, labels_B).amin(0)


@full_precision
def mixture_weights(stacked_MBK: Tensor, labels_B: Tensor, *, per_row: bool = False) -> Tensor:
    """Computes the weights ≥ 0 of sum 1 whose mixture of logits has the lowest cross-entropy.

    The problem is convex; a primal-dual interior-point method solves it in float64 with a fixed number of
    steps, so that no value is read from the device. It is exact to rounding for logits of a spread of about
    50; for hundreds, a mixture per row can be worse than the best by about a hundredth of that spread.

    Args:
        stacked_MBK: `[M, B, K]` logits.
        labels_B: `[B]` int64, none of them -1.
        per_row: True: one mixture for every row; False: one for all.

    Returns:
        `[B, M]` or `[M]` in the type of the logits; equal weights where all mixtures are equally good.

    Source:
        The problem: Guo et al., KDCL, CVPR 2020 (Linear). The solver: Boyd & Vandenberghe, Convex
        Optimization, section 11.7.
    """
    logits_BMK = _relative(stacked_MBK.double(), labels_B).transpose(0, 1)
    logits = logits_BMK[:, None] if per_row else logits_BMK[None]  # [problems, rows, M, K]
    # In units in which no gradient is larger than 1.
    scale = logits.abs().amax((1, 2, 3)).clamp(min=1e-12)[:, None]
    count = logits.shape[2]
    weights = torch.full_like(logits[:, 0, :, 0], 1 / count)
    duals = torch.ones_like(weights)
    level = torch.zeros_like(weights[:, :1])  # the dual of the sum
    for _ in range(_STEPS):
        gap = (0.1 * (weights * duals).mean(1, keepdim=True)).clamp(min=_SMALLEST_GAP)
        slope, curvature = _derivatives(logits, weights, scale)
        system = curvature + torch.diag_embed(duals / weights)
        right = torch.stack([gap / weights - slope, torch.ones_like(weights)], 2)
        towards, ones = torch.linalg.solve_ex(system, right)[0].unbind(2)
        next_level = towards.sum(1, keepdim=True) / ones.sum(1, keepdim=True)
        move = towards - ones * next_level
        dual_move = gap / weights - duals - duals / weights * move
        longest = torch.minimum(_length(weights, move), _length(duals, dual_move))
        # Of several lengths, the one that leaves the smallest residual: a full step can overshoot.
        lengths = longest * 0.5 ** torch.arange(_LENGTHS, device=longest.device)  # [problems, lengths]
        moved = [
            before[:, None] + lengths[:, :, None] * change[:, None]
            for before, change in (
                (weights, move), (duals, dual_move), (level, next_level - level),
            )
        ]  # fmt: skip
        best = _residuals(logits, scale, gap, *moved).argmin(1)[:, None, None]
        weights, duals, level = (each.gather(1, best.expand(-1, 1, each.shape[2]))[:, 0] for each in moved)
    weights = (weights / weights.sum(1, keepdim=True)).to(stacked_MBK.dtype)
    return weights if per_row else weights[0]


@full_precision
def error_products(stacked_MBK: Tensor, labels_B: Tensor) -> Tensor:
    """Computes the sum over rows of ⟨pᵢ − y, pⱼ − y⟩ for every pair of networks.

    Args:
        stacked_MBK: `[M, B, K]` logits.
        labels_B: `[B]` int64; -1 rows contribute nothing.

    Returns:
        `[M, M]` float64.
    """
    one_hot_BK = F.one_hot(labels_B.clamp(min=0), stacked_MBK.shape[2])
    errors = (stacked_MBK.double().softmax(2) - one_hot_BK) * (labels_B >= 0)[:, None]
    return torch.einsum("mbk,nbk->mn", errors, errors)


@full_precision
def generalization_weights(products_MM: Tensor, ridge: float = 0.0) -> Tensor:
    """Computes the weights of sum 1 whose mixture of probabilities has the smallest squared error.

    Args:
        products_MM: `[M, M]`, from `error_products`, divided by the number of rows or not.
        ridge: This share of the mean of the diagonal is added to it. Without it, networks that are nearly
            equal get huge weights of opposite signs.

    Returns:
        `[M]` C⁻¹1 / (1ᵀC⁻¹1), which may be negative; equal weights where no network has an error.

    Source:
        Guo et al., KDCL, CVPR 2020 (General); the ridge is ours.
    """
    size = len(products_MM)
    eye = torch.eye(size, dtype=products_MM.dtype, device=products_MM.device)
    scale = products_MM.diagonal().mean()
    weights = torch.linalg.pinv(products_MM + ridge * scale * eye, hermitian=True).sum(1)
    return torch.where(scale > 0, weights / weights.sum(), torch.full_like(weights, 1 / size))


def _relative(stacked_MBK: Tensor, labels_B: Tensor) -> Tensor:
    index = labels_B[None, :, None].expand(len(stacked_MBK), -1, 1)
    return stacked_MBK - stacked_MBK.gather(2, index)


def _derivatives(logits: Tensor, weights: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Returns slope `[problems, M]` and curvature `[problems, M, M]` of the cross-entropy by scale."""
    probabilities = torch.einsum("prmk,pm->prk", logits, weights).softmax(2)
    slopes = torch.einsum("prmk,prk->prm", logits, probabilities)
    curvature = torch.einsum("prmk,prnk,prk->pmn", logits, logits, probabilities)
    curvature = curvature - torch.einsum("prm,prn->pmn", slopes, slopes)
    return slopes.mean(1) / scale, curvature / logits.shape[1] / scale[:, :, None]


def _residuals(
    logits: Tensor, scale: Tensor, gap: Tensor, weights: Tensor, duals: Tensor, level: Tensor
) -> Tensor:
    """Returns the norms `[problems, lengths]` of the optimality conditions after steps of several lengths."""
    probabilities = torch.einsum("prmk,plm->plrk", logits, weights).softmax(3)
    slope = torch.einsum("prmk,plrk->plm", logits, probabilities) / logits.shape[1] / scale[:, None]
    left = torch.cat([slope - duals + level, weights * duals - gap[:, None]], 2)
    return left.square().sum(2).sqrt()


def _length(values: Tensor, move: Tensor) -> Tensor:
    """Returns the share of a step `[problems, 1]` that leaves every value at a hundredth or more."""
    shares = torch.where(move < 0, -0.99 * values / move, torch.ones_like(values))
    return shares.amin(1, keepdim=True).clamp(max=1.0)
