"""int8 groups: hand-computed cases, error bounds, exactness for Q8_0, and the panel layout."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from flashlet.model.errors import ModelFormatError
from flashlet.model.gguf import GgufWeights
from flashlet.model.quantize import (
    CELL_BYTES,
    CELL_BYTES_4,
    GROUP,
    PANEL,
    dequantize,
    pack_panels,
    quantize_matrix,
    unpack_panels,
)

ODD_SHAPES = [(1, 1), (3, 31), (15, 32), (16, 33), (17, 64), (32, 100), (37, 40)]


def random_matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, (rows, columns)).astype(np.float32)


def test_by_hand():
    weight = np.zeros((2, 64), np.float32)
    weight[0, :3] = 127.0, -63.5, 0.5  # scale 1; ties go to the even neighbour
    weight[1, 33] = -254.0  # scale 2 in the second group, the first is all zeros
    matrix = quantize_matrix(weight)
    np.testing.assert_array_equal(matrix.scale, np.array([[1, 0], [0, 2]], np.float16))
    assert matrix.q[0, :3].tolist() == [127, -64, 0]
    assert matrix.q[1, 33] == -127
    assert np.count_nonzero(matrix.q) == 3


@pytest.mark.parametrize(("rows", "columns"), ODD_SHAPES)
def test_error_is_at_most_half_a_step(rows, columns):
    weight = random_matrix(rows, columns)
    matrix = quantize_matrix(weight)
    groups = -(-columns // GROUP)
    assert matrix.q.shape == (rows, groups * GROUP) and matrix.scale.shape == (rows, groups)
    assert matrix.scale.dtype == np.float16 and matrix.q.dtype == np.int8
    assert not matrix.q[:, columns:].any()
    steps = np.repeat(matrix.scale.astype(np.float32), GROUP, axis=1)[:, :columns]
    # The largest weight may exceed 127 steps by the rounding of the scale, 2^-11 of its value.
    bound = steps / 2 + np.abs(weight) * 2.0**-11
    assert (np.abs(dequantize(matrix) - weight) <= bound).all()


def test_4_bits_by_hand():
    weight = np.zeros((2, 64), np.float32)
    weight[0, :5] = -16.0, 14.0, 16.0, 5.0, 1.0  # scale 2; 8 steps are one too many, ties go to even
    weight[1, 32:35] = (
        4.0,
        -4.0,
        -3.5,
    )  # scale -0.5: the first of two extremes, if both are as large the negative
    matrix = quantize_matrix(weight, 4)
    np.testing.assert_array_equal(matrix.scale, np.array([[2, 0], [0, 0.5]], np.float16))
    assert matrix.q[0, :5].tolist() == [-8, 7, 7, 2, 0]
    assert matrix.q[1, 32:35].tolist() == [7, -8, -7]
    weight[1, 34] = 4.5
    matrix = quantize_matrix(weight, 4)
    assert matrix.scale[1, 1] == np.float16(-4.5 / 8)
    assert matrix.q[1, 32:35].tolist() == [-7, 7, -8]


@pytest.mark.parametrize(("rows", "columns"), ODD_SHAPES)
def test_error_of_4_bits(rows, columns):
    weight = random_matrix(rows, columns)
    matrix = quantize_matrix(weight, 4)
    steps = np.abs(np.repeat(matrix.scale.astype(np.float32), GROUP, axis=1)[:, :columns])
    bound = np.where(np.abs(weight) > 7.5 * steps, steps, steps / 2) + np.abs(weight) * 2.0**-10
    assert (np.abs(dequantize(matrix) - weight) <= bound).all()
    assert not matrix.q[:, columns:].any()


def test_chunks_do_not_change_the_result(monkeypatch):
    weight = random_matrix(37, 100)
    whole = quantize_matrix(weight)
    monkeypatch.setattr("flashlet.model.quantize.CHUNK_ELEMENTS", 300)
    parts = quantize_matrix(weight)
    np.testing.assert_array_equal(whole.q, parts.q)
    np.testing.assert_array_equal(whole.scale, parts.scale)


@pytest.mark.parametrize("magnitude", [1e-6, 1e-3, 1.0, 1e4])
def test_q8_0_converts_without_loss(magnitude):
    blocks = gguf.quants.quantize(random_matrix(64, 256) * np.float32(magnitude), Kind.Q8_0)
    _assert_equal_to_q8_0(blocks, gguf.quants.dequantize(blocks, Kind.Q8_0))


def test_the_default_models_embedding_converts_without_loss(default_model_path):
    source = GgufWeights(default_model_path)
    name, shape = "model.embed_tokens.weight", (source.config.vocab_size, source.config.hidden_size)
    tensor = source._tensors[name]
    blocks = source._bytes[tensor.offset : tensor.offset + tensor.num_bytes].reshape(shape[0], -1)
    _assert_equal_to_q8_0(blocks, source.tensor(name, shape))


def _assert_equal_to_q8_0(blocks: np.ndarray, weight: np.ndarray) -> None:
    matrix = quantize_matrix(weight)
    cells = blocks.reshape(len(weight), -1, 2 + GROUP)  # binary16 scale, 32 int8
    scales = np.ascontiguousarray(cells[:, :, :2]).view(np.float16)[:, :, 0]
    q = cells[:, :, 2:].view(np.int8).reshape(weight.shape)
    represented = np.repeat(scales != 0, GROUP, axis=1)  # q of a group with scale 0 means nothing
    np.testing.assert_array_equal(matrix.scale, scales)
    np.testing.assert_array_equal(matrix.q, np.where(represented, q, 0))
    np.testing.assert_array_equal(dequantize(matrix), weight)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 127 * 65520.0])
def test_weights_without_a_scale_are_refused(bad):
    weight = random_matrix(4, 64)
    weight[2, 40] = bad
    with pytest.raises(ModelFormatError, match=r"expected finite weights up to 127 \* 65504.*found"):
        quantize_matrix(weight)


def test_the_largest_scale_is_accepted():
    weight = np.full((1, 32), 127 * 65504.0, np.float32)
    assert quantize_matrix(weight).scale[0, 0] == 65504


def test_weights_below_the_smallest_scale_become_zero():
    matrix = quantize_matrix(np.full((1, 32), 1e-9, np.float32))
    assert not matrix.q.any() and not matrix.scale.any()


@pytest.mark.parametrize(("bits", "cell_bytes"), [(8, CELL_BYTES), (4, CELL_BYTES_4)])
@pytest.mark.parametrize(("rows", "columns"), ODD_SHAPES)
def test_panels_hold_the_matrix(rows, columns, bits, cell_bytes):
    matrix = quantize_matrix(random_matrix(rows, columns), bits)
    packed = pack_panels(matrix)
    assert packed.shape == (-(-rows // PANEL), -(-columns // GROUP), cell_bytes)
    assert cell_bytes == {8: 544, 4: 288}[bits]
    assert packed.dtype == np.uint8 and packed.flags.c_contiguous
    restored = unpack_panels(packed, rows, columns)
    np.testing.assert_array_equal(restored.q, matrix.q)
    np.testing.assert_array_equal(restored.scale, matrix.scale)
    assert (restored.in_features, restored.bits) == (columns, bits)


def test_each_byte_of_a_cell_is_where_the_kernels_read_it():
    rows, columns = 37, 100
    matrix = quantize_matrix(random_matrix(rows, columns))
    packed = pack_panels(matrix)
    padded_q = np.zeros((48, 128), np.int8)
    padded_q[:rows] = matrix.q
    padded_scale = np.zeros((48, 4), np.float16)
    padded_scale[:rows] = matrix.scale
    for panel in range(3):
        for group in range(4):
            cell = packed[panel, group].tobytes()
            assert (
                np.frombuffer(cell[:32], np.float16).tolist()
                == padded_scale[16 * panel : 16 * panel + 16, group].tolist()
            )
            for index, value in enumerate(np.frombuffer(cell[32:], np.int8)):
                pair, output, parity = index // 32, index // 2 % 16, index % 2
                assert value == padded_q[16 * panel + output, 32 * group + 2 * pair + parity]


def test_memory_stays_near_the_size_of_the_result():
    weight = random_matrix(4096, 1024)  # 16 MiB
    tracemalloc.start()
    try:
        pack_panels(quantize_matrix(weight))
        assert tracemalloc.get_traced_memory()[1] < 2.0 * weight.nbytes
    finally:
        tracemalloc.stop()
