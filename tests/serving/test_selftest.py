"""The rules of `flashlet selftest`, on our server and on one that breaks them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashlet.serving.cli import app
from flashlet.serving.selftest.run import SECTIONS, all_rules


class Careless(BaseHTTPRequestHandler):
    """Answers whatever it is asked with 200 and the same object, and streams without [DONE]."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "careless"}]})

    def do_POST(self) -> None:
        self.rfile.read(min(int(self.headers["content-length"]), 1 << 20))
        self._answer({"error": {"code": 7}, "choices": [{"message": {"content": "hello"}}], "tokens": [1]})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def careless() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_rule_has_a_section_and_a_name_of_its_own() -> None:
    rules = all_rules()
    assert {rule.section for rule in rules} == set(SECTIONS)
    assert len({(rule.section, rule.name) for rule in rules}) == len(rules)
    assert all(rule.text[-1] != "." for rule in rules)


def test_our_server_breaks_no_rule(default_model_path: Path) -> None:
    result = CliRunner().invoke(app, ["selftest", "--model", str(default_model_path), "--json"])
    outcomes = json.loads(result.stdout)
    broken = [outcome for outcome in outcomes if outcome["status"] == "fail"]
    assert not broken
    assert result.exit_code == 0
    skipped = {outcome["name"] for outcome in outcomes if outcome["status"] == "not applicable"}
    assert not skipped & {"overload", "key-is-asked-for", "key-headers", "whole-characters"}


def test_a_careless_server_breaks_nearly_all(careless: str) -> None:
    result = CliRunner().invoke(app, ["selftest", "--url", careless, "--json"])
    assert result.exit_code == 1
    outcomes = json.loads(result.stdout)
    assert [outcome["name"] for outcome in outcomes] == [rule.name for rule in all_rules()]
    passed = {outcome["name"] for outcome in outcomes if outcome["status"] == "pass"}
    assert passed <= {
        "fields-without-effect", "null-is-omitted", "roles", "content-forms", "none", "omitted",
        "tokenize", "no-special-tokens", "quick", "healthy",
    }  # fmt: skip


def test_nobody_at_the_url_is_one_line() -> None:
    result = CliRunner().invoke(app, ["selftest", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: http://127.0.0.1:9: ")
    assert result.stderr.count("\n") == 1
