"""The server that real clients talk to.

scripts/test-clients starts it, and names it in FLASHLET_CLIENTS_URL, because the clients have environments
of their own, without flashlet. In the usual test suite it is started here, and clients that are not installed
are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

URL = "FLASHLET_CLIENTS_URL"


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server with the default model, without /v1 at its end."""
    if URL in os.environ:
        yield os.environ[URL]
        return
    path = request.getfixturevalue("default_model_path")
    command = [sys.executable, "-m", "flashlet.serving.cli", "serve", str(path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    match = re.search(r"http://\S+", process.stdout.readline())
    assert match is not None
    yield match[0]
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope="session")
def model(url: str) -> str:
    """The name under which the model is served."""
    return str(httpx.get(f"{url}/v1/models").json()["data"][0]["id"])
