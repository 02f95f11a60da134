"""Keys, request ids, CORS, metrics and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flashlet.kernels.cpu import StepCosts
from flashlet.serving.admin.metrics import Histogram
from flashlet.serving.engine.live_comparison import LiveComparison

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

PATHS = ["/v1/models", "/v1/models/toy", "/metrics", "/tokenizer_info", "/openapi.json", "/docs", "/nowhere"]


@pytest.fixture(scope="module")
def locked(start_server: Callable[..., Server]) -> Server:
    return start_server(api_keys=("sesame", "schlüssel"), cors_origins=("http://localhost:3000",))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_asks_for_a_key(locked: Server, path: str) -> None:
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Basic sesame"},
        {"authorization": "sesame"},
        {"x-api-key": "sesam"},
        {"x-api-key": ""},
    ):
        refused = locked.client.get(path, headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key" and refused.headers["x-request-id"]
    assert locked.client.post("/v1/completions", content=b"{").status_code == 401
    accepted = [
        {"authorization": "Bearer sesame"},
        {"authorization": "bearer sesame"},
        {"x-api-key": "sesame"},
    ]
    for headers in accepted:
        assert locked.client.get(path, headers=headers).status_code == (404 if path == "/nowhere" else 200)


def test_health_is_open_and_keys_may_be_unicode(locked: Server) -> None:
    assert locked.client.get("/health").status_code == 200
    key = "schlüssel".encode()
    assert locked.client.get("/v1/models", headers=[(b"x-api-key", key)]).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/v1/models", 200), ("/nowhere", 404)])
def test_head_is_get_without_a_body(server: Server, path: str, status: int) -> None:
    head, get = server.client.head(path), server.client.get(path)
    assert head.status_code == get.status_code == status and head.content == b""
    assert head.headers["content-type"] == "application/json" and head.headers["x-request-id"]
    if status == 200:
        assert head.headers["content-length"] == str(len(get.content))


def test_head_needs_a_key_too(locked: Server) -> None:
    assert locked.client.head("/v1/models").status_code == 401
    assert locked.client.head("/v1/models", headers={"x-api-key": "sesame"}).status_code == 200


def test_cors(locked: Server, server: Server) -> None:
    preflight = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    allowed = locked.client.options("/v1/completions", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"
    failed = locked.client.get("/v1/models", headers={"origin": preflight["origin"]})
    exposed = failed.headers["access-control-expose-headers"]
    assert {"retry-after-ms", "x-should-retry", "x-request-id"} <= {*exposed.split(", ")}
    for path in ("/v1/completions", "/v1/messages"):
        refused = locked.client.options(path, headers=preflight | {"origin": "http://evil"})
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
    off = server.client.get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert not [name for name in off.headers if name.startswith("access-control")]


def test_request_ids(server: Server) -> None:
    sane = server.client.get("/health", headers={"x-request-id": "abc-123.4:5"})
    assert sane.headers["x-request-id"] == "abc-123.4:5"
    for given in ("", "a b", "x" * 129, 'a"b'):
        fresh = server.client.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{24}", fresh)
    body = {"prompt": "a", "stream": True, "max_tokens": 1}
    assert server.post("/v1/completions", **body).headers["x-request-id"].startswith("req_")


def samples(server: Server) -> dict[str, float]:
    text = server.client.get("/metrics").text
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(start_server: Callable[..., Server]) -> None:
    server = start_server()
    before = samples(server)
    assert before["flashlet:e2e_request_latency_seconds_count"] == 0
    for _ in range(2):
        server.post(
            "/v1/completions", prompt="z y x w v u t s r q p o n m", n=2, max_tokens=9, ignore_eos=True
        )
    server.stream("/v1/completions", prompt="z", max_tokens=3, logit_bias={"5": 100}, stop_token_ids=[5])
    assert server.post("/v1/completions", prompt="z", temperature=9).status_code == 400
    after = samples(server)
    assert after["flashlet:request_success_total[length]"] == 4
    assert after["flashlet:request_success_total[stop]"] == 1
    assert after["flashlet:request_success_total[abort]"] == 0
    assert after["flashlet:generation_tokens_total"] == 4 * 9 + 1
    assert after["flashlet:prefix_cache_hits_total"] > 0
    assert after["flashlet:prefix_cache_queries_total"] >= after["flashlet:prefix_cache_hits_total"]
    assert after["flashlet:prompt_tokens_total"] > 0
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert after[f"flashlet:{gauge}"] == 0
    for histogram in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert after[f"flashlet:{histogram}_seconds_count"] == 5
    assert after["flashlet:inter_token_latency_seconds_count"] == 4 * 8
    assert after["flashlet:inter_token_latency_seconds_sum"] > 0


def test_speculation_is_counted(
    start_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, free_costs: StepCosts
) -> None:
    server = start_server(engine={"draft": "ngram"})
    drafter = server.service.model.engine_loop.engine.scheduler.drafter
    monkeypatch.setattr(
        LiveComparison, "step_done", lambda *args, **kwargs: None
    )  # it never turns itself off
    drafter.costs = free_costs
    body = {"prompt": "z z z z z z z z", "max_tokens": 9, "logit_bias": {"5": 100}}
    usage = server.post("/v1/completions", **body).json()["usage"]
    details = usage["completion_tokens_details"]
    assert usage["completion_tokens"] == 9
    after = samples(server)
    assert after["flashlet:spec_decode_num_drafts_total"] >= 1
    drafted = after["flashlet:spec_decode_num_draft_tokens_total"]
    accepted = after["flashlet:spec_decode_num_accepted_tokens_total"]
    assert drafted >= accepted >= details["accepted_prediction_tokens"] > 0
    assert details["rejected_prediction_tokens"] <= drafted - accepted
    positions = [value for name, value in after.items() if "accepted_tokens_per_pos_total" in name]
    assert sum(positions) == accepted
    assert after["flashlet:spec_speedup_ratio"] > 0


def test_histogram_buckets_are_cumulative() -> None:
    histogram = Histogram("x", "", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 12.0
