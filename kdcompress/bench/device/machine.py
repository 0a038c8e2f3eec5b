"""Reads the facts of a machine that timings depend on: processor, clock, limits, versions.

This file stands alone with cores.py (standard library; Python 3.8 and newer; Linux and macOS): the two are
sent to machines that have no kdcompress. Values that a machine does not show are null, never left out.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Union

from kdcompress.cores import affinity, cpu_quota, granted_cores

_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "fphp", "sve", "bf16",
)  # fmt: skip
_SYS = Path("/sys")
_PROC = Path("/proc")


def facts() -> Dict[str, Any]:
    """Reads the `env` block of a benchmark document, without the version of kdcompress."""
    cpuinfo = _cpuinfo()
    flags = _flags(cpuinfo)
    return {
        "date_utc": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(cpuinfo),
        "isa": instruction_sets(cpuinfo),
        "machine": platform.machine(),
        "logical_cores": os.cpu_count(),
        "physical_cores": physical_cores(),
        "affinity": affinity(),
        "quota": cpu_quota(),
        "granted_cores": granted_cores(),
        "ram_mb": _ram_mb(),
        "vm": "hypervisor" in flags if flags else None,
        "governor": _read(_SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(),
        "freq_mhz": frequencies_mhz(),
        "temp_c": temperature_c(),
        "on_battery": on_battery(),
        "loadavg": [round(load, 2) for load in os.getloadavg()],
        "os": platform.system(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "runtimes": versions("onnxruntime", "torch", "openvino", "executorch"),
    }


def instruction_sets(cpuinfo: Optional[Dict[str, str]] = None) -> List[str]:
    """Lists the processor's vector and matrix instructions that change how networks are computed.

    Args:
        cpuinfo: Entries of /proc/cpuinfo; None: reads them.
    """
    flags = _flags(_cpuinfo() if cpuinfo is None else cpuinfo)
    return [flag for flag in _FLAGS if flag in flags]


def _flags(cpuinfo: Dict[str, str]) -> Set[str]:
    return set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())


def load_warnings() -> List[str]:
    """Lists a warning if other work keeps more than half of a core busy."""
    load, cores = os.getloadavg()[0], granted_cores()
    if load <= 0.5:
        return []
    return [
        "the machine is busy (load %.1f on %d cores): trust the ratios more than the times" % (load, cores)
    ]


def granted_threads(requests: Sequence[Union[int, str]], cores: int) -> Tuple[List[int], List[str]]:
    """Caps thread counts; gives each granted count once, and a warning for each request that is capped.

    Args:
        requests: Counts, or "all".
        cores: Number of cores that the process may keep busy.
    """
    counts: List[int] = []
    warnings: List[str] = []
    for request in requests:
        count = cores if isinstance(request, str) else min(request, cores)
        if not isinstance(request, str) and request > cores:
            warnings.append(
                "threads=%d, but this process may use only %d (affinity or quota); more threads would "
                "measure waiting, so %d %s used" % (request, cores, cores, "were" if cores > 1 else "was")
            )
        if count not in counts:
            counts.append(count)
    return counts, warnings


def versions(*packages: str) -> Dict[str, str]:
    """Reads the versions of the packages that are installed."""
    from importlib import metadata

    installed = {}
    for name in packages:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def frequencies_mhz() -> Optional[List[float]]:
    """Reads the least and greatest current frequency of the granted cores in MHz; None if not shown."""
    read = [_read(_SYS / ("devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq" % core)) for core in affinity()]
    khz = [int(value) for value in read if value]
    return [min(khz) / 1000, max(khz) / 1000] if khz else None


def temperature_c() -> Optional[float]:
    """Reads the hottest thermal zone in degrees Celsius; None if none is shown."""
    read = [_read(zone / "temp") for zone in (_SYS / "class/thermal").glob("thermal_zone*")]
    return max((int(value) / 1000 for value in read if value), default=None)


def physical_cores() -> Optional[int]:
    """Counts the physical cores of the machine; None if not shown."""
    if sys.platform == "darwin":
        count = _output("sysctl", "-n", "hw.physicalcpu")
        return int(count) if count and count.isdigit() else None
    places = set()
    for topology in (_SYS / "devices/system/cpu").glob("cpu[0-9]*/topology"):
        siblings = _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list")
        if siblings:
            places.add(siblings)
    return len(places) or None


def on_battery() -> Optional[bool]:
    """Tells if the machine runs on its battery; None if it has none or does not show it."""
    supplies = [
        (_read(supply / "type"), supply) for supply in sorted((_SYS / "class/power_supply").glob("*"))
    ]
    states = {
        _read(supply / "status")
        for kind, supply in supplies
        # A mouse has a battery too; its scope is "Device".
        if kind == "Battery" and _read(supply / "scope") != "Device"
    }
    if not states - {None}:
        return None
    mains = {_read(supply / "online") for kind, supply in supplies if kind == "Mains"}
    return "Discharging" in states and "1" not in mains


def _cpu(cpuinfo: Dict[str, str]) -> str:
    """Reads the processor's name; on a board without one, the board's."""
    board = _read(_PROC / "device-tree/model")
    return (
        cpuinfo.get("model name")
        or (board or "").strip("\0 \n")
        or (_output("sysctl", "-n", "machdep.cpu.brand_string") if sys.platform == "darwin" else None)
        or platform.processor()
        or platform.machine()
    )


def _cpuinfo() -> Dict[str, str]:
    """Reads the first processor's entries of /proc/cpuinfo; empty if there is none."""
    text = _read(_PROC / "cpuinfo") if sys.platform == "linux" else None
    first = (text or "").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _ram_mb() -> Optional[int]:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6)
    except (ValueError, OSError):
        return None


def _turbo() -> Optional[bool]:
    boost = _read(_SYS / "devices/system/cpu/cpufreq/boost")
    if boost is not None:
        return boost == "1"
    no_turbo = _read(_SYS / "devices/system/cpu/intel_pstate/no_turbo")
    return None if no_turbo is None else no_turbo == "0"


def _output(*command: str) -> Optional[str]:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() or None


def _read(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None  # virtual machines and containers show few of these
