"""Statistics say what the timings show, and no more."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from kdcompress.bench import stats


def test_nine_rounds_are_bracketed_by_the_second_and_the_eighth():
    assert stats.interval([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (2, 8)


def test_five_rounds_have_no_interval_and_six_have_their_range():
    assert stats.interval([1, 2, 3, 4, 5]) is None
    assert stats.interval([6, 1, 2, 3, 4, 5]) == (1, 6)
    assert stats.interval([]) is None


@pytest.mark.parametrize("rounds", [6, 9, 21])
def test_the_interval_covers_the_median_of_a_skewed_law_at_least_95_times_in_100(rounds):
    draw = random.Random(0)
    trials = 2000
    covered = 0
    for _ in range(trials):
        low, high = stats.interval([draw.lognormvariate(0, 1) for _ in range(rounds)])
        covered += low <= 1.0 <= high  # the median of this law is 1
    assert covered / trials >= 0.94


# The greatest rank sum that is significant at 5 %, two-sided, from printed tables of Wilcoxon's test.
@pytest.mark.parametrize(("n", "critical"), [(6, 0), (7, 2), (9, 5), (12, 13), (15, 25), (21, 58), (25, 89)])
def test_the_signed_rank_interval_leaves_out_as_many_means_of_pairs_as_the_tables_say(n, critical):
    values = [2.0**i for i in range(n)]  # no two means of pairs are equal
    means = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    assert stats.signed_rank(values)[1] == (means[critical], means[-1 - critical])


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 21, 40])
def test_the_signed_rank_law_is_that_of_all_sums_of_ranks(n):
    counts = [1]  # of the subsets of the ranks with this sum, in whole numbers
    for rank in range(1, n + 1):
        longer = counts + [0] * rank
        counts = [own + (longer[w - rank] if w >= rank else 0) for w, own in enumerate(longer)]
    assert stats._signed_rank_law(n) == pytest.approx([count / 2**n for count in counts], rel=1e-12)


def test_the_interval_of_the_most_rounds_is_that_of_the_normal_law():
    draw = random.Random(7)
    values = [draw.gauss(0, 1) for _ in range(stats.MOST_ROUNDS)]
    centre, (low, high) = stats.signed_rank(values)
    assert low < centre < high
    # The normal law of the sum leaves out nearly as many.
    n = len(values)
    normal = n * (n + 1) / 4 - 1.96 * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    assert stats._ranks_left_out(n, 0.95) == pytest.approx(normal, rel=1e-3)


def test_more_rounds_than_the_most_are_refused():
    with pytest.raises(ValueError, match="1001 rounds"):
        stats.signed_rank([1.0] * 1001)


def test_below_six_values_there_is_a_centre_and_no_interval():
    assert stats.signed_rank([1.0, 2.0, 9.0]) == (3.5, None)  # of 1, 1.5, 2, 5, 5.5, 9
    assert stats.signed_rank([3.0]) == (3.0, None)


@pytest.mark.parametrize("law", ["gauss", "uniform", "two modes"])
def test_the_signed_rank_interval_covers_the_centre_of_symmetry_95_times_in_100(law):
    draw = random.Random(4)
    laws = {
        "gauss": lambda: draw.gauss(0, 1),
        "uniform": lambda: draw.uniform(-1, 1),
        "two modes": lambda: draw.choice((-1, 1)) + draw.gauss(0, 0.1),
    }
    covered = 0
    for _ in range(1000):
        low, high = stats.signed_rank([laws[law]() for _ in range(21)])[1]
        covered += low <= 0 <= high
    assert covered / 1000 >= 0.935  # three standard errors below 0.95


def test_the_signed_rank_interval_is_the_narrower_one():
    draw = random.Random(5)
    widths = []
    for _ in range(200):
        values = [draw.gauss(0, 1) for _ in range(21)]
        ends = stats.signed_rank(values)[1], stats.interval(values)
        widths.append((ends[0][1] - ends[0][0]) / (ends[1][1] - ends[1][0]))
    assert 0.65 < statistics.mean(widths) < 0.85


def test_identical_things_are_rarely_called_different():
    draw = random.Random(1)
    wrong = 0
    for _ in range(500):
        first, second, third = ([10 * draw.lognormvariate(0, 0.1) for _ in range(21)] for _ in range(3))
        least = stats.margin(*stats.paired_ratio(first, second))
        wrong += stats.verdict(stats.paired_ratio(first, third)[1], least) != "no difference"
    assert wrong / 500 <= 0.05


def test_a_five_per_cent_gain_is_found_in_21_rounds_that_share_their_noise():
    draw = random.Random(2)
    weather = [draw.lognormvariate(0, 0.3) for _ in range(21)]
    base = [10.0 * w * draw.lognormvariate(0, 0.02) for w in weather]
    own = [10.0 / 1.06 * w * draw.lognormvariate(0, 0.02) for w in weather]
    assert stats.verdict(stats.paired_ratio(base, own)[1]) == "faster"


def test_a_ratio_of_two_means_half_the_time():
    ratio, interval = stats.paired_ratio([4.0] * 6, [2.0] * 6)
    assert (ratio, *interval) == pytest.approx((2.0, 2.0, 2.0))


def test_swapping_the_sides_of_a_ratio_inverts_it_and_its_interval():
    draw = random.Random(6)
    base, own = ([draw.lognormvariate(0, 0.3) for _ in range(9)] for _ in range(2))
    ratio, (low, high) = stats.paired_ratio(base, own)
    swapped, (swapped_low, swapped_high) = stats.paired_ratio(own, base)
    assert (swapped, swapped_low, swapped_high) == pytest.approx((1 / ratio, 1 / high, 1 / low))


def test_what_slows_a_whole_round_leaves_its_ratio_alone():
    weather = [1, 1, 5, 1, 2, 1, 1]
    ratio, interval = stats.paired_ratio([3.0 * w for w in weather], [1.5 * w for w in weather])
    assert (ratio, *interval) == pytest.approx((2.0, 2.0, 2.0))


def test_a_verdict_needs_the_whole_interval_beyond_the_margin():
    assert stats.verdict((1.03, 1.5)) == "faster"
    assert stats.verdict((1.01, 1.5)) == "no difference"
    assert stats.verdict((0.5, 0.9)) == "slower"
    assert stats.verdict((1.03, 1.5), least=0.05) == "no difference"
    assert stats.verdict(None) == "no difference"


def test_swapping_the_sides_swaps_the_verdict():
    for low, high in [(1.021, 1.3), (1.019, 1.3), (0.6, 0.979), (0.6, 0.981)]:
        mirrored = {"faster": "slower", "slower": "faster", "no difference": "no difference"}
        assert stats.verdict((1 / high, 1 / low)) == mirrored[stats.verdict((low, high))]


def test_the_margin_is_what_identical_things_differed_by_but_at_least_two_per_cent():
    assert stats.margin(None, None) == 0.02
    assert stats.margin(1.0, (0.999, 1.001)) == 0.02
    assert stats.margin(1.1, (1.09, 1.11)) == pytest.approx(0.10)
    assert stats.margin(1 / 1.1, (0.90, 0.92)) == pytest.approx(0.10)  # which side is the slower is chance
    assert stats.margin(1.0, (1 / 1.25, 1.25)) == pytest.approx(0.25)  # they may differ by so much
    assert stats.margin(1.5, None) == pytest.approx(0.5)


def test_a_percentile_without_enough_calls_is_none():
    assert stats.percentile([1.0] * 63, 90) is None
    assert stats.percentile(list(range(1, 101)), 90) == 90
    assert stats.percentile([1.0] * 661, 99) is None
    assert stats.percentile(list(range(1, 1001)), 99) == 990


def test_two_modes_are_told_from_a_drift_and_from_a_tail():
    assert stats.has_two_modes([1.0, 2.1, 1.02, 2.0, 1.01, 2.05, 1.0, 2.0, 1.03])
    assert not stats.has_two_modes([1 + i / 8 for i in range(9)])  # a drift
    assert not stats.has_two_modes([1.0] * 30 + [1.01] * 30 + [5.0])  # one slow call
    assert not stats.has_two_modes([1.0, 1.2] * 10)  # too close
    assert not stats.has_two_modes([1.0, 5.0])  # too few


def test_one_law_is_rarely_taken_for_two_modes():
    draw = random.Random(3)
    samples = [[draw.lognormvariate(0, 0.1) for _ in range(200)] for _ in range(200)]
    assert not any(stats.has_two_modes(sample) for sample in samples)


def test_the_tail_that_a_median_hides_is_counted():
    assert stats.share_over_twice_the_median([1.0] * 9 + [3.0]) == 0.1


def test_no_call_is_thrown_away():
    calls = [1.0] * 50 + [100.0]
    assert statistics.median(calls) == 1.0
    assert stats.share_over_twice_the_median(calls) > 0
