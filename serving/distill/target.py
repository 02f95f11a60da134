"""What a draft's training needs of the target besides its features: embeddings, final norm and head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flashlet.model.config import ModelConfig
from flashlet.model.draft_transformer import BY_DOUBT, BY_GAP
from flashlet.model.parameters import parameter_shapes
from flashlet.model.weights import WeightSource


@dataclass(frozen=True)
class TargetParts:
    """Frozen weights of the target, the head cut down to `vocab_ids`."""

    config: ModelConfig
    vocab_ids: NDArray[np.int32]  # [reduced vocabulary]
    embedding: Tensor  # [vocabulary, hidden]
    final_norm: Tensor  # [hidden]
    head: Tensor  # [reduced vocabulary, hidden]
    places: Tensor  # int64 [vocabulary]: of each token in the reduced vocabulary, -1: it is not there

    @classmethod
    def load(cls, source: WeightSource, vocab_ids: NDArray[np.int32]) -> TargetParts:
        """Read them from `source`."""
        shapes = parameter_shapes(source.config)

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(source.tensor(name, shapes[name]).copy())

        embedding = tensor("model.embed_tokens.weight")
        head = embedding if source.config.tie_word_embeddings else tensor("lm_head.weight")
        chosen = torch.from_numpy(vocab_ids.astype(np.int64))
        places = torch.full((source.config.vocab_size,), -1)
        places[chosen] = torch.arange(len(vocab_ids))
        return cls(source.config, vocab_ids, embedding, tensor("model.norm.weight"), head[chosen], places)

    def to(self, device: torch.device) -> TargetParts:
        """The same on `device`."""
        if self.embedding.device == device:
            return self
        moved = (part.to(device) for part in (self.embedding, self.final_norm, self.head, self.places))
        return TargetParts(self.config, self.vocab_ids, *moved)

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [...] -> [..., hidden]."""
        return self.embedding[token_ids]

    def reduced_logits(self, stream: Tensor) -> Tensor:
        """The target's logits of the reduced vocabulary, from the residual stream after the last layer."""
        size = (self.config.hidden_size,)
        return functional.linear(
            functional.rms_norm(stream, size, self.final_norm, self.config.rms_norm_eps), self.head
        )

    def remind(self, logits: Tensor, token_ids: Tensor, weights: Tensor) -> Tensor:
        """Logits [..., reduced vocabulary] with what the text says (docs/numerics.md, "history").

        That is `weights` [..., n] for distinct `token_ids`, -1 where there are fewer. Those that are not in
        the reduced vocabulary are left out, although the server lets them join in.
        """
        places = self.places[token_ids.clamp(min=0)]
        known, places = (places >= 0) & (token_ids >= 0), places.clamp(min=0)
        top = logits.amax(-1, keepdim=True)
        doubt = logits.logsumexp(-1, keepdim=True) - top
        gain = weights + float(BY_DOUBT) * doubt + float(BY_GAP) * (top - logits.gather(-1, places))
        return logits.scatter_add(-1, places, gain * known)
