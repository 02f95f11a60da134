"""Linear layers that train with the weights that a file of 4 bits will hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.quantize import GROUP, LEAST_Q4


class RoundedLinear(nn.Linear):
    """Computes with its weights rounded to 4 bits; gradients pass as if they were not.

    Source: Bengio et al., "Estimating or propagating gradients through stochastic neurons" (2013).
    """

    _kept: Tensor | None = None  # rounded weights, while `rounded_once` holds

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        rounded = round_weight(self.weight.detach()) if self._kept is None else self._kept
        straight: Tensor = _StraightThrough.apply(self.weight, rounded)  # type: ignore[no-untyped-call]
        return functional.linear(x, straight, self.bias)


@contextmanager
def rounded_once(module: nn.Module) -> Iterator[None]:
    """Round all weights inside `module` now, and not again as long as this holds: they must not change."""
    linears = [part for part in module.modules() if isinstance(part, RoundedLinear)]
    for linear in linears:
        linear._kept = round_weight(linear.weight.detach())
    try:
        yield
    finally:
        for linear in linears:
            linear._kept = None


class _StraightThrough(torch.autograd.Function):
    """The second argument; gradients are the first one's."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def round_weight(weight: Tensor) -> Tensor:
    """`weight` [out, in] as `quantize_matrix` rounds it to 4 bits."""
    outputs, inputs = weight.shape
    if inputs % GROUP:
        weight = functional.pad(weight, (0, -inputs % GROUP))
    grouped = weight.view(outputs, -1, GROUP)
    largest, least = grouped.amax(2, keepdim=True), grouped.amin(2, keepdim=True)
    scale = (torch.where(-least >= largest, least, largest) / LEAST_Q4).half().float()
    divisor = scale.masked_fill(scale == 0, torch.inf)
    q = (grouped / divisor).round_().clamp_(LEAST_Q4, -LEAST_Q4 - 1)
    return q.mul_(scale).view(outputs, -1)[:, :inputs]


def round_linears(module: nn.Module) -> None:
    """Replace every linear layer inside `module` by a RoundedLinear with the same parameters."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                linear = RoundedLinear(child.in_features, child.out_features, child.bias is not None)
                linear.load_state_dict(child.state_dict())
                setattr(parent, name, linear)
