"""The grammar of an answer that may call tools, in llguidance's Lark dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from flashlet.serving.api.tools.convention import Convention
from flashlet.serving.api.tools.tool_use import ToolUse, arguments_schema

MAX_CALLS = 32  # per answer: a weak model may not find an end
# As json.dumps writes, which is what models have seen in training.
_JSON_OPTIONS = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "lenient": False,
    "coerce_one_of": False,
}


def answer_grammar(
    use: ToolUse, convention: Convention, trigger_id: int | None, answer: str | None = None
) -> str:
    """Lark text for an answer: text, calls, or text before calls, as `use` allows.

    `trigger_id`: id of the trigger where that is a special token. `answer`: Lark text of a rule `answer`,
    which replaces the free text; calls then come at the very beginning or not at all.
    """
    if use.choice == "none":
        return "\n".join(["start: text?", *_text_rules(convention, trigger_id)])
    lines = []
    trigger = _literal(convention.trigger) if trigger_id is None else f"<[{trigger_id}]>"
    if use.forced or convention.anchored or answer is not None:
        calls = f"{trigger} calls"
    elif trigger_id is None:
        calls = "text_and_trigger calls"
        lines.append(f"text_and_trigger[lazy]: /(?s:.*){re.escape(convention.trigger)}/")
    else:
        calls = f"text? {trigger} calls"
    if use.forced:
        lines.append(f"start: {calls}")
    elif answer is not None:
        lines += [f"start: answer | {calls}", answer]
    else:
        lines += [f"start: text? | {calls}", *_text_rules(convention, trigger_id)]
    return "\n".join([*lines, *_call_rules(use, convention)])


def arguments_rule(schema: Mapping[str, Any]) -> str:
    """Lark for a JSON object that `schema` describes."""
    return "%json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS})


def _call_rules(use: ToolUse, convention: Convention) -> list[str]:
    more = ""
    if convention.next is not None and not use.single:
        more = f"({_literal(convention.next)} call){{0,{MAX_CALLS - 1}}}"
    first = _literal(convention.first) if convention.first else ""
    rules = [
        f"calls: {first} call {more} {_literal(convention.last)}",
        "call: " + " | ".join(f"call_{index}" for index in use.callable),
    ]
    for index in use.callable:
        function = use.functions[index]
        schema = arguments_schema(function, f"tools[{index}].function.parameters")
        head = _literal(function.name + convention.middle)
        rules.append(f"call_{index}: {head} {arguments_rule(schema)}")
    return rules


def _text_rules(convention: Convention, trigger_id: int | None) -> list[str]:
    """Text that cannot be taken for a call."""
    if trigger_id is not None:
        return ["text: /(?s:.*)/"]
    if convention.anchored:
        return [r"text: / ?[^\s" + re.escape(convention.trigger[0]) + "](?s:.*)/"]
    return ["text: TEXT", f"TEXT: /(?s:.*)/ & ~/(?s:.*){re.escape(convention.trigger)}(?s:.*)/"]


def _literal(text: str) -> str:
    return json.dumps(text)
