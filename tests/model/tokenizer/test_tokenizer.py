"""Byte-level tokenizers from GGUF give the ids of the library; streamed text equals whole text."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer as Backend

from flashlet.model.errors import ModelFormatError, UnsupportedModelError
from flashlet.model.sentencepiece_model import TokenType
from flashlet.model.tokenizer import Tokenizer, load_tokenizer


def test_byte_level_ids_and_text_equal_the_reference(
    kit: SimpleNamespace, family: tuple[str, Backend, Path]
) -> None:
    name, reference, path = family
    tokenizer = load_tokenizer(path)
    for text in kit.texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids, False) == reference.decode(ids, skip_special_tokens=False), text
        assert tokenizer.decode(ids) == reference.decode(ids), text
    assert (tokenizer.encode("x")[0] == tokenizer.bos_token_id) == (name in ("llama-bpe", "tekken"))


def test_other_threads_run_while_a_long_text_is_encoded(tiny_model_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_path)
    encoding = threading.Thread(target=lambda: tokenizer.encode("the user and the city " * 20_000))
    encoding.start()
    turns = 0
    while encoding.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 20


def test_byte_level_vocabulary(kit: SimpleNamespace, family: tuple[str, Backend, Path]) -> None:
    _, reference, path = family
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == reference.get_vocab_size()
    assert tokenizer.special_ids == {reference.token_to_id(token) for token in kit.special}
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|user|>", "<|end|>", None)
    assert tokenizer.token_bytes(reference.token_to_id("<|end|>")) == b"<|end|>"
    assert tokenizer.token_bytes(reference.token_to_id("Ġ")) == b" "
    assert tokenizer.token_bytes(tokenizer.vocab_size) == tokenizer.token_bytes(-1) == b""
    every_byte = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert every_byte >= {bytes([byte]) for byte in range(256)}


def test_every_pre_tokenizer_keeps_the_text(kit: SimpleNamespace, tmp_path: Path) -> None:
    backend = kit.train_byte_level("gpt-2")
    for pre in ("default", "deepseek-coder", "smaug-bpe", "deepseek-r1-qwen", "llama3"):
        kit.write_byte_level_gguf(tmp_path / "a.gguf", pre, backend)
        tokenizer = load_tokenizer(tmp_path / "a.gguf")
        for text in kit.corpus[:5]:
            assert tokenizer.decode(tokenizer.encode(text, False)) == text


def test_end_ids_of_a_gguf(kit: SimpleNamespace, tmp_path: Path) -> None:
    backend = kit.train_byte_level("gpt-2")
    backend.add_special_tokens(["<|endoftext|>"])
    kinds = [*kit.special, "<|endoftext|>"]
    vocabulary = backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kit.write_gguf(
        tmp_path / "a.gguf",
        "gpt2",
        tokens,
        [TokenType.CONTROL if token in kinds else TokenType.NORMAL for token in tokens],
        pre="gpt-2",
        merges=[" ".join(json.loads(backend.to_str())["model"]["merges"][0])],
        eos=vocabulary["<|user|>"],
        change=lambda writer: writer.add_eot_token_id(vocabulary["<|assistant|>"]),
    )
    ends = ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    assert load_tokenizer(tmp_path / "a.gguf").eos_token_ids == tuple(vocabulary[token] for token in ends)


def test_loading_imports_no_other_reader(kit: SimpleNamespace, tmp_path: Path) -> None:
    kit.write_byte_level_gguf(tmp_path / "a.gguf", "gpt-2", kit.train_byte_level("gpt-2"))
    program = (
        "import sys; from pathlib import Path; from flashlet.model.tokenizer import load_tokenizer\n"
        f"load_tokenizer(Path({str(tmp_path / 'a.gguf')!r}))\n"
        "print({'gguf', 'sentencepiece', 'transformers', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_streamed_text_equals_the_whole(kit: SimpleNamespace, kind: str, spm: Any, tmp_path: Path) -> None:
    """For random ids too, which hold broken UTF-8, special tokens and everything else, at any place."""
    if kind == "byte-level":
        kit.write_byte_level_gguf(tmp_path / "a.gguf", "gpt-2", kit.train_byte_level("gpt-2"))
        tokenizer = load_tokenizer(tmp_path / "a.gguf")
    else:
        tokenizer = load_tokenizer(spm[1] / "model.gguf")
    rng = random.Random(0)
    samples = [tokenizer.encode(text) for text in kit.texts]
    samples += [[rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(12))] for _ in range(500)]
    samples += [[*ids[: len(ids) // 2], *ids[len(ids) // 3 :]] for ids in samples[:20]]
    for ids in samples:
        decoder = tokenizer.stream_decoder()
        pieces = [decoder.push(token_id) for token_id in ids] + [decoder.finish()]
        assert "".join(pieces) == tokenizer.decode(ids)
        assert all(piece == "" for piece, i in zip(pieces, ids, strict=False) if i in tokenizer.special_ids)


def test_no_character_is_split(family: tuple[str, Backend, Path]) -> None:
    tokenizer = load_tokenizer(family[2])
    decoder = tokenizer.stream_decoder()
    ids = tokenizer.encode("ok 😀", add_special_tokens=False)
    assert len(tokenizer.token_bytes(ids[-1])) < 4
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "😀" in pieces[-1]
    assert "\ufffd" not in "".join(pieces)
    assert decoder.push(tokenizer.encode("é", False)[0])[:1] in ("", "é")


def test_lone_surrogates_are_refused(family: tuple[str, Backend, Path]) -> None:
    with pytest.raises(UnicodeEncodeError):
        load_tokenizer(family[2]).encode("a\ud800b")


def edited(key: str, edit: Callable[[Any], Any]) -> Callable[[gguf.GGUFWriter], None]:
    """Replaces a value of the tokenizer's metadata; None drops the key."""

    def change(writer: gguf.GGUFWriter) -> None:
        values = writer.kv_data[0]
        value = edit(values[f"tokenizer.ggml.{key}"].value)
        if value is None:
            del values[f"tokenizer.ggml.{key}"]
        else:
            values[f"tokenizer.ggml.{key}"].value = value

    return change


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (UnsupportedModelError, "pre-tokenizer 'martian'", edited("pre", lambda _: "martian")),
        (UnsupportedModelError, "'bert'", edited("model", lambda _: "bert")),
        (ModelFormatError, "tokens: expected a list", edited("tokens", lambda _: None)),
        (ModelFormatError, "merges: expected a list", edited("merges", lambda _: None)),
        (ModelFormatError, "token_type: expected .* entries", edited("token_type", lambda types: types[1:])),
        (ModelFormatError, "eos_token_id: expected an id below", edited("eos_token_id", lambda _: 9999)),
        (ModelFormatError, "two tokens in each", edited("merges", lambda merges: [*merges, "x"])),
        (ModelFormatError, "merges of tokens", edited("merges", lambda merges: [*merges, "no token"])),
    ],
)
def test_damaged_gguf(
    kit: SimpleNamespace, tmp_path: Path, error: type[Exception], message: str, change: Any
) -> None:
    kit.write_byte_level_gguf(tmp_path / "a.gguf", "gpt-2", kit.train_byte_level("gpt-2"), change=change)
    with pytest.raises(error, match=message):
        load_tokenizer(tmp_path / "a.gguf")


def test_default_model(kit: SimpleNamespace, default_model_path: Path) -> None:
    tokenizer: Tokenizer = load_tokenizer(default_model_path)
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.eos_token_ids == (2, 0)
    # Noted from transformers' tokenizer of the same model.
    assert tokenizer.encode("<|im_start|>user\nHello world 123<|im_end|>") == [
        1,
        4093,
        198,
        19556,
        905,
        216,
        33,
        34,
        35,
        2,
    ]
    for text in kit.texts:
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
