"""What can be wrong: each check looks at one thing and yields findings."""

from __future__ import annotations

import math
import os
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from flashlet.serving.config import format_bytes
from flashlet.serving.doctor.finding import Finding
from flashlet.serving.doctor.model_fit import ModelFit
from flashlet.serving.doctor.read_bandwidth import ReadBandwidth
from flashlet.serving.machine import Machine

_NOISY_SPREAD = 0.3
_SLOW_GOVERNORS = {"powersave", "conservative"}


def check_cores(machine: Machine, threads: int) -> Iterator[Finding]:
    """Too few CPUs for the threads, and limits below what the machine has."""
    usable = (
        machine.allowed_cpus if machine.cpu_quota is None else min(machine.allowed_cpus, machine.cpu_quota)
    )
    enough = max(1, math.ceil(usable))
    if threads > enough:
        yield Finding(
            "warning",
            f"{threads} threads share {usable:g} CPUs: they wait for each other in every layer",
            f"--threads {enough}, or a higher CPU limit",
        )
    if machine.cpu_quota is not None and machine.cpu_quota < machine.allowed_cpus:
        yield Finding(
            "warning",
            f"the container or service may use {machine.cpu_quota:g} of {machine.allowed_cpus} CPUs",
            "raise its CPU limit (docker run --cpus, limits.cpu, or CPUQuota= of systemd)",
        )
    if machine.allowed_cpus < machine.logical_cpus:
        yield Finding(
            "note",
            f"this process may run on {machine.allowed_cpus} of {machine.logical_cpus} CPUs",
            "widen its CPU affinity (taskset, docker run --cpuset-cpus) if the others are free",
        )
    if machine.governor in _SLOW_GOVERNORS:
        yield Finding(
            "warning",
            f"the CPU frequency governor is {machine.governor}",
            "cpupower frequency-set -g performance",
        )


def check_instruction_sets(names: tuple[str, ...]) -> Iterator[Finding]:
    """No vector instructions beyond the compiler's baseline."""
    if not names:
        yield Finding(
            "error",
            "the native core cannot be loaded",
            "install flashlet again on this machine, or use --backend torch",
        )
    elif names[0] == "portable":
        yield Finding(
            "warning",
            "the CPU has no AVX2, so the portable kernels run, several times slower",
            "use a machine with AVX2; a virtual machine may hide it (CPU type: host)",
        )


def check_bandwidth(bandwidth: ReadBandwidth | None, machine: Machine) -> Iterator[Finding]:
    """Somebody else uses the memory or the cores."""
    if bandwidth and bandwidth.spread > _NOISY_SPREAD:
        yield Finding(
            "warning",
            f"the read bandwidth varies by {bandwidth.spread:.0%}: something else uses memory or CPUs",
            "look for busy processes (top), or for noisy neighbours of a virtual machine",
        )
    if machine.load > machine.logical_cpus:
        yield Finding(
            "warning",
            f"{machine.load:.1f} processes wanted to run on {machine.logical_cpus} CPUs in the last minute",
            "stop what else runs, or leave CPUs to it with --threads",
        )


def check_memory(machine: Machine, fit: ModelFit | None) -> Iterator[Finding]:
    """The model does not fit, or only just; and pages in swap."""
    free = format_bytes(machine.available_memory)
    if fit and fit.num_bytes > machine.available_memory:
        fatal = fit.weight_bytes + fit.kv_bytes_per_token > machine.available_memory
        yield Finding(
            "error" if fatal else "warning",
            f"weights ({format_bytes(fit.weight_bytes)}) and one context of {fit.context_length:,} tokens "
            f"({format_bytes(fit.kv_bytes)}) do not fit into {free} of free memory",
            "free memory, or choose a smaller model" if fatal else "free memory, or use --context-length",
        )
    if machine.swap_used > 0.05 * machine.total_memory:
        yield Finding(
            "warning",
            f"{format_bytes(machine.swap_used)} are in swap, where weights would be far too slow",
            "free memory, then swapoff -a and swapon -a",
        )


def check_port(host: str, port: int) -> Iterator[Finding]:
    """The address to listen on is taken or not ours."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        yield Finding(
            "error",
            f"cannot listen on {host}, port {port}: {reason.lower()}",
            "stop the program that listens there, or choose another with --port",
        )


def check_cache(folder: Path, fit: ModelFit | None) -> Iterator[Finding]:
    """Quantized weights have to be written, and cannot be."""
    if fit and fit.cached:
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "error",
            f"the cache for quantized weights, {folder}, cannot be written",
            "name another folder in FLASHLET_CACHE",
        )
    elif fit and shutil.disk_usage(existing).free < fit.weight_bytes:
        yield Finding(
            "error",
            f"the quantized weights need {format_bytes(fit.weight_bytes)} of disk, {folder} has "
            f"{format_bytes(shutil.disk_usage(existing).free)} left",
            "free disk space, or name another folder in FLASHLET_CACHE",
        )
    elif fit:
        yield Finding(
            "note",
            "the model was never started: its weights will be quantized once",
            f"start it once, as flashlet generate {fit.name} -p hello does",
        )


def check_canary(problem: str | None) -> Iterator[Finding]:
    """The model gives other numbers than it once did."""
    if problem:
        yield Finding(
            "error",
            problem,
            "test the memory (memtest86+), delete the weight cache, or install flashlet again",
        )


def check_torch() -> Iterator[Finding]:
    """The optional backend is not installed."""
    if find_spec("torch") is None:
        yield Finding(
            "note",
            "PyTorch is not installed: no GPU and no fp32 weights",
            "pip install 'flashlet[torch]' if you need them",
        )
