"""Small tokenizers, trained here, and the files that GGUF and Hugging Face keep them in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from flashlet.model.sentencepiece_model import TokenType

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock, they'll say!",
    "def main():\n\treturn {'key': [1, 22, 333]}\r\n\r\n    # comment   with   spaces  ",
    "日本語のテキスト。한국어 텍스트. Ünïcödé ñandú ß ЖЗИ αβγ",
    "emoji 😀👩‍👩‍👧 flags 🇩🇪 math ∑∫√ arrows →⇒",
    "HelloWorld camelCase HTTPServer snake_case user@example.com https://example.com/a?b=c&d=e",
] * 8
TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n \n\t x",
    "Hello world",
    "  two leading spaces, two trailing  ",
    "It's we'll I'D THEY'VE don't",
    "1 12 123 1234 12345 3.14159 \uff11\uff12\uff13 ٣٤ Ⅻ",
    "😀👩‍👩‍👧🇩🇪 naïve café é Å ﬁ",
    "日本語のテキスト 한국어 中文字符",
    "\x00\x01\x07\x1b[0m\x7f\u0085\u00a0\u200b\u2028\ufeff",
    "tab\tcr\rcrlf\r\nend",
    "a" * 300 + " " * 300 + "!" * 50,
    "$100 + 50% = x^2 ~ `code` <tag> </tag> \\n {{}} a/b//c",
    "HTTPServer camelCase ÀÉ ÀÉa aÀÉ ǅ ʰ",
    "<|user|>Hi<|end|>\n<|assistant|>",
    "<|end|>",
    " <|end|> <|end|><|end|>  x",
    "<|en d|> <|end| > |end|>",
    "plain<tool>inside</tool>",
    "▁ already ▁▁ escaped",
    "\U0010ffff \U000e0001 \ud7ff",
]
SPECIAL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
PLAIN = ["<tool>"]

# Written as the models' own tokenizer.json files have it, independently of what is tested.
GPT2_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(regex: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


FAMILIES: dict[str, Any] = {
    "gpt-2": GPT2_SPLIT,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2_SPLIT]),
    "llama-bpe": split_by(LLAMA3_REGEX),
    "qwen2": split_by(LLAMA3_REGEX.replace("{1,3}", "")),
    "tekken": split_by(TEKKEN_REGEX),
}


def train_byte_level(name: str) -> Backend:
    backend = Backend(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    backend.pre_tokenizer = FAMILIES[name]
    backend.decoder = decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    return backend


def write_byte_level_gguf(path: Path, pre: str, backend: Backend, **options: Any) -> None:
    vocabulary = backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    model = json.loads(backend.to_str())["model"]
    kinds = dict.fromkeys(SPECIAL, TokenType.CONTROL) | dict.fromkeys(PLAIN, TokenType.USER_DEFINED)
    write_gguf(
        path,
        "gpt2",
        tokens,
        [kinds.get(token, TokenType.NORMAL) for token in tokens],
        pre=pre,
        merges=[" ".join(pair) for pair in model["merges"]],
        bos=vocabulary["<|user|>"],
        eos=vocabulary["<|end|>"],
        **options,
    )


def write_gguf(
    path: Path,
    model: str,
    tokens: list[str],
    types: list[TokenType],
    *,
    pre: str = "default",
    merges: list[str] | None = None,
    scores: list[float] | None = None,
    bos: int = 0,
    eos: int = 0,
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def train_sentencepiece(**options: Any) -> bytes:
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=stream,
        minloglevel=2,
        **{
            "vocab_size": 600,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "character_coverage": 0.98,
            **options,
        },
    )
    return stream.getvalue()


def write_sentencepiece_gguf(
    path: Path, reference: sentencepiece.SentencePieceProcessor, **options: Any
) -> None:
    ids = range(len(reference))
    kinds = [
        TokenType.UNKNOWN if reference.IsUnknown(i)
        else TokenType.CONTROL if reference.IsControl(i)
        else TokenType.BYTE if reference.IsByte(i)
        else TokenType.NORMAL
        for i in ids
    ]  # fmt: skip
    scores = [reference.GetScore(i) for i in ids]
    tokens = [reference.IdToPiece(i) for i in ids]
    write_gguf(path, "llama", tokens, kinds, scores=scores, bos=1, eos=2, **options)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Texts, special tokens and the functions of this file."""
    return SimpleNamespace(
        texts=TEXTS,
        corpus=CORPUS,
        special=SPECIAL,
        train_byte_level=train_byte_level,
        write_byte_level_gguf=write_byte_level_gguf,
        write_gguf=write_gguf,
        train_sentencepiece=train_sentencepiece,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Backend, Path]:
    """(name of the pre-tokenizer, reference, GGUF file with the same vocabulary)."""
    name = request.param
    backend = train_byte_level(name)
    path = tmp_path_factory.mktemp("bpe") / f"{name}.gguf"
    write_byte_level_gguf(path, name, backend)
    return name, backend, path


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> tuple[sentencepiece.SentencePieceProcessor, Path]:
    """(reference, folder with tokenizer.model and model.gguf), as Llama 2 and Mistral have them."""
    folder = tmp_path_factory.mktemp("spm")
    proto = train_sentencepiece()
    (folder / "tokenizer.model").write_bytes(proto)
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto)
    write_sentencepiece_gguf(folder / "model.gguf", reference)
    return reference, folder
