"""The draft model in torch: the definition of what docs/numerics.md, "Draft", computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashlet.kernels.reference import BLOCK_SIZE
from flashlet.model.arithmetic import Arithmetic, Linear, Matrix
from flashlet.model.draft import DraftConfig
from flashlet.model.kv_pool import KvPool
from flashlet.model.quantize import PANEL
from flashlet.model.sampler import confidence, sample
from flashlet.model.sampling import NoTokenError, SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest
from flashlet.model.transformer import Decoder, Layer, Segment, Transformer
from flashlet.model.transformer_weights import Int8Reader

SHARPER = np.float32(0.8)  # temperature of a draft, which is not sure what the target believes
GUEST_GAP = np.float32(1.42)  # below the largest logit: what a token has that only the text knows
BY_DOUBT = np.float32(1.11)  # what the text says counts more where the draft is not sure,
BY_GAP = np.float32(0.54)  # and what the draft says about a token that follows in the text counts less
LEAST_SHARE = 1e-3  # of the likeliest token's probability, for a token that may be drawn


@dataclass(frozen=True)
class DraftWeights:
    """Weights of a draft; norms are float32 vectors [hidden]."""

    config: DraftConfig
    feature_norms: Sequence[Tensor]
    fuse: Matrix  # [hidden, features * hidden]
    state_norm: Tensor
    embed_norm: Tensor
    input: Matrix  # [hidden, 2 * hidden]
    layers: Sequence[Layer]
    out_norm: Tensor
    shortlist: Linear | None  # [panels of 16 outputs, hidden]; none: all are looked at
    head: Matrix  # [outputs, hidden]
    vocab_ids: NDArray[np.int32]  # [outputs]: ids of the target


def draft_weights(
    config: DraftConfig, arrays: Mapping[str, NDArray[Any]], device: torch.device, *, exact: bool
) -> DraftWeights:
    """Weights from the arrays of a draft file; dequantized unless `exact`."""
    read, hidden = Int8Reader(arrays, device, exact=exact), config.hidden_size
    layers = config.layers_config(1)
    shortlist = None
    if config.shortlist_gap:
        matrix = read.matrix("shortlist", config.output_vocab_size // PANEL, hidden)
        shortlist = Linear(matrix, read.tensor("shortlist_bias"))
    return DraftWeights(
        config=config,
        feature_norms=[read.tensor(f"feature_norm.{i}") for i in range(len(config.features))],
        fuse=read.matrix("fuse", hidden, len(config.features) * hidden),
        state_norm=read.tensor("state_norm"),
        embed_norm=read.tensor("embed_norm"),
        input=read.matrix("input", hidden, 2 * hidden),
        layers=[read.layer(layers, f"layers.{i}.") for i in range(config.num_layers)],
        out_norm=read.tensor("out_norm"),
        shortlist=shortlist,
        head=read.matrix("head", config.output_vocab_size, hidden),
        vocab_ids=arrays["vocab_ids"],
    )


class DraftTransformer:
    """Follows rows of the target and proposes tokens, one sequence at a time."""

    def __init__(
        self, weights: DraftWeights, target: Transformer, arithmetic: Arithmetic, pool: KvPool
    ) -> None:
        """The last block of `pool` is the draft's own: it takes drafted rows beyond a block table."""
        self._weights, self._target, self._math = weights, target, arithmetic
        self.config = weights.config
        self._spare_block = pool.num_blocks - 1
        self._outputs = {token_id: output for output, token_id in enumerate(weights.vocab_ids.tolist())}
        layers = self.config.layers_config(target.config.context_length)
        self._decoder = Decoder(layers, weights.layers, arithmetic, pool)

    @torch.inference_mode()
    def follow(self, features: Mapping[int, Tensor], next_tokens: Sequence[int], segment: Segment) -> Tensor:
        """States [rows, hidden] of known rows: `features` holds rows of the target's residual stream.

        `next_tokens` are the tokens after the rows.
        """
        normed = [
            self._norm(features[layers], weight)
            for layers, weight in zip(self.config.features, self._weights.feature_norms, strict=True)
        ]
        state = self._math.linear(torch.cat(normed, dim=1), Linear(self._weights.fuse))
        return self._rows(state, next_tokens, segment)

    @torch.inference_mode()
    def propose(
        self,
        state: Tensor,
        segment: Segment,
        request: SampleRequest,
        count: int,
        order: DraftRequest,
        chosen: Sequence[int],
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Up to `count` tokens that may follow the token of `request`, and the draft's confidence in each.

        Ends where the product of these is below what `order` says. `chosen` are the tokens that are new since
        its history was written, the token of `request` included.

        `segment` is the last known row, `state` [1, hidden] what `follow` gave for it. The choice is the
        request's, but for penalties, biases and masks; very unlikely tokens are left out, the others drawn
        at a lower temperature.
        """
        params = request.params
        temperature = float(np.float32(params.temperature) * SHARPER)
        params = SamplingParams(
            temperature, params.top_k, params.top_p, max(params.min_p, LEAST_SHARE), seed=params.seed
        )
        tokens: list[int] = []
        confidences: list[float] = []
        while len(tokens) < count and math.prod(confidences) >= order.least_confidence:
            if tokens:
                position = segment.start + len(tokens)
                row = Segment(1, position, self._table(segment, position), segment.first_visible)
                state = self._rows(state, tokens[-1:], row)
            try:
                choice = SampleRequest(params, request.position + 1 + len(tokens))
                said = order.history.successors([*chosen, *tokens]) if order.history is not None else []
                logits = self._logits(state, temperature, [token_id for token_id, _ in said])
                if said and -np.inf < logits.max() < np.inf:  # not for NaN, either
                    self._remind(logits, said)
                tokens.append(sample(logits, choice))
            except NoTokenError:  # of the draft's own making: there is nothing to propose
                break
            confidences.append(confidence(logits, choice, tokens[-1]))
        return tuple(tokens), tuple(confidences)

    def _rows(self, state: Tensor, next_tokens: Sequence[int], segment: Segment) -> Tensor:
        w = self._weights
        embedded = self._target.embed(next_tokens)
        both = torch.cat([self._norm(state, w.state_norm), self._norm(embedded, w.embed_norm)], dim=1)
        x = state + self._math.linear(both, Linear(w.input))
        rows = self._decoder.rows([segment])
        for index in range(self.config.num_layers):
            x = self._decoder.layer(index, x, rows)
        return x

    def _logits(self, state: Tensor, temperature: float, said: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the target's vocabulary; -inf for tokens that the draft does not know or look at.

        It looks at those of `said` that it knows.
        """
        w = self._weights
        x = self._norm(state, w.out_norm)
        known = self._math.linear(x, Linear(w.head))[0].cpu().numpy()
        if w.shortlist is not None:
            scores = self._math.linear(x, w.shortlist)[0].cpu().numpy()
            gap = np.float32(self.config.shortlist_gap) * np.float32(max(1.0, temperature))
            panels = scores > scores.max() - gap
            for token_id in self._outputs.keys() & set(said):
                panels[self._outputs[token_id] // PANEL] = True
            known = np.where(np.repeat(panels, PANEL), known, np.float32(-np.inf))
        logits = np.full(self.config.vocab_size, -np.inf, np.float32)
        logits[w.vocab_ids] = known
        return logits

    def _remind(self, logits: NDArray[np.float32], successors: Sequence[tuple[int, float]]) -> None:
        """Weigh in what followed in the text before; tokens that the draft does not know join in."""
        top = logits.max()
        doubt = BY_DOUBT * np.log(np.exp(logits - top).sum())
        for token_id, weight in successors:
            spoken = np.float32(weight) + doubt
            if token_id in self._outputs:
                logits[token_id] += spoken + BY_GAP * (top - logits[token_id])
            else:
                logits[token_id] = top - GUEST_GAP + spoken

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._math.rms_norm(x, weight, self.config.rms_norm_eps)

    def _table(self, segment: Segment, position: int) -> Tensor:
        """Blocks up to the one that holds `position`."""
        own = torch.cat([segment.block_table, torch.tensor([self._spare_block])])
        return own[: position // BLOCK_SIZE + 1]
