"""Conversations of a model with itself: token ids, the target's features of every token, and what was asked.

A folder of three growing files and one that says what they hold:

    corpus.json          CorpusInfo
    tokens.bin           uint32 [tokens]
    features.bin         float16 [tokens, features, hidden]
    conversations.jsonl  one Conversation a line, written last: what is behind the last one is not counted
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from flashlet.model.errors import FlashletError, ModelFormatError

Tokens = NDArray[np.uint32]  # [length]
Features = NDArray[np.float16]  # [length, features, hidden]
HALF_LIMIT = 65504.0  # largest float16


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """What a corpus was made of. A resumed run must agree."""

    model: str  # fingerprint of the target's weights
    features: tuple[int, ...]  # the target's residual stream after so many layers
    hidden_size: int
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of tokens that the model wrote as an answer."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What the model wrote, user's turns and answers."""

    kind: str
    temperature: float  # of the answers; 0: greedy
    tokens: tuple[int, ...]
    answers: tuple[Answer, ...]
    asked: str  # the first user's turn
    about: str  # what other requests may share with it: all conversations about that are held out, or none


@dataclass(frozen=True, slots=True)
class Conversation:
    """Tokens offset .. offset + length - 1 of the corpus."""

    index: int  # with the corpus's seed it determines the conversation
    kind: str
    temperature: float  # of the answers; 0: greedy
    held_out: bool
    offset: int
    length: int
    answers: tuple[Answer, ...]
    asked: str = ""  # text_key of the first user's turn; older corpora do not know it


def text_key(text: str) -> str:
    """The same for texts that differ in case and spaces only."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:16]


class Corpus:
    """A corpus that is complete as far as it was written; arrays are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        """Raises FlashletError if there is none, ModelFormatError if the files disagree."""
        self.info = read_info(folder)
        self.conversations = _read_conversations(folder)
        if not self.conversations:
            raise FlashletError(f"{folder}: expected a corpus with conversations, found none")
        last = self.conversations[-1]
        self.num_tokens = last.offset + last.length
        row = len(self.info.features) * self.info.hidden_size
        self._tokens: Tokens = np.memmap(folder / "tokens.bin", "<u4", "r")
        features = np.memmap(folder / "features.bin", "<f2", "r")
        if len(self._tokens) < self.num_tokens or len(features) < self.num_tokens * row:
            raise ModelFormatError(f"{folder}: fewer tokens or features than the conversations need")
        self._chosen: list[int] | None = None  # None: all
        shape = (self.num_tokens, len(self.info.features), self.info.hidden_size)
        self._features: Features = features[: self.num_tokens * row].reshape(shape)

    def with_features(self, layers: Sequence[int]) -> Corpus:
        """The same corpus with some of its features; FlashletError for one that it does not have."""
        if missing := set(layers) - set(self.info.features):
            raise FlashletError(f"features: expected some of {list(self.info.features)}, got {min(missing)}")
        result = copy(self)
        result.info = replace(self.info, features=tuple(layers))
        result._chosen = [self.info.features.index(layer) for layer in layers]
        return result

    def tokens(self, conversation: Conversation) -> Tokens:
        """[length]."""
        return self._tokens[conversation.offset : conversation.offset + conversation.length]

    def features(self, conversation: Conversation) -> Features:
        """[length, features, hidden]."""
        rows = self._features[conversation.offset : conversation.offset + conversation.length]
        return rows if self._chosen is None else rows[:, self._chosen]


class CorpusWriter:
    """Appends conversations; a run that was cut off goes on behind the last whole one."""

    def __init__(self, folder: Path, info: CorpusInfo) -> None:
        """Raises FlashletError if `folder` holds another corpus: of other weights, features or seed."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "corpus.json"
        if path.exists() and (found := read_info(folder)) != info:
            raise FlashletError(f"{folder}: holds another corpus: expected {info}, found {found}")
        path.write_bytes(msgspec.json.encode(info))
        self.info = info
        written = _read_conversations(folder)
        self.num_tokens = written[-1].offset + written[-1].length if written else 0
        self.num_conversations = len(written)
        self.asked = {item.asked for item in written}  # keys of what was there before
        self.next_index = max((item.index for item in written), default=-1) + 1
        row = 2 * len(info.features) * info.hidden_size
        self._tokens = _open_at(folder / "tokens.bin", 4 * self.num_tokens)
        self._features = _open_at(folder / "features.bin", row * self.num_tokens)
        self._lines = (folder / "conversations.jsonl").open("wb")
        self._lines.writelines(msgspec.json.encode(item) + b"\n" for item in written)

    def append(self, index: int, held_out: bool, dialogue: Dialogue, features: NDArray[np.float32]) -> None:
        """Write one conversation, its metadata last. `features`: [tokens, features, hidden]."""
        length = len(dialogue.tokens)
        assert len(features) == length, (len(features), length)
        self._tokens.write(np.asarray(dialogue.tokens, "<u4").tobytes())
        self._features.write(np.clip(features, -HALF_LIMIT, HALF_LIMIT).astype("<f2").tobytes())
        item = Conversation(
            index=index,
            kind=dialogue.kind,
            temperature=dialogue.temperature,
            held_out=held_out,
            offset=self.num_tokens,
            length=length,
            answers=dialogue.answers,
            asked=text_key(dialogue.asked),
        )
        self._tokens.flush()
        self._features.flush()
        self._lines.write(msgspec.json.encode(item) + b"\n")
        self._lines.flush()
        self.num_tokens += length
        self.num_conversations += 1

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._tokens, self._features, self._lines):
            stream.close()


def read_info(folder: Path) -> CorpusInfo:
    """Raises FlashletError if there is no corpus in `folder`."""
    try:
        return msgspec.json.decode((folder / "corpus.json").read_bytes(), type=CorpusInfo)
    except OSError as error:
        raise FlashletError(f"{folder}: expected a corpus, found none: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ModelFormatError(f"{folder / 'corpus.json'}: {error}") from error


def _read_conversations(folder: Path) -> list[Conversation]:
    """All whole lines."""
    path = folder / "conversations.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [msgspec.json.decode(line, type=Conversation) for line in lines]
    except msgspec.DecodeError as error:
        raise ModelFormatError(f"{path}: {error}") from error


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open for writing at `size`; what is behind belongs to a conversation that was cut off."""
    path.touch()
    stream = path.open("r+b")
    stream.truncate(size)
    stream.seek(size)
    return stream
