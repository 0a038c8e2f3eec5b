"""The same figure looks the same everywhere, and what is not known is a dash."""

from __future__ import annotations

import pytest

from kdcompress.report import numbers


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (numbers.percent(0.71449), "71.4 %"),
        (numbers.percent(None), "—"),
        (numbers.points(1.38), "+1.4"),
        (numbers.points(-0.32), "−0.3"),
        (numbers.points_interval({"ci95": [-0.2, 1.9]}), "−0.2 to +1.9"),
        (numbers.count(1_233_540), "1.23 M"),
        (numbers.count(7_801_000_000), "7.80 G"),
        (numbers.count(640), "640"),
        (numbers.megabytes(46_800_000), "46.8 MB"),
        (numbers.megabytes(12_300), "0.0123 MB"),
        (numbers.milliseconds(0.0123), "0.0123 ms"),
        (numbers.milliseconds(123.4), "123 ms"),
        (numbers.interval(None), "n/a"),
        (numbers.interval([2.34, 12.34]), "2.34 to 12.3"),
        (numbers.times(7.84), "7.84×"),
        (numbers.figure(1209834), "1 209 834"),
        (numbers.figure(2.1234e-6), "2.12e-06"),
        (numbers.figure(None), "—"),
        (numbers.figure("CPUExecutionProvider"), "CPUExecutionProvider"),
        (numbers.duration(48.2), "48 s"),
        (numbers.duration(2490), "42 min"),
        (numbers.duration(3 * 3600 + 300), "3 h 05 min"),
    ],
)
def test_numbers_as_people_read_them(made, expected):
    assert made.replace("\N{NO-BREAK SPACE}", " ") == expected
