"""Attention over KV blocks: against a scalar version, plain softmax, and itself in other batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flashlet.kernels import reference

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _kv(positions: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantized keys, their scales, values and theirs, in whole blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-positions // 32)
    keys, values = (torch.randn(blocks, KV_HEADS, 32, HEAD_DIM, generator=generator) for _ in range(2))
    return *reference.quantize_kv(keys), *reference.quantize_kv(values)


def _queries(n: int) -> Tensor:
    return torch.randn(n, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(9))


def _one_query(q: Tensor, kv: tuple[Tensor, ...], head: int, position: int, window: int) -> Tensor:
    """docs/numerics.md for one query head [head_dim], step by step, one position at a time."""
    k, k_scale, v, v_scale = (t[:, head // (HEADS // KV_HEADS)] for t in kv)
    low = max(0, position - window + 1) if window else 0
    quantized, scale = reference.quantize_rows(q)
    m = scale * torch.tensor(1 / math.sqrt(HEAD_DIM))
    scores = {}
    for t in range(low, position + 1):
        dot = int(quantized.long() @ k[t // 32, t % 32].long())
        scores[t] = torch.tensor(float(dot)) * (m * k_scale[t // 32, t % 32])
    total, denominator = torch.zeros(HEAD_DIM), torch.zeros(())
    for span in range(low // 256, position // 256 + 1):
        largest = max(score for t, score in scores.items() if t // 256 == span)
        e = torch.zeros(256)
        for t, score in scores.items():
            if t // 256 == span:
                e[t % 256] = reference.exp((score - largest)[None])[0]
        acc = torch.zeros(HEAD_DIM)
        for j in range(8 * span, min(8 * span + 8, len(v))):
            weights, weight_scale = reference.quantize_rows(e[32 * (j % 8) :][:32] * v_scale[j])
            dots = (weights.long()[:, None] * v[j].long()).sum(0)
            acc = reference.fma(dots.float(), weight_scale, acc)
        factor = reference.exp((largest - max(scores.values()))[None])[0]
        total = reference.fma(acc, factor, total)
        denominator = reference.fma(reference.lane_sum(e), factor, denominator)
    return total / denominator


@pytest.mark.parametrize(
    ("start", "n", "window"),
    [(0, 3, 0), (30, 4, 0), (90, 2, 0), (70, 3, 5), (95, 2, 40), (254, 4, 0), (600, 2, 300)],
)
def test_attention_int8_follows_the_text(start: int, n: int, window: int) -> None:
    kv, q = _kv(start + n), _queries(n)
    result = reference.attention_int8(q, *kv, start, window)
    for row in range(n):
        for head in range(HEADS):
            expected = _one_query(q[row, head], kv, head, start + row, window)
            assert torch.equal(result[row, head], expected)


@pytest.mark.parametrize("window", [0, 33])
@pytest.mark.parametrize("stored", ["int8", "fp16"])
def test_attention_is_close_to_softmax_attention(stored: str, window: int) -> None:
    start, n = 40, 50
    k, k_scale, v, v_scale = _kv(start + n)
    keys, values = k * k_scale[..., None], v * v_scale[..., None]
    if stored == "int8":
        result = reference.attention_int8(_queries(n), k, k_scale, v, v_scale, start, window)
    else:
        keys, values = keys.half(), values.half()
        result = reference.attention_fp16(_queries(n), keys, values, start, window)
    positions = torch.arange(start + n)
    visible = positions <= positions[start:, None]
    if window:
        visible &= positions > positions[start:, None] - window
    keys, values = (t.float().transpose(0, 1).flatten(1, 2)[:, : start + n] for t in (keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(
        _queries(n).transpose(0, 1)[None], keys[None], values[None], attn_mask=visible, enable_gqa=True
    )
    torch.testing.assert_close(result, expected[0].transpose(0, 1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("window", [0, 37])
def test_attention_in_chunks_has_the_same_bits(window: int) -> None:
    """Also with garbage in every slot that no query may see, and with spare blocks at the end."""
    n = 100
    kv, q = _kv(n + 64), _queries(n)
    whole = reference.attention_int8(q, *kv, 0, window)
    for first, last in ((0, 1), (1, 32), (32, 63), (63, 64), (64, 100)):
        k, k_scale, v, v_scale = (t.clone() for t in kv)
        flat = torch.arange(len(k) * 32).view(-1, 32)
        unseen = flat >= last if not window else (flat >= last) | (flat <= first - window)
        for scale in (k_scale, v_scale):
            scale.transpose(1, 2)[unseen] = torch.nan
        part = reference.attention_int8(q[first:last], k, k_scale, v, v_scale, first, window)
        assert part.numpy().tobytes() == whole[first:last].contiguous().numpy().tobytes()


def test_attention_fp16_in_chunks_has_the_same_bits() -> None:
    k, k_scale, v, v_scale = _kv(40)
    keys, values = (k * k_scale[..., None]).half(), (v * v_scale[..., None]).half()
    values[1, :, 8:] = torch.inf  # positions 40 and up
    whole = reference.attention_fp16(_queries(40), keys, values, 0)
    parts = [
        reference.attention_fp16(_queries(40)[a:b], keys, values, a) for a, b in ((0, 7), (7, 33), (33, 40))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.isfinite().all()
