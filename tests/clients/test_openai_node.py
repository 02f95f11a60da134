"""openai-node: node/*.test.mjs, run by node with the packages that scripts/test-clients installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = "FLASHLET_CLIENTS_NODE"  # where node_modules lies


@pytest.mark.skipif(FOLDER not in os.environ, reason="openai-node runs in ./scripts/test-clients")
@pytest.mark.parametrize("name", ["openai.test.mjs", "responses.test.mjs"])
def test_openai_node(url: str, name: str) -> None:
    folder = Path(os.environ[FOLDER])
    shutil.copy(Path(__file__).parent / "node" / name, folder)
    environment = {**os.environ, "FLASHLET_CLIENTS_URL": url}
    result = subprocess.run(
        ["node", "--test", name],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
