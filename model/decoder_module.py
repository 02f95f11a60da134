"""A whole decoder-only model that can be trained; also the teacher of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.config import ModelConfig
from flashlet.model.decoder import DecoderLayer, RmsNorm
from flashlet.model.parameters import parameter_shapes
from flashlet.model.rope import rope_tables
from flashlet.model.weights import WeightSource


class DecoderStack(nn.Module):
    """Everything below the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class DecoderModule(nn.Module):
    """The transformer of `ModelConfig` over windows of tokens; parameters have their Hugging Face names."""

    _cos: Tensor
    _sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = DecoderStack(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        cos, sin = rope_tables(config, config.context_length)
        self.register_buffer("_cos", torch.from_numpy(cos), persistent=False)
        self.register_buffer("_sin", torch.from_numpy(sin), persistent=False)

    @classmethod
    def load(cls, source: WeightSource, config: ModelConfig, layers: Sequence[int]) -> DecoderModule:
        """The model of `config` with the given layers of `source`, in that order."""
        module = cls(config)
        shapes = parameter_shapes(source.config)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                original = _name_in_source(name, layers)
                parameter.copy_(torch.from_numpy(source.tensor(original, shapes[original]).copy()))
        return module

    @property
    def head(self) -> Tensor:
        """[vocabulary, hidden]."""
        return (self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head).weight

    def forward(self, token_ids: Tensor, features: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Final normed states [batch, length, hidden], and the residual stream after so many layers."""
        length = token_ids.shape[1]
        cos, sin = self._cos[None, :length], self._sin[None, :length]
        x = self.model.embed_tokens(token_ids)
        streams = [x]
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, self._mask(index, length, x.device))
            streams.append(x)
        x = self.model.norm(x)
        streams.append(x)
        return x, [streams[index] for index in features]

    def logits(self, states: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocabulary]."""
        return functional.linear(states, self.head)

    def _mask(self, layer: int, length: int, device: torch.device) -> Tensor | None:
        window = self.config.window(layer)
        if not window or window >= length:
            return None
        distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
        return (distance >= 0) & (distance < window)


def _name_in_source(name: str, layers: Sequence[int]) -> str:
    """The parameter's name with the index that its layer has in the source."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"]:
        parts[2] = str(layers[int(parts[2])])
    return ".".join(parts)
