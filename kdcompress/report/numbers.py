"""Numbers as people read them: the same figure looks the same on the page, in the card and in a chart."""

from __future__ import annotations

from typing import Any

UNKNOWN = "—"

_SPACE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""


def percent(share: float | None) -> str:
    """Formats a share of 1 as `71.4 %`."""
    return UNKNOWN if share is None else f"{100 * share:.1f}{_SPACE}%"


def points(value: float | None) -> str:
    """Formats a difference in percentage points with its sign: `+1.4`, `−0.3`."""
    return UNKNOWN if value is None else f"{value:+.1f}".replace("-", "−")


def points_interval(gain: dict[str, Any]) -> str:
    """Formats an interval of percentage points: `+0.6 to +2.2`."""
    low, high = gain["ci95"]
    return f"{points(low)} to {points(high)}"


def percent_interval(ends: list[float]) -> str:
    """Formats an interval of shares in percent: `92.6 to 93.6`."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def count(number: float | None) -> str:
    """Formats a large number with its unit: `11.7 M`, `1.81 G`, `640`."""
    if number is None:
        return UNKNOWN
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{_three(number / size)}{_SPACE}{unit}"
    return f"{number:g}"


def megabytes(size: float | None) -> str:
    """Bytes in MB of 1e6: `46.8 MB`."""
    return UNKNOWN if size is None else f"{_three(size / 1e6)}{_SPACE}MB"


def milliseconds(duration: float | None) -> str:
    """Formats milliseconds: `12.3 ms`."""
    return UNKNOWN if duration is None else f"{_three(duration)}{_SPACE}ms"


def interval(ends: list[float] | None) -> str:
    """Formats an interval: `2.4 to 2.6`; n/a if there were too few rounds."""
    return "n/a" if ends is None else f"{_three(ends[0])} to {_three(ends[1])}"


def times(ratio: float | None) -> str:
    """Formats a ratio as `7.8×`."""
    return UNKNOWN if ratio is None else f"{_three(ratio)}×"


def figure(value: Any) -> str:
    """Formats a gate's figure or limit of any type."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", _SPACE)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """Formats a duration: `48 s`, `12 min`, `3 h 05 min`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _three(number: float) -> str:
    """Formats three significant digits, never in exponent form."""
    if number >= 100:
        return f"{number:.0f}"
    if number >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if number >= 0.1 else f"{number:.3g}"
