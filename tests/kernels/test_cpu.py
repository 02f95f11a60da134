"""Every instruction set's kernels against the reference, bit for bit, and the noise against the sampler's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flashlet.kernels import reference
from flashlet.kernels.cpu import Kernels, compiler, instruction_sets
from flashlet.model.quantize import QuantizedMatrix, pack_panels
from flashlet.model.sampler import gumbel_noise

F32 = np.float32
Floats = NDArray[np.float32]
TINY = 2.0**-100  # rows below it count as zero


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=instruction_sets())
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _assert_same(found: Floats, expected: Floats) -> None:
    """Equal bits; the difference is shown where they are not."""
    np.testing.assert_array_equal(found, expected)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def _wide(rng: np.random.Generator, *shape: int) -> Floats:
    """Normal values whose magnitudes span a dozen powers of two."""
    return (rng.standard_normal(shape) * np.exp(2 * rng.standard_normal(shape))).astype(F32)


def test_the_portable_kernels_are_always_there() -> None:
    assert instruction_sets()[-1] == "portable"
    assert len(set(instruction_sets())) == len(instruction_sets())
    assert compiler()
    with pytest.raises(ValueError, match="instruction set: expected .* got sse9"):
        Kernels("sse9")


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 40, 80, 576, 1000])
def test_rms_norm(kernels: Kernels, rng: np.random.Generator, n: int) -> None:
    rows, weight = _wide(rng, 20, n), rng.standard_normal(n).astype(F32)
    rows[0], rows[1], rows[2] = 0.0, 1e18, 1e-30
    expected = reference.rms_norm(torch.from_numpy(rows), torch.from_numpy(weight), 1e-5)
    _assert_same(np.stack([kernels.rms_norm(row, weight, 1e-5) for row in rows]), expected.numpy())


def test_exp(kernels: Kernels, rng: np.random.Generator) -> None:
    x = np.concatenate(
        [
            10 * rng.standard_normal(100_000),
            rng.uniform(-100, 100, 50_000),
            np.arange(-90, 90) * np.log(2.0),  # where the rounded exponent changes
            (np.arange(-90, 90) + 0.5) * np.log(2.0),
            [0.0, -0.0, 1e-30, -1e-30, 1e-45, -87.0, 88.0, -87.5, 88.5, 1e30, -1e30, np.inf, -np.inf],
        ]
    ).astype(F32)
    _assert_same(kernels.exp(x), reference.exp(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("head_dim", [2, 6, 16, 24, 30, 32, 64, 80, 128, 256])
def test_rope(kernels: Kernels, rng: np.random.Generator, head_dim: int) -> None:
    heads = _wide(rng, 10, head_dim)
    angles = rng.uniform(0, 100, (10, head_dim // 2))
    cos, sin = np.cos(angles).astype(F32), np.sin(angles).astype(F32)
    expected = reference.rope(torch.from_numpy(heads[:, None]), torch.from_numpy(cos), torch.from_numpy(sin))
    found = np.stack([kernels.rope(*row) for row in zip(heads, cos, sin, strict=True)])
    _assert_same(found, expected.numpy()[:, 0])


def _matrix(rng: np.random.Generator, outputs: int, inputs: int) -> QuantizedMatrix:
    groups = -(-inputs // 32)
    q = np.zeros((outputs, groups * 32), np.int8)
    q[:, :inputs] = rng.integers(-127, 128, (outputs, inputs))
    scale = np.exp(rng.uniform(-12, 3, (outputs, groups))).astype(np.float16)  # subnormal halves among them
    return QuantizedMatrix(q, scale, inputs)


def _matrix_of_4_bits(rng: np.random.Generator, outputs: int, inputs: int) -> QuantizedMatrix:
    q = rng.integers(-8, 8, (outputs, inputs)).astype(np.int8)
    scale = np.exp(rng.uniform(-12, 3, (outputs, inputs // 32))) * rng.choice(
        [-1, 1], (outputs, inputs // 32)
    )
    return QuantizedMatrix(q, scale.astype(np.float16), inputs, 4)


def _assert_linear(kernels: Kernels, matrix: QuantizedMatrix, x: Floats) -> None:
    expected = reference.linear_int8(
        torch.from_numpy(x),
        reference.GroupedMatrix.from_int8(
            torch.from_numpy(matrix.q), torch.from_numpy(matrix.scale), matrix.bits
        ),
    )
    outputs = len(matrix.q)
    found = kernels.linear(pack_panels(matrix), x).reshape(len(x), -1)
    assert found.shape[1] == -(-outputs // 16) * 16
    _assert_same(np.ascontiguousarray(found[:, :outputs]), expected.numpy())
    assert not found[:, outputs:].any()


@pytest.mark.parametrize("rows", range(1, 26))
def test_linear_in_tiles_of_every_height(kernels: Kernels, rng: np.random.Generator, rows: int) -> None:
    _assert_linear(kernels, _matrix(rng, 48, 96), _wide(rng, rows, 96))


@pytest.mark.parametrize(
    ("outputs", "inputs"), [(1, 1), (15, 31), (16, 32), (17, 33), (100, 40), (33, 576), (576, 1536)]
)
def test_linear_of_odd_shapes(kernels: Kernels, rng: np.random.Generator, outputs: int, inputs: int) -> None:
    _assert_linear(kernels, _matrix(rng, outputs, inputs), _wide(rng, 3, inputs))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 17])
def test_linear_of_4_bits(kernels: Kernels, rng: np.random.Generator, rows: int) -> None:
    _assert_linear(kernels, _matrix_of_4_bits(rng, 48, 96), _wide(rng, rows, 96))


def test_linear_at_the_extremes(kernels: Kernels, rng: np.random.Generator) -> None:
    """The largest sums that the accumulators must hold, rows of zeros and on both sides of "tiny"."""
    matrix = _matrix(rng, 32, 128)
    matrix.q[:8], matrix.q[8:16] = 127, -127
    matrix.scale[:16] = 65504.0
    matrix.scale[16:24] = 2.0**-24
    x = _wide(rng, 12, 128)
    x[0], x[1], x[2], x[3], x[4] = 1.0, -1.0, 0.0, np.float32(TINY), np.nextafter(F32(TINY), F32(0))
    x[5] = 1e30
    x[6, 1:] = 0.0
    x[7] = np.where(np.arange(128) % 2, 1.0, -1.0)
    x[8] = np.arange(128) + 0.5  # 4095 / a is inexact: products near ties
    x[9, 0] = 4095.0
    x[9, 1:] = np.arange(127) % 50 + 0.5  # exact ties
    _assert_linear(kernels, matrix, x)


def test_linear_refuses_more_inputs_than_weights(kernels: Kernels, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="more inputs"):
        kernels.linear(pack_panels(_matrix(rng, 16, 32)), np.zeros((1, 33), F32))


def test_log_is_accurate(kernels: Kernels, rng: np.random.Generator) -> None:
    uniform = ((np.arange(1 << 16) * 127 + 0.5) * 2.0**-23).astype(F32)  # what the noise takes the log of
    x = np.concatenate([uniform, 1 - uniform[:100], _wide(rng, 10_000), [1.0, 2.0**-24, 3e38, 1.2e-38]])
    x = np.abs(x[x != 0]).astype(F32)
    exact = np.log(x.astype(np.float64))
    error = np.abs(kernels.log(x) - exact)
    assert (error <= 2e-7 * np.maximum(np.abs(exact), 1e-30) + 1e-12).all()


SEEDS = [(0, 0), (1, 7), ((1 << 64) - 1, 1), (0x1234567890ABCDEF, (7 << 32) + 3)]


def _noise(kernels: Kernels, seed: int, position: int, count: int) -> Floats:
    return np.array(kernels.gumbel(seed, position, list(range(count))), F32)


@pytest.mark.parametrize(("seed", "position"), SEEDS)
def test_noise_is_the_sampler_s(kernels: Kernels, seed: int, position: int) -> None:
    """The logarithms differ in their last digits, so the noise does too."""
    found, expected = _noise(kernels, seed, position, 5000), gumbel_noise(seed, position, 5000)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", instruction_sets())
def test_log_and_noise_have_the_same_bits_everywhere(name: str, rng: np.random.Generator) -> None:
    x = np.abs(_wide(rng, 50_000)) + F32(1e-30)
    portable, kernels = Kernels("portable"), Kernels(name)
    _assert_same(kernels.log(x), portable.log(x))
    for seed, position in SEEDS:
        _assert_same(_noise(kernels, seed, position, 3000), _noise(portable, seed, position, 3000))
