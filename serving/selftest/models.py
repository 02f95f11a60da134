"""The list of models, and the names in requests."""

from __future__ import annotations

import time

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule, shown
from flashlet.serving.selftest.server import CHAT, Server, answer, error_of

UNKNOWN = "no-such-model"


@rule
def items(server: Server) -> None:
    """Items of /v1/models have id, object, created and owned_by."""
    body = answer(server.get("/v1/models"))
    expect(body.get("object") == "list" and body.get("data"), f"got {shown(body)}")
    for item in body["data"]:
        expect({"id", "object", "created", "owned_by"} <= set(item), f"item {shown(item)}")
        expect(item["object"] == "model" and type(item["created"]) is int, f"item {shown(item)}")


@rule
def max_model_len(server: Server) -> None:
    """max_model_len tells the context length."""
    for item in server.models:
        length = item.get("max_model_len")
        expect(type(length) is int and length > 0, f"max_model_len is {length!r}")


@rule
def quick(server: Server) -> None:
    """/v1/models answers within a second."""
    start = time.monotonic()
    answer(server.get("/v1/models"))
    seconds = time.monotonic() - start
    expect(seconds < 1, f"it took {seconds:.1f} s")


@rule
def while_loading(server: Server) -> None:
    """/v1/models answers while the model loads, too."""
    if server.loading is None:
        raise NotApplicableError("the model was loaded before the test began")
    body = answer(server.loading.models)
    expect(body.get("data"), f"got {shown(body)}")
    seconds = server.loading.models.elapsed.total_seconds()
    expect(seconds < 1, f"it took {seconds:.1f} s")


@rule
def retrieve(server: Server) -> None:
    """/v1/models/{id} describes one model, and an unknown one is 404."""
    item = answer(server.get(f"/v1/models/{server.model}"))
    expect(item.get("id") == server.model and item.get("object") == "model", f"got {shown(item)}")
    status = server.get(f"/v1/models/{UNKNOWN}").status_code
    expect(status == 404, f"status {status} for an unknown one")


@rule
def omitted(server: Server) -> None:
    """A request without model gets the default one."""
    body = server.chat_body(max_tokens=1)
    del body["model"]
    answer(server.post(CHAT, body))


@rule
def unknown(server: Server) -> None:
    """An unknown model is 404 `model_not_found`, and the message names what is served."""
    response = server.post(CHAT, server.chat_body(model=UNKNOWN))
    expect(response.status_code == 404, f"status {response.status_code}")
    error = error_of(response)
    expect(error.get("code") == "model_not_found", f"code {error.get('code')!r}")
    expect(server.models[0]["id"] in error["message"], f"message: {error['message']}")
