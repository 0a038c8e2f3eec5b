"""The cores granted to a process are those of its affinity and of the tightest quota above it."""

from __future__ import annotations

import os

import pytest

from kdcompress.cores import affinity, cpu_quota, granted_cores


def _proc(tmp_path, cgroup, mounts):
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mounts)
    return proc


def _v2_mount(point, root="/"):
    return f"30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"


def test_the_answer_is_at_least_one_and_at_most_the_affinity():
    assert 1 <= granted_cores() <= len(affinity())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_pinning_to_one_core_grants_one():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert granted_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_v2_quota_is_quota_over_period(tmp_path):
    group = tmp_path / "cg" / "job"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(_proc(tmp_path, "0::/job\n", _v2_mount(tmp_path / "cg"))) == 1.5


def test_the_tightest_group_above_binds(tmp_path):
    inner = tmp_path / "cg" / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "cg" / "cpu.max").write_text("800000 100000\n")
    assert cpu_quota(_proc(tmp_path, "0::/pod/container\n", _v2_mount(tmp_path / "cg"))) == 2


def test_a_mount_that_shows_only_the_containers_group_is_read_at_its_root(tmp_path):
    mount = tmp_path / "cg with space"
    mount.mkdir()
    (mount / "cpu.max").write_text("300000 100000\n")
    escaped = str(mount).replace(" ", "\\040")
    assert cpu_quota(_proc(tmp_path, "0::/docker/abc\n", _v2_mount(escaped, root="/docker/abc"))) == 3


def test_a_v1_quota_is_read_and_minus_one_means_none(tmp_path):
    group = tmp_path / "cpu" / "job"
    group.mkdir(parents=True)
    mounts = f"31 23 0:27 / {tmp_path / 'cpu'} rw - cgroup cgroup rw,cpu,cpuacct\n"
    proc = _proc(tmp_path, "5:memory:/other\n4:cpu,cpuacct:/job\n", mounts)
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota(proc) is None
    (group / "cpu.cfs_quota_us").write_text("400000\n")
    assert cpu_quota(proc) == 4


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "absent") is None


def test_less_than_one_core_of_quota_still_grants_one(monkeypatch):
    monkeypatch.setattr("kdcompress.cores.cpu_quota", lambda: 0.4)
    assert granted_cores() == 1
