"""Blocks: random use against a model of their contents, and the cases one can see at a glance."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashlet.serving.engine.block_manager import BlockManager
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.stop_checker import StopChecker


class NoText:
    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def make_sequence(prompt: list[int]) -> Sequence:
    request = GenerationRequest(tuple(prompt))
    return Sequence(0, request, 100, StopChecker(request, NoText(), 100, ()))


def allocate(blocks: BlockManager, prompt: list[int]) -> Sequence:
    sequence = make_sequence(prompt)
    prefix = blocks.find_prefix(sequence)
    assert blocks.can_allocate(sequence, prefix, headroom=0)
    blocks.allocate(sequence, prefix)
    sequence.num_computed = len(prefix) * blocks.block_size
    return sequence


def compute(blocks: BlockManager, sequence: Sequence, num_tokens: int | None = None) -> None:
    sequence.num_computed = len(sequence.tokens) if num_tokens is None else num_tokens
    blocks.register(sequence)


def test_a_prefix_is_found_only_after_it_was_computed() -> None:
    blocks = BlockManager(8, 4)
    prompt = [*range(10)]
    first = allocate(blocks, prompt)
    other = make_sequence(prompt)
    assert blocks.find_prefix(other) == []
    assert blocks.is_computing(other, [])
    compute(blocks, first, 7)
    assert blocks.find_prefix(other) == first.block_table[:1]
    assert blocks.is_computing(other, first.block_table[:1])
    compute(blocks, first, 10)
    assert blocks.find_prefix(other) == first.block_table[:2]
    assert not blocks.is_computing(other, first.block_table[:2])


def test_the_beginning_of_a_block_is_found() -> None:
    blocks = BlockManager(12, 8)
    first = allocate(blocks, [*range(24)])
    compute(blocks, first)

    def beginning(prompt: list[int]) -> tuple[int, int] | None:
        sequence = make_sequence(prompt)
        return blocks.find_beginning(sequence, blocks.find_prefix(sequence))

    assert beginning([*range(13), 99, 98]) == (first.block_table[1], 5)
    assert beginning([*range(13)]) == (first.block_table[1], 4)  # the last token is always computed
    assert beginning([*range(11), 99]) is None  # too few to be worth a copy
    assert beginning([*range(16, 24), 99]) is None  # elsewhere in the text
    second = allocate(blocks, [*range(14), 97, 98])
    compute(blocks, second)
    assert beginning([*range(14), 97, 0]) == (second.block_table[1], 7)  # the longer one
    table = [*second.block_table]
    blocks.free(first)
    blocks.free(second)
    assert beginning([*range(14), 97, 0]) == (table[1], 7)  # nobody holds it now, but it is cached
    blocks.drop_cache()
    assert beginning([*range(13), 99]) is None


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    blocks = BlockManager(8, 4)
    first = allocate(blocks, [*range(8)])
    compute(blocks, first)
    assert blocks.find_prefix(make_sequence([*range(8)])) == first.block_table[:1]
    assert blocks.find_prefix(make_sequence([*range(9)])) == first.block_table[:2]


def test_equal_blocks_behind_different_prefixes_are_different() -> None:
    blocks = BlockManager(8, 2)
    compute(blocks, allocate(blocks, [1, 2, 7, 7, 9]))
    assert blocks.find_prefix(make_sequence([3, 4, 7, 7, 9])) == []
    assert blocks.find_prefix(make_sequence([7, 7, 9])) == []


def test_output_tokens_are_found_by_the_next_turn() -> None:
    blocks = BlockManager(8, 2)
    sequence = allocate(blocks, [1, 2, 3])
    compute(blocks, sequence)
    sequence.tokens.append(4)
    blocks.append(sequence)
    compute(blocks, sequence)
    table = [*sequence.block_table]
    blocks.free(sequence)
    assert blocks.find_prefix(make_sequence([1, 2, 3, 4, 5])) == table


def test_least_recently_used_blocks_are_reused_first_and_tails_before_heads() -> None:
    blocks = BlockManager(4, 1)
    old, new = allocate(blocks, [1, 2]), allocate(blocks, [3, 4])
    for sequence in (old, new):
        compute(blocks, sequence)
        blocks.free(sequence)
    allocate(blocks, [9])
    assert blocks.find_prefix(make_sequence([1, 2, 0])) != []
    assert len(blocks.find_prefix(make_sequence([1, 2, 0]))) == 1
    assert len(blocks.find_prefix(make_sequence([3, 4, 0]))) == 2


def test_a_hit_takes_the_block_out_of_the_reusable_ones() -> None:
    blocks = BlockManager(3, 1)
    sequence = allocate(blocks, [1, 2])
    compute(blocks, sequence)
    blocks.free(sequence)
    assert (blocks.num_free, blocks.usage) == (3, 0.0)
    again = allocate(blocks, [1, 5])
    assert blocks.num_free == 1
    other = make_sequence([1, 6])
    assert blocks.can_allocate(other, blocks.find_prefix(other), headroom=0)
    assert not blocks.can_allocate(other, blocks.find_prefix(other), headroom=1)
    assert not blocks.can_allocate(other, [], headroom=0)
    blocks.free(again)
    blocks.check_integrity([])


def test_cached_free_blocks_of_a_prefix_do_not_count_as_room() -> None:
    blocks = BlockManager(2, 1)
    sequence = allocate(blocks, [1])
    compute(blocks, sequence)
    blocks.free(sequence)
    longer = make_sequence([1, 2, 3])
    assert not blocks.can_allocate(longer, blocks.find_prefix(longer), headroom=0)


def test_nothing_is_found_when_the_cache_is_off_or_dropped() -> None:
    for blocks in (BlockManager(4, 1, enable_prefix_cache=False), BlockManager(4, 1)):
        sequence = allocate(blocks, [1, 2])
        compute(blocks, sequence)
        blocks.free(sequence)
        blocks.drop_cache()
        assert blocks.find_prefix(make_sequence([1, 2, 3])) == []
        assert not blocks.is_computing(make_sequence([1, 2, 3]), [])
        blocks.check_integrity([])


def test_integrity_check_sees_a_leak_and_a_double_use() -> None:
    blocks = BlockManager(4, 1)
    sequence = allocate(blocks, [1, 2])
    with pytest.raises(AssertionError):
        blocks.check_integrity([])
    with pytest.raises(AssertionError):
        blocks.check_integrity([sequence, sequence])
    blocks.check_integrity([sequence])


class BlockMachine(RuleBasedStateMachine):
    """Sequences over a tiny alphabet share prefixes often; `contents` says what each block really holds."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(num_blocks=9, block_size=2)
        self.sequences: list[Sequence] = []
        self.contents: dict[int, tuple[int, ...]] = {}  # block -> all tokens up to its end

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9), headroom=st.integers(0, 2))
    def start(self, prompt: list[int], headroom: int) -> None:
        sequence = make_sequence(prompt)
        prefix = self.blocks.find_prefix(sequence)
        assert len(prefix) * 2 < len(prompt)
        for index, block in enumerate(prefix):
            assert self.contents[block] == tuple(prompt[: (index + 1) * 2])
        free = self.blocks.num_free
        if self.blocks.can_allocate(sequence, prefix, headroom):
            self.blocks.allocate(sequence, prefix)
            assert self.blocks.num_free >= headroom
            sequence.num_computed = len(prefix) * 2
            self.sequences.append(sequence)
        else:
            assert free < self.blocks.blocks_for(len(prompt)) + headroom
        for block in sequence.block_table[len(prefix) :]:
            self.contents.pop(block, None)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), count=st.integers(1, 5))
    def compute(self, data: st.DataObject, count: int) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        end = min(sequence.num_computed + count, len(sequence.tokens))
        for index in range(sequence.num_computed // 2, end // 2):
            assert sequence.block_table[index] not in self.contents, "a full block was written again"
            self.contents[sequence.block_table[index]] = tuple(sequence.tokens[: (index + 1) * 2])
        compute(self.blocks, sequence, end)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), token_id=st.integers(0, 1))
    def generate(self, data: st.DataObject, token_id: int) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        if sequence.num_uncomputed == 0:
            sequence.tokens.append(token_id)
            if self.blocks.can_append(sequence):
                self.blocks.append(sequence)
                if len(sequence.tokens) % 2:
                    self.contents.pop(sequence.block_table[-1], None)
            else:
                assert self.blocks.num_free == 0
                sequence.tokens.pop()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.blocks.free(sequence)

    @invariant()
    def books_agree(self) -> None:
        self.blocks.check_integrity(self.sequences)
        for sequence in self.sequences:
            assert len(sequence.block_table) == self.blocks.blocks_for(len(sequence.tokens))
            for index in range(sequence.num_computed // 2):
                assert self.contents[sequence.block_table[index]] == tuple(sequence.tokens[: (index + 1) * 2])

    def teardown(self) -> None:
        for sequence in self.sequences:
            self.blocks.free(sequence)
        self.blocks.check_integrity([])
        assert self.blocks.num_free == 9


TestBlockMachine = BlockMachine.TestCase
TestBlockMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
