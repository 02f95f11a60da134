"""How a model writes tool calls, found out from its chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashlet.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Convention:
    """The literal text around the names and arguments of calls; docs/tools.md shows one of each.

    An answer with calls is: text, `trigger`, `first`, call, (`next`, call)*, `last`, where a call is its
    tool's name, `middle`, and a JSON object.
    """

    name: str
    markers: tuple[str, ...]  # regular expressions: a template that matches them all uses this convention
    trigger: str  # no text before a call contains it
    first: str
    middle: str
    last: str
    next: str | None  # None: one call per answer
    anchored: bool = False  # calls come at the very beginning of the answer or not at all
    id_length: int | None = None  # letters and digits of a call's id in the history; None: any
    native: bool = True  # the template renders tools itself


HERMES = Convention(
    name="hermes",
    markers=("<tool_call>", r"""["']arguments\\?["']"""),
    trigger="<tool_call>",
    first='\n{"name": "',
    middle='", "arguments": ',
    next='}\n</tool_call>\n<tool_call>\n{"name": "',
    last="}\n</tool_call>",
)
MISTRAL = Convention(
    name="mistral",
    markers=(r"\[TOOL_CALLS\]", r"(?s)^(?!.*\[ARGS\])"),  # newer templates put [ARGS] behind the name
    trigger="[TOOL_CALLS]",
    first=' [{"name": "',
    middle='", "arguments": ',
    next='}, {"name": "',
    last="}]",
    id_length=9,
)
LLAMA = Convention(
    name="llama",
    markers=(r"""\{\\?"name\\?": """, r"""\\?"parameters\\?": """),
    trigger='{"name": "',
    first="",
    middle='", "parameters": ',
    next=None,
    last="}",
    anchored=True,
)
# Of a template that knows no tools, or whose calls are written in none of these ways.
PROMPTED = Convention(
    name="prompted",
    markers=(),
    trigger=HERMES.trigger,
    first=HERMES.first,
    middle=HERMES.middle,
    next=HERMES.next,
    last=HERMES.last,
    native=False,
)
_NATIVE = (HERMES, MISTRAL, LLAMA)
_USES_TOOLS = re.compile(r"\{[{%](?:(?![%}]\}).)*\btools\b", re.DOTALL)


@lru_cache(maxsize=8)
def convention_of(template: str | None) -> Convention:
    """Convention of the model whose chat template has this source."""
    if template is not None and _USES_TOOLS.search(template):
        for convention in _NATIVE:
            if all(re.search(marker, template) for marker in convention.markers):
                return convention
    return PROMPTED


def special_trigger(convention: Convention, tokenizer: Tokenizer) -> int | None:
    """Id of the trigger where the tokenizer has a special token for it, which has no text in an answer."""
    ids = tokenizer.encode(convention.trigger, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] in tokenizer.special_ids else None
