"""The limits of a device on latency, file and memory, and the verdict on measurements against them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdcompress.bench import stats
from kdcompress.errors import UserError

Verdict = Literal["fits", "does not fit", "undecided"]

CONFIDENCE = 0.95
"""A student gets at most two verdicts: one after its rounds, one after more rounds. Either end of a 95 %
interval is wrong in at most 2.5 % of the verdicts, so stopping at the first clear one is right in 95 %."""

_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_MB = {"kb": 1e-3, "mb": 1.0, "gb": 1e3, "kib": 1024 / 1e6, "mib": 1024**2 / 1e6, "gib": 1024**3 / 1e6}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([^\W\d_]*)\s*")


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of the device.

    Args:
        latency_ms: Longest median call.
        file_mb: Largest file, in MB of 1e6 bytes; None: any.
        ram_mb: Most memory that running the student may add to a process that has loaded the runtime; None:
            any.
    """

    latency_ms: float
    file_mb: float | None = None
    ram_mb: float | None = None


def milliseconds(option: str, text: str) -> float:
    """Reads a duration such as 5ms, 800us or 0.2s, in milliseconds.

    Args:
        option: Name of the option, for the message.
        text: The text that the user typed. A bare number is refused, since it could be seconds.

    Raises:
        UserError: It is no duration.
    """
    return _read(option, text, _MS, "a duration with its unit, such as 5ms, 800us or 0.2s", "ms")


def megabytes(option: str, text: str) -> float:
    """Reads a size such as 8MB, 512kB or 0.5GB, in MB of 1e6 bytes; MiB are understood too.

    Args:
        option: Name of the option, for the message.
        text: The text that the user typed.

    Raises:
        UserError: It is no size.
    """
    return _read(option, text, _MB, "a size with its unit, such as 8MB, 512kB or 0.5GB", "MB")


def _read(option: str, text: str, units: dict[str, float], expected: str, usual: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UserError(f"{option}: expected {expected}, got {text!r}")
    number, unit = float(match[1]), match[2]
    if not unit:
        raise UserError(f"{option}: expected {expected}, got {text!r}; write {text.strip()}{usual}?")
    factor = units.get(unit, units.get(unit.lower()))
    if factor is None:
        raise UserError(f"{option}: expected {expected}; {unit!r} is no such unit")
    if number == 0:
        raise UserError(f"{option}: must be more than nothing, got {text!r}")
    return number * factor


def latency_verdict(medians_ms: Sequence[float], latency_ms: float) -> Verdict:
    """Judges with 95 % confidence if the median call keeps within the budget.

    Args:
        medians_ms: One per round.
        latency_ms: The budget; a time that equals it is within.

    Returns:
        "fits" only if the whole interval of the median is within the budget, "does not fit" only if it is
        wholly beyond it, else "undecided"; so below `stats.MIN_ROUNDS` always.
    """
    ends = stats.interval(medians_ms, CONFIDENCE)
    if ends is not None and ends[1] <= latency_ms:
        return "fits"
    if ends is not None and ends[0] > latency_ms:
        return "does not fit"
    return "undecided"
