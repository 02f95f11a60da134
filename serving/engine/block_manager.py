"""KV blocks: who holds which, and which can be found again by their content."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import takewhile

from flashlet.serving.engine.block_branches import Beginning, BlockBranches
from flashlet.serving.engine.sequence import Sequence

_MIN_COPIED = 4  # tokens: fewer are computed as fast as a block is copied


class BlockManager:
    """Ref-counted blocks of the KV pool, with a prefix cache.

    A block is in exactly one state:

        free          no content worth keeping
        cached free   ref count 0, content known by its hash; taken back by a hit or, oldest first, reused
        used          ref count = number of block tables it stands in

    A full block is known by a 128-bit BLAKE2b of (hash of the block before, its token ids), the first one of
    (cache salt, its token ids), so equal hashes mean equal salts and prefixes. Only full blocks are shared,
    and nothing is written to a full block; of one that only begins as a prompt goes on, the executor copies
    the beginning into a fresh block.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_cache = enable_prefix_cache
        self._ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # the last one is taken next
        self._cached_free: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._branches = BlockBranches()
        self._computing: dict[bytes, int] = {}  # blocks whose content is on its way

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free) + len(self._cached_free)

    @property
    def usage(self) -> float:
        """Share of the pool that sequences hold, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks for the longest known prefix, always without the sequence's last token."""
        if not self.enable_prefix_cache:
            return []
        self._extend_hashes(sequence)
        found = []
        for block_hash in sequence.block_hashes[: (len(sequence.tokens) - 1) // self.block_size]:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def num_known(self, sequence: Sequence) -> int:
        """Leading tokens of `sequence` that need not be computed: those in cached blocks, or in awaited ones.

        On any thread, for a sequence that is not queued yet.
        """
        if not self.enable_prefix_cache:
            return 0
        self._extend_hashes(sequence)
        hashes = sequence.block_hashes[: (len(sequence.tokens) - 1) // self.block_size]
        known = takewhile(lambda key: key in self._block_of or key in self._computing, hashes)
        return sum(1 for _ in known) * self.block_size

    def find_beginning(self, sequence: Sequence, prefix: list[int]) -> Beginning | None:
        """The cached block that begins as `sequence` goes on behind `prefix`, without its last token."""
        if not self.enable_prefix_cache:
            return None
        start = len(prefix) * self.block_size
        rest = sequence.tokens[start : min(start + self.block_size, len(sequence.tokens) - 1)]
        found = self._branches.find(_parent(sequence, len(prefix)), rest)
        return found if found is not None and found.num_tokens >= _MIN_COPIED else None

    def is_computing(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether a running sequence is about to compute the block that follows `prefix` in `sequence`."""
        if not self.enable_prefix_cache or len(prefix) >= (len(sequence.tokens) - 1) // self.block_size:
            return False
        self._extend_hashes(sequence)
        return sequence.block_hashes[len(prefix)] in self._computing

    def can_allocate(self, sequence: Sequence, prefix: list[int], headroom: int) -> bool:
        """Whether all tokens of `sequence` fit behind `prefix`, leaving `headroom` blocks free."""
        shared = sum(self._ref_counts[block] > 0 for block in prefix)
        return self.blocks_for(len(sequence.tokens)) - shared + headroom <= self.num_free

    def allocate(self, sequence: Sequence, prefix: list[int]) -> None:
        """Give `sequence` a table of the `prefix` blocks and fresh ones for the rest of its tokens."""
        assert not sequence.block_table
        for block in prefix:
            if self._ref_counts[block] == 0:
                del self._cached_free[block]
            self._ref_counts[block] += 1
        sequence.block_table.extend(prefix)
        sequence.num_registered_blocks = len(prefix)
        self.append(sequence)
        for index in range(len(prefix), len(sequence.block_hashes)):
            self._computing.setdefault(sequence.block_hashes[index], sequence.block_table[index])

    def can_append(self, sequence: Sequence) -> bool:
        """Whether the table of `sequence` can be made to hold all its tokens."""
        return self.blocks_for(len(sequence.tokens)) - len(sequence.block_table) <= self.num_free

    def append(self, sequence: Sequence, num_proposed: int = 0) -> None:
        """Extend the table of `sequence` to hold all its tokens and `num_proposed` more."""
        while len(sequence.block_table) * self.block_size < len(sequence.tokens) + num_proposed:
            sequence.block_table.append(self._take_block())

    def num_spare_slots(self, sequence: Sequence) -> int:
        """Tokens that `sequence` could hold beyond its own if it got every block that can be taken."""
        blocks = len(sequence.block_table) + self.num_free
        return blocks * self.block_size - len(sequence.tokens)

    def trim(self, sequence: Sequence) -> None:
        """Take back what the table of `sequence` has beyond its tokens, for rejected proposals."""
        while len(sequence.block_table) > self.blocks_for(len(sequence.tokens)):
            block = sequence.block_table.pop()
            self._ref_counts[block] = 0
            self._free.append(block)

    def empty_blocks(self, count: int) -> list[int] | None:
        """Blocks that nobody holds and that may be written until the next one is taken; None: too few."""
        return self._free[-count:] if count <= len(self._free) else None

    def free(self, sequence: Sequence) -> None:
        """Give back the blocks of `sequence`; its registered ones can still be found."""
        for index in range(sequence.num_registered_blocks, len(sequence.block_table)):
            self._forget_computing(sequence, index)
        # The tail first: of one prefix, the blocks that fewer prompts share are reused earlier.
        for block in reversed(sequence.block_table):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._hash_of:
                    self._cached_free[block] = None
                else:
                    self._free.append(block)
        sequence.block_table.clear()
        sequence.num_registered_blocks = 0

    def register(self, sequence: Sequence) -> None:
        """Make the full blocks that lie within the computed length of `sequence` findable."""
        num_full = sequence.num_computed // self.block_size
        if num_full == sequence.num_registered_blocks or not self.enable_prefix_cache:
            return
        self._extend_hashes(sequence)
        for index in range(sequence.num_registered_blocks, num_full):
            self._forget_computing(sequence, index)
            block, block_hash = sequence.block_table[index], sequence.block_hashes[index]
            if block_hash not in self._block_of:
                self._block_of[block_hash] = block
                self._hash_of[block] = block_hash
                token_ids = sequence.tokens[index * self.block_size : (index + 1) * self.block_size]
                self._branches.add(block, _parent(sequence, index), token_ids)
        sequence.num_registered_blocks = num_full

    def drop_cache(self) -> None:
        """Forget all contents, for when they can no longer be trusted. No sequence may hold blocks."""
        assert not any(self._ref_counts)
        self._block_of.clear()
        self._hash_of.clear()
        self._branches.clear()
        self._free.extend(self._cached_free)
        self._cached_free.clear()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """AssertionError if the books disagree with the tables of `sequences`, the only holders."""
        expected = [0] * self.num_blocks
        for sequence in sequences:
            for block in sequence.block_table:
                expected[block] += 1
        assert expected == self._ref_counts, "ref counts differ from the block tables"
        unused = set(self._free).union(self._cached_free)
        assert len(unused) == self.num_free, "a block is listed as free twice"
        num_used = self.num_blocks - self._ref_counts.count(0)
        assert self.num_free + num_used == self.num_blocks, "blocks leaked"
        assert not any(self._ref_counts[block] for block in unused), "a used block is listed as free"
        assert {block: key for key, block in self._block_of.items()} == self._hash_of, "hash tables differ"
        assert len(self._branches) == len(self._hash_of), "branches and hashes differ"
        assert not self._hash_of.keys() & set(self._free), "a findable block is listed as empty"
        assert self._cached_free.keys() <= self._hash_of.keys(), "a cached block cannot be found"
        assert all(expected[block] for block in self._computing.values()), "nobody computes an awaited block"

    def _take_block(self) -> int:
        """Take an empty block, or else the cached one that was unused for longest."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached_free.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
            self._branches.remove(block)
        self._ref_counts[block] = 1
        return block

    def _forget_computing(self, sequence: Sequence, index: int) -> None:
        """Strike block `index` of `sequence` from the awaited ones, if it is the one awaited."""
        if index < len(sequence.block_hashes):
            block_hash = sequence.block_hashes[index]
            if self._computing.get(block_hash) == sequence.block_table[index]:
                del self._computing[block_hash]

    def _extend_hashes(self, sequence: Sequence) -> None:
        """Hash the full blocks of `sequence.tokens` that are not hashed yet."""
        size, hashes = self.block_size, sequence.block_hashes
        for index in range(len(hashes), len(sequence.tokens) // size):
            parent = _parent(sequence, index)
            token_ids = sequence.tokens[index * size : (index + 1) * size]
            hashes.append(blake2b(parent + struct.pack(f"<{size}I", *token_ids), digest_size=16).digest())


def _parent(sequence: Sequence, index: int) -> bytes:
    """What is hashed before block `index` of `sequence`."""
    return sequence.block_hashes[index - 1] if index else _root(sequence.request.cache_salt)


def _root(cache_salt: str) -> bytes:
    """What is hashed before a first block; by its length, it cannot be taken for the hash of a block."""
    return blake2b(cache_salt.encode(), digest_size=32).digest() if cache_salt else b""
