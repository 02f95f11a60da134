"""`flashlet doctor`: facts about this machine, and what it finds on machines that are worse."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flashlet.model.executor import ExecutorOptions, create_executor
from flashlet.serving.cli import app
from flashlet.serving.doctor import checks
from flashlet.serving.doctor.finding import Finding
from flashlet.serving.doctor.model_fit import ModelFit
from flashlet.serving.doctor.read_bandwidth import ReadBandwidth
from flashlet.serving.machine import Machine, read_machine

GIB = 1 << 30
MACHINE = Machine(
    cpu="a CPU", logical_cpus=4, allowed_cpus=4, cpu_quota=None, default_threads=4, load=0.5,
    governor="performance", total_memory=8 * GIB, available_memory=4 * GIB, swap_used=0,
)  # fmt: skip
FIT = ModelFit(
    name="m", weight_bytes=GIB, kv_dtype="int8", kv_bytes_per_token=1 << 20, context_length=1024,
    kv_bytes=GIB, cached=False, expected_context=1000, expected_tokens_per_second=10.0,
)  # fmt: skip


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def examination(*arguments: str | Path) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(run(*arguments, "--json", "--port", "0").stdout)
    return decoded


def problems(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.problem) for finding in findings]


def test_before_and_after_the_first_start(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLET_CACHE", str(tmp_path))
    before = examination(tiny_model_path)
    assert before["can_serve"]
    assert before["bandwidth"]["source"] == "buffer"
    assert before["bandwidth"]["gb_per_second"] > 0.1
    assert before["instruction_sets"][-1] == "portable"
    assert before["model"]["cached"] is False
    assert before["model"]["context_length"] == 512
    assert before["model"]["expected_tokens_per_second"] > 0
    assert any("will be quantized once" in finding["problem"] for finding in before["findings"])
    assert list(tmp_path.iterdir()) == []

    create_executor(tiny_model_path, ExecutorOptions(kv_cache_bytes=1 << 20, threads=1)).close()
    after = examination(tiny_model_path)
    assert after["bandwidth"]["source"] == "weights"
    assert after["model"]["cached"] is True
    assert not any("quantized" in finding["problem"] for finding in after["findings"])


def test_text_names_the_facts(tiny_model_path: Path) -> None:
    result = run(tiny_model_path, "--port", "0", "--context-length", "100")
    assert result.exit_code == 0
    for text in ("instructions", "portable", "GB/s", "one context of 100 tokens", "up to", "Ready to serve."):
        assert text in result.output


def test_port_in_use_prevents_serving(tiny_model_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = run(tiny_model_path, "--port", str(listener.getsockname()[1]))
    assert result.exit_code == 1
    assert "address already in use" in result.output
    assert "--port" in result.output


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLET_HOME", str(tmp_path))
    unpulled = examination()  # serve would pull it
    assert unpulled["can_serve"]
    assert unpulled["model"] is None
    assert unpulled["findings"][0]["remedy"] == "flashlet pull smollm2-135m-instruct"
    assert run("no-such-model", "--port", "0").exit_code == 1
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    damaged = examination(broken)
    assert not damaged["can_serve"]
    assert damaged["findings"][0]["severity"] == "error"


def test_cores() -> None:
    assert problems(checks.check_cores(MACHINE, 4)) == []
    limited = replace(MACHINE, logical_cpus=8, cpu_quota=1.5, governor="powersave")
    assert problems(checks.check_cores(limited, 3)) == [
        ("warning", "3 threads share 1.5 CPUs: they wait for each other in every layer"),
        ("warning", "the container or service may use 1.5 of 4 CPUs"),
        ("note", "this process may run on 4 of 8 CPUs"),
        ("warning", "the CPU frequency governor is powersave"),
    ]
    # What is the default is no fault.
    assert "threads share" not in str(problems(checks.check_cores(limited, 2)))
    assert "threads share" not in str(problems(checks.check_cores(replace(limited, cpu_quota=0.5), 1)))


def test_instruction_sets() -> None:
    assert problems(checks.check_instruction_sets(("avx2", "portable"))) == []
    assert [severity for severity, _ in problems(checks.check_instruction_sets(("portable",)))] == ["warning"]
    assert [severity for severity, _ in problems(checks.check_instruction_sets(()))] == ["error"]


def test_noise() -> None:
    steady = ReadBandwidth("weights", 2, 20.0, 0.05)
    assert problems(checks.check_bandwidth(steady, MACHINE)) == []
    noisy = problems(checks.check_bandwidth(replace(steady, spread=0.5), replace(MACHINE, load=9.0)))
    assert [severity for severity, _ in noisy] == ["warning", "warning"]


@pytest.mark.parametrize(
    ("available", "severity"), [(4 * GIB, None), (GIB * 3 // 2, "warning"), (GIB, "error")]
)
def test_memory(available: int, severity: str | None) -> None:
    machine = replace(MACHINE, available_memory=available)
    found = [name for name, _ in problems(checks.check_memory(machine, FIT))]
    assert found == ([severity] if severity else [])


def test_swap() -> None:
    assert "1.0 GiB are in swap" in problems(checks.check_memory(replace(MACHINE, swap_used=GIB), None))[0][1]


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "a" / "b"
    assert problems(checks.check_cache(missing, None)) == []
    assert problems(checks.check_cache(missing, replace(FIT, weight_bytes=1 << 60)))[0][0] == "error"
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write everywhere
    assert "cannot be written" in problems(checks.check_cache(missing, FIT))[0][1]
    assert problems(checks.check_cache(missing, replace(FIT, cached=True))) == []


def test_machine_is_read_from_the_system(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU @ 3GHz\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = read_machine(tmp_path)
    assert (machine.cpu, machine.cpu_quota, machine.governor) == ("Fast CPU @ 3GHz", 1.5, "powersave")
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver").write_text("intel_pstate\n")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    machine = read_machine(tmp_path)
    assert (machine.cpu_quota, machine.governor) == (None, None)
