"""Whole files of a tiny model that the fuzzer starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

HIDDEN, VOCAB = 32, 8
SHAPES = {
    "token_embd": (VOCAB, HIDDEN),
    "output": (VOCAB, HIDDEN),
    "output_norm": (HIDDEN,),
    "blk.0.attn_norm": (HIDDEN,),
    "blk.0.ffn_norm": (HIDDEN,),
    "blk.0.attn_q": (HIDDEN, HIDDEN),
    "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HIDDEN),
    "blk.0.ffn_gate": (HIDDEN, HIDDEN),
    "blk.0.ffn_up": (HIDDEN, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, HIDDEN),
}


def write_gguf(path: Path, kind: GGMLQuantizationType, architecture: str = "llama") -> Path:
    """A GGUF file of one layer whose matrices are stored as `kind`."""
    rng = np.random.default_rng(1)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_eos_token_id(1)
    writer.add_token_list([f"token {index}" for index in range(VOCAB)])
    for name, shape in SHAPES.items():
        array = rng.normal(0, 0.1, shape).astype(np.float32)
        if array.ndim == 2 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(f"{name}.weight", quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_seeds(folder: Path) -> dict[str, list[bytes]]:
    """Files for each reader: `gguf`, and `cache` for the safetensors files of the weight cache."""
    from flashlet.model.weight_cache import load_int8

    paths = [
        write_gguf(folder / f"{kind.name}.gguf", kind, architecture)
        for kind, architecture in (
            (GGMLQuantizationType.Q8_0, "llama"),
            (GGMLQuantizationType.Q4_1, "qwen2"),
            (GGMLQuantizationType.F16, "llama"),
            (GGMLQuantizationType.F32, "qwen3"),
        )
    ]
    caches = [load_int8(path, folder / "cache").path for path in paths[:1]]
    return {
        "gguf": [path.read_bytes() for path in paths],
        "cache": [path.read_bytes() for path in caches],
    }
