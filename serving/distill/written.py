"""What people ask for: texts and requests in their own words, and the instructions that go with them.

written_requests/texts.jsonl         {"pool": name, "text": ...}: prose, sentences, code, whole requests
written_requests/instructions.jsonl  {"kind": ..., "pool": name, "prompt": "... {text} ...", "weight": 1}
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

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


class WrittenRequests:
    """First turns of users, of several kinds of conversations."""

    def __init__(
        self,
        texts: dict[str, list[str]],
        instructions: dict[str, list[_Instruction]],
        shares: dict[str, int],
    ) -> None:
        """`texts` by pool, `instructions` by kind, `shares`: how often each kind is drawn."""
        self._texts, self._instructions, self._shares = texts, instructions, shares
        self._drawn: set[str] = set()
        self._whole = {  # requests of one line that need no instruction
            kind: [text for pool in pools for text in texts[pool] if "\n" not in text]
            for kind, items in instructions.items()
            if (pools := [item.pool for item in items if item.prompt == "{text}"])
        }

    @classmethod
    def shipped(cls) -> WrittenRequests:
        """Those that come with flashlet: some thousand texts in English, a few in other languages."""
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

    @classmethod
    def from_file(cls, path: Path) -> WrittenRequests:
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
        instructions = {kind: [_Instruction(kind, kind, "{text}")] for kind in texts}
        return cls(dict(texts), instructions, {kind: len(prompts) for kind, prompts in texts.items()})

    def draw(self, rng: random.Random) -> tuple[str, str] | None:
        """Kind and text of a request that was not drawn before; None where there seems to be none left."""
        (kind,) = rng.choices([*self._shares], [*self._shares.values()])
        instructions = self._instructions[kind]
        for _ in range(_TRIES):
            (instruction,) = rng.choices(instructions, [item.weight for item in instructions])
            request = instruction.about(rng.choice(self._texts[instruction.pool]), rng)
            if request not in self._drawn:
                self._drawn.add(request)
                return kind, request
        return None

    def examples(self, rng: random.Random, kind: str) -> list[str]:
        """Some requests of this kind, drawn or not, each a line; none where too few are written."""
        whole = self._whole.get(kind, [])
        return rng.sample(whole, _EXAMPLES) if len(whole) > _EXAMPLES else []
