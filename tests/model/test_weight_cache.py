"""The int8 cache: what it holds, that it is reused, and that damage, races and full disks do no harm."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flashlet.model.errors import ChecksumError, FlashletError, ModelFormatError, ModelNotFoundError
from flashlet.model.quantize import dequantize, pack_panels, quantize_matrix, unpack_panels
from flashlet.model.weight_cache import Int8Weights, default_cache_dir, load_int8, verify


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def model(config, random_weights, write_gguf) -> Path:
    return write_gguf(config, random_weights(config))


def packed(*matrices: np.ndarray) -> np.ndarray:
    return pack_panels(quantize_matrix(np.concatenate(matrices)))


def test_arrays_of_a_llama(config, random_weights, write_gguf, cache):
    config = replace(config, tie_word_embeddings=True)
    weights = random_weights(config)
    arrays = load_int8(write_gguf(config, weights), cache).arrays
    names = ["attn_norm", "qkv", "o", "ffn_norm", "gate_up", "down"]
    assert [*arrays] == [*(f"layers.{i}.{name}" for i in (0, 1) for name in names), "embed", "final_norm"]
    prefix = "model.layers.1."
    qkv = [weights[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
    np.testing.assert_array_equal(arrays["layers.1.qkv"], packed(*qkv))
    np.testing.assert_array_equal(arrays["layers.1.o"], packed(weights[prefix + "self_attn.o_proj.weight"]))
    np.testing.assert_array_equal(arrays["layers.1.down"], packed(weights[prefix + "mlp.down_proj.weight"]))
    np.testing.assert_array_equal(
        arrays["layers.1.ffn_norm"], weights[prefix + "post_attention_layernorm.weight"]
    )
    gate, up = (packed(weights[f"{prefix}mlp.{name}_proj.weight"]) for name in ("gate", "up"))
    np.testing.assert_array_equal(arrays["layers.1.gate_up"][0::2], gate)
    np.testing.assert_array_equal(arrays["layers.1.gate_up"][1::2], up)
    np.testing.assert_array_equal(arrays["embed"], packed(weights["model.embed_tokens.weight"]))
    np.testing.assert_array_equal(arrays["final_norm"], weights["model.norm.weight"])


def test_arrays_of_odd_widths_with_every_optional_parameter(
    narrow_config, random_weights, write_folder, cache
):
    weights = random_weights(narrow_config)
    loaded = load_int8(write_folder(narrow_config, weights), cache)
    assert loaded.config == narrow_config
    arrays, layer = loaded.arrays, "model.layers.0."
    # Query, key and value have 18 + 6 + 6 rows: only their end is padded.
    qkv = np.concatenate([weights[f"{layer}self_attn.{name}_proj.weight"] for name in "qkv"])
    assert arrays["layers.0.qkv"].shape == (2, 2, 544)
    restored = dequantize(unpack_panels(arrays["layers.0.qkv"], 30, 40))
    np.testing.assert_allclose(restored, qkv, atol=np.abs(qkv).max() / 127)
    biases = np.concatenate([weights[f"{layer}self_attn.{name}_proj.bias"] for name in "qkv"])
    np.testing.assert_array_equal(arrays["layers.0.qkv_bias"], np.pad(biases, (0, 2)))
    o_bias = weights[layer + "self_attn.o_proj.bias"]
    np.testing.assert_array_equal(arrays["layers.0.o_bias"], np.pad(o_bias, (0, 8)))
    np.testing.assert_array_equal(arrays["layers.0.k_norm"], weights[layer + "self_attn.k_norm.weight"])
    assert arrays["layers.0.gate_up"].shape == (8, 2, 544)
    np.testing.assert_array_equal(arrays["head"], packed(weights["lm_head.weight"]))


def test_feed_forward_biases_alternate_like_their_panels(config, random_weights, write_folder, cache):
    config = replace(config, intermediate_size=40, mlp_bias=True)
    weights = random_weights(config)
    arrays = load_int8(write_folder(config, weights), cache).arrays
    both = arrays["layers.0.gate_up_bias"].reshape(3, 2, 16)
    for side, name in enumerate(("gate", "up")):
        bias = weights[f"model.layers.0.mlp.{name}_proj.bias"]
        np.testing.assert_array_equal(both[:, side].reshape(-1), np.pad(bias, (0, 8)))
    np.testing.assert_array_equal(arrays["layers.0.down_bias"], weights["model.layers.0.mlp.down_proj.bias"])


def test_a_second_load_maps_the_same_file(model, cache):
    seen: list[tuple[str, float]] = []
    first = load_int8(model, cache, progress=lambda *state: seen.append(state))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and seen[-1][0] == "final_norm"
    status = first.path.stat()
    second = load_int8(model, cache, progress=lambda *state: pytest.fail("quantized twice"))
    assert (second.path, second.path.stat().st_ino) == (first.path, status.st_ino)
    assert second.config == first.config
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(second.arrays[name], array)
    assert [file.name for file in (cache / "int8").iterdir()] == [first.path.name]


def test_arrays_are_aligned_read_only_and_readable_by_the_safetensors_package(model, cache):
    loaded = load_int8(model, cache)
    theirs = load_file(loaded.path)
    for name, array in loaded.arrays.items():
        assert array.ctypes.data % 64 == 0 and not array.flags.writeable
        np.testing.assert_array_equal(theirs[name], array)


def test_a_hit_imports_nothing_heavy(model, cache):
    load_int8(model, cache)
    program = (
        "import sys; from pathlib import Path; from flashlet.model.weight_cache import load_int8\n"
        f"load_int8(Path({str(model)!r}), Path({str(cache)!r}))\n"
        "print({'torch', 'transformers', 'gguf', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_changed_source_is_quantized_again(config, random_weights, write_gguf, cache):
    first = load_int8(write_gguf(config, random_weights(config)), cache)
    other = {name: array * 2 for name, array in random_weights(config).items()}
    second = load_int8(write_gguf(config, other), cache)
    assert second.path != first.path
    np.testing.assert_array_equal(second.arrays["final_norm"], first.arrays["final_norm"] * 2)


@pytest.mark.parametrize(
    "damage", ["empty", "cut header", "cut data", "longer", "header", "version", "config"]
)
def test_damaged_files_are_built_again(damage, model, cache):
    intact = load_int8(model, cache)
    content = intact.path.read_bytes()
    broken = {
        "empty": b"",
        "cut header": content[:100],
        "cut data": content[:-64],
        "longer": content + b"x",
        "header": content[:30] + b"\xff" + content[31:],
        "version": content.replace(b'"version":"1"', b'"version":"0"'),
        "config": content.replace(b'\\"num_layers\\":2', b'\\"num_layers\\":3'),
    }[damage]
    assert broken != content
    # A new inode, as the mapping of the intact file must not change under it.
    intact.path.unlink()
    intact.path.write_bytes(broken)
    again = load_int8(model, cache)
    assert again.path.read_bytes() == content
    verify(again)


def test_flipped_data_are_found_by_verify(model, cache):
    loaded = load_int8(model, cache)
    verify(loaded)
    with loaded.path.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ChecksumError, match=r"expected SHA-256 .* found"):
        verify(loaded)


def test_builders_at_the_same_time_share_one_file(model, cache):
    results: list[Int8Weights] = []
    built: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(
                load_int8(model, cache, progress=lambda name, _: built.append(name))
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.path.stat().st_ino for result in results}) == 1 and len(results) == 4
    assert built.count("final_norm") == 1
    assert len(list((cache / "int8").iterdir())) == 1
    verify(results[0])


def test_a_full_disk_leaves_nothing(model, cache):
    with _files_limited_to(10_000), pytest.raises(FlashletError, match="cannot write the weight cache"):
        load_int8(model, cache)
    assert list((cache / "int8").iterdir()) == []
    verify(load_int8(model, cache))


def test_what_a_killed_builder_left_is_removed(model, cache):
    (cache / "int8").mkdir(parents=True)
    (cache / "int8" / "other-0123.tmp").write_bytes(b"half")
    load_int8(model, cache)
    assert [file.suffix for file in (cache / "int8").iterdir()] == [".safetensors"]


def test_weights_that_int8_cannot_hold_are_named_and_leave_nothing(config, random_weights, write_gguf, cache):
    weights = random_weights(config)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e8
    with pytest.raises(ModelFormatError, match=r"layers\.1\.mlp\.up_proj\.weight: expected finite weights"):
        load_int8(write_gguf(config, weights), cache)
    assert list((cache / "int8").iterdir()) == []


def test_a_cache_that_is_no_folder_is_a_clear_error(model, cache):
    cache.write_text("in the way")
    with pytest.raises(FlashletError, match="FLASHLET_CACHE"):
        load_int8(model, cache)


def test_a_missing_source_is_not_found(tmp_path, cache):
    with pytest.raises(ModelNotFoundError):
        load_int8(tmp_path / "nothing.gguf", cache)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FLASHLET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "flashlet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "flashlet"
    monkeypatch.setenv("FLASHLET_CACHE", "~/models")
    assert default_cache_dir() == tmp_path / "models"


@contextmanager
def _files_limited_to(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
