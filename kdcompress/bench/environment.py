"""The `env` block of a benchmark document, and warnings when the machine changed during the benchmark."""

from __future__ import annotations

from typing import Any

from kdcompress import __version__
from kdcompress.bench.device import machine
from kdcompress.bench.device.machine import load_warnings

__all__ = ["drift", "env_block", "environment", "load_warnings"]


def environment() -> dict[str, Any]:
    """Reads the `env` block of this machine; values that the machine does not show are null."""
    return env_block(machine.facts())


def env_block(facts: dict[str, Any], version: str | None = None) -> dict[str, Any]:
    """Makes the `env` block of a machine, with the version of kdcompress whose programs measure there.

    Args:
        facts: The result of `machine.facts` there.
        version: Version of kdcompress; None: this one.
    """
    return {**facts, "kdcompress": version or __version__}


def drift(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Lists warnings about changes of the machine between two `env` blocks.

    Args:
        before: The block at the start.
        after: The block at the end.
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
