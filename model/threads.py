"""How many threads the CPU executor should use: physical cores that this process may run on."""

from __future__ import annotations

import math
import os
from pathlib import Path

from flashlet.model.cgroup import cpu_quota
from flashlet.model.system_files import system_text


def physical_cores(root: Path = Path("/")) -> int:
    """Distinct cores among the CPUs that affinity allows, no more than a quota pays for, rounded up.

    Hyper-threads share one core's multipliers and caches, so a second thread on a core only adds waiting.
    `root` replaces / for what the system says in files.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(root, cpu) or str(cpu) for cpu in allowed}
    quota = cpu_quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), math.ceil(quota)))


def _siblings(root: Path, cpu: int) -> str:
    return system_text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
