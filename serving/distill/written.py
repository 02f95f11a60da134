"""What conversations begin with: requests in the manner of people, or a user's own.

Those that come with flashlet were written by a language model:

written_requests/texts.jsonl         {"pool": name, "text": ...}: prose, sentences, code, whole requests
written_requests/instructions.jsonl  {"kind": ..., "pool": name, "prompt": "... {text} ...", "weight": 1}
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from flashlet.model.errors import FlashletError
from flashlet.serving.distill.topics import KINDS, WORDS

_FOLDER = Path(__file__).parent / "written_requests"
_TRIES = 8  # draws until one is new
_EXAMPLES = 6  # requests of a list


class _Text(msgspec.Struct):
    pool: str
    text: str


class _Instruction(msgspec.Struct):
    kind: str
    pool: str
    prompt: str
    weight: float = 1.0

    def about(self, text: str, rng: random.Random) -> str:
        prompt = self.prompt
        for name, choices in WORDS.items():
            prompt = prompt.replace(f"{{{name}}}", rng.choice(choices))
        return prompt.replace("{text}", text)


class _Prompt(msgspec.Struct):
    prompt: str
    kind: str = "chat"


class Request(NamedTuple):
    """The first turn of a user."""

    kind: str
    prompt: str
    about: str  # the text in it, which other requests may share


class Requests(Protocol):
    """What conversations begin with."""

    def draw(self, rng: random.Random, is_new: Callable[[str], bool]) -> Request | None:
        """A request that `is_new` accepts, which it does once; None where there seems to be none left."""

    def examples(self, rng: random.Random, kind: str) -> list[str]:
        """Some requests of this kind, drawn or not, each a line; none where too few are written."""


class WrittenRequests:
    """Those that come with flashlet: texts and the instructions that go with them."""

    def __init__(
        self,
        texts: dict[str, list[str]],
        instructions: dict[str, list[_Instruction]],
        shares: dict[str, int],
    ) -> None:
        """`texts` by pool, `instructions` by kind, `shares`: how often each kind is drawn."""
        self._texts, self._instructions, self._shares = texts, instructions, shares
        self._whole = {  # requests of one line that need no instruction
            kind: [text for pool in pools for text in texts[pool] if "\n" not in text]
            for kind, items in instructions.items()
            if (pools := [item.pool for item in items if item.prompt == "{text}"])
        }

    @classmethod
    def shipped(cls) -> WrittenRequests:
        """Some thousand texts in English, a few in other languages."""
        texts: dict[str, list[str]] = defaultdict(list)
        for line in (_FOLDER / "texts.jsonl").read_bytes().splitlines():
            item = msgspec.json.decode(line, type=_Text)
            texts[item.pool].append(item.text)
        instructions: dict[str, list[_Instruction]] = defaultdict(list)
        for line in (_FOLDER / "instructions.jsonl").read_bytes().splitlines():
            instruction = msgspec.json.decode(line, type=_Instruction)
            instructions[instruction.kind].append(instruction)
        shares = {kind: share for kind, share in KINDS.items() if kind in instructions}
        return cls(dict(texts), dict(instructions), shares)

    def draw(self, rng: random.Random, is_new: Callable[[str], bool]) -> Request | None:
        """A request that is new; None where there seems to be none left."""
        (kind,) = rng.choices([*self._shares], [*self._shares.values()])
        instructions = self._instructions[kind]
        for _ in range(_TRIES):
            (instruction,) = rng.choices(instructions, [item.weight for item in instructions])
            text = rng.choice(self._texts[instruction.pool])
            prompt = instruction.about(text, rng)
            if is_new(prompt):
                return Request(kind, prompt, text)
        return None

    def examples(self, rng: random.Random, kind: str) -> list[str]:
        """As for all `Requests`."""
        return _sample_of(self._whole.get(kind, []), rng)


class OwnRequests:
    """A user's own: each is used once."""

    def __init__(self, prompts: dict[str, list[str]]) -> None:
        """`prompts` by kind."""
        self._left = [Request(kind, prompt, prompt) for kind, texts in prompts.items() for prompt in texts]
        self._whole = {kind: [text for text in texts if "\n" not in text] for kind, texts in prompts.items()}

    @classmethod
    def from_file(cls, path: Path) -> OwnRequests:
        """Those of a JSON Lines file: {"prompt": ..., "kind": "chat"}, the kind being optional.

        Raises FlashletError for a file that cannot be read or has other lines.
        """
        texts: dict[str, list[str]] = defaultdict(list)
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise FlashletError(f"{path}: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                item = msgspec.json.decode(line, type=_Prompt)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise FlashletError(
                    f'{path}, line {number}: expected {{"prompt": "...", "kind": "..."}}, got {error}'
                ) from None
            texts[item.kind].append(item.prompt)
        if not texts:
            raise FlashletError(f"{path}: expected prompts, one on each line, got none")
        return cls(texts)

    def draw(self, rng: random.Random, is_new: Callable[[str], bool]) -> Request | None:
        """As for all `Requests`: any of those that are left."""
        while self._left:
            at = rng.randrange(len(self._left))
            self._left[at], self._left[-1] = self._left[-1], self._left[at]
            request = self._left.pop()
            if is_new(request.prompt):
                return request
        return None

    def examples(self, rng: random.Random, kind: str) -> list[str]:
        """As for all `Requests`."""
        return _sample_of(self._whole.get(kind, []), rng)


def _sample_of(lines: list[str], rng: random.Random) -> list[str]:
    return rng.sample(lines, _EXAMPLES) if len(lines) > _EXAMPLES else []
