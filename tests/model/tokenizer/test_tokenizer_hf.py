"""Tokenizers of Hugging Face folders give transformers' ids."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, decoders, models, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from flashlet.model.errors import ModelFormatError, ModelNotFoundError, UnsupportedModelError
from flashlet.model.tokenizer import load_tokenizer


def test_folder_ids_equal_transformers(kit: SimpleNamespace, tmp_path: Path) -> None:
    """tokenizer.json with a BOS template, tokens that only the configuration has, padding and truncation."""
    backend = kit.train_byte_level("llama-bpe")
    bos = "<|user|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.enable_truncation(8)
    backend.enable_padding()
    saved = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="<|end|>",
        pad_token="<|new pad|>",
        chat_template="T",
    )
    saved.add_tokens([AddedToken("<new>", special=False, lstrip=True)])
    saved.save_pretrained(tmp_path)
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    reference.backend_tokenizer.no_truncation()
    tokenizer = load_tokenizer(tmp_path)
    for text in [*kit.texts, "a <new>b<|new pad|>"]:
        for special in (False, True):
            assert tokenizer.encode(text, special) == reference.encode(text, add_special_tokens=special), text
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.pad_token_id == reference.pad_token_id
    assert tokenizer.bos_token_id == reference.bos_token_id
    assert tokenizer.chat_template == "T"


@pytest.mark.parametrize("add_bos_token", [False, True])
def test_configured_bos_wins_over_tokenizer_json(
    kit: SimpleNamespace, tmp_path: Path, add_bos_token: bool
) -> None:
    backend = kit.train_byte_level("gpt-2")
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": {"content": "<|user|>"}, "add_bos_token": add_bos_token, "eos_token": "<|end|>"}
        )
    )
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.encode("x")[0] == tokenizer.bos_token_id) == add_bos_token


def test_chat_template_sources_of_a_folder(kit: SimpleNamespace, tmp_path: Path) -> None:
    kit.train_byte_level("gpt-2").save(str(tmp_path / "tokenizer.json"))
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "main"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert load_tokenizer(tmp_path).chat_template == "main"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_tokenizer(tmp_path).chat_template == "file"


def test_end_ids_of_a_folder(kit: SimpleNamespace, tmp_path: Path) -> None:
    backend = kit.train_byte_level("gpt-2")
    backend.save(str(tmp_path / "tokenizer.json"))
    end = backend.token_to_id("<|end|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert load_tokenizer(tmp_path).eos_token_ids == (end, 5)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, end]}))
    assert load_tokenizer(tmp_path).eos_token_ids == (end, 7)


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(ModelFormatError, match="found neither"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff")
    with pytest.raises(ModelFormatError, match="damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ModelFormatError, match="expected JSON"):
        load_tokenizer(tmp_path)


def test_word_piece_is_refused(tmp_path: Path) -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        load_tokenizer(tmp_path)
