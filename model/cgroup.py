"""What the control groups of this process let it use: containers, and services with limits of their own.

cgroups(7). A limit may stand in the group of the process or in any above it, in version 2 as in version 1;
in a container, whose files show its own group as the topmost, the path of the process may not exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flashlet.model.system_files import system_text


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the tightest quota pays for; None without one. `root` replaces / for what files say."""
    quotas: list[float] = []
    for folder in _groups(root, "cpu"):
        quota, _, period = system_text(folder / "cpu.max").partition(" ")
        if not quota:
            quota = system_text(folder / "cpu.cfs_quota_us")
            period = system_text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # else "max", -1 or nothing
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken within the tightest limit; None without one.

    Pages of files count as free: the system gives them up first. Beyond memory.high nobody is killed, but
    slowed down to a crawl: it is a limit, too.
    """
    free: list[int] = []
    for folder in _groups(root, "memory"):
        limits = [system_text(folder / f"memory.{name}") for name in ("max", "high")]
        used, prefix = system_text(folder / "memory.current"), ""
        if not used:
            limits = [system_text(folder / "memory.limit_in_bytes")]
            used, prefix = system_text(folder / "memory.usage_in_bytes"), "total_"
        numbers = [int(limit) for limit in limits if limit.isdigit()]  # else "max" or nothing
        if numbers and used.isdigit():
            files = _statistics(folder / "memory.stat", f"{prefix}inactive_file", f"{prefix}active_file")
            free.append(min(numbers) - max(int(used) - files, 0))
    return min(free, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that `controller` puts this process in, up to the topmost one."""
    top = root / "sys/fs/cgroup"
    found = False
    for line in system_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        found = True
        base = top / controller if controllers else top
        own = Path(path.lstrip("/"))
        if ".." not in own.parts:  # else outside of what the container sees
            yield from (base / group for group in (own, *own.parents) if group.name)
        yield base
    if not found:
        yield top


def _statistics(path: Path, *names: str) -> int:
    """The sum of what `path` says about `names`."""
    fields = (line.partition(" ") for line in system_text(path).splitlines())
    return sum(int(value) for name, _, value in fields if name in names and value.isdigit())
