"""Builds a `tokenizers.Tokenizer` from a bare vocabulary, byte-level BPE or SentencePiece BPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from flashlet.model.errors import ModelFormatError
from flashlet.model.pre_tokenizers import PreTokenizer

SPACE = "▁"  # SentencePiece writes a space as U+2581


def byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], rules: PreTokenizer) -> Backend:
    """Byte-level BPE (Radford et al. 2019): token text in the 256-character byte alphabet of GPT-2."""
    backend = Backend(_bpe(tokens, [_pair(merge) for merge in merges], ignore_merges=rules.ignore_merges))
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece_bpe(
    tokens: Sequence[str],
    scores: Sequence[float],
    mergeable: Sequence[bool],
    unknown: str | None,
    *,
    prefix: Literal["never", "first", "always"],
) -> Backend:
    """SentencePiece BPE (Kudo and Richardson 2018) with byte fallback.

    `scores` rank the merges, highest first; `mergeable` marks tokens that text can become, which control and
    byte tokens are not. `prefix`: a space goes before nothing, before the text unless it begins with one, or
    before the text and before what follows each special token.
    """
    merges = _merges_by_score(tokens, scores, mergeable)
    backend = Backend(_bpe(tokens, merges, byte_fallback=True, fuse_unk=True, unk_token=unknown))
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = replace
    if prefix == "always":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    elif prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def add_tokens(backend: Backend, special: Sequence[str], plain: Sequence[str]) -> None:
    """Match `special` and `plain` tokens verbatim in the text; decoding can skip `special` ones."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])


def set_template(backend: Backend, bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> None:
    """Put the (text, id) of BOS and EOS around every encoded text; None leaves one out."""
    around = [token for token in (bos, eos) if token]
    backend.post_processor = processors.TemplateProcessing(
        single=[*([bos[0]] if bos else []), "$A", *([eos[0]] if eos else [])], special_tokens=around
    )


def _bpe(tokens: Sequence[str], merges: list[tuple[str, str]], **options: object) -> models.BPE:
    try:
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **options)
    except Exception as error:  # the library raises bare Exception
        raise ModelFormatError(f"tokenizer: expected merges of tokens into tokens, found: {error}") from error


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space:
        raise ModelFormatError(f"tokenizer: expected two tokens in each merge, found {merge!r}")
    return left, right


def _merges_by_score(
    tokens: Sequence[str], scores: Sequence[float], mergeable: Sequence[bool]
) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first, as SentencePiece merges."""
    ids: Mapping[str, int] = {token: i for i, token in enumerate(tokens) if mergeable[i]}
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[i], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
