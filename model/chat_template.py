"""From messages to the prompt text a chat model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from flashlet.model.errors import ChatTemplateError
from flashlet.model.template_budget import Budget
from flashlet.model.template_functions import current_budget
from flashlet.model.template_sandbox import TemplateSandbox

MAX_SOURCE_CHARACTERS = 1 << 16
# Marks the end of the message to go on with; private-use characters, so no template or message has it.
_CUT_MARK = "\ue000cut here\ue001"


class ChatTemplate:
    """A Jinja template as transformers writes them, compiled once; thread-safe.

    The source is not trusted: it sees plain data only, and a rendering that takes more than a second of CPU
    time or makes far more text than its input is stopped.
    """

    def __init__(self, source: str, *, bos_token: str | None, eos_token: str | None) -> None:
        """Compile `source`; raises ChatTemplateError with the line for what is not a template."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError(
                f"chat template: expected at most {MAX_SOURCE_CHARACTERS} characters, found {len(source)}"
            )
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: token for name, token in tokens.items() if token is not None}
        budget = current_budget.set(Budget(None))
        try:
            self._template = TemplateSandbox().from_string(source)
        except Exception as error:
            raise _as_template_error(error) from error
        finally:
            current_budget.reset(budget)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """Prompt text for `messages`.

        `continue_final_message` ends the prompt inside the last message, which the model then goes on with;
        there is no generation prompt in that case. `extra` holds the template's own variables, such as
        enable_thinking.
        Raises ChatTemplateError if the template refuses the messages, fails, or goes over its limits.
        """
        chat = [dict(message) for message in messages]
        if continue_final_message:
            chat = _with_cut_mark(chat)
        variables: dict[str, Any] = {
            "messages": chat,
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            **self._tokens,
        }
        reserved = variables.keys() & (extra or {}).keys()
        if reserved:
            raise ChatTemplateError(f"template variables: {', '.join(sorted(reserved))} cannot be set")
        text = self._run(variables | dict(extra or {}))
        return _cut(text) if continue_final_message else text

    def _run(self, variables: dict[str, Any]) -> str:
        budget = Budget(variables)
        token = current_budget.set(budget)
        try:
            context = self._template.new_context(variables)
            return budget.output(self._template.root_render_func(context))
        except Exception as error:
            raise _as_template_error(error) from error
        finally:
            current_budget.reset(token)


def _with_cut_mark(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`chat` with the mark after the text of its last message, which is a string or a list of parts."""
    last = chat[-1] if chat else {}
    content = last.get("content")
    if isinstance(content, str):
        return [*chat[:-1], last | {"content": content + _CUT_MARK}]
    if isinstance(content, list) and content and isinstance(content[-1], dict) and "text" in content[-1]:
        part = content[-1] | {"text": str(content[-1]["text"]) + _CUT_MARK}
        return [*chat[:-1], last | {"content": [*content[:-1], part]}]
    raise ChatTemplateError("expected a last message that ends in text to continue, found none")


def _cut(text: str) -> str:
    kept, mark, _ = text.rpartition(_CUT_MARK)
    if not mark:
        raise ChatTemplateError(
            "the chat template does not render the last message, so it cannot be continued"
        )
    return kept


def _as_template_error(error: Exception) -> ChatTemplateError:
    if isinstance(error, ChatTemplateError):
        return error
    if isinstance(error, RecursionError):
        return ChatTemplateError("the chat template is nested or recurses too deeply")
    if isinstance(error, TemplateSyntaxError):
        return ChatTemplateError(f"the chat template has an error in line {error.lineno}: {error.message}")
    if isinstance(error, TemplateError):
        return ChatTemplateError(f"the chat template failed: {error.message}")
    return ChatTemplateError(f"the chat template failed: {type(error).__name__}: {error}")
