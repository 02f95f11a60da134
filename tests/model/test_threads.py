"""How many threads a machine gets: made-up topologies and quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flashlet.model import threads


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight CPUs on four cores, without a quota; its files lie in the folder."""
    for cpu in range(8):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    _allow(monkeypatch, range(8))
    return tmp_path


def _allow(monkeypatch: pytest.MonkeyPatch, cpus: range | set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cpus), raising=False)


def test_siblings_count_once(machine: Path) -> None:
    assert threads.physical_cores(machine) == 4


@pytest.mark.parametrize(("cpus", "cores"), [({0, 1}, 2), ({0, 4}, 1), ({1, 5, 2}, 2), ({7}, 1)])
def test_affinity_limits_the_cores(
    machine: Path, monkeypatch: pytest.MonkeyPatch, cpus: set[int], cores: int
) -> None:
    _allow(monkeypatch, cpus)
    assert threads.physical_cores(machine) == cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("100000 100000", 1),
        ("10000 100000", 1),
        ("800000 100000", 4),
        ("25000 50000", 1),
        ("", 4),
        ("nonsense", 4),
        ("0 100000", 1),
    ],
)
def test_a_quota_limits_the_cores(machine: Path, quota: str, cores: int) -> None:
    (machine / "sys/fs/cgroup").mkdir(parents=True)
    (machine / "sys/fs/cgroup/cpu.max").write_text(quota + "\n")
    assert threads.physical_cores(machine) == cores


def test_cpus_without_topology_are_cores(machine: Path) -> None:
    for cpu in range(8):
        (machine / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").unlink()
    assert threads.physical_cores(machine) == 8


def test_systems_without_affinity_count_all_cpus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert threads.physical_cores(machine) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.physical_cores(machine) == 1


def test_this_machine_has_a_core() -> None:
    assert 1 <= threads.physical_cores() <= (os.cpu_count() or 1)
