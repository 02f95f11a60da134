"""The torch executor: reference of the int8 path on the CPU, and the plain path for fp32 and CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashlet.kernels.reference import BLOCK_SIZE
from flashlet.model.arithmetic import ExactArithmetic, FloatArithmetic
from flashlet.model.config import ModelConfig
from flashlet.model.draft import MAX_DRAFT_TOKENS, load_draft
from flashlet.model.draft_transformer import DraftTransformer, draft_weights
from flashlet.model.errors import OutOfMemoryError, UnsupportedModelError
from flashlet.model.executor import ExecutorOptions
from flashlet.model.kv_pool import KvPool, block_bytes, blocks_in
from flashlet.model.sampler import sample, token_logprobs
from flashlet.model.sampling import TokenLogprobs
from flashlet.model.step import DraftRequest, SequenceSlice, SliceOutput, Step
from flashlet.model.threads import physical_cores
from flashlet.model.transformer import Segment, Transformer, TransformerWeights
from flashlet.model.transformer_weights import fp32_weights, int8_weights
from flashlet.model.weight_cache import load_int8
from flashlet.model.weights import open_weights

_HEAD_ROWS = 64  # rows of logits at a time


class LogitsRow(NamedTuple):
    """Logits that follow one token of the step."""

    slice_index: int
    token_index: int  # within the slice
    logits: NDArray[np.float32]  # [vocab]


class TorchExecutor:
    """Executor in plain torch.

    With int8 weights on the CPU it follows docs/numerics.md, so results are bit-exact whatever else is in
    the step. With fp32 weights, or on CUDA, torch's own kernels run, which agree to rounding only.
    """

    block_size = BLOCK_SIZE

    def __init__(self, path: Path, options: ExecutorOptions) -> None:
        """Load the model at `path`.

        Raises UnsupportedModelError for options that do not go together, OutOfMemoryError if weights or KV
        pool do not fit, and what opening the weights raises.
        """
        device = _checked_device(options)
        if device.type == "cpu":  # torch's own default knows nothing of quotas
            torch.set_num_threads(options.threads or physical_cores())
        try:
            weights = _load(path, options, device)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OutOfMemoryError(f"{path}: the weights do not fit in the memory of {device}") from error
        self._prepare(weights, options)

    @classmethod
    def from_weights(cls, weights: TransformerWeights, options: ExecutorOptions) -> TorchExecutor:
        """An executor over weights in memory, stored as `options.weights` says."""
        _checked_device(options)
        executor = cls.__new__(cls)
        executor._prepare(weights, options)
        return executor

    def _prepare(self, weights: TransformerWeights, options: ExecutorOptions) -> None:
        device = weights.final_norm.device
        self.config: ModelConfig = weights.config
        self.name = f"torch {options.weights} kv-{options.kv_dtype} {device}"
        self._options = options
        exact = options.weights == "int8" and device.type == "cpu"
        arithmetic = ExactArithmetic() if exact else FloatArithmetic()
        draft, bytes_per_block = None, block_bytes(self.config, options.kv_dtype)
        if options.draft:
            draft = draft_weights(*load_draft(options.draft, self.config), device, exact=exact)
            self.name += f" draft {options.draft.stem}"
            layers = draft.config.layers_config(self.config.context_length)
            bytes_per_block += block_bytes(layers, options.kv_dtype) if draft.config.attention else 0
        self.num_blocks = blocks_in(options.kv_cache_bytes, bytes_per_block)
        pool = KvPool(self.config, options.kv_dtype, self.num_blocks, device)
        self._model: Transformer | None = Transformer(weights, arithmetic, pool)
        self._draft: DraftTransformer | None = None
        self._pools = [pool]
        if draft:
            pool = KvPool(layers, options.kv_dtype, self.num_blocks + 1, device)
            self._draft = DraftTransformer(draft, self._model, arithmetic, pool)
            self._pools.append(pool)
        self.max_draft_tokens = MAX_DRAFT_TOKENS if draft else 0

    def execute(self, step: Step) -> Sequence[SliceOutput]:
        """Run one ragged step; see Executor.

        Raises NoTokenError where no token is possible, ValueError if the step breaks the executor's limits.
        """
        hidden, features = self._hidden(step)
        results = [_Result(item) for item in step.slices]
        for index, token_index, logits in self._logits(step, hidden):
            results[index].add(token_index, logits)
        firsts = accumulate((_num_rows(item) for item in step.slices), initial=0)
        return [self._output(result, first, features) for result, first in zip(results, firsts, strict=False)]

    def forward(self, step: Step) -> Iterator[LogitsRow]:
        """Run the step and yield the logits it needs, slice by slice in token order."""
        hidden, _ = self._hidden(step)
        yield from self._logits(step, hidden)

    def _hidden(self, step: Step) -> tuple[Tensor, dict[int, Tensor]]:
        """Last hidden states of the rows, and the features that some slice asks for."""
        self._check(step)
        if self._model is None:
            raise RuntimeError("the executor is closed")
        if not step.slices:
            return torch.empty(0), {}
        for item in step.slices:
            if item.copied_block is not None:
                for pool in self._pools:
                    pool.copy(item.copied_block, item.block_table[item.start // BLOCK_SIZE])
        tokens = [token_id for item in step.slices for token_id in (*item.token_ids, *item.proposed)]
        wanted = {feature for item in step.slices for feature in item.features}
        if self._draft and any(item.draft for item in step.slices):
            wanted.update(self._draft.config.features)
        return self._model.forward(tokens, [_segment(item) for item in step.slices], wanted)

    def _logits(self, step: Step, hidden: Tensor) -> Iterator[LogitsRow]:
        assert self._model is not None
        needed = list(_needed_rows(step))
        for first in range(0, len(needed), _HEAD_ROWS):
            part = needed[first : first + _HEAD_ROWS]
            logits = self._model.logits(hidden[[row for row, _, _ in part]]).cpu().numpy()
            for (_, index, token_index), values in zip(part, logits, strict=True):
                yield LogitsRow(index, token_index, values)

    def _output(self, result: _Result, first_row: int, features: Mapping[int, Tensor]) -> SliceOutput:
        """`features` hold the rows of the whole step, of which the slice's begin at `first_row`."""
        item = result.item
        rows = slice(first_row, first_row + len(item.token_ids))
        stacked = [features[index][rows] for index in item.features]
        proposed, confidences = self._proposed(item, result.chosen, first_row, features)
        return SliceOutput(
            token_ids=tuple(result.chosen),
            logprobs=tuple(result.logprobs),
            target_logprobs=tuple(result.targets),
            proposed=proposed,
            confidences=confidences,
            features=torch.stack(stacked, dim=1).cpu().numpy() if stacked else None,
        )

    def _proposed(
        self, item: SequenceSlice, chosen: list[int], first_row: int, features: Mapping[int, Tensor]
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Let the draft follow the rows whose next tokens are known; its proposals and their confidences."""
        if not self._draft or not item.draft:
            return (), ()
        request = item.draft
        after = chosen if request.next_token is None else [request.next_token]
        next_tokens = [*item.token_ids[1:], *after]
        known = len(next_tokens)
        table = _segment(item).block_table
        part = {
            index: features[index][first_row : first_row + known] for index in self._draft.config.features
        }
        states = self._draft.follow(part, next_tokens, Segment(known, item.start, table, request.start))
        end = item.start + known
        count = min(request.num_tokens, self.config.context_length - 1 - end)
        if count <= 0:
            return (), ()
        last = Segment(1, end - 1, table, request.start)
        sampled = item.samples[len(chosen) - 1]
        return self._draft.propose(states[-1:], last, sampled, count, request, chosen)

    def close(self) -> None:
        """Free weights and KV pool."""
        self._model = self._draft = None

    def _check(self, step: Step) -> None:
        limits = self._options
        if step.num_tokens > limits.max_step_tokens or len(step.slices) > limits.max_sequences:
            raise ValueError(
                f"step: expected at most {limits.max_step_tokens} tokens in {limits.max_sequences} sequences,"
                f" got {step.num_tokens} in {len(step.slices)}"
            )
        for item in step.slices:
            self._check_slice(item)

    def _check_slice(self, item: SequenceSlice) -> None:
        rows, room = _num_rows(item), len(item.block_table) * BLOCK_SIZE
        if not item.token_ids or item.start + rows > min(room, self.config.context_length):
            raise ValueError(
                f"slice: expected 1 token or more, ending within {room} slots and the context of "
                f"{self.config.context_length}, got {rows} from position {item.start}"
            )
        if len(item.logprob_targets) > len(item.token_ids):
            raise ValueError("slice: more logprob targets than tokens")
        if len(item.samples) != 1 + len(item.proposed) and (item.samples or item.proposed):
            raise ValueError(
                f"slice: expected 1 + {len(item.proposed)} samples for so many proposed tokens, "
                f"got {len(item.samples)}"
            )
        if item.draft:
            self._check_draft(item, item.draft)
        last = self.config.num_layers + 1
        if wrong := [feature for feature in item.features if not 0 <= feature <= last]:
            raise ValueError(f"feature: expected 0 .. {last}, got {wrong[0]}")

    def _check_draft(self, item: SequenceSlice, request: DraftRequest) -> None:
        if not self._draft:
            raise ValueError("draft: this executor has no draft model")
        most = MAX_DRAFT_TOKENS if item.samples else 0
        if not 0 <= request.num_tokens <= most:
            raise ValueError(f"draft: expected 0 .. {most} tokens, got {request.num_tokens}")
        if not 0 <= request.start <= item.start:
            raise ValueError(f"draft: expected a start from 0 to {item.start}, got {request.start}")
        if (request.next_token is None) != bool(item.samples):
            raise ValueError("draft: expected a next token exactly where nothing is sampled")


class _Result:
    """Collects what one slice gets from the logits of its rows, in order."""

    def __init__(self, item: SequenceSlice) -> None:
        self.item = item
        self.chosen: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.targets: list[TokenLogprobs] = []

    def add(self, token_index: int, logits: NDArray[np.float32]) -> None:
        """Score and sample after the row, unless a proposal before it was rejected."""
        item = self.item
        if token_index < len(item.logprob_targets):
            target = item.logprob_targets[token_index]
            self.targets.append(token_logprobs(logits, target, item.num_top_logprobs))
        sampled = token_index + 1 - len(item.token_ids)  # index of the sample after this row
        if item.samples and sampled >= 0 and [*item.proposed[:sampled]] == self.chosen:
            request = item.samples[sampled]
            token_id = sample(logits, request)
            self.chosen.append(token_id)
            if request.params.logprobs is not None:
                self.logprobs.append(token_logprobs(logits, token_id, request.params.logprobs))


def _load(path: Path, options: ExecutorOptions, device: torch.device) -> TransformerWeights:
    if options.weights == "int8":
        cached = load_int8(path)
        return int8_weights(cached.config, cached.arrays, device)
    source = open_weights(path)
    try:
        return fp32_weights(source, device)
    finally:
        source.close()


def _num_rows(item: SequenceSlice) -> int:
    return len(item.token_ids) + len(item.proposed)


def _segment(item: SequenceSlice) -> Segment:
    rows = _num_rows(item)
    blocks = -(-(item.start + rows) // BLOCK_SIZE)
    return Segment(rows, item.start, torch.tensor(item.block_table[:blocks]))


def _needed_rows(step: Step) -> Iterator[tuple[int, int, int]]:
    """(row of the batch, slice index, token index) of every token whose logits somebody reads."""
    row = 0
    for index, item in enumerate(step.slices):
        rows, sampled = _num_rows(item), len(item.token_ids) - 1
        for token_index in range(rows):
            if token_index < len(item.logprob_targets) or (item.samples and token_index >= sampled):
                yield row + token_index, index, token_index
        row += rows


def _checked_device(options: ExecutorOptions) -> torch.device:
    """The device to run on. Raises UnsupportedModelError if the options ask for what is not there."""
    if options.weights == "int8" and options.kv_dtype == "fp32":
        raise UnsupportedModelError("KV type fp32 needs fp32 weights; with int8 weights use int8 or fp16")
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"device: expected cpu, cuda or cuda:N, got {options.device!r}"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedModelError(f"device: expected cpu, cuda or cuda:N, got {options.device!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedModelError(f"device {options.device}: torch sees {torch.cuda.device_count()} GPUs")
    return device
