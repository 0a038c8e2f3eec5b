"""95 % intervals of top-1 and balanced top-1 over the choice of test images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import binomtest

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def share_interval(right: int, count: int) -> list[float] | None:
    """Computes the 95 % interval of a share, such as top-1.

    Args:
        right: Number of correct images.
        count: Number of images.

    Returns:
        (low, high) in [0, 1]; None without images.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, Journal of the
    American Statistical Association, 1927.
    """
    if not count:
        return None
    ends = binomtest(right, count).proportion_ci(method="wilson")
    return [float(ends.low), float(ends.high)]


def balanced_interval(per_class: Sequence[float | None], counts: Sequence[int]) -> list[float] | None:
    """Computes the 95 % interval of the balanced top-1, the mean of the classes' shares.

    Each class is a sample of its own. Two correct and two wrong images, shared out among the classes, are
    added, which gives the interval a width even where no image is wrong.

    Args:
        per_class: Top-1 by class; None for a class without images.
        counts: Number of images by class.

    Returns:
        (low, high) in [0, 1]; None without images.

    Source: A. Agresti and B. A. Coull, Approximate is better than "exact" for interval estimation of binomial
    proportions, The American Statistician, 1998; for a mean of K independent shares, as in R. M. Price and
    D. G. Bonett, An improved confidence interval for a linear function of binomial proportions, 2004.
    """
    classes = [(share, n) for share, n in zip(per_class, counts, strict=True) if share is not None and n]
    if not classes:
        return None
    added = 2 / len(classes)
    shares = [((share * n + added) / (n + 2 * added), n + 2 * added) for share, n in classes]
    centre = sum(share for share, _ in shares) / len(shares)
    half = Z * math.sqrt(sum(share * (1 - share) / n for share, n in shares)) / len(shares)
    return [max(0.0, centre - half), min(1.0, centre + half)]
