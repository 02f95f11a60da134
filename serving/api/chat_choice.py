"""One of the answers to a chat request, in the shapes of its wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashlet.model.sampling import TokenLogprobs
from flashlet.serving.api.chunks import encode_json
from flashlet.serving.api.logprobs import chat_logprobs, prompt_logprobs
from flashlet.serving.api.schema.chat import ChatRequest
from flashlet.serving.api.service import LoadedModel
from flashlet.serving.api.token_ids import prompt_token_ids
from flashlet.serving.api.tools.answer import Answer
from flashlet.serving.api.tools.parser import ContentDelta, Delta
from flashlet.serving.engine.request import GenerationRequest, TokenEvent


class ChatChoice:
    """An answer while it is written. What tokens bring beside text waits for the next delta."""

    def __init__(
        self, model: LoadedModel, body: ChatRequest, request: GenerationRequest, answer: Answer
    ) -> None:
        self.started = False
        self.finish_reason: str | None = None
        self._prompt_scores: Sequence[TokenLogprobs | None] | None = None
        self._model = model
        self._body = body
        self._request = request
        self._answer = answer
        self._scores: list[TokenLogprobs] = []  # not taken yet
        self._token_ids: list[int] = []  # not taken yet

    def start(self) -> bytes:
        """Encoded delta of the first chunk."""
        self.started = True
        return b'"delta":' + encode_json(
            {"role": "assistant", "content": None if self._answer.may_call else ""}
        )

    def prompt_ids(self) -> bytes:
        """Encoded field with the prompt's ids, if the request wants them."""
        return prompt_token_ids(self._request.prompt) if self._body.return_token_ids else b""

    def push(self, event: TokenEvent) -> list[dict[str, Any]]:
        """Deltas that one event adds."""
        if event.prompt_logprobs is not None:
            self._prompt_scores = event.prompt_logprobs
        if event.token_id is not None:
            self._token_ids.append(event.token_id)
        has_token = event.token_id is not None and not self._model.only_ends(event, self._request)
        if event.logprobs is not None and has_token:
            self._scores.append(event.logprobs)
        deltas = self._answer.push(event, has_token=has_token)
        if event.finish_reason is not None:
            self.finish_reason = self._answer.finish_reason(event.finish_reason)
        return [self._wire_delta(delta) for delta in deltas]

    def take_logprobs(self) -> bytes:
        """Encoded log probabilities of the tokens since the last call."""
        if not self._scores:
            return b"null"
        scores, self._scores = self._scores, []
        return encode_json(chat_logprobs(self._model.tokenizer, scores))

    def take_ids(self) -> bytes:
        """Encoded field with the ids of the tokens since the last call, if the request wants them."""
        if not self._body.return_token_ids:
            return b""
        ids, self._token_ids = self._token_ids, []
        return b',"token_ids":' + encode_json(ids)

    def answer(self) -> dict[str, Any]:
        """The choice of a plain answer, without its index."""
        body = self._body
        answer: dict[str, Any] = {
            "message": self._message(),
            "logprobs": chat_logprobs(self._model.tokenizer, self._scores) if body.logprobs else None,
            "finish_reason": self.finish_reason,
        }
        if body.return_token_ids:
            answer["token_ids"] = self._token_ids
        return answer

    def prompt_fields(self) -> dict[str, Any]:
        """What a plain answer says about the prompt; only the first choice has its scores."""
        fields: dict[str, Any] = {}
        wanted = self._body.prompt_logprobs
        if wanted is not None and self._prompt_scores is not None:
            fields["prompt_logprobs"] = prompt_logprobs(self._model.tokenizer, self._prompt_scores, wanted)
        if self._body.return_token_ids:
            fields["prompt_token_ids"] = self._request.prompt
        return fields

    def _wire_delta(self, delta: Delta) -> dict[str, Any]:
        """Id, type and name of a call come once, with empty arguments."""
        if isinstance(delta, ContentDelta):
            return {"content": delta.text}
        call: dict[str, Any] = {"index": delta.index}
        function = {"arguments": delta.arguments}
        if delta.name is not None:
            call |= {"id": self._answer.calls[delta.index].id, "type": "function"}
            function = {"name": delta.name, **function}
        return {"tool_calls": [call | {"function": function}]}

    def _message(self) -> dict[str, Any]:
        """The whole message; with calls and no text its content is null."""
        text, calls = self._answer.text, self._answer.calls
        content = None if calls and not text else text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        return message
