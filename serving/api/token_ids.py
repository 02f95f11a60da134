"""`return_token_ids`: the ids beside the text, named as in vLLM."""

from __future__ import annotations

from collections.abc import Sequence

from flashlet.serving.api.chunks import encode_json
from flashlet.serving.engine.request import TokenEvent


def prompt_token_ids(prompt: Sequence[int]) -> bytes:
    """A further field of a chunk: the prompt's ids."""
    return b',"prompt_token_ids":' + encode_json(prompt)


def token_ids(event: TokenEvent) -> bytes:
    """A further field of a chunk's choice: the id of its token, if it has one."""
    return b',"token_ids":' + encode_json([] if event.token_id is None else [event.token_id])
