"""Answers with calls, cut into pieces in every way."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashlet.serving.api.tools.convention import HERMES, LLAMA, MISTRAL, Convention
from flashlet.serving.api.tools.parser import CallDelta, CallParser, ContentDelta

TRIGGER_ID = 7
NASTY = [
    "</tool_call>",
    '"',
    "\\",
    "}",
    "{",
    "}]",
    "<tool_call>\n",
    "é",
    "日",
    " ",
    "\n",
    "a",
    '\\"}',
    "[TOOL_CALLS]",
]
Parsed = tuple[str, list[tuple[str, str]]]


def written(convention: Convention, content: str, calls: list[tuple[str, str]]) -> str:
    if not calls:
        return content
    texts = [name + convention.middle + arguments for name, arguments in calls]
    start = convention.trigger + convention.first
    return content + start + (convention.next or "").join(texts) + convention.last


def parse(pieces: list[str], convention: Convention, *, cut: bool = False, anchored: bool = False) -> Parsed:
    """Content and calls of an answer that comes in `pieces`; deltas must be in order and never empty."""
    parser = CallParser(convention, trigger_id=None, anchored=anchored or convention.anchored)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish(cut=cut)
    content, calls = "", list[tuple[str, str]]()
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            assert delta.text and not calls
            content += delta.text
        elif delta.name is not None:
            assert delta.index == len(calls) and delta.arguments == ""
            calls.append((delta.name, ""))
        else:
            assert isinstance(delta, CallDelta) and delta.index == len(calls) - 1 and delta.arguments
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content, calls


texts = st.lists(st.sampled_from(NASTY), max_size=6).map("".join)
arguments = st.dictionaries(
    texts, texts | st.lists(texts | st.integers(), max_size=2) | st.none(), max_size=3
).map(json.dumps)
names = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)


@given(st.data())
def test_any_pieces_give_the_same(data: st.DataObject) -> None:
    convention = data.draw(st.sampled_from([HERMES, MISTRAL, LLAMA]))
    most = 1 if convention.next is None else 3
    calls = data.draw(st.lists(st.tuples(names, arguments), max_size=most))
    content = data.draw(texts).replace(convention.trigger, "")
    if convention.anchored:
        content = "" if calls else "t" + content
    text = written(convention, content, calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = (content.rstrip() if calls else content, calls)
    assert parse(pieces, convention) == parse([*text], convention) == parse([text], convention) == expected


@pytest.mark.parametrize("convention", [HERMES, MISTRAL, LLAMA], ids=lambda convention: convention.name)
def test_cut_answers_show_no_markup(convention: Convention) -> None:
    content = "" if convention.anchored else "Look: "
    calls = [("f", '{"a": "}<"}')] if convention.next is None else [("f", '{"a": "}<"}'), ("g", "{}")]
    text = written(convention, content, calls)
    longest = ("", list[tuple[str, str]]())
    for end in range(len(text) + 1):
        got = parse([text[:end]], convention, cut=True)
        assert got == parse([*text[:end]], convention, cut=True)
        assert content.startswith(got[0])
        assert [name for name, _ in got[1]] == [name for name, _ in calls][: len(got[1])]
        assert all(whole[1].startswith(part[1]) for part, whole in zip(got[1], calls, strict=False))
        assert len(got[1]) >= len(longest[1])
        longest = got
    assert longest == (content.rstrip(), calls)


def test_what_only_looks_like_a_call_is_text() -> None:
    for text in ("a < b", "<tool_cal", "<tool_call", "x <tool", "<<<", " \n", "\n<t", "  <tool_calx> y"):
        assert parse([*text], HERMES) == parse([text], HERMES) == (text, [])
    assert parse([*'{"a": 1}'], LLAMA) == ('{"a": 1}', [])
    assert parse([*'x {"name": "f"'], LLAMA) == ('x {"name": "f"', [])


def test_anchored_calls_come_first_or_not_at_all() -> None:
    call = written(HERMES, "", [("f", "{}")])
    assert parse([*call], HERMES, anchored=True) == ("", [("f", "{}")])
    assert parse([*('"' + call)], HERMES, anchored=True) == ('"' + call, [])


def test_text_is_held_back_no_longer_than_it_must() -> None:
    parser = CallParser(HERMES, trigger_id=None, anchored=False)
    assert parser.push("one ") == [ContentDelta("one")]
    assert parser.push("two\n<") == [ContentDelta(" two")]
    assert parser.push("b>") == [ContentDelta("\n<b>")]
    assert (
        parser.push(
            '<tool_call>\n{"name": "f',
        )
        == []
    )
    assert parser.push('"') == [] and parser.push(', "arguments": {') == [
        CallDelta(0, name="f"),
        CallDelta(0, arguments="{"),
    ]
    assert parser.push('"a"') == [CallDelta(0, arguments='"a"')]
    assert parser.push(": {}}}") == [CallDelta(0, arguments=": {}}")]
    assert parser.push("\n</tool_call>") == [] and parser.finish(cut=False) == []


def test_a_special_trigger_has_no_text() -> None:
    for space in ("", " "):  # some tokenizers drop the space behind a special token
        parser = CallParser(MISTRAL, trigger_id=TRIGGER_ID, anchored=False)
        assert parser.push('[{"name": "no', 1) == [ContentDelta('[{"name": "no')]
        assert parser.push("", TRIGGER_ID) == []
        deltas = parser.push(space + '[{"name": "f", "arguments": {}}]', 2)
        assert deltas == [CallDelta(0, name="f"), CallDelta(0, arguments="{}")]
        assert parser.finish(cut=False) == []
