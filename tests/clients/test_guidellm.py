"""guidellm: a short run of its load generator, on chats and on legacy completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("guidellm", reason="guidellm runs in ./scripts/test-clients")

REQUESTS, OUTPUT_TOKENS = 6, 12


def run(folder: Path, backend: dict[str, Any]) -> dict[str, Any]:
    """Run guidellm; returns its benchmark."""
    report = folder / "report.json"
    row = {"prompt": "Count from one to one hundred.", "output_tokens_count": OUTPUT_TOKENS}
    options = {
        "--backend": {"kind": "openai_http", **backend},
        "--profile": {"kind": "concurrent", "streams": 2},
        "--constraint": {"kind": "max_requests", "count": REQUESTS},
        "--data": {"kind": "in_memory_dict_list", "data": [row] * REQUESTS},
        "--output": {"kind": "json", "path": str(report)},
    }
    command = [sys.executable, "-m", "guidellm", "run", "--disable-console"]
    for name, value in options.items():
        command += [name, json.dumps(value)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    benchmarks = json.loads(report.read_text())["benchmarks"]
    assert len(benchmarks) == 1
    return dict(benchmarks[0])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_short_run(tmp_path: Path, url: str, model: str, path: str) -> None:
    requests = run(tmp_path, {"target": url, "model": model, "request_format": path})["requests"]
    assert not requests["errored"]
    assert len(requests["successful"]) == REQUESTS
    assert {request["output_tokens"] for request in requests["successful"]} == {OUTPUT_TOKENS}
