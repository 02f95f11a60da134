"""The native CPU core: a C++ model behind one call per step."""

from flashlet.kernels.cpu._native import (
    BLOCK_SIZE,
    Acceptance,
    Kernels,
    NativeModel,
    StepCosts,
    TokenHistory,
    best_rate,
    best_widths,
    block_bytes,
    compiler,
    could_pay,
    instruction_sets,
)

__all__ = [
    "BLOCK_SIZE",
    "Acceptance",
    "Kernels",
    "NativeModel",
    "StepCosts",
    "TokenHistory",
    "best_rate",
    "best_widths",
    "block_bytes",
    "compiler",
    "could_pay",
    "instruction_sets",
]
