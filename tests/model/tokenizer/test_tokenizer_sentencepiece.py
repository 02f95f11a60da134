"""SentencePiece models, from tokenizer.model and from GGUF, give sentencepiece's ids."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece

from flashlet.model.errors import UnsupportedModelError
from flashlet.model.tokenizer import load_tokenizer


def test_sentencepiece_gguf_ids_equal_sentencepiece(kit: SimpleNamespace, spm: Any) -> None:
    reference, folder = spm
    for path in (folder / "model.gguf", folder):
        tokenizer = load_tokenizer(path)
        for text in kit.texts:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids == reference.encode(text), text
            assert tokenizer.decode(ids) == text.replace("▁", " "), text
        assert tokenizer.encode("Hi") == [reference.bos_id(), *reference.encode("Hi")]
        assert tokenizer.encode("") == [reference.bos_id()]


def test_sentencepiece_special_tokens(spm: Any) -> None:
    """A special token in the text is one id; a space goes before the text that follows it."""
    reference, folder = spm
    for path in (folder / "model.gguf", folder):
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode("Hi</s>there", add_special_tokens=False)
        assert ids == [*reference.encode("Hi"), 2, *reference.encode("there")]
        assert tokenizer.decode(ids) == "Hi there"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "Hi</s> there"
        assert tokenizer.special_ids == {0, 1, 2}
        assert tokenizer.eos_token_ids == (2,)


def test_sentencepiece_text_that_continues_keeps_its_space(spm: Any) -> None:
    tokenizer = load_tokenizer(spm[1] / "model.gguf")
    ids = tokenizer.encode("brown fox", add_special_tokens=False)
    assert tokenizer.decode(ids) == "brown fox"
    assert tokenizer.decode(ids, continuation=True) == " brown fox"
    decoder = tokenizer.stream_decoder(continuation=True)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == " brown fox"


def test_sentencepiece_prefix_only_at_the_start(spm: Any, tmp_path: Path) -> None:
    """`"legacy": false` in tokenizer_config.json: no space goes before what follows a special token."""
    reference, folder = spm
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false, "add_bos_token": false}')
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("Hi</s>there")
    assert ids[: len(reference.encode("Hi")) + 1] == [*reference.encode("Hi"), 2]
    assert tokenizer.decode(ids) == "Hithere"


def test_sentencepiece_byte_tokens(spm: Any) -> None:
    reference, folder = spm
    tokenizer = load_tokenizer(folder)
    bell = reference.PieceToId("<0x07>")
    assert tokenizer.encode("\x07", add_special_tokens=False)[-1] == bell
    assert tokenizer.token_bytes(bell) == b"\x07"
    assert bell not in tokenizer.encode("<0x07>")


@pytest.mark.parametrize("options", [{"add_dummy_prefix": False}, {"user_defined_symbols": ["<sep>", "[X]"]}])
def test_other_sentencepiece_models(kit: SimpleNamespace, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(kit.train_sentencepiece(**options))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path)
    for text in [*kit.texts, " [X]"]:
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text), text
    ids = tokenizer.encode("fox<sep>dog[X]", add_special_tokens=False)
    assert ("<sep>" in [reference.IdToPiece(i) for i in ids]) == ("user_defined_symbols" in options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "other than BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalization table"),
        ({"remove_extra_whitespaces": True}, "extra white space"),
        ({"treat_whitespace_as_suffix": True}, "suffix"),
    ],
)
def test_sentencepiece_models_that_would_be_read_wrongly(
    kit: SimpleNamespace, tmp_path: Path, options: Any, message: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        kit.train_sentencepiece(**{"hard_vocab_limit": False, **options})
    )
    with pytest.raises(UnsupportedModelError, match=message):
        load_tokenizer(tmp_path)
