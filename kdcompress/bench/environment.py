"""The `env` block of a benchmark document of this machine, and what became of the machine meanwhile."""

from __future__ import annotations

from typing import Any

from kdcompress import __version__
from kdcompress.bench import machine
from kdcompress.bench.machine import load_warnings

__all__ = ["drift", "environment", "load_warnings", "own"]


def environment() -> dict[str, Any]:
    """The `env` block; what the machine does not show is null, never left out."""
    return own(machine.facts())


def own(facts: dict[str, Any], version: str | None = None) -> dict[str, Any]:
    """The `env` block of a machine, with the version of kdcompress whose programs measure there.

    Args:
        facts: Of the machine, as `machine.facts` gives them.
        version: None: this one.
    """
    return {**facts, "kdcompress": version or __version__}


def drift(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Sentences on what changed in the machine between two `environment()` blocks.

    Args:
        before: At the start.
        after: At the end.
    """
    warnings = []
    if before["governor"] == "powersave":
        warnings.append(
            "the CPU governor is 'powersave': the clock follows the load, and short calls look slow"
        )
    if (
        before["temp_c"] is not None
        and after["temp_c"] is not None
        and after["temp_c"] - before["temp_c"] > 10
    ):
        warnings.append(f"the processor warmed from {before['temp_c']:.0f} to {after['temp_c']:.0f} °C")
    if before["freq_mhz"] and after["freq_mhz"] and after["freq_mhz"][1] < 0.95 * before["freq_mhz"][1]:
        fell = f"{before['freq_mhz'][1]:.0f} to {after['freq_mhz'][1]:.0f} MHz"
        warnings.append(
            f"the clock fell from {fell}: the times depend on how long the machine has been at work"
        )
    if before["on_battery"]:
        warnings.append("the machine runs on battery, which may cap its clock")
    return warnings
