"""Counts the cores that this process may use: by the CPU affinity and the container's CPU quota.

`os.cpu_count()` counts the cores of the machine. In a container with a quota of two cores on a
machine of 64, 64 threads only wait for each other.

This file stands alone (standard library; Python 3.8 and newer): a benchmark copies it to other machines.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_THREADS = 1024
"""More than any machine has cores; OpenMP ends the process where it cannot start what it is asked for."""

_PROC = Path("/proc/self")


def granted_cores() -> int:
    """Returns the number of logical cores that this process may keep busy, at least 1.

    The least of the CPU affinity (all cores where the system has none) and the CPU quotas of the process's
    control group and every group above it (cgroup v1 and v2). A quota of 2.5 cores counts as 2: a third
    thread would be throttled half of the time.
    """
    quota = cpu_quota()
    cores = len(affinity())
    return cores if quota is None else max(1, min(cores, int(quota)))


def affinity() -> list[int]:
    """Returns the sorted numbers of the logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS and Windows pin nothing


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Returns the lowest CPU quota of this process's control groups, in cores (may be 1.5); None: no quota.

    Args:
        proc: Folder with the process's `cgroup` and `mountinfo` files, as described in proc(5).
    """
    try:
        groups = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None  # no Linux, hence no control groups
    quotas = []
    for line in groups:
        _, controllers, group = line.split(":", 2)  # v2: "0::/group"; v1: "4:cpu,cpuacct:/group"
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount_root, mount_point in _cgroup_mounts(mounts, is_v2=not controllers):
            quotas += _quotas_upward(mount_root, mount_point, group, is_v2=not controllers)
    return min(quotas, default=None)


def _cgroup_mounts(mounts: list[str], *, is_v2: bool) -> list[tuple[str, Path]]:
    """Lists (root within the hierarchy, mount point) of the hierarchies that limit CPU time."""
    points = []
    for line in mounts:
        # "36 35 98:0 /root /mount/point rw,... optional fields - fstype source super,options"
        before, separator, after = line.partition(" - ")
        if not separator:
            continue
        fields, (kind, _, options) = before.split(" "), [*after.split(" "), "", "", ""][:3]
        is_cpu = kind == "cgroup2" if is_v2 else kind == "cgroup" and "cpu" in options.split(",")
        if is_cpu:
            points.append((_unescape(fields[3]), Path(_unescape(fields[4]))))
    return points


def _quotas_upward(mount_root: str, mount_point: Path, group: str, *, is_v2: bool) -> list[float]:
    # Inside a container the mount often shows only the container's own group, as its root.
    if mount_root != "/" and group.startswith(mount_root):
        group = group[len(mount_root) :]
    folder = mount_point / group.lstrip("/")
    if not folder.is_dir():
        folder = mount_point
    quotas = []
    while True:
        quota = _quota_v2(folder) if is_v2 else _quota_v1(folder)
        if quota is not None:
            quotas.append(quota)
        if folder == mount_point or mount_point not in folder.parents:
            return quotas
        folder = folder.parent  # a limit of a parent group binds its children too


def _quota_v2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()  # "max 100000" or "150000 100000", microseconds
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota_us, period_us = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota_us) / int(period_us) if quota_us and period_us and int(quota_us) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""  # the root group has no such file: no quota


def _unescape(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
