"""What a step must read from memory and multiply: the denominators of every measurement."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flashlet.model.config import ModelConfig
from flashlet.model.executor import KvDtype
from flashlet.model.int8_layout import int8_layout
from flashlet.model.parameters import parameter_shapes
from flashlet.serving.memory import kv_bytes_per_token

_UNREAD = {"embed"}  # one row per token; where the matrix is also the head, it is read as a whole


def int8_weight_bytes(config: ModelConfig) -> int:
    """Bytes of weights that a step reads, each once: every layer, the final norm and the output head."""
    unread = set() if config.tie_word_embeddings else _UNREAD
    return sum(
        math.prod(shape) * (4 if dtype == "F32" else 1)
        for name, (dtype, shape) in int8_layout(config).items()
        if name not in unread
    )


def decode_bytes(config: ModelConfig, kv_dtype: KvDtype, context_lens: Iterable[int]) -> int:
    """Bytes that one decode step reads: the weights once, and K and V of the context of each sequence.

    A context length counts the new token. The formula is

        weights + sum over sequences and layers of min(context, window) * (K and V bytes per token and layer)

    and leaves out what is small or stays in the cache: activations, logits, the embedding row, all writes.
    """
    per_layer = kv_bytes_per_token(config, kv_dtype) // config.num_layers
    tokens = sum(
        _visible(config, layer, context) for context in context_lens for layer in range(config.num_layers)
    )
    return int8_weight_bytes(config) + tokens * per_layer


def step_macs(config: ModelConfig, context_lens: Iterable[int], num_logit_rows: int) -> int:
    """Multiply-accumulates of a step with one row for each entry of `context_lens`.

    Per row the matrices of the layers, and for each layer and query head a product with the keys and one
    with the values of its context; per row of logits the output head.
    """
    layers = sum(
        math.prod(shape)
        for name, shape in parameter_shapes(config).items()
        if len(shape) == 2 and name.startswith("model.layers.")
    )
    head = config.vocab_size * config.hidden_size
    rows = [
        sum(_visible(config, layer, context) for layer in range(config.num_layers))
        for context in context_lens
    ]
    return len(rows) * layers + 2 * config.query_size * sum(rows) + num_logit_rows * head


def _visible(config: ModelConfig, layer: int, context: int) -> int:
    """Tokens that the last of `context` tokens attends to."""
    return min(context, config.window(layer) or context)
