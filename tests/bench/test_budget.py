"""A budget is read with its units, and only what is surely within it fits."""

from __future__ import annotations

import pytest

from kdcompress.bench.budget import latency_verdict, megabytes, milliseconds
from kdcompress.errors import UserError

# ---- units


@pytest.mark.parametrize(
    ("text", "ms"), [("5ms", 5), ("5 ms", 5), (" .5ms ", 0.5), ("800us", 0.8), ("0.2s", 200), ("2.ms", 2)]
)
def test_a_time_has_a_unit(text, ms):
    assert milliseconds("--budget", text) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "write 5ms?"),
        ("5min", "'min' is no such unit"),
        ("5MB", "'MB' is no such unit"),
        ("0ms", "must be more than nothing"),
        ("-5ms", "expected a duration with its unit, such as 5ms"),
        ("nan", "expected a duration"),
        ("", "expected a duration"),
        ("5ms 3", "expected a duration"),
    ],
)
def test_what_is_no_time_is_refused_with_what_to_write(text, message):
    with pytest.raises(UserError, match="--budget: ") as refused:
        milliseconds("--budget", text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "mb"), [("8MB", 8), ("8mb", 8), ("512kB", 0.512), ("1GB", 1000), ("1MiB", 1.048576)]
)
def test_a_size_has_a_unit(text, mb):
    assert megabytes("--memory", text) == pytest.approx(mb)


def test_a_bare_size_is_refused():
    with pytest.raises(UserError, match="write 8MB"):
        megabytes("--memory", "8")


# ---- verdicts


@pytest.mark.parametrize(
    ("medians", "verdict"),
    [
        # Of six values the interval is from the least to the greatest; of nine the second to the eighth.
        ([4, 4, 4, 4, 4, 5], "fits"),
        ([4, 4, 4, 4, 4, 5.1], "undecided"),
        ([5.1, 6, 6, 6, 6, 6], "does not fit"),
        ([5, 6, 6, 6, 6, 6], "undecided"),
        ([4, 4, 4, 4, 4, 4, 4, 5, 9], "fits"),
        ([4, 4, 4, 4, 4], "undecided"),
        ([], "undecided"),
    ],
)
def test_the_whole_interval_must_be_within_the_budget(medians, verdict):
    assert latency_verdict(medians, 5) == verdict
