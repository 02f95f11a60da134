"""Stop strings and tokens against a definition that looks at the whole text each time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.engine.stop_checker import StopChecker

EOS = 0
STOP_TOKEN = 1


class PieceDecoder:
    """Token i stands for pieces[i]; the text `tail` comes only at the end."""

    def __init__(self, pieces: list[str], tail: str = "") -> None:
        self._pieces = pieces
        self._tail = tail

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def finish(self) -> str:
        return self._tail


def stream(
    pieces: list[str], max_tokens: int = 100, tail: str = "", **options: object
) -> tuple[list[str], str]:
    """Push one token per piece; the texts shown and the finish reason."""
    request = GenerationRequest((5,), **options)  # type: ignore[arg-type]
    table = ["<eos>", "<stop>", *pieces]
    checker = StopChecker(request, PieceDecoder(table, tail), max_tokens, (EOS,))
    shown = []
    for number in range(1, len(pieces) + 1):
        special = {"<eos>": EOS, "<stop>": STOP_TOKEN}.get(pieces[number - 1])
        text, reason = checker.push(number + 1 if special is None else special, number)
        shown.append(text)
        if reason is not None:
            return shown, reason
    return shown, ""


def expected(
    pieces: list[str], max_tokens: int, stop: tuple[str, ...], include_stop: bool, min_tokens: int
) -> tuple[str, str]:
    """All the text, and the reason: the first token at which a stop string ends in its text decides."""
    before = ""
    for number, piece in enumerate(pieces, 1):
        text = before + piece
        matches = [
            (start, len(one))
            for one in stop
            for start in range(len(text))
            if text.startswith(one, start) and start + len(one) > len(before)
        ]
        if matches and number >= min_tokens:
            start, length = min(matches)
            return text[: start + length if include_stop else start], "stop"
        if number == max_tokens:
            return text, "length"
        before = text
    return before, ""


texts = st.text(alphabet="ab", max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(texts, min_size=1, max_size=12),
    max_tokens=st.integers(1, 12),
    stop=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=3).map(tuple),
    include_stop=st.booleans(),
    min_tokens=st.integers(0, 6),
)
@example(["aab", "b"], 9, ("aabb", "ab"), False, 2)  # the short match ended before min_tokens
def test_text_and_end_match_the_definition(
    pieces: list[str], max_tokens: int, stop: tuple[str, ...], include_stop: bool, min_tokens: int
) -> None:
    min_tokens = min(min_tokens, max_tokens)
    shown, reason = stream(pieces, max_tokens, stop=stop, include_stop=include_stop, min_tokens=min_tokens)
    text, expected_reason = expected(pieces, max_tokens, stop, include_stop, min_tokens)
    assert reason == expected_reason
    if reason:
        assert "".join(shown) == text
    else:  # what is not shown yet must be able to become a stop string, and be no longer than needed
        held = text[len("".join(shown)) :]
        assert text.startswith("".join(shown))
        tails = [
            text[i:] for i in range(len(text)) if any(s != text[i:] and s.startswith(text[i:]) for s in stop)
        ]
        assert held == max(tails, key=len, default="")


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    assert stream(["x ST", "O", "P y"], stop=("STOP",)) == (["x ", "", ""], "stop")


def test_text_that_only_began_like_a_stop_string_is_shown_late() -> None:
    shown, _ = stream(["a\n", "\nb", "c"], stop=("\n\nUser",))
    assert shown == ["a", "\n\nb", "c"]


@pytest.mark.parametrize(("include_stop", "text"), [(False, "hi"), (True, "hi<stop>")])
def test_stop_token_text_is_shown_only_on_request(include_stop: bool, text: str) -> None:
    shown, reason = stream(["hi", "<stop>"], stop_token_ids=(STOP_TOKEN,), include_stop=include_stop)
    assert ("".join(shown), reason) == (text, "stop")


@pytest.mark.parametrize("include_stop", [False, True])
def test_eos_has_no_text_and_releases_what_was_held(include_stop: bool) -> None:
    shown, reason = stream(["hi S", "<eos>"], stop=("STOP",), include_stop=include_stop, tail="!")
    assert (shown, reason) == (["hi ", "S!"], "stop")


def test_ignored_eos_is_an_ordinary_token() -> None:
    assert stream(["hi", "<eos>", "x"], ignore_eos=True) == (["hi", "<eos>", "x"], "")


def test_length_releases_what_was_held() -> None:
    assert stream(["S", "T"], max_tokens=2, stop=("STOP",), tail="?") == (["", "ST?"], "length")


def test_a_stop_string_completed_by_the_last_flush_is_cut() -> None:
    assert stream(["a", "b"], max_tokens=2, stop=("b!",), tail="!") == (["a", ""], "stop")


def test_stop_token_ids_join_eos() -> None:
    request = GenerationRequest((5,), stop_token_ids=(7, 3, 7))
    assert StopChecker(request, PieceDecoder([]), 9, (EOS,)).stop_token_ids == (0, 3, 7)
    request = GenerationRequest((5,), stop_token_ids=(7,), ignore_eos=True)
    assert StopChecker(request, PieceDecoder([]), 9, (EOS,)).stop_token_ids == (7,)


def test_half_a_character_waits_for_its_other_half(toy: SimpleNamespace) -> None:
    checker = StopChecker(GenerationRequest((5,), stop=("é!",)), toy.ByteDecoder(), 4, ())
    texts = [checker.push(byte, number) for number, byte in enumerate("aé?".encode(), 1)]
    assert texts == [("a", None), ("", None), ("", None), ("é?", "length")]


@settings(max_examples=200)
@given(
    st.lists(st.text("ab<|", min_size=0, max_size=3), max_size=12),
    st.sets(st.text("ab<", min_size=1, max_size=3)),
)
def test_nothing_stops_behind_the_text_that_ends_stops(pieces: list[str], stop: set[str]) -> None:
    """If no match begins in front of `||`, the whole text is shown."""
    text = "".join(pieces) + "||" + "".join(reversed(pieces))
    if not any(one in text.partition("||")[0] for one in stop):
        shown, reason = stream(
            [*pieces, "|", "|", *reversed(pieces), "<eos>"], stop=tuple(stop), stops_before="||"
        )
        assert ("".join(shown), reason) == (text, "stop")


def test_stop_tokens_end_text_only() -> None:
    pieces = ["a", "||", "<stop>", "b", "<eos>", "c"]
    assert stream(pieces, stop_token_ids=(STOP_TOKEN,), stops_before="||") == (
        ["a", "||", "<stop>", "b", ""],
        "stop",
    )
    assert stream(["a", "<stop>", *pieces], stop_token_ids=(STOP_TOKEN,), stops_before="||")[1] == "stop"
    assert stream(["a", "[x]", "b", "xb", "<eos>"], stop=("b",), stops_before=3) == (
        ["a", "[x]", "b", "xb", ""],
        "stop",
    )
    assert stream(["a", "b"], stop=("b",), stops_before=3) == (["a", "b"], "")
    assert stream(["b|", "|b", "<eos>"], stop=("|b", "b|", "c"), stops_before="||") == ([""], "stop")
    assert stream(["a|", "|b", "<eos>"], stop=("|b", "bc"), stops_before="||") == (["a", "||b", ""], "stop")
