"""The command line without a server: exit codes, one-line errors, and what the commands print."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flashlet.serving.cli import app
from flashlet.serving.cli.resolving import served_name

GREEDY = ("--temperature", "0", "--max-tokens", "12", "--threads", "1")


@pytest.fixture(autouse=True)
def _empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FLASHLET_DEBUG", raising=False)


def run(*arguments: str | Path, text: str = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("serve", "chat", "generate", "pull", "models", "inspect", "version", "Exit codes", "130"):
        assert word in result.output


@pytest.mark.parametrize("command", ["serve", "chat", "generate", "pull", "models", "inspect", "version"])
def test_every_command_has_help(command: str) -> None:
    assert run(command, "--help").exit_code == 0


def test_version() -> None:
    assert run("version").output.startswith("flashlet 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--kv-cache", "lots"],
        ["serve", "--port", "70000"],
        ["serve", "--weights", "int3"],
        ["serve", "--no-such-option"],
        ["generate", "--temperature", "-1"],
        ["no-such-command"],
        ["pull"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("command", ["inspect", "pull", "serve", "chat", "generate"])
def test_unknown_model_is_3_and_one_line(command: str) -> None:
    result = run(command, "no-such-model")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: no model 'no-such-model'")
    assert result.stderr.count("\n") == 1


def test_hub_out_of_reach_is_1_and_one_line() -> None:
    command = [sys.executable, "-m", "flashlet.serving.cli", "pull", "org/repo"]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: org/repo: ")
    assert result.stderr.count("\n") == 1


def test_damaged_model_is_1_and_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    result = run("generate", broken, "-p", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_not_enough_memory_is_1(tiny_model_path: Path) -> None:
    result = run("generate", tiny_model_path, "-p", "x", "--kv-cache", "900TiB")
    assert result.exit_code == 1
    assert "not enough memory" in result.stderr


def test_debug_shows_the_exception() -> None:
    assert run("--debug", "inspect", "no-such-model").exception.__class__.__name__ == "ModelNotFoundError"


def test_models_lists_known_and_pulled(tiny_model_path: Path) -> None:
    assert run("pull", tiny_model_path).exit_code == 0
    output = run("models").output
    assert "smollm2-135m-instruct" in output
    assert tiny_model_path.name in output
    assert run("generate", tiny_model_path.name, "-p", "the", *GREEDY).exit_code == 0


def test_inspect_shows_shape_and_template(tiny_model_path: Path) -> None:
    output = run("inspect", tiny_model_path, "--template").output
    for text in (
        "llama",
        "2",
        "4 of 16, 2 for keys and values",
        "512 tokens",
        "F32",
        "as int8",
        "<|im_start|>",
    ):
        assert text in output


def test_generate_is_repeatable_and_reads_stdin(tiny_model_path: Path) -> None:
    first = run("generate", tiny_model_path, "-p", "the weather", *GREEDY)
    assert first.exit_code == 0
    assert len(first.output.strip()) > 0
    assert run("generate", tiny_model_path, "-p", "-", *GREEDY, text="the weather").output == first.output
    sampled = [
        "generate",
        tiny_model_path,
        "-p",
        "the",
        "--max-tokens",
        "12",
        "--seed",
        "7",
        "--threads",
        "1",
    ]
    assert run(*sampled).output == run(*sampled).output
    assert run("generate", tiny_model_path, "--chat", "-p", "the weather", *GREEDY).output != first.output


def test_prompt_beyond_the_context_is_1(tiny_model_path: Path) -> None:
    result = run("generate", tiny_model_path, "-p", "the weather " * 50, "--context-length", "32")
    assert result.exit_code == 1
    assert "maximum context length is 32 tokens" in result.stderr


def test_chat_keeps_and_forgets_the_conversation(tiny_model_path: Path) -> None:
    def answers(text: str) -> list[str]:
        result = run("chat", tiny_model_path, *GREEDY, text=text)
        assert result.exit_code == 0, result.stderr
        return result.output.splitlines()

    once = answers("the city\n")
    assert answers("the city\nthe city\n") != once * 2
    assert answers("the city\n/reset\nthe city\n/exit\nthe city\n") == [
        *once,
        "The conversation is forgotten.",
        *once,
    ]


def test_chat_goes_on_after_a_refused_message(tiny_model_path: Path) -> None:
    result = run("chat", tiny_model_path, "--context-length", "40", *GREEDY, text=f"{'a b c ' * 40}\nthe\n")
    assert result.exit_code == 0
    assert "error: this model's maximum context length is 40 tokens" in result.stderr
    assert result.output.strip()


def test_chat_with_nobody_behind_the_url() -> None:
    result = run("chat", "--url", "http://127.0.0.1:9", text="hello\n")
    assert result.exit_code == 0
    assert result.stderr.startswith("error: http://127.0.0.1:9/v1/chat/completions")


def test_served_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.Q4_1.gguf").touch()
    assert served_name(str(tmp_path / "tiny.Q4_1.gguf")) == "tiny.Q4_1"
    assert served_name(str(tmp_path)) == tmp_path.name
    assert served_name("org/repo") == "org/repo"


def test_ctrl_c_stops_the_answer_not_the_chat(tiny_model_path: Path) -> None:
    """In a real terminal: an answer of up to 400 tokens is stopped, and the prompt comes back."""
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "flashlet.serving.cli", "chat", str(tiny_model_path)]
    command += ["--backend", "torch", "--seed", "1"]  # slow, and with this seed long
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, close_fds=True)
    os.close(side)
    try:
        read_until(terminal, b"> ")
        os.write(terminal, b"hello\n")
        read_until(terminal, b"hello\r\n")
        os.read(terminal, 1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        read_until(terminal, b"[stopped]\r\n")
        os.write(terminal, b"/exit\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def read_until(terminal: int, end: bytes) -> bytes:
    """Read from a terminal until `end` comes."""
    data = b""
    while not data.endswith(end):
        data += os.read(terminal, 1)
    return data
