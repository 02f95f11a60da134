"""The results that are shipped for the default model."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashlet.model.executor import ExecutorOptions, KvDtype, create_executor
from flashlet.model.fingerprint import fingerprint_of
from flashlet.serving.canary import canary_problem, record_key, record_path, shipped_records


@pytest.mark.parametrize("kv_dtype", ["int8", "fp16"])
def test_this_build_gives_what_is_shipped(default_model_path: Path, kv_dtype: KvDtype) -> None:
    options = ExecutorOptions(kv_dtype=kv_dtype, kv_cache_bytes=1 << 22)
    executor = create_executor(default_model_path, options)
    fingerprint = fingerprint_of(default_model_path, options)
    hint = "if other numbers are meant: raise NUMERICS_VERSION and run scripts/record_canary.py"
    assert record_key(fingerprint) in shipped_records(), hint
    assert canary_problem(executor, options, fingerprint) is None, hint
    assert not record_path(fingerprint).exists()
    executor.close()
