"""Embeddings."""

from __future__ import annotations

import base64
import struct
from typing import Any

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule
from flashlet.serving.selftest.server import NOT_THERE, Server, answer

PATH = "/v1/embeddings"
TEXTS = ["The weather is fine.", "Numbers are even or odd."]


@rule
def floats(server: Server) -> None:
    """An embedding is a list of floats by default, one per input, in order."""
    body = _embed(server, input=TEXTS)
    expect([item["index"] for item in body["data"]] == [0, 1], "other indexes than 0 and 1")
    vectors = [item["embedding"] for item in body["data"]]
    expect(all(isinstance(value, float) for vector in vectors for value in vector), "not a list of floats")
    expect(len(vectors[0]) == len(vectors[1]) > 0, f"lengths {[len(vector) for vector in vectors]}")
    expect(vectors[0] != vectors[1], "two texts have the same vector")


@rule
def base64_floats(server: Server) -> None:
    """encoding_format "base64", which both SDKs ask for, is little-endian float32 of the same numbers."""
    vector = _embed(server, input=TEXTS[0], encoding_format="float")["data"][0]["embedding"]
    text = _embed(server, input=TEXTS[0], encoding_format="base64")["data"][0]["embedding"]
    expect(isinstance(text, str), f"embedding is a {type(text).__name__}")
    data = base64.b64decode(text)
    expect(len(data) == 4 * len(vector), f"{len(data)} bytes for {len(vector)} numbers")
    values = struct.unpack(f"<{len(vector)}f", data)
    close = all(abs(a - b) <= 1e-5 * max(1.0, abs(a)) for a, b in zip(values, vector, strict=True))
    expect(close, "other numbers than as floats")


@rule
def usage(server: Server) -> None:
    """An embedding's answer counts prompt_tokens and total_tokens."""
    found = _embed(server, input=TEXTS)["usage"]
    expect(found["prompt_tokens"] == found["total_tokens"] > 0, f"usage {found}")


def _embed(server: Server, **fields: Any) -> dict[str, Any]:
    response = server.post(PATH, {"model": server.model, **fields})
    if response.status_code in NOT_THERE:
        raise NotApplicableError(f"the server gives no embeddings (status {response.status_code})")
    return answer(response)
