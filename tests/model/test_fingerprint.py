"""What decides a model's numbers, in one text."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flashlet.model import fingerprint as module
from flashlet.model.executor import ExecutorOptions
from flashlet.model.fingerprint import NUMERICS_VERSION, Fingerprint, fingerprint_of
from flashlet.model.weight_cache import load_int8

NUMERICS = Path(__file__).parents[2] / "docs" / "numerics.md"
# If the text alone has changed, record its new hash. If results change, raise NUMERICS_VERSION first.
TEXTS = {1: "e664a2095100da532fee7ee12b21b9c0275b59088161b55240231c27b56c7d31"}
INT8 = ExecutorOptions()
FP32 = ExecutorOptions(weights="fp32", kv_dtype="fp32")


def test_the_numerics_have_the_version_that_was_recorded() -> None:
    assert {NUMERICS_VERSION: hashlib.sha256(NUMERICS.read_bytes()).hexdigest()} == TEXTS


def test_the_same_weights_are_the_same_wherever_they_lie(tiny_model_path: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_model_path, tmp_path / "other")
    os.utime(copied / "model.safetensors", (1, 1))
    for options in (INT8, FP32):
        load_int8(tiny_model_path)
        load_int8(copied)
        assert fingerprint_of(copied, options) == fingerprint_of(tiny_model_path, options)


def test_other_weights_and_formats_differ(tiny_model_path: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_model_path, tmp_path / "other")
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    for options in (INT8, FP32):
        load_int8(copied)
        first, other = fingerprint_of(tiny_model_path, options), fingerprint_of(copied, options)
        assert first.differing(str(other)) == ["weights"] and first.numbers != other.numbers
    fp16 = fingerprint_of(tiny_model_path, replace(INT8, kv_dtype="fp16"))
    assert fp16.differing(str(fingerprint_of(tiny_model_path, INT8))) == ["formats"]


def test_what_computes_counts_only_where_it_rounds(tiny_model_path: Path) -> None:
    exact = fingerprint_of(tiny_model_path, INT8)
    assert fingerprint_of(tiny_model_path, replace(INT8, backend="torch", threads=3)) == exact
    assert exact.kernels == f"numerics {NUMERICS_VERSION}"
    assert "torch" in fingerprint_of(tiny_model_path, FP32).kernels


def test_files_are_hashed_once(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint_of(tiny_model_path, FP32)
    monkeypatch.setattr(module, "source_hash", None)
    assert fingerprint_of(tiny_model_path, FP32) == first


def test_texts_are_short_and_tell_parts_apart() -> None:
    one = Fingerprint("w", "f", "k", "t", "v")
    assert str(one).startswith("fp_") and len(str(one)) == 31
    assert one.differing(str(replace(one, kernels="x", version="y"))) == ["kernels", "version"]
    assert one.differing(str(one)) == []
    for text in ("", "fp_", "fp_0123456789", "x" + str(one)):
        assert len(one.differing(text)) == 5
