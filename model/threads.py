"""How many threads the CPU executor should use: physical cores that this process may run on."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_ROOT = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores() -> int:
    """Distinct cores among the CPUs that affinity allows, no more than the cgroup's CPU quota; at least 1.

    Hyper-threads share one core's multipliers and caches, so a second thread on a core only adds waiting.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _cgroup_cpus()))


def _siblings(cpu: int) -> str:
    try:
        return (_CPU_ROOT / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cgroup_cpus() -> int:
    """CPUs that the cgroup's quota pays for (cgroup v2), rounded up; a large number without a quota."""
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return 1 << 16
