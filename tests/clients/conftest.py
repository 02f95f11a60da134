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
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    import openai  # not in every environment

URL = "FLASHLET_CLIENTS_URL"


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the default model, without /v1 at its end."""
    if URL in os.environ:
        yield os.environ[URL]
        return
    path = request.getfixturevalue("default_model_path")
    command = [sys.executable, "-m", "flashlet.serving.cli", "serve", str(path), "--port", "0"]
    command += ["--data", str(tmp_path_factory.mktemp("data"))]
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


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """openai-python's."""
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
