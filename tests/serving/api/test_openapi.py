"""The OpenAPI document: complete, and true of a running server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flashlet.serving.batches.config import BatchConfig

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

ENDPOINTS = {
    "post": {
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize",
        "/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel", "/v1/messages",
        "/v1/messages/count_tokens", "/v1/verify", "/v1/responses", "/v1/responses/{response_id}/cancel",
        "/v1/estimate",
    },
    "get": {
        "/v1/models", "/v1/models/{model}", "/tokenizer_info", "/health", "/version", "/metrics",
        "/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content", "/v1/batches",
        "/v1/streams/{stream_id}",
        "/v1/batches/{batch_id}", "/v1/responses/{response_id}", "/v1/responses/{response_id}/input_items",
    },
    "delete": {"/v1/files/{file_id}", "/v1/responses/{response_id}"},
}  # fmt: skip
KEY = "a-key"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def full(start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with every endpoint, and with a key."""
    return start_server(api_keys=(KEY,), batches=BatchConfig(tmp_path_factory.mktemp("batches")))


@pytest.fixture(scope="module")
def document(full: Server) -> dict[str, Any]:
    answer: dict[str, Any] = full.client.get("/openapi.json", headers=HEADERS).json()
    return answer


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_every_endpoint_is_described(document: dict[str, Any]) -> None:
    for method, paths in ENDPOINTS.items():
        assert {path for path, methods in document["paths"].items() if method in methods} == paths
    tags = {tag["name"] for tag in document["tags"]}
    for path, operation in operations(document):
        assert operation["summary"] and operation["description"], path
        assert set(operation["tags"]) <= tags and len(operation["tags"]) == 1
        assert {"200"} | ({"401"} if path != "/health" else set()) <= operation["responses"].keys()
        assert ("security" in operation) == (path != "/health")
        for status, response in operation["responses"].items():
            assert status.isdecimal() and status != "422" and "x-request-id" in response["headers"]
            assert ("retry-after-ms" in response["headers"]) == (status in {"429", "500", "503"})
            if status != "200":
                body = "MessageErrorBody" if path.startswith("/v1/messages") else "ErrorBody"
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{body}"}


def test_generating_endpoints_name_every_status(document: dict[str, Any]) -> None:
    streamed = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
    for path in (*streamed, "/v1/embeddings"):
        statuses = document["paths"][path]["post"]["responses"].keys()
        assert statuses == {"200", "400", "401", "404", "408", "413", "429", "500", "503"}
    for path in streamed:
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert content.keys() == {"application/json", "text/event-stream"}


def test_examples_work(document: dict[str, Any], server: Server) -> None:
    for path in (
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize",
        "/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/v1/verify", "/v1/estimate",
    ):  # fmt: skip
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for reference in body.get("oneOf", [body]):
            schema = document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
            assert schema["additionalProperties"] is False and schema["examples"]
            for example in schema["examples"]:
                response = server.client.post(path, json=example)
                assert response.status_code == 200, response.text


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": ?"#/components/([^"]+)"', json.dumps(document)))
    assert {"schemas/ChatChunk", "schemas/Completion", "schemas/ErrorBody"} <= references
    for reference in references:
        kind, name = reference.split("/")
        assert name in document["components"][kind]


def test_keys_are_asked_for_where_the_server_does(document: dict[str, Any], server: Server) -> None:
    open_document = server.client.get("/openapi.json").json()
    for operations_of, further in ((document, []), (open_document, [{}])):
        for path, operation in operations(operations_of):
            keys = [] if path == "/health" else [{"bearer": []}, {"x-api-key": []}, *further]
            assert operation.get("security", []) == keys


def test_the_page_needs_no_other_server(server: Server) -> None:
    page = server.client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    links = re.findall(r"""(?:href|src)=["']([^"']+)["']""", page.text)
    assert len(links) >= 2 and all(link.startswith("/") for link in links)
    for link in links:
        assert server.client.get(link).status_code == 200


def test_version(full: Server) -> None:
    assert full.client.get("/version", headers=HEADERS).json() == {
        "name": "flashlet",
        "version": version("flashlet"),
    }
    assert full.client.get("/version").status_code == 401


def test_a_wrong_method_is_told_the_right_ones(full: Server) -> None:
    for path, methods in {
        "/v1/files": "GET, POST",
        "/v1/files/x": "DELETE, GET",
        "/tokenize": "POST",
    }.items():
        response = full.client.put(path, headers=HEADERS)
        assert (response.status_code, response.headers["allow"]) == (405, methods)


def test_schemathesis_finds_nothing(full: Server, tmp_path: Path) -> None:
    """No 5xx, no undocumented status, no answer beside its schema, whatever is sent.

    But 503: it refuses a deadline that cannot be met.
    """
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 503]\n', encoding="utf-8"
    )
    command = [
        *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}"),
        *("run", f"{full.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}"),
        # One worker: two that parse lambdas at once trip over CPython's gh-106905.
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--workers", "1"),
        *("--generation-deterministic", "--request-timeout", "30"),
        # What depends on the model, such as its vocabulary, or on two fields at once is no part of a schema.
        *("--exclude-checks", "positive_data_acceptance", "--no-color"),
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert re.search(r"(\d{3,}) generated, \1 passed", result.stdout), result.stdout[-2000:]
    full.wait_idle()
