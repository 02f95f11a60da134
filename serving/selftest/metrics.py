"""Prometheus metrics: vLLM's names, behind the server's own prefix."""

from __future__ import annotations

import re

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule
from flashlet.serving.selftest.server import Server

# prefix:name{labels} value
_SAMPLE = re.compile(r"^(?:\w+:)?(?P<name>\w+)(?P<labels>\{.*\})? (?P<value>\S+)", re.MULTILINE)


@rule
def gauges(server: Server) -> None:
    """Gauges: num_requests_running, num_requests_waiting and kv_cache_usage_perc."""
    _expect_names(server, "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@rule
def prefix_cache(server: Server) -> None:
    """Prefix cache: prefix_cache_queries_total and prefix_cache_hits_total."""
    _expect_names(server, "prefix_cache_queries_total", "prefix_cache_hits_total")


@rule
def token_counts(server: Server) -> None:
    """Tokens: prompt_tokens_total and generation_tokens_total, and they count."""
    names = ("prompt_tokens_total", "generation_tokens_total")
    _expect_names(server, *names)
    before = [_total(server, name) for name in names]
    usage = server.chat(max_tokens=5)["usage"]
    counted = [_total(server, name) - start for name, start in zip(names, before, strict=True)]
    expected = [usage["prompt_tokens"], usage["completion_tokens"]]
    # Servers differ in whether cached prompt tokens count, and somebody else may use the server.
    expect(counted[1] >= expected[1], f"generation_tokens_total grew by {counted[1]}, expected {expected[1]}")


@rule
def histograms(server: Server) -> None:
    """Histograms: time_to_first_token, inter_token_latency, e2e_request_latency, request_queue_time."""
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time"):
        _expect_names(server, *(f"{name}_seconds_{part}" for part in ("bucket", "count", "sum")))


@rule
def finished_reasons(server: Server) -> None:
    """request_success_total by finished_reason."""
    labels = [match["labels"] for match in _samples(server) if match["name"] == "request_success_total"]
    expect(labels, "no request_success_total")
    expect(all("finished_reason=" in (label or "") for label in labels), f"labels {labels}")


@rule
def speculation(server: Server) -> None:
    """Speculation: spec_decode_num_drafts, _draft_tokens, _accepted_tokens, _accepted_tokens_per_pos."""
    if not any(match["name"].startswith("spec_decode") for match in _samples(server)):
        raise NotApplicableError("the server does not speculate")
    parts = ("drafts", "draft_tokens", "accepted_tokens", "accepted_tokens_per_pos")
    _expect_names(server, *(f"spec_decode_num_{part}_total" for part in parts))


def _samples(server: Server) -> list[re.Match[str]]:
    response = server.get("/metrics")
    expect(response.is_success, f"/metrics: status {response.status_code}")
    return list(_SAMPLE.finditer(response.text))


def _expect_names(server: Server, *names: str) -> None:
    found = {match["name"] for match in _samples(server)}
    missing = [name for name in names if name not in found]
    expect(not missing, f"missing: {', '.join(missing)}")


def _total(server: Server, name: str) -> float:
    return sum(float(match["value"]) for match in _samples(server) if match["name"] == name)
