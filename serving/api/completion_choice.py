"""The choices of a legacy completion, and what those of one prompt share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from flashlet.model.sampling import TokenLogprobs
from flashlet.serving.api.logprobs import LegacyLogprobs, prompt_logprobs
from flashlet.serving.api.schema.completions import CompletionRequest
from flashlet.serving.api.service import LoadedModel
from flashlet.serving.api.token_ids import prompt_token_ids, token_ids
from flashlet.serving.engine.request import GenerationRequest, TokenEvent


class CompletionPrompt:
    """One prompt: its text and scores, once for all its choices."""

    def __init__(
        self,
        model: LoadedModel,
        body: CompletionRequest,
        sequence: GenerationRequest,
        given: str | list[int],
    ) -> None:
        self.token_ids = sequence.prompt
        self.text = ""
        self.logprobs: LegacyLogprobs | None = None  # with `echo`: complete once the scores have come
        self.scores: list[dict[str, dict[str, Any]] | None] | None = None  # `prompt_logprobs`
        self._model = model
        self._num_scores = body.prompt_logprobs
        if body.echo:
            limit = body.truncate_prompt_tokens
            is_whole = limit is None or len(self.token_ids) < limit
            self.text = (
                given
                if isinstance(given, str) and is_whole
                else model.tokenizer.decode(self.token_ids, False)
            )
            if body.logprobs is not None:
                self.logprobs = LegacyLogprobs(model.tokenizer, body.logprobs)

    def add(self, scores: Sequence[TokenLogprobs | None]) -> None:
        """Take the scores of all tokens."""
        if self._num_scores is not None:
            self.scores = prompt_logprobs(self._model.tokenizer, scores, self._num_scores)
        if self.logprobs is not None:
            for position, (token_id, score) in enumerate(zip(self.token_ids, scores, strict=True)):
                self.logprobs.add(token_id, score, in_text=position > 0 or self._starts_text(token_id))

    def _starts_text(self, token_id: int) -> bool:
        """Whether the first token is in the text: a BOS that the tokenizer added is not."""
        assert self.logprobs is not None
        bos = self._model.tokenizer.bos_token
        return bos is None or self.text.startswith(bos) or self.logprobs.text_of(token_id) != bos


class CompletionChoice:
    """One answer while it is written, with the prompt before it if `echo` asks for that."""

    def __init__(
        self,
        model: LoadedModel,
        body: CompletionRequest,
        sequence: GenerationRequest,
        prompt: CompletionPrompt,
    ) -> None:
        self._sequence = sequence
        self._model = model
        self._prompt = prompt
        self._return_token_ids = bool(body.return_token_ids)
        self._started = False
        self._logprobs = None if body.logprobs is None else LegacyLogprobs(model.tokenizer, body.logprobs)
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._finish_reason: str | None = None

    def delta(self, event: TokenEvent) -> tuple[str, dict[str, list[Any]] | None, bytes]:
        """Text, log probabilities and encoded further fields that one event adds."""
        ids = b""
        if self._return_token_ids:
            ids = (b"" if self._started else prompt_token_ids(self._prompt.token_ids)) + token_ids(event)
        text = self._score(event)
        new = self._logprobs.take() if self._logprobs is not None else None
        return text, new if new is not None and new["tokens"] else None, ids

    def only_ends(self, event: TokenEvent) -> bool:
        """Whether the event brings no token that belongs to the answer."""
        return event.token_id is None or self._model.only_ends(event, self._sequence)

    def add(self, event: TokenEvent) -> None:
        """Collect one event for `answer`."""
        self._text.append(self._score(event))
        if event.token_id is not None:
            self._token_ids.append(event.token_id)
        self._finish_reason = event.finish_reason

    def answer(self) -> dict[str, Any]:
        """The choice of a plain answer, without its index."""
        answer: dict[str, Any] = {
            "text": "".join(self._text),
            "logprobs": None if self._logprobs is None else self._logprobs.take(),
            "finish_reason": self._finish_reason,
        }
        if self._prompt.scores is not None:
            answer["prompt_logprobs"] = self._prompt.scores
        if self._return_token_ids:
            answer |= {"prompt_token_ids": self._prompt.token_ids, "token_ids": self._token_ids}
        return answer

    def _score(self, event: TokenEvent) -> str:
        """Note the event's log probabilities; returns its text, after the prompt's if that is due."""
        text = event.text
        if event.prompt_logprobs is not None:
            self._prompt.add(event.prompt_logprobs)
        if not self._started:
            self._started = True
            text = self._prompt.text + text
            if self._prompt.logprobs is not None:
                self._logprobs = self._prompt.logprobs.fork()
        if self._logprobs is not None and event.token_id is not None:
            hidden = event.token_id in self._model.tokenizer.special_ids
            in_text = not hidden and not self.only_ends(event)
            self._logprobs.add(event.token_id, event.logprobs, in_text)
        return text


async def prompt_first(
    events: AsyncIterator[tuple[int, TokenEvent]], num_choices: int
) -> AsyncIterator[tuple[int, TokenEvent]]:
    """Events in an order in which a prompt's scores, which its first choice alone computes, come first."""
    held: dict[int, list[tuple[int, TokenEvent]] | None] = {}  # by prompt; None: the scores are there
    async for index, event in events:
        prompt, choice = divmod(index, num_choices)
        waiting = held.setdefault(prompt, [])
        if choice and waiting is not None:
            waiting.append((index, event))
            continue
        yield index, event
        if waiting is not None:
            held[prompt] = None
            for item in waiting:
                yield item
