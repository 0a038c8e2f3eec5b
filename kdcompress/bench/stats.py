"""Statistics of timings: medians with distribution-free intervals, paired ratios and verdicts.

No mean, no clipping, no outlier removed: latencies are skewed and come in modes, and users wait for outliers
too. Everything here is a pure function of numbers; results have the unit of the values.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.float64]
Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "no difference"]

MIN_ROUNDS = 6
"""With five values even (least, greatest) covers the centre with only 1 - 2/2**5 = 93.75 %."""

MOST_ROUNDS = 1000
"""The exact law of a signed-rank sum takes time with the cube of the rounds: a second for so many."""

MIN_CALLS = {90: 64, 99: 662}
"""Calls that a percentile needs (MLPerf inference, early stopping at 99 % confidence)."""

LEAST_DIFFERENCE = 0.02
"""A ratio closer to 1 than this is no difference, however narrow its interval."""

MODE_RATIO = 1.3
"""Two groups of timings whose medians are further apart than this are two modes of the machine."""


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Computes the order-statistic interval for the median of any distribution.

    The k-th least and k-th greatest value, with the largest k whose coverage 1 - 2 P(Binomial(n, 1/2) < k)
    still reaches the confidence. Nine values: the second and the eighth, 96.1 %.

    Args:
        values: Independent draws, in any order.
        confidence: Coverage to reach, below 1.

    Returns:
        (low, high), or None if there are too few values for any such interval (below six for 95 %).

    Source: W. R. Thompson, On confidence ranges for the median, Annals of Mathematical Statistics, 1936.
    """
    ordered, n = sorted(values), len(values)
    rank, below = 0, 0.0  # below = P(Binomial(n, 1/2) < rank + 1)
    while rank < n // 2:
        below += math.comb(n, rank) / 2**n
        if 1 - 2 * below < confidence:
            break
        rank += 1
    return (ordered[rank - 1], ordered[n - rank]) if rank else None


def percentile(calls: Values, percent: int) -> float | None:
    """Computes the nearest-rank percentile; None if there are too few calls.

    Args:
        calls: Durations of single calls.
        percent: A key of `MIN_CALLS`.
    """
    if len(calls) < MIN_CALLS[percent]:
        return None
    return float(np.sort(calls)[math.ceil(percent / 100 * len(calls)) - 1])


def paired_ratio(baseline: Sequence[float], own: Sequence[float]) -> tuple[float, Interval | None]:
    """Computes how many times as fast one is as the baseline, with an interval; 2.0 means half the time.

    A round measures both within a second or two, so what slows the machine for a while slows both and
    cancels. Of two identical things each is the faster one equally often and equally far: the logarithms of
    their ratios lie symmetrically, and the signed-rank interval needs no more than that. It is about three
    quarters as wide as an order-statistic interval of the same coverage.

    Args:
        baseline: One duration per round.
        own: One duration per round, in the same order.
    """
    logarithms = [math.log(base / this) for base, this in zip(baseline, own, strict=True)]
    centre, ends = signed_rank(logarithms)
    return math.exp(centre), ends and (math.exp(ends[0]), math.exp(ends[1]))


def signed_rank(values: Sequence[float], confidence: float = 0.95) -> tuple[float, Interval | None]:
    """Estimates the centre of a symmetric distribution, with an interval.

    The centre is the median of the means of all pairs (each value with itself, too); the interval runs from
    the k-th least of those means to the k-th greatest, with the largest k whose coverage 1 - 2 P(W < k) still
    reaches the confidence, where W is Wilcoxon's signed-rank sum.

    Args:
        values: Independent draws from a symmetric law, in any order; at least one, at most `MOST_ROUNDS`.
        confidence: Coverage to reach, below 1.

    Returns:
        The centre, and (low, high), or None below six values for 95 %.

    Source: J. L. Hodges and E. L. Lehmann, Estimates of location based on rank tests, Annals of Mathematical
    Statistics, 1963.
    """
    if len(values) > MOST_ROUNDS:
        raise ValueError(f"{len(values)} rounds, and at most {MOST_ROUNDS} can be evaluated")
    given = np.asarray(values, dtype=np.float64)
    means = np.concatenate([(given[i] + given[i:]) / 2 for i in range(len(given))])
    rank = min(_ranks_left_out(len(given), confidence), len(means) // 2)
    middle = (len(means) - 1) // 2, len(means) // 2
    ends = (rank - 1, len(means) - rank) if rank else ()
    means.partition([*middle, *ends])
    centre = statistics.median(float(means[place]) for place in middle)
    return centre, (float(means[ends[0]]), float(means[ends[1]])) if ends else None


@functools.cache
def _ranks_left_out(n: int, confidence: float) -> int:
    """Computes the largest k for which 1 - 2 P(W < k) reaches the confidence; 0: there is none."""
    below = np.cumsum(_signed_rank_law(n))  # at place k: P(W < k + 1)
    return int(np.count_nonzero(1 - 2 * below >= confidence))


def _signed_rank_law(n: int) -> NDArray[np.float64]:
    """P(W = w) for w = 0, 1, ...: each rank from 1 to n is in the sum with probability 1/2."""
    law = np.zeros(n * (n + 1) // 2 + 1)
    law[0] = 1
    for rank in range(1, n + 1):
        greatest = rank * (rank + 1) // 2
        law[rank : greatest + 1] += law[: greatest + 1 - rank].copy()
        law[: greatest + 1] /= 2
    return law


def margin(control: float | None, ends: Interval | None) -> float:
    """Computes how far from 1 a ratio must lie to be a difference, from the A/A control.

    Args:
        control: Ratio of the baseline to a second copy of itself, or None if there is none.
        ends: Its interval, or None.

    Returns:
        The greatest of `LEAST_DIFFERENCE`, the control's distance from 1 and half of its interval's width
        (the last two on a logarithmic scale).
    """
    apart = 0.0 if control is None else abs(math.log(control))
    half_width = 0.0 if ends is None else math.log(ends[1] / ends[0]) / 2
    return max(LEAST_DIFFERENCE, math.expm1(max(apart, half_width)))


def verdict(ratio: Interval | None, least: float = LEAST_DIFFERENCE) -> Verdict:
    """Judges a ratio by its interval; swapping the two sides swaps faster and slower.

    Args:
        ratio: Interval of baseline time / own time; None shows nothing.
        least: The result of `margin`.

    Returns:
        "faster" or "slower" only if the whole interval lies beyond the margin.
    """
    if ratio is not None and ratio[0] > 1 + least:
        return "faster"
    if ratio is not None and ratio[1] < 1 / (1 + least):
        return "slower"
    return "no difference"


def has_two_modes(values: Values) -> bool:
    """Tells if the values fall into two groups, as when another program takes a core for some of the rounds.

    The sorted values are cut at their widest relative gap, leaving at least a tenth of them (and two) on each
    side. They are modes if the groups' medians differ by more than `MODE_RATIO` and at least half of that way
    (on a logarithmic scale) is the gap: a slow drift is a spread, not two modes.

    Args:
        values: Positive durations: of rounds, or of calls.
    """
    ordered = np.sort(values)
    least = max(2, math.ceil(len(ordered) / 10))
    if len(ordered) < 2 * least:
        return False
    gaps = ordered[1:] / ordered[:-1]  # at place i: of the cut before the value i + 1
    cut = least + int(np.argmax(gaps[least - 1 : len(ordered) - least]))
    ratio = float(np.median(ordered[cut:]) / np.median(ordered[:cut]))
    return ratio > MODE_RATIO and float(gaps[cut - 1]) > math.sqrt(ratio)


def share_over_twice_the_median(calls: Values) -> float:
    """Computes the share of calls longer than twice the median call: the tail that a median hides."""
    twice = 2 * np.median(calls)
    return int(np.count_nonzero(np.asarray(calls) > twice)) / len(calls)
