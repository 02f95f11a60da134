"""Limits of containers and services, from made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashlet.model.cgroup import cpu_quota, free_memory


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


SERVICE = "sys/fs/cgroup/system.slice/flashlet.service"


def test_a_service_has_the_tightest_limit_of_all_groups_above_it(tmp_path: Path) -> None:
    root = _write(tmp_path, {
        "proc/self/cgroup": "0::/system.slice/flashlet.service",
        f"{SERVICE}/cpu.max": "150000 100000",
        "sys/fs/cgroup/system.slice/cpu.max": "max 100000",
        f"{SERVICE}/memory.max": "9000",
        f"{SERVICE}/memory.current": "2000",
        "sys/fs/cgroup/system.slice/memory.max": "8000",
        "sys/fs/cgroup/system.slice/memory.current": "5000",
    })  # fmt: skip
    assert (cpu_quota(root), free_memory(root)) == (1.5, 3000)
    _write(root, {"sys/fs/cgroup/system.slice/cpu.max": "50000 100000", f"{SERVICE}/memory.max": "3000"})
    assert (cpu_quota(root), free_memory(root)) == (0.5, 1000)


@pytest.mark.parametrize("path", ["0::/", "0::/../outside", "0::/not/shown/in/here", ""])
def test_a_container_sees_its_own_group_as_the_topmost(tmp_path: Path, path: str) -> None:
    root = _write(tmp_path / "root", {
        "proc/self/cgroup": path,
        "sys/fs/outside/cpu.max": "100000 100000",
        "sys/fs/outside/memory.max": "2000",
        "sys/fs/outside/memory.current": "1000",
        "sys/fs/cgroup/cpu.max": "200000 100000",
        "sys/fs/cgroup/memory.max": "5000",
        "sys/fs/cgroup/memory.current": "1000",
    })  # fmt: skip
    assert (cpu_quota(root), free_memory(root)) == (2.0, 4000)


def test_version_1_has_a_hierarchy_for_each_controller(tmp_path: Path) -> None:
    root = _write(tmp_path, {
        "proc/self/cgroup": "9:name=systemd:/x\n5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/x",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000",  # the group of another controller
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "10",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "0",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "7000",
        "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes": "6000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str((1 << 63) - 4096),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000",
        "sys/fs/cgroup/memory/docker/1/memory.stat": "cache 900\ninactive_file 9\ntotal_inactive_file 500",
    })  # fmt: skip
    assert (cpu_quota(root), free_memory(root)) == (2.5, 1500)
    _write(root, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"})
    assert cpu_quota(root) is None


def _service(root: Path, **memory: str) -> Path:
    """A group whose files memory.* say this."""
    files = {f"sys/fs/cgroup/a/memory.{name}": text for name, text in memory.items()}
    return _write(root, {"proc/self/cgroup": "0::/a", **files})


def test_files_leave_memory_free(tmp_path: Path) -> None:
    stat = "anon 90\nfile 900\ninactive_file 600\nactive_file 290"
    assert free_memory(_service(tmp_path, max="1000", current="990", stat=stat)) == 900
    assert free_memory(_service(tmp_path, current="700")) == 1000  # statistics lag behind


def test_a_service_that_would_be_slowed_down_is_at_its_limit(tmp_path: Path) -> None:
    assert free_memory(_service(tmp_path, max="max", high="1000", current="300")) == 700
    assert free_memory(_service(tmp_path, max="900")) == 600


@pytest.mark.parametrize("text", ["", "max", "max 100000", "nonsense", "1 0", "-3 100"])
def test_what_is_no_limit_is_none(tmp_path: Path, text: str) -> None:
    root = _write(_service(tmp_path, max=text, current="1"), {"sys/fs/cgroup/a/cpu.max": text})
    assert (cpu_quota(root), free_memory(root)) == (None, None)
    assert (cpu_quota(root / "nowhere"), free_memory(root / "nowhere")) == (None, None)
