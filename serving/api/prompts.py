"""From text, messages or token ids to prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flashlet.serving.api.schema.chat import ChatRequest, Message
from flashlet.serving.api.service import LoadedModel
from flashlet.serving.errors import ContextLengthError, InvalidRequestError

INLINE_CHARACTERS = 16_000  # longer texts are rendered and tokenized in a thread
MESSAGE_CHARACTERS = 64  # what rendering a message costs beside its text

Result = TypeVar("Result")


async def off_loop(num_characters: int, work: Callable[[], Result]) -> Result:
    """Result of `work`, which takes long if there are many characters."""
    return work() if num_characters <= INLINE_CHARACTERS else await asyncio.to_thread(work)


def _encode(model: LoadedModel, text: str, add_special_tokens: bool) -> list[int]:
    """Token ids of a prompt. Raises ContextLengthError without tokenizing what is far too long."""
    if len(text) > INLINE_CHARACTERS:
        fewest = len(text.encode()) // model.longest_token
        if fewest > model.max_model_len:
            raise ContextLengthError(
                f"the longest sequence is {model.max_model_len} tokens; the prompt has at least {fewest}",
                "prompt",
            )
    return model.tokenizer.encode(text, add_special_tokens)


async def plain_prompts(
    model: LoadedModel, prompts: Sequence[str | Sequence[int]], add_special_tokens: bool
) -> list[tuple[int, ...]]:
    """Prompts of a legacy completion; ids are used as they are."""

    def encode(prompt: str | Sequence[int]) -> tuple[int, ...]:
        return tuple(_encode(model, prompt, add_special_tokens) if isinstance(prompt, str) else prompt)

    num_characters = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
    return await off_loop(num_characters, lambda: [encode(prompt) for prompt in prompts])


async def chat_prompt(model: LoadedModel, request: ChatRequest) -> tuple[int, ...]:
    """Prompt of a conversation, through the model's chat template.

    Raises:
        InvalidRequestError: no template, or options that contradict each other.
        ChatTemplateError: the template refuses the messages.
    """
    if model.chat_template is None:
        raise InvalidRequestError(
            f"messages: the model '{model.name}' has no chat template; use /v1/completions", "messages"
        )
    resume = bool(request.continue_final_message)
    if resume and request.add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message: expected false where add_generation_prompt is true",
            "continue_final_message",
        )
    if resume and request.messages[-1].role != "assistant":
        raise InvalidRequestError(
            "continue_final_message: expected the last message to be the assistant's, "
            f"got role '{request.messages[-1].role}'",
            "continue_final_message",
        )
    messages = [template_message(message) for message in request.messages]
    template = model.chat_template

    def render_and_encode() -> list[int]:
        text = template.render(
            messages,
            add_generation_prompt=request.add_generation_prompt is not False,
            continue_final_message=resume,
            extra=request.chat_template_kwargs,
        )
        return _encode(model, text, bool(request.add_special_tokens))

    num_characters = sum(len(message["content"]) + MESSAGE_CHARACTERS for message in messages)
    return tuple(await off_loop(num_characters, render_and_encode))


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it: only the fields that were given, content as one string."""
    role = "system" if message.role == "developer" else message.role
    fields = {"role": role, "content": message.text}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields
