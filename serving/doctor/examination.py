"""Everything that `flashlet doctor` looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flashlet.model.errors import FlashletError, ModelNotFoundError
from flashlet.model.executor import ExecutorOptions, KvDtype, create_executor
from flashlet.model.fingerprint import fingerprint_of
from flashlet.model.registry import DEFAULT_MODEL, known_models, resolve
from flashlet.model.weight_cache import Int8Weights, default_cache_dir, find_int8
from flashlet.serving.canary import STEPS, canary_problem, expected_result
from flashlet.serving.doctor import checks
from flashlet.serving.doctor.finding import Finding
from flashlet.serving.doctor.model_fit import ModelFit, fit_model
from flashlet.serving.doctor.read_bandwidth import ReadBandwidth, measure_read_bandwidth
from flashlet.serving.machine import Machine, read_machine
from flashlet.serving.memory import kv_bytes_per_token

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ServePlan:
    """How the model would be served."""

    model: str | None = None  # None: the default one
    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 0  # 0: one per physical core
    kv_dtype: KvDtype = "int8"
    context_length: int | None = None  # None: the model's own


@dataclass(frozen=True, slots=True)
class Examination:
    """The machine, the model and what was found; encodes to JSON as it stands."""

    machine: Machine
    instruction_sets: tuple[str, ...]  # that can run, the one that is used first; empty: no native core
    bandwidth: ReadBandwidth | None  # None: no native core
    model: ModelFit | None  # None: not there, or damaged
    findings: tuple[Finding, ...]
    can_serve: bool  # nothing was found that prevents it


def examine(plan: ServePlan) -> Examination:
    """Measure the machine and judge whether it can serve the model; writes nothing, pulls nothing."""
    machine = read_machine()
    name = plan.model or DEFAULT_MODEL
    findings: list[Finding] = []
    path, weights = _find_model(name, findings)
    instruction_sets = _instruction_sets()
    bandwidth = measure_read_bandwidth(weights, plan.threads) if instruction_sets else None
    fit = _try(lambda: _fit(name, path, weights, plan, bandwidth), findings) if path else None
    threads = plan.threads or machine.default_threads
    findings += checks.check_instruction_sets(instruction_sets)
    findings += checks.check_cores(machine, threads)
    findings += checks.check_bandwidth(bandwidth, machine)
    findings += checks.check_memory(machine, fit)
    findings += checks.check_cache(default_cache_dir(), fit)
    findings += checks.check_port(plan.host, plan.port)
    findings += checks.check_canary(_canary_problem(path, weights, plan) if path and weights else None)
    findings += checks.check_torch()
    return Examination(
        machine=machine,
        instruction_sets=instruction_sets,
        bandwidth=bandwidth,
        model=fit,
        findings=tuple(findings),
        can_serve=all(finding.severity != "error" for finding in findings),
    )


def _find_model(name: str, findings: list[Finding]) -> tuple[Path | None, Int8Weights | None]:
    """The model's path, and its quantized weights if the cache has them."""
    try:
        path = resolve(name)
    except ModelNotFoundError as error:
        if any(entry.name == name for entry in known_models()):
            findings.append(Finding("warning", f"{name} is not pulled yet", f"flashlet pull {name}"))
        else:
            findings.append(Finding("error", str(error), "flashlet models lists what is known"))
        return None, None
    return path, _try(lambda: find_int8(path), [])  # what is wrong with it shows when its size is read


def _fit(
    name: str, path: Path, weights: Int8Weights | None, plan: ServePlan, bandwidth: ReadBandwidth | None
) -> ModelFit:
    speed = bandwidth.gb_per_second if bandwidth else None
    return fit_model(name, path, plan.kv_dtype, plan.context_length, weights is not None, speed)


def _canary_problem(path: Path, weights: Int8Weights, plan: ServePlan) -> str | None:
    """What is wrong with the result of the canary prompt, if one is known."""
    options = ExecutorOptions(
        kv_dtype=plan.kv_dtype,
        kv_cache_bytes=sum(STEPS) * 4 * kv_bytes_per_token(weights.config, plan.kv_dtype),
        threads=plan.threads,
    )
    fingerprint = fingerprint_of(path, options)
    if expected_result(fingerprint) is None:
        return None
    executor = create_executor(path, options)
    try:
        return canary_problem(executor, options, fingerprint)
    finally:
        executor.close()


def _try(action: Callable[[], _Result], findings: list[Finding]) -> _Result | None:
    """Result of `action`; its failure becomes a finding."""
    try:
        return action()
    except (FlashletError, OSError) as error:
        findings.append(Finding("error", str(error), "pull the model again, or choose another"))
        return None


def _instruction_sets() -> tuple[str, ...]:
    try:
        from flashlet.kernels.cpu import instruction_sets
    except ImportError:
        return ()
    return tuple(instruction_sets())
