"""The native CPU core: a C++ model behind one call per step."""

from flashlet.kernels.cpu._native import (
    BLOCK_SIZE,
    Kernels,
    NativeModel,
    TokenHistory,
    block_bytes,
    compiler,
    instruction_sets,
)

__all__ = [
    "BLOCK_SIZE",
    "Kernels",
    "NativeModel",
    "TokenHistory",
    "block_bytes",
    "compiler",
    "instruction_sets",
]
