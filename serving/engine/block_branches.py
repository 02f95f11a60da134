"""Which cached blocks go on from the same prefix, to find one that begins as a prompt does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

_MAX_COMPARED = 32  # blocks behind one prefix, newest first: a chat template's is behind every conversation


class Beginning(NamedTuple):
    """Leading tokens of a cached block that a prompt shares."""

    block: int
    num_tokens: int


class BlockBranches:
    """Full blocks by the hash of the block before them (of nothing, for a sequence's first block)."""

    def __init__(self) -> None:
        self._behind: defaultdict[bytes, dict[int, Sequence[int]]] = defaultdict(dict)
        self._parents: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def add(self, block: int, parent: bytes, token_ids: Sequence[int]) -> None:
        """Remember that `block` holds `token_ids` behind the block of hash `parent`."""
        self._parents[block] = parent
        self._behind[parent][block] = token_ids

    def remove(self, block: int) -> None:
        """Forget `block`."""
        parent = self._parents.pop(block)
        siblings = self._behind[parent]
        del siblings[block]
        if not siblings:
            del self._behind[parent]

    def clear(self) -> None:
        """Forget everything."""
        self._behind.clear()
        self._parents.clear()

    def find(self, parent: bytes, token_ids: Sequence[int]) -> Beginning | None:
        """The block behind `parent` that shares most leading tokens with `token_ids`, if any shares one."""
        best = Beginning(-1, 0)
        for block, held in islice(reversed(self._behind.get(parent, {}).items()), _MAX_COMPARED):
            num_tokens = _common(held, token_ids)
            if num_tokens > best.num_tokens:
                best = Beginning(block, num_tokens)
        return best if best.num_tokens else None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
