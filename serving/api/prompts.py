"""From text, messages or token ids to prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from flashlet.serving.api.schema.chat import ChatRequest
from flashlet.serving.api.schema.tools import FunctionDefinition
from flashlet.serving.api.service import LoadedModel
from flashlet.serving.api.tools.convention import convention_of
from flashlet.serving.api.tools.prompt import check_tool_messages, template_messages, template_tools
from flashlet.serving.errors import ContextLengthError, InvalidRequestError

INLINE_CHARACTERS = 16_000  # longer texts are rendered and tokenized in a thread
MESSAGE_CHARACTERS = 64  # what rendering a message costs beside its text

Result = TypeVar("Result")


async def off_loop(num_characters: int, work: Callable[[], Result]) -> Result:
    """Result of `work`, which takes long if there are many characters."""
    return work() if num_characters <= INLINE_CHARACTERS else await asyncio.to_thread(work)


def _encode(
    model: LoadedModel, text: str, add_special_tokens: bool, last_tokens: int | None
) -> tuple[int, ...]:
    """Token ids of a prompt, or the last ones. Raises ContextLengthError early for what is far too long."""
    if len(text) > INLINE_CHARACTERS and last_tokens is None:
        fewest = len(text.encode()) // model.longest_token
        if fewest > model.max_model_len:
            raise ContextLengthError(
                f"this model's maximum context length is {model.max_model_len} tokens; "
                f"the prompt has at least {fewest}",
                "prompt",
            )
    return _cut(model.tokenizer.encode(text, add_special_tokens), last_tokens)


def _cut(ids: Sequence[int], last_tokens: int | None) -> tuple[int, ...]:
    return tuple(ids if last_tokens is None else ids[-last_tokens:])


async def plain_prompts(
    model: LoadedModel,
    prompts: Sequence[str | Sequence[int]],
    add_special_tokens: bool,
    last_tokens: int | None,
) -> list[tuple[int, ...]]:
    """Prompts that are not conversations; ids are used as they are.

    `last_tokens`: keep only so many of each.
    """

    def encode(prompt: str | Sequence[int]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return _encode(model, prompt, add_special_tokens, last_tokens)
        return _cut(prompt, last_tokens)

    num_characters = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
    return await off_loop(num_characters, lambda: [encode(prompt) for prompt in prompts])


async def chat_prompt(
    model: LoadedModel, request: ChatRequest, functions: Sequence[FunctionDefinition] = ()
) -> tuple[int, ...]:
    """Prompt of a conversation, through the model's chat template, with the tools that the model may use.

    Raises:
        InvalidRequestError: no template, or messages or options that contradict each other.
        ChatTemplateError: the template refuses the messages.
    """
    if model.chat_template is None:
        raise InvalidRequestError(
            f"messages: the model '{model.name}' has no chat template; use /v1/completions", "messages"
        )
    check_tool_messages(request.messages)
    resume = bool(request.continue_final_message)
    if resume:
        _check_resumable(request)
    convention = convention_of(model.tokenizer.chat_template)
    template = model.chat_template

    def render_and_encode() -> tuple[int, ...]:
        text = template.render(
            template_messages(request.messages, convention, functions),
            tools=template_tools(functions) if functions and convention.native else None,
            add_generation_prompt=request.add_generation_prompt is not False,
            continue_final_message=resume,
            extra=request.chat_template_kwargs,
        )
        return _encode(model, text, bool(request.add_special_tokens), request.truncate_prompt_tokens)

    if functions:  # whose schemas may be long
        return await asyncio.to_thread(render_and_encode)
    num_characters = sum(len(message.text) + MESSAGE_CHARACTERS for message in request.messages)
    return await off_loop(num_characters, render_and_encode)


def _check_resumable(request: ChatRequest) -> None:
    """Raise InvalidRequestError unless the last message is one whose text can go on."""
    last = request.messages[-1]
    problem = None
    if request.add_generation_prompt:
        problem = "expected false where add_generation_prompt is true"
    elif last.role != "assistant":
        problem = f"expected the last message to be the assistant's, got role '{last.role}'"
    elif last.tool_calls:
        problem = "expected the last message to end in text, got tool_calls"
    if problem is not None:
        raise InvalidRequestError(f"continue_final_message: {problem}", "continue_final_message")
