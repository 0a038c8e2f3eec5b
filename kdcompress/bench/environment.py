"""What a timing depends on and a reader must know: the processor, its clock, the limits, the versions."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from kdcompress.cores import affinity, cpu_quota, granted_cores

_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "fphp", "sve", "bf16",
)  # fmt: skip
_SYS = Path("/sys")


def environment() -> dict[str, Any]:
    """The `env` block of a benchmark document; what the machine does not show is null, never left out."""
    cpuinfo = _cpuinfo()
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return {
        "date_utc": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "isa": [flag for flag in _FLAGS if flag in flags],
        "machine": platform.machine(),
        "logical_cores": os.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "affinity": affinity(),
        "quota": cpu_quota(),
        "granted_cores": granted_cores(),
        "ram_mb": round(psutil.virtual_memory().total / 1e6),
        "vm": "hypervisor" in flags if flags else None,
        "governor": _read(_SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(),
        "freq_mhz": frequencies_mhz(),
        "temp_c": temperature_c(),
        "on_battery": None if battery is None else not battery.power_plugged,
        "loadavg": [round(load, 2) for load in os.getloadavg()],
        "os": platform.system(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "kdcompress": metadata.version("kdcompress"),
        "runtimes": _versions("onnxruntime", "torch", "openvino"),
    }


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def load_warnings() -> list[str]:
    """A sentence if other work keeps more than half of a core busy."""
    load, cores = os.getloadavg()[0], granted_cores()
    if load <= 0.5:
        return []
    return [f"the machine is busy (load {load:.1f} on {cores} cores): trust the ratios more than the times"]


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


def frequencies_mhz() -> list[float] | None:
    """Least and greatest current frequency of the granted cores in MHz; None if not observable."""
    read = [_read(_SYS / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in affinity()]
    khz = [int(value) for value in read if value]
    return [min(khz) / 1000, max(khz) / 1000] if khz else None


def temperature_c() -> float | None:
    """The hottest thermal zone in degrees Celsius, or None where none is observable."""
    read = [_read(zone / "temp") for zone in (_SYS / "class/thermal").glob("thermal_zone*")]
    return max((int(value) / 1000 for value in read if value), default=None)


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    text = _read(Path("/proc/cpuinfo")) if sys.platform == "linux" else None
    first = (text or "").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _turbo() -> bool | None:
    boost = _read(_SYS / "devices/system/cpu/cpufreq/boost")
    if boost is not None:
        return boost == "1"
    no_turbo = _read(_SYS / "devices/system/cpu/intel_pstate/no_turbo")
    return None if no_turbo is None else no_turbo == "0"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None  # virtual machines and containers show few of these
