"""Facts about this machine that decide how fast it serves."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from flashlet.model.cgroup import cpu_quota
from flashlet.model.system_files import system_text
from flashlet.model.threads import physical_cores
from flashlet.serving.memory import available_memory


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores and memory; sizes in bytes."""

    cpu: str
    logical_cpus: int
    allowed_cpus: int  # by the process's affinity
    cpu_quota: float | None  # CPUs that the container or service may use; None: no limit
    default_threads: int
    load: float  # processes that wanted to run, average of the last minute
    governor: str | None  # of the CPU's frequency; None: unknown
    total_memory: int
    available_memory: int
    swap_used: int


def read_machine(root: Path = Path("/")) -> Machine:
    """Ask the operating system; `root` replaces / for what it says in files."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return Machine(
        cpu=cpu_name(root),
        logical_cpus=os.cpu_count() or 1,
        allowed_cpus=len(allowed),
        cpu_quota=cpu_quota(root),
        default_threads=physical_cores(root),
        load=psutil.getloadavg()[0],
        governor=_governor(root),
        total_memory=psutil.virtual_memory().total,
        available_memory=available_memory(root),
        swap_used=psutil.swap_memory().used,
    )


def cpu_name(root: Path = Path("/")) -> str:
    """The processor as the system calls it, or at least its architecture."""
    match = re.search(r"^model name\s*:\s*(.+)$", system_text(root / "proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _governor(root: Path) -> str | None:
    """Name of the frequency governor, unless the driver scales by itself under every governor."""
    folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
    if system_text(folder / "scaling_driver") in {"intel_pstate", "amd-pstate-epp"}:
        return None
    return system_text(folder / "scaling_governor") or None
