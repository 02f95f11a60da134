"""The reference operations against scalar versions written from docs/numerics.md in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlet.kernels import reference
from flashlet.kernels.reference import GroupedMatrix

F32 = np.float32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _nearest(exact: Fraction) -> np.float32:
    """`exact` rounded to binary32, ties to even."""
    guess = F32(float(exact))
    around = [np.nextafter(guess, F32(-np.inf)), guess, np.nextafter(guess, F32(np.inf))]
    return min(around, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.uint32)) & 1))


def _fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    return _nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def _scalar_exp(x: np.float32) -> np.float32:
    x = min(max(x, F32(-87)), F32(88))
    n = F32(np.rint(x * F32(1.44269504)))
    r = _fma(n, F32(-1.42860677e-6), _fma(n, F32(-0.693145752), x))
    p = F32(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        p = _fma(p, r, F32(coefficient))
    return F32(math.ldexp(float(p), int(n)))


def _scalar_quantize(x: list[np.float32], limit: int) -> tuple[list[int], np.float32]:
    largest = max(abs(v) for v in x)
    if largest < 2.0**-100:
        return [0] * len(x), F32(0)
    inverse = F32(limit) / largest
    return [int(np.rint(v * inverse)) for v in x], largest / F32(limit)


def _bits(x: Tensor) -> bytes:
    return x.contiguous().numpy().tobytes()


def test_fma_rounds_once(generator: torch.Generator) -> None:
    scale = torch.tensor([1.0, 1e-3, 1e-6, 1e-8])
    a, b, c = (torch.randn(250, 4, generator=generator) for _ in range(3))
    result = reference.fma(a * scale, b, c)
    rows = zip((a * scale).flatten(), b.flatten(), c.flatten(), strict=True)
    expected = [_fma(*(F32(float(v)) for v in row)) for row in rows]
    assert _bits(result) == np.array(expected, F32).tobytes()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fma_survives_double_rounding(sign: float) -> None:
    """Just below the middle of 1 + 2^-23 and 1 + 2^-22: binary64 rounds it to the middle."""
    a = torch.tensor([sign * 2.0**-24 * (1 - 2.0**-18), 1.0])
    b, c = torch.tensor([1 + 2.0**-18, 1.0]), torch.tensor([sign * (1 + 2.0**-23), 1.0])
    assert reference.fma(a, b, c).tolist() == [sign * (1 + 2.0**-23), 2.0]


def test_fma_breaks_exact_ties_to_even() -> None:
    c = torch.tensor([1.0, 1 + 2.0**-23])
    assert reference.fma(torch.tensor(2.0**-24), torch.tensor(1.0), c).tolist() == [1.0, 1 + 2.0**-22]


@pytest.mark.parametrize("n", [1, 16, 37, 576])
def test_lane_sums(n: int, generator: torch.Generator) -> None:
    x = torch.randn(3, n, generator=generator)
    for row, total, squares in zip(
        x.numpy(), reference.lane_sum(x), reference.lane_sum_of_squares(x), strict=True
    ):
        lanes, square_lanes = [F32(0)] * 16, [F32(0)] * 16
        for i, value in enumerate(row):
            lanes[i % 16] = lanes[i % 16] + value
            square_lanes[i % 16] = _fma(value, value, square_lanes[i % 16])
        for half in (8, 4, 2, 1):
            for i in range(half):
                lanes[i] = lanes[i] + lanes[i + half]
                square_lanes[i] = square_lanes[i] + square_lanes[i + half]
        assert (total.item(), squares.item()) == (lanes[0], square_lanes[0])


def test_rms_norm_of_a_known_row() -> None:
    x = torch.tensor([[3.0, 4.0]])
    result = reference.rms_norm(x, torch.tensor([1.0, 2.0]), 0.0)
    scale = F32(1) / np.sqrt(F32(12.5))
    assert result.tolist() == [[F32(3) * scale, F32(4) * scale * F32(2)]]


def test_exp_is_the_specified_polynomial(generator: torch.Generator) -> None:
    x = torch.cat([
        torch.randn(300, generator=generator) * 20,
        torch.tensor([0.0, -0.0, -1e-30, -87.0, 88.0, -1000.0, 1000.0, -torch.inf]),
    ])  # fmt: skip
    result = reference.exp(x)
    assert _bits(result) == np.array([_scalar_exp(F32(float(v))) for v in x], F32).tobytes()
    exact = x.double().clamp(-87, 88).exp()
    assert (((result - exact) / exact).abs() < 2e-7).all()


def test_silu(generator: torch.Generator) -> None:
    x = torch.randn(50, generator=generator) * 10
    expected = [F32(float(v)) / (F32(1) + _scalar_exp(F32(-float(v)))) for v in x]
    assert _bits(reference.silu(x)) == np.array(expected, F32).tobytes()


def test_rope_rotates_halves(generator: torch.Generator) -> None:
    x, angle = torch.randn(2, 1, 4, generator=generator), torch.tensor([[0.0, 0.5], [1.0, 2.0]])
    cos, sin = angle.cos(), angle.sin()
    result = reference.rope(x, cos, sin)
    for row in range(2):
        for i in range(2):
            x1, x2 = (F32(x[row, 0, j].item()) for j in (i, i + 2))
            c, s = F32(cos[row, i].item()), F32(sin[row, i].item())
            assert result[row, 0, i].item() == _fma(x1, c, -(x2 * s))
            assert result[row, 0, i + 2].item() == _fma(x2, c, x1 * s)
    assert torch.equal(result[0, :, ::2], x[0, :, ::2])  # angle 0


def test_quantize_rows_rounds_half_to_even_and_keeps_the_extremes() -> None:
    x = torch.tensor(
        [[4095.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [1e-31, 0.0, 0.0, 0.0], [-3.0, 3.0, 0.0, 1.0]]
    )
    q, scale = reference.quantize_rows(x)
    assert q.tolist() == [[4095, 0, 2, -2], [0] * 4, [0] * 4, [-4095, 4095, 0, 1365]]
    assert scale.tolist() == [1.0, 0.0, 0.0, F32(3) / F32(4095)]


def test_kv_quantization_is_int8() -> None:
    q, scale = reference.quantize_kv(torch.tensor([[[127.0, -63.5, 0.0]]]))
    assert (q.dtype, q.tolist(), scale.tolist()) == (torch.int8, [[[127, -64, 0]]], [[1.0]])


@pytest.mark.parametrize(("bits", "limit"), [(8, 4095), (4, 127)])
@pytest.mark.parametrize("inputs", [32, 40, 96])
def test_linear_int8(inputs: int, bits: int, limit: int, generator: torch.Generator) -> None:
    groups, outputs = -(-inputs // 32), 5
    low, high = (-127, 128) if bits == 8 else (-8, 8)
    weight = torch.randint(low, high, (outputs, inputs), generator=generator, dtype=torch.int8)
    scale = torch.rand(outputs, groups, generator=generator).half()
    x, bias = torch.randn(3, inputs, generator=generator), torch.randn(outputs, generator=generator)
    result = reference.linear_int8(x, GroupedMatrix.from_int8(weight, scale, bits), bias)
    for row in range(3):
        q, s = _scalar_quantize([F32(v) for v in x[row].tolist()], limit)
        for o in range(outputs):
            acc = F32(0)
            for g in range(groups):
                group = range(32 * g, min(32 * g + 32, inputs))
                dot = sum(q[i] * int(weight[o, i]) for i in group)
                acc = _fma(F32(dot), F32(scale[o, g].item()), acc)
            assert result[row, o].item() == acc * s + F32(bias[o].item())


def test_linear_int8_rows_do_not_see_each_other(generator: torch.Generator) -> None:
    weight = torch.randint(-127, 128, (3000, 64), generator=generator, dtype=torch.int8)
    matrix = GroupedMatrix.from_int8(weight, torch.rand(3000, 2, generator=generator).half())
    x = torch.randn(70, 64, generator=generator)
    together = reference.linear_int8(x, matrix)
    assert _bits(together) == _bits(torch.cat([reference.linear_int8(row[None], matrix) for row in x]))


def test_grouped_matrix_gives_back_its_rows(generator: torch.Generator) -> None:
    weight = torch.randint(-127, 128, (6, 64), generator=generator, dtype=torch.int8)
    scale = torch.rand(6, 2, generator=generator).half()
    rows = GroupedMatrix.from_int8(weight, scale).rows(torch.tensor([4, 1, 4]))
    expected = weight.float() * scale.float().repeat_interleave(32, dim=1)
    assert torch.equal(rows, expected[[4, 1, 4]])
