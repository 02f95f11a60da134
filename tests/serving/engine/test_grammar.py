"""Grammars: what they allow, where they end, what refuses to compile, and what goes over a limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashlet.model.tokenizer import Tokenizer, load_tokenizer
from flashlet.model.tokenizer_backend import add_tokens, sentencepiece_bpe
from flashlet.serving.engine.grammar import MAX_SOURCE, CompiledGrammar, Grammar
from flashlet.serving.engine.grammar_compiler import CACHE_SIZE, MAX_PENDING, GrammarCompiler
from flashlet.serving.engine.grammar_constraint import GrammarConstraint
from flashlet.serving.errors import GrammarError, QueueFullError

EXTRA_TOKENS = 45  # of the model, beyond the tokenizer's: padding
Compile = Callable[[Grammar], CompiledGrammar]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return load_tokenizer(tiny_model_path)


def make_compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + EXTRA_TOKENS, tokenizer.eos_token_ids)


@pytest.fixture(scope="module")
def compile_(tokenizer: Tokenizer) -> Compile:
    compiler = make_compiler(tokenizer)
    return lambda grammar: asyncio.run(compiler.compile(grammar))


def allowed(mask: Any) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def accepts(tokenizer: Tokenizer, grammar: CompiledGrammar, text: str) -> bool:
    """Whether `text` is a whole answer, token by token."""
    constraint = grammar.constraint()
    for token_id in (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_ids[0]):
        (mask,) = constraint.masks(())
        if token_id not in allowed(mask):
            return False
        constraint.push(token_id)
    return True


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (
            Grammar.json_object(),
            ["{}", '{"a": 1}', '{"é":[null, {}]}'],
            ["[]", "1", "{", '{"a":  1}', " {}", "{ }"],
        ),
        (
            Grammar.json_schema({"type": "array", "items": {"enum": ["a", 2]}, "maxItems": 2}),
            ["[]", '["a", 2]', '["a","a"]'],
            ['["b"]', "[2,2,2]", '["a" ,"a"]', "[\n\n2]", "[\n" + " " * 17 + "2]"],
        ),
        (Grammar.regex(r'a+/"\d{2}(é|\n)'), ['aa/"12é', 'a/"00\n'], ['a/"1é', "a", 'a/"12é ']),
        (Grammar.regex("^(?i)yes$"), ["yes", "YES"], ["yess", ""]),
        (
            Grammar.choice(["a", "ab", 'q"\\', "<|im_end|>", "\n"]),
            ["a", "ab", 'q"\\', "\n"],
            ["", "b", "abb"],
        ),
        (Grammar('start: "x" y?\ny: "(" y ")" | "z"'), ["x", "xz", "x((z))"], ["x((z)", "z"]),
        (Grammar('start: "go " %json {"type": "integer"}'), ["go 1", "go -20"], ["go", "go a"]),
        (Grammar('%llguidance {"no_forcing": false}\nstart: "abc"'), ["abc"], ["ab"]),
        (Grammar("start: a\n" + Grammar.choice(["x}", "y"]).as_rule("a")), ["x}", "y"], ["x"]),
    ],
)
def test_what_is_accepted(
    tokenizer: Tokenizer, compile_: Compile, grammar: Grammar, good: list[str], bad: list[str]
) -> None:
    compiled = compile_(grammar)
    assert [text for text in good if not accepts(tokenizer, compiled, text)] == []
    assert [text for text in bad if accepts(tokenizer, compiled, text)] == []


def test_masks_have_no_special_empty_or_padding_tokens(tokenizer: Tokenizer, compile_: Compile) -> None:
    constraint = compile_(Grammar.regex("(?s:.*)")).constraint()
    (mask,) = constraint.masks(())
    assert mask is not None
    assert mask.dtype == np.uint32
    assert mask.shape == ((tokenizer.vocab_size + EXTRA_TOKENS + 31) // 32,)
    eos = tokenizer.eos_token_ids[0]
    assert allowed(mask) & tokenizer.special_ids == {eos}
    assert max(allowed(mask)) < tokenizer.vocab_size


def test_a_special_token_is_no_way_to_write_its_name(tokenizer: Tokenizer, compile_: Compile) -> None:
    for grammar in (
        Grammar.choice(["<|im_end|>"]),
        Grammar.json_schema({"const": "<|im_end|>"}),
        Grammar('start: "<|im_end|>"'),
        Grammar('%llguidance {"no_forcing": false}\nstart: "<|im_end|>"'),
    ):
        constraint = compile_(grammar).constraint()
        written = b""
        while not written.endswith(b">"):
            (mask,) = constraint.masks(())
            assert not allowed(mask) & tokenizer.special_ids
            token_id = min(allowed(mask))
            written += tokenizer.token_bytes(token_id)
            constraint.push(token_id)
        assert written.strip(b'"') == b"<|im_end|>"


def test_masks_after_proposed_tokens_are_those_of_the_tokens(tokenizer: Tokenizer, compile_: Compile) -> None:
    grammar = compile_(Grammar.json_schema({"type": "array", "items": {"type": "integer"}}))
    ids = tokenizer.encode("[12, 3]", add_special_tokens=False)
    constraint, plain = grammar.constraint(), grammar.constraint()
    for start in range(len(ids)):
        masks = [allowed(mask) for mask in constraint.masks(ids[start:])]
        assert len(masks) == 1 + len(ids) - start
        follower = grammar.constraint()
        for token_id in ids[:start]:
            follower.push(token_id)
        for index, mask in enumerate(masks):
            assert mask == allowed(follower.masks(())[0])
            if start + index < len(ids):
                follower.push(ids[start + index])
        assert masks[0] == allowed(plain.masks(())[0])
        constraint.push(ids[start])
        plain.push(ids[start])


def test_masks_end_before_a_proposal_that_is_not_allowed(tokenizer: Tokenizer, compile_: Compile) -> None:
    constraint = compile_(Grammar.regex("ab?c")).constraint()
    a, b, c, d = tokenizer.encode("abcd", add_special_tokens=False)
    eos = tokenizer.eos_token_ids[0]
    assert len(constraint.masks([d, a])) == 1
    assert len(constraint.masks([a, b, d])) == 3
    assert len(constraint.masks([a, c, eos, a])) == 3


def test_the_grammar_wins_over_min_tokens_and_ignore_eos(tokenizer: Tokenizer, compile_: Compile) -> None:
    eos = tokenizer.eos_token_ids[0]
    (a,) = tokenizer.encode("a", add_special_tokens=False)
    grammar = compile_(Grammar.regex("a{0,3}"))

    def ends(**options: Any) -> list[bool]:
        constraint = grammar.constraint(**options)
        result = []
        for _ in range(4):
            mask = allowed(constraint.masks(())[0])
            result.append(eos in mask)
            if a in mask:
                constraint.push(a)
        return result

    assert ends() == [True] * 4
    assert ends(stop_token_ids=(eos,), min_tokens=2) == [False, False, True, True]
    assert ends(stop_token_ids=(eos,), min_tokens=9) == [False, False, False, True]
    assert ends(put_off=(eos,)) == [False, False, False, True]
    # A stop token that alone can follow is allowed, too.
    assert a in allowed(grammar.constraint(stop_token_ids=(a, eos), min_tokens=9).masks(())[0])
    constraint = compile_(Grammar.regex("ab")).constraint(stop_token_ids=(a,), min_tokens=9)
    assert a in allowed(constraint.masks(())[0])


def test_proposals_count_towards_min_tokens(tokenizer: Tokenizer, compile_: Compile) -> None:
    eos = tokenizer.eos_token_ids[0]
    (a,) = tokenizer.encode("a", add_special_tokens=False)
    constraint = compile_(Grammar.regex("a*")).constraint(stop_token_ids=(eos,), min_tokens=2)
    assert [eos in allowed(mask) for mask in constraint.masks([a, a])] == [False, False, True]


def test_sequences_do_not_share_state(tokenizer: Tokenizer, compile_: Compile) -> None:
    grammar = compile_(Grammar.regex("ab"))
    first, second = grammar.constraint(), grammar.constraint()
    a, _ = tokenizer.encode("ab", add_special_tokens=False)[:2]
    before = allowed(second.masks(())[0])
    first.push(a)
    assert allowed(second.masks(())[0]) == before != allowed(first.masks(())[0])


def run_dry(constraint: GrammarConstraint, steps: int) -> None:
    """Push whatever is allowed."""
    for _ in range(steps):
        ids = allowed(constraint.masks(())[0])
        assert ids
        constraint.push(max(ids))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar('start: "a" x?\nx: y\ny: y'),  # nothing can follow once x has begun
        Grammar.json_schema({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"],
                             "$defs": {"x": {"$ref": "#/$defs/x"}}}),
        Grammar.regex(r"(\w+\s?){1,400}"),
        Grammar('start: T T\nT: /(a|b)*a(a|b){40}/ & ~/(b|a)*b(a|b){41}/'),
    ],
)  # fmt: skip
def test_what_goes_over_a_limit_fails_or_ends(compile_: Compile, grammar: Grammar) -> None:
    """No mask is ever empty, and none takes long."""
    started = time.thread_time()
    try:
        run_dry(compile_(grammar).constraint(), 60)
    except GrammarError as exc:
        assert "\n" not in str(exc)
        assert exc.code == "invalid_grammar"
    assert time.thread_time() - started < 20


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nope"}, "at $: Invalid type: nope"),
        ({"type": "object", "properties": {"x/y": {"items": {"anyOf": [{}, {"not": {}}]}}}},
         'at $.properties["x/y"].items.anyOf[1]: Unimplemented keys: ["not"]'),
        ({"properties": {"a": {"minimum": 5, "maximum": 3, "type": "integer"}}, "required": ["a"],
          "type": "object"}, r"at $.properties.a: Unsatisfiable schema: minimum (5) is greater than"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b~c": {"$ref": "#/$defs/d"}}},
                                         "d": {"uniqueItems": True}}}, "at $.$defs.a.properties"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"x-guidance": {"lenient": True}, "not": {}}, 'Unimplemented keys: ["not"]'),
    ],
)  # fmt: skip
def test_a_wrong_schema_says_where(compile_: Compile, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        compile_(Grammar.json_schema(schema))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.regex("a("),
        Grammar.regex("(" * 5000),
        Grammar(""),
        Grammar("x: y"),
        Grammar("start: x"),
        Grammar("start: " + "(" * 20_000),
        Grammar("a: b\n" * 100),
        Grammar("x" * MAX_SOURCE),
        # References that would overflow the stack, then patterns and schemas that grow without end
        Grammar("start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(6000)) + '\na6000: "a"'),
        Grammar("start: T0\n" + "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)) + '\nT40: "a"'),
        Grammar.json_schema({"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in range(3)]}
                                       for i in range(20)]}),
        Grammar.json_schema({"type": "integer", "multipleOf": 99_999_989}),
    ],
)  # fmt: skip
def test_malformed_and_hostile_grammars_are_refused(compile_: Compile, grammar: Grammar) -> None:
    with pytest.raises(GrammarError) as caught:
        compile_(grammar)
    assert str(caught.value)
    assert len(str(caught.value)) < 500
    compile_(Grammar.choice(["after it"]))


def test_grammars_are_compiled_once(tokenizer: Tokenizer) -> None:
    compiler = make_compiler(tokenizer)

    async def compile_twice() -> list[Any]:
        again = {"type": "object", "title": "a"}
        first = compiler.compile(Grammar.json_schema(again))
        return await asyncio.gather(first, compiler.compile(Grammar.json_schema({**again})))

    first, second = asyncio.run(compile_twice())
    assert first is second
    wrong = Grammar.regex("(")
    messages = set()
    for _ in range(2):
        with pytest.raises(GrammarError) as caught:
            asyncio.run(compiler.compile(wrong))
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_too_many_waiting_grammars_are_refused(tokenizer: Tokenizer) -> None:
    compiler = make_compiler(tokenizer)

    async def flood() -> list[Any]:
        grammars = [Grammar.choice([f"{i}"]) for i in range(2 * MAX_PENDING)]
        return await asyncio.gather(*map(compiler.compile, grammars), return_exceptions=True)

    results = asyncio.run(flood())
    kinds = {type(result) for result in results}
    assert kinds == {CompiledGrammar, QueueFullError}
    assert sum(isinstance(result, CompiledGrammar) for result in results) >= MAX_PENDING
    assert isinstance(asyncio.run(compiler.compile(Grammar.choice(["x"]))), CompiledGrammar)


def test_who_stops_waiting_does_not_cancel_the_others(tokenizer: Tokenizer) -> None:
    compiler = make_compiler(tokenizer)

    async def leave() -> CompiledGrammar:
        grammar = Grammar.json_object()
        leaving = asyncio.ensure_future(compiler.compile(grammar))
        staying = asyncio.ensure_future(compiler.compile(grammar))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert isinstance(asyncio.run(leave()), CompiledGrammar)


def test_the_cache_is_bounded(tokenizer: Tokenizer) -> None:
    compiler = make_compiler(tokenizer)

    async def compile_text(text: str) -> CompiledGrammar:
        return await compiler.compile(Grammar.choice([text]))

    first = asyncio.run(compile_text("first"))
    for index in range(CACHE_SIZE):
        asyncio.run(compile_text(str(index)))
    assert asyncio.run(compile_text("first")) is not first


def test_sentencepiece_tokens_are_their_bytes() -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, "▁", "a", "b", "▁a", "▁ab", "日"]
    normal = [False] * 259 + [True] * 6
    backend = sentencepiece_bpe(tokens, [0.0] * len(tokens), normal, "<unk>", prefix="always")
    add_tokens(backend, ["<unk>", "<s>", "</s>"], [])
    tokenizer = Tokenizer(
        backend, vocab_size=len(tokens), bos=("<s>", 1), eos=("</s>", 2), pad=None, eos_token_ids=(2,),
        chat_template=None, byte_fallback=True, strip_leading_space=True,
    )  # fmt: skip
    compiler = GrammarCompiler(tokenizer, len(tokens), (2,))
    constraint = asyncio.run(compiler.compile(Grammar.regex(" ab?日"))).constraint()
    space, space_a, han, first_byte = (tokens.index(token) for token in ("▁", "▁a", "日", "<0xE6>"))
    assert allowed(constraint.masks(())[0]) == {space, space_a, tokens.index("▁ab"), tokens.index("<0x20>")}
    constraint.push(space_a)
    following = {tokens.index("b"), tokens.index("<0x62>"), han, first_byte}
    assert allowed(constraint.masks(())[0]) == following
    constraint.push(han)
    assert allowed(constraint.masks(())[0]) == {2}
    assert tokenizer.decode([space_a, han], continuation=True) == " a日"
