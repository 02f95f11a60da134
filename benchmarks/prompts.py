"""Prompts to measure with: of a given length, with no beginning in common, and real ones of several kinds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from flashlet.model.tokenizer import Tokenizer

_PROMPTS_BY_KIND = Path(__file__).parent / "speculation_prompts.jsonl"
_WORDS = """
river stone window garden market winter letter engine harbour candle forest bridge teacher silver
island morning kitchen violin captain mountain shadow orchard village lantern copper meadow thunder
pocket planet mirror ladder castle summer doctor ribbon valley butter signal anchor museum feather
tunnel pepper voyage cotton helmet turtle magnet walnut canyon parcel saddle tailor velvet marble
pigeon basket hammer willow
"""


class PromptMaker:
    """Makes texts of random words; every call gives another one, and the same calls give the same ones."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        """The tokenizer measures the texts."""
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._words = _WORDS.split()

    def prompt(self, num_tokens: int) -> str:
        """A text of `num_tokens` tokens, give or take one."""
        words = " ".join(self._random.choice(self._words) for _ in range(num_tokens))
        return self._tokenizer.decode(self._tokenizer.encode(words)[:num_tokens])


def prompts_by_kind(limit: int) -> list[tuple[str, str]]:
    """Kind and text of the prompts that measure speculation, at most `limit` of each kind, kinds in turns."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for line in _PROMPTS_BY_KIND.read_text().splitlines():
        row = json.loads(line)
        kinds.setdefault(row["kind"], []).append((row["kind"], row["prompt"]))
    return [item for row in zip(*(rows[:limit] for rows in kinds.values()), strict=False) for item in row]
