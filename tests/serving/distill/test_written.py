"""Requests that conversations of a corpus begin with: those that come with flashlet, and a user's own."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashlet.model.errors import FlashletError
from flashlet.model.tokenizer import load_tokenizer
from flashlet.serving.cli.app import app
from flashlet.serving.distill.corpus import Corpus, text_key
from flashlet.serving.distill.dialogue import DialogueOptions, DialogueWriter, Texts
from flashlet.serving.distill.topics import KINDS
from flashlet.serving.distill.written import OwnRequests, Request, Requests, WrittenRequests
from flashlet.serving.loading import LoadOptions, load_engine

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "speculation_prompts.jsonl"


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def draw_many(requests: Requests, count: int) -> list[Request]:
    rng, texts = random.Random(0), Texts()
    return [drawn for _ in range(count) if (drawn := requests.draw(rng, texts.is_new)) is not None]


def test_shipped_requests_are_many_and_filled_in() -> None:
    drawn = draw_many(WrittenRequests.shipped(), 4000)
    assert len(drawn) > 3500
    assert len({item.prompt for item in drawn}) == len(drawn)
    assert {item.kind for item in drawn} == KINDS.keys() - {"long"}
    assert all(item.about in item.prompt for item in drawn)
    left = [text for _, text, _ in drawn if re.search(r"\{(text|tongue|tone|language)\}", text)]
    assert not left
    assert drawn == draw_many(WrittenRequests.shipped(), 4000)


def test_shipped_requests_are_not_those_that_speculation_is_measured_with() -> None:
    def passages(text: str) -> set[tuple[str, ...]]:
        parts = words(text)
        return {tuple(parts[i : i + 8]) for i in range(len(parts) - 7)}

    measured = [json.loads(line)["prompt"] for line in BENCHMARK.read_text().splitlines()]
    theirs = set().union(*map(passages, measured))
    ours = set().union(*(passages(text) for _, text, _ in draw_many(WrittenRequests.shipped(), 4000)))
    assert not theirs & ours


def test_own_prompts_begin_the_conversations(tiny_model_path: Path, tmp_path: Path) -> None:
    """Each once, under the kind that the file gives; what is wanted beyond them, the model writes."""
    prompts = [{"prompt": f"tell me about {word}", "kind": "mine"} for word in ("one", "two", "three")]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n\n" for prompt in prompts))
    folder = tmp_path / "corpus"
    command = ["distill", "data", str(folder), "--model", str(tiny_model_path), "--prompts", str(file)]
    result = CliRunner().invoke(app, [*command, "--tokens", "3000", "--threads", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    tokenizer, corpus = load_tokenizer(tiny_model_path), Corpus(folder)
    mine = [item for item in corpus.conversations if item.kind == "mine"]
    asked = [tokenizer.decode(corpus.tokens(item)[: item.answers[0].start].tolist()) for item in mine]
    begun = [prompt["prompt"] for prompt in prompts for text in asked if prompt["prompt"] in text]
    assert sorted(begun) == sorted(prompt["prompt"] for prompt in prompts)
    assert len(mine) == 3 < len(corpus.conversations)


def test_own_prompts_are_all_used_before_any_is_missing() -> None:
    prompts = {"chat": [f"tell me {i}" for i in range(400)], "code": [f"write {i}" for i in range(100)]}
    drawn = draw_many(OwnRequests(prompts), 600)
    assert sorted(item.prompt for item in drawn) == sorted(prompts["chat"] + prompts["code"])
    assert {item.kind for item in drawn[:50]} == {"chat", "code"}


def test_corpora_of_all_seeds_hold_out_the_same_requests(tiny_model_path: Path, tmp_path: Path) -> None:
    """A run that was cut off asks nothing again, and no corpus trains on what another holds out."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"tell me about number {i}"}) + "\n" for i in range(60)))
    sides: dict[str, set[bool]] = {}
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        command = ["distill", "data", str(folder), "--model", str(tiny_model_path), "--threads", "1"]
        for tokens in (2_000, 12_000):
            options = ["--prompts", str(file), "--seed", str(seed), "--tokens", str(tokens)]
            CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        conversations = Corpus(folder).conversations
        assert len({item.asked for item in conversations}) == len(conversations)
        for item in conversations:
            sides.setdefault(item.asked, set()).add(item.held_out)
    mine = {text_key(f"tell me about number {i}") for i in range(60)}
    both = [side for key, side in sides.items() if key in mine]
    assert len(both) > 40
    assert all(len(side) == 1 for side in both)
    assert {True} in both and {False} in both


def test_requests_say_which_text_they_share() -> None:
    """What a passage is about must not be known from other instructions for it."""
    prompts: dict[str, set[str]] = {}
    for item in draw_many(WrittenRequests.shipped(), 6000):
        prompts.setdefault(item.about, set()).add(item.prompt)
    assert sum(len(group) > 1 for group in prompts.values()) > 300


def test_a_long_request_gets_a_shorter_answer(tiny_model_path: Path) -> None:
    loaded = load_engine(tiny_model_path, LoadOptions(draft="none", threads=1))
    assert loaded.chat_template is not None
    request = "word " * 40
    tokens = loaded.tokenizer.encode(
        loaded.chat_template.render([{"role": "user", "content": request}], add_generation_prompt=True)
    )
    for room, wanted in ((130, {128}), (400, {128, 256, 384}), (100, set())):
        options = DialogueOptions(written_share=1.0, own_system_prompt=0.0, context_length=len(tokens) + room)
        found = set()
        for seed in range(20):
            own = OwnRequests({"chat": [request]})
            writer = DialogueWriter(loaded.tokenizer, loaded.chat_template, options, Texts(), own)
            found |= {item.max_tokens for item in islice(writer.write(random.Random(seed)), 1)}
        assert found == wanted
    loaded.executor.close()


def test_the_model_goes_on_with_a_list_of_requests(tiny_model_path: Path) -> None:
    loaded = load_engine(tiny_model_path, LoadOptions(draft="none", threads=1))
    tokenizer, template = loaded.tokenizer, loaded.chat_template
    assert template is not None
    options = DialogueOptions(written_share=0.0, similar_share=1.0, context_length=100_000)
    writer = DialogueWriter(tokenizer, template, options, Texts(), WrittenRequests.shipped())
    kinds = set()
    for seed in range(30):
        dialogue = writer.write(random.Random(seed))
        wanted = next(dialogue)
        if not wanted.stop:
            continue  # nothing is written for this kind that can stand alone
        assert wanted.stop == ("\n",)
        assert tokenizer.decode(list(wanted.prompt)).count("\n- ") == 6
        answer = dialogue.send(tokenizer.encode(f" Who was number {seed}?\n- What"))
        assert answer.is_answer
        assert f"Who was number {seed}?<" in tokenizer.decode(list(answer.prompt), False)
        with pytest.raises(StopIteration) as stop:  # the answer has no end, so no turn follows it
            dialogue.send([5, 6, 7])
        kinds.add(stop.value.value.kind)
    assert {"chat", "code"} <= kinds
    loaded.executor.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected prompts"),
        (b'{"prompt": "hello"}\n{"text": "hello"}', "line 2"),
        (b"hello", "line 1"),
        (b'{"prompt": 7}', "line 1"),
        (b'{"prompt": "\xff"}', "line 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(FlashletError, match=message):
        OwnRequests.from_file(file)


def test_a_missing_file_ends_in_a_clean_error(tiny_model_path: Path, tmp_path: Path) -> None:
    command = ["distill", "data", str(tmp_path / "corpus"), "--model", str(tiny_model_path), "--prompts"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "none.jsonl")])
    assert result.exit_code == 1
    assert "none.jsonl" in result.stderr
