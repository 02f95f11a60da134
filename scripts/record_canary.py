"""Write serving/canary_records.json anew: python scripts/record_canary.py [MODEL].

Needed when the default model, its conversion or the numerics change, and for nothing else: results do not
depend on the machine, the instruction set, threads or drafts.
"""

from __future__ import annotations

import sys

import msgspec

from flashlet.model.executor import ExecutorOptions, KvDtype, create_executor
from flashlet.model.fingerprint import fingerprint_of
from flashlet.model.registry import DEFAULT_MODEL, resolve
from flashlet.serving.canary import SHIPPED, record_key, run_canary

KV_FORMATS: tuple[KvDtype, ...] = ("int8", "fp16")


def main(model: str) -> None:
    path = resolve(model, pull_missing=True)
    records = {}
    for kv_dtype in KV_FORMATS:
        options = ExecutorOptions(kv_dtype=kv_dtype, kv_cache_bytes=1 << 22)
        executor = create_executor(path, options)
        records[record_key(fingerprint_of(path, options))] = run_canary(executor, options)
        executor.close()
    SHIPPED.write_bytes(msgspec.json.format(msgspec.json.encode(records), indent=1) + b"\n")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [DEFAULT_MODEL]))
