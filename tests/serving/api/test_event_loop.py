"""What takes long runs beside the event loop: one request must not hold up the streams of others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from flashlet.model.chat_template import ChatTemplate
from flashlet.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMPTY = {"role": "user", "content": ""}


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call of the tokenizer or the chat template, whether it ran beside the event loop."""
    calls: list[bool] = []

    def watch(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            calls.append(threading.current_thread().name.startswith("asyncio_"))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(Tokenizer, "encode")
    watch(Tokenizer, "decode")
    watch(ChatTemplate, "render")
    return calls


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": ["a" * 400] * 100, "max_tokens": 1}),
        (CHAT, {"messages": [EMPTY] * 1000}),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 20_000}]}),
        ("/tokenize", {"prompt": "a" * 20_000}),
        ("/detokenize", {"tokens": [5] * 20_000}),
    ],
)
def test_long_work_runs_in_a_thread(
    server: Server, beside: list[bool], path: str, body: dict[str, Any]
) -> None:
    server.post(path, **body)
    assert beside and all(beside)


def test_short_work_does_not_wait_for_a_thread(server: Server, beside: list[bool]) -> None:
    server.post(COMPLETIONS, prompt=["a", "b"], max_tokens=1)
    server.post(CHAT, messages=[{"role": "user", "content": "a"}], max_tokens=1)
    assert len(beside) == 4 and not any(beside)


def test_too_many_prompts_are_refused_before_they_are_read(server: Server, beside: list[bool]) -> None:
    response = server.post(COMPLETIONS, prompt=["a"] * 500)
    assert response.status_code == 400 and response.json()["error"]["param"] == "prompt"
    assert beside == []
