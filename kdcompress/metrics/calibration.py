"""Calibration of a classifier: temperature, calibration curve and expected calibration error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from kdcompress.metrics.split_rows import blocks

BINS = 15
"""As in Guo et al., 2017."""
RANGE = (0.05, 20.0)
"""Temperatures that are considered."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The images of one bin of confidence.

    Args:
        confidence: Mean of their largest probability, 0 to 1.
        top1: Share of them that is correct.
        n: Their number.
    """

    confidence: float
    top1: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Returns it for a document."""
        return asdict(self)


def fit_temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Fits the temperature that minimises the cross-entropy of softmax(logits / temperature).

    The loss is convex in 1 / temperature, so the search finds its minimum. Images without a label do not
    count.

    Args:
        logits_NK: Of held-out images.
        labels_N: int64; -1 = none.

    Returns:
        A temperature within `RANGE`, rounded to six digits; 1 where the logits are calibrated already.

    Raises:
        ValueError: No image has a label.

    Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks,
    ICML 2017, section 4.2.
    """
    known = labels_N >= 0
    if not bool(known.any()):
        raise ValueError("no image has a label")
    count = int(known.sum())

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        each = (
            F.cross_entropy(logits.double() / temperature, labels, ignore_index=-1, reduction="sum")
            for logits, labels in blocks(logits_NK, labels_N)
        )
        return sum(part.item() for part in each) / count

    found = minimize_scalar(
        loss, bounds=(math.log(RANGE[0]), math.log(RANGE[1])), method="bounded", options={"xatol": 1e-6}
    )
    return float(f"{math.exp(found.x):.6g}")


def confidences(logits_NK: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the largest probability of each image, `[N]` float64."""
    each = [(logits.double() / temperature).softmax(1).amax(1) for (logits,) in blocks(logits_NK)]
    return torch.cat(each) if each else torch.empty(0, dtype=torch.float64)


def calibration_bins(confidences_N: Tensor, right_N: Tensor) -> list[Bin]:
    """Sorts images into `BINS` bins of equal width by confidence; bins without images are left out.

    Args:
        confidences_N: Largest probabilities, 0 to 1.
        right_N: Booleans.
    """
    number_N = (confidences_N * BINS).ceil().long().clamp(1, BINS) - 1
    bins = []
    for number in range(BINS):
        chosen = number_N == number
        if bool(chosen.any()):
            confidence = confidences_N[chosen].double().mean().item()
            bins.append(Bin(confidence, right_N[chosen].double().mean().item(), int(chosen.sum())))
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Computes the mean distance of confidence and top-1 over the images, 0 to 1.

    Source: M. P. Naeini, G. F. Cooper and M. Hauskrecht, Obtaining well calibrated probabilities using
    Bayesian binning, AAAI 2015.
    """
    images = sum(part.n for part in bins)
    return sum(part.n * abs(part.confidence - part.top1) for part in bins) / images


def calibration(logits_NK: Tensor, labels_N: Tensor, temperature: float = 1.0) -> tuple[float, list[Bin]]:
    """Computes the calibration error of the labelled images and the bins that it is made of."""
    known = labels_N >= 0
    right_N = logits_NK.argmax(1) == labels_N
    bins = calibration_bins(confidences(logits_NK, temperature)[known], right_N[known])
    return expected_calibration_error(bins), bins


def probabilities(logits_NK: Tensor, temperature: float) -> Tensor:
    """Returns softmax(logits / temperature), `[N, K]` float64."""
    return torch.softmax(logits_NK.double() / temperature, 1)
