"""The config and the file of a draft model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashlet.model import draft as draft_module
from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.draft import (
    DraftConfig,
    draft_layout,
    draft_shapes,
    find_draft,
    load_draft,
    read_card,
    save_draft,
    target_fingerprint,
)
from flashlet.model.draft_tensors import draft_tensors
from flashlet.model.errors import FlashletError, ModelFormatError
from flashlet.model.quantize import dequantize, unpack_panels
from flashlet.model.weight_cache import load_int8

RandomDraft = Callable[[DraftConfig], dict[str, NDArray[Any]]]
CONFIG = DraftConfig(
    hidden_size=256,
    vocab_size=40,
    target_layers=2,
    features=(3, 0),
    output_vocab_size=30,
    intermediate_size=50,
    num_heads=3,
    num_kv_heads=1,
    head_dim=24,
    rope=RopeConfig(theta=5e5),
    target_fingerprint="abc",
)
PLAIN = replace(CONFIG, attention=False, num_heads=0, num_kv_heads=0, head_dim=0)


SHAPES = [CONFIG, PLAIN, replace(CONFIG, num_layers=2, window=64), replace(PLAIN, bits=4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_draft_is_loaded_as_it_was(
    shape: DraftConfig, config: ModelConfig, random_draft: RandomDraft, tmp_path: Path
) -> None:
    tensors, path = random_draft(shape), tmp_path / "some.safetensors"
    save_draft(path, shape, tensors, {"hours": 2, "languages": ["en"]})
    found, arrays = load_draft(path, config, "abc")
    assert found == shape
    assert read_card(path) == {"hours": 2, "languages": ["en"]}
    assert {name: array.shape for name, array in arrays.items()} == {
        name: shape_ for name, (_, shape_) in draft_layout(shape).items()
    }
    assert not any(array.flags.writeable for array in arrays.values())
    np.testing.assert_array_equal(arrays["vocab_ids"], tensors["vocab_ids"])
    np.testing.assert_array_equal(arrays["state_norm"], tensors["state_norm"])
    step = 200 if shape.bits == 8 else 7.9
    head = dequantize(unpack_panels(arrays["head"], 30, 256))
    np.testing.assert_allclose(head, tensors["head"], atol=np.abs(tensors["head"]).max() / step)
    up = dequantize(unpack_panels(arrays["layers.0.gate_up"][1::2], 50, 256))
    np.testing.assert_allclose(up, tensors["layers.0.up"], atol=np.abs(tensors["layers.0.up"]).max() / step)
    if shape.attention:
        qkv = np.concatenate([tensors[f"layers.0.{name}"] for name in "qkv"])
        packed = dequantize(unpack_panels(arrays["layers.0.qkv"], 120, 256))
        np.testing.assert_allclose(packed, qkv, atol=np.abs(qkv).max() / 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: expected 1 or more"),
        ({"num_layers": 1 << 31}, "num_layers"),
        ({"num_layers": 5000}, "at most 4096"),
        ({"features": ()}, r"distinct ones of 0 \.\. 3"),
        ({"features": (4,)}, r"distinct ones of 0 \.\. 3"),
        ({"features": (-1,)}, r"distinct ones of 0 \.\. 3"),
        ({"features": (1, 1)}, r"distinct ones of 0 \.\. 3"),
        ({"output_vocab_size": 41}, "at most 40"),
        ({"window": -1}, "window"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"num_kv_heads": 2}, "multiple of 2"),
        ({"head_dim": 3}, "even"),
        ({"bits": 5}, "bits: expected 4 or 8"),
        ({"num_heads": 0}, "num_heads: expected 1 or more"),
        ({"attention": False}, "num_heads: expected 0"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tensors_of_a_file_make_the_same_file(
    shape: DraftConfig, config: ModelConfig, random_draft: RandomDraft, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_draft(first, shape, random_draft(shape))
    found, arrays = load_draft(first, config)
    tensors = draft_tensors(found, arrays)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: size for name, size in draft_shapes(shape).items() if name != "vocab_ids"
    }
    save_draft(second, found, {**tensors, "vocab_ids": arrays["vocab_ids"]})
    assert second.read_bytes() == first.read_bytes()


def test_a_window_needs_attention() -> None:
    with pytest.raises(ModelFormatError, match="window"):
        replace(PLAIN, window=5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hidden_size": "wide"}'])
def test_text_that_is_no_config_is_refused(text: str) -> None:
    assert DraftConfig.from_json(CONFIG.to_json()) == CONFIG
    with pytest.raises(ModelFormatError, match="draft config"):
        DraftConfig.from_json(text)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head", None, r"head: expected shape \[30, 256\], found \[\]"),
        ("fuse", np.zeros((256, 256), np.float32), r"fuse: expected shape \[256, 512\]"),
        ("input", np.full((256, 512), np.nan, np.float32), "finite weights"),
        ("vocab_ids", np.arange(30)[::-1], "ascending"),
        ("vocab_ids", np.arange(30) + 11, "below 40"),
        ("vocab_ids", np.arange(30) - 1, "ascending"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    random_draft: RandomDraft, tmp_path: Path, name: str, value: Any, message: str
) -> None:
    tensors = random_draft(CONFIG)
    tensors = {key: array for key, array in tensors.items() if key != name or value is not None}
    with pytest.raises(ModelFormatError, match=message):
        save_draft(tmp_path / "x", CONFIG, tensors if value is None else tensors | {name: value})


@pytest.mark.parametrize("changes", [{"hidden_size": 512}, {"vocab_size": 41}, {"num_layers": 3}])
def test_a_draft_for_another_target_is_refused(
    config: ModelConfig, random_draft: RandomDraft, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "some.safetensors"
    save_draft(path, CONFIG, random_draft(CONFIG))
    with pytest.raises(ModelFormatError, match="of the target, found"):
        load_draft(path, replace(config, **changes))


def test_other_weights_are_only_logged(
    config: ModelConfig, random_draft: RandomDraft, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "some.safetensors"
    save_draft(path, CONFIG, random_draft(CONFIG))
    with caplog.at_level(logging.WARNING):
        load_draft(path, config, "abc")
        load_draft(path, config)
        assert not caplog.records
        load_draft(path, config, "def")
    assert "trained for other weights" in caplog.text


def test_files_that_are_no_draft_are_refused(
    config: ModelConfig, random_draft: RandomDraft, tmp_path: Path
) -> None:
    path = tmp_path / "some.safetensors"
    with pytest.raises(FlashletError, match="cannot be read"):
        load_draft(path, config)
    save_draft(path, CONFIG, random_draft(CONFIG))
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    for old, new in (
        (b"flashlet-draft", b"flashlet-dragt"),
        (b'\\"num_layers\\":1', b'\\"num_layers\\":2'),
        (b'"head":{"dtype":"U8"', b'"heed":{"dtype":"U8"'),
    ):
        assert old in good[:length]
        path.write_bytes(good.replace(old, new, 1))
        with pytest.raises(ModelFormatError):
            load_draft(path, config)
    path.write_bytes(good[:-64])
    with pytest.raises(ModelFormatError):
        load_draft(path, config)
    data = 8 + length + json.loads(good[8 : 8 + length])["vocab_ids"]["data_offsets"][0]
    path.write_bytes(good[:data] + b"\xff" * 4 + good[data + 4 :])
    with pytest.raises(ModelFormatError, match="vocab_ids"):
        load_draft(path, config)


def test_the_shipped_draft_of_a_model_is_found(
    tiny_model_path: Path, random_draft: RandomDraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its very weights if there is one, else for its shape, else none."""
    monkeypatch.setattr(draft_module, "DRAFTS", tmp_path / "drafts")
    assert find_draft(tiny_model_path) is None
    (tmp_path / "drafts").mkdir()
    target = load_int8(tiny_model_path)
    own = target_fingerprint(target.arrays)
    fitting = replace(PLAIN, hidden_size=target.config.hidden_size, vocab_size=target.config.vocab_size)
    for name, shape in (
        ("a", replace(fitting, target_layers=3)),
        ("b", fitting),
        ("c", replace(fitting, target_fingerprint=own)),
    ):
        path = tmp_path / "drafts" / f"{name}.safetensors"
        save_draft(path, shape, random_draft(shape))
        expected = {"a": None, "b": "b", "c": "c"}[name]
        found = find_draft(tiny_model_path)
        assert (found.stem if found else None) == expected


def test_fingerprints_tell_weights_apart(tiny_model_path: Path) -> None:
    arrays = dict(load_int8(tiny_model_path).arrays)
    own = target_fingerprint(arrays)
    assert target_fingerprint(dict(reversed(arrays.items()))) == own
    for name in ("final_norm", "layers.1.ffn_norm", "layers.0.qkv"):
        changed = arrays[name].copy()
        changed.flat[0] += 1
        assert target_fingerprint(arrays | {name: changed}) != own


def test_shapes_name_every_tensor() -> None:
    shapes = draft_shapes(CONFIG)
    assert shapes["fuse"] == (256, 512)
    assert shapes["layers.0.k"] == (24, 256)
    assert "layers.0.q" not in draft_shapes(PLAIN)
