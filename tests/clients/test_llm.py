"""`llm`, Simon Willison's command, with a model from extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm", reason="llm runs in ./scripts/test-clients")

QUESTION = "Say hello."
MODEL = """\
- model_id: local
  model_name: {model}
  api_base: {url}/v1
  api_key_name: local
  can_stream: true
  supports_tools: true
  supports_schema: true
"""


@pytest.fixture
def home(tmp_path: Path, url: str, model: str) -> Path:
    """A folder with llm's settings."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODEL.format(model=model, url=url))
    (tmp_path / "keys.json").write_text(json.dumps({"local": "none"}))
    return tmp_path


def run(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "llm", *arguments]
    environment = {**os.environ, "LLM_USER_PATH": str(home)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def prompt(home: Path, *arguments: str) -> str:
    fixed = ("-o", "temperature", "0", "-o", "max_tokens", "60")
    return run(home, "prompt", "-m", "local", *fixed, *arguments)


def test_stream_equals_plain(home: Path) -> None:
    assert prompt(home, QUESTION) == prompt(home, "--no-stream", QUESTION) != ""


def test_conversation(home: Path) -> None:
    prompt(home, QUESTION)
    assert prompt(home, "--continue", "And again.").strip()


def test_schema(home: Path) -> None:
    schema = {"type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"],
              "additionalProperties": False}  # fmt: skip
    answer = json.loads(prompt(home, "--schema", json.dumps(schema), "How large is a mouse?"))
    assert answer["size"] in {"small", "large"}


def test_tools(home: Path) -> None:
    function = "def clock() -> str:\n    'The time.'\n    return '12:00'\n"
    assert prompt(home, "--functions", function, "What time is it?").strip()
