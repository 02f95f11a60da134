"""Linear layers that train with the weights that a file of 4 bits will hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.quantize import GROUP, LEAST_Q4


class RoundedLinear(nn.Linear):
    """Computes with its weights rounded to 4 bits; gradients pass as if they were not.

    Source: Bengio et al., "Estimating or propagating gradients through stochastic neurons" (2013).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        exact = self.weight.detach()
        return functional.linear(x, self.weight + (round_weight(exact) - exact), self.bias)


def round_weight(weight: Tensor) -> Tensor:
    """`weight` [out, in] as `quantize_matrix` rounds it to 4 bits."""
    outputs, inputs = weight.shape
    grouped = functional.pad(weight, (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    largest, least = grouped.amax(2, keepdim=True), grouped.amin(2, keepdim=True)
    scale = (torch.where(-least >= largest, least, largest) / LEAST_Q4).half().float()
    divisor = scale.masked_fill(scale == 0, torch.inf)
    q = (grouped / divisor).round_().clamp_(LEAST_Q4, -LEAST_Q4 - 1)
    return (q * scale).view(outputs, -1)[:, :inputs]


def round_linears(module: nn.Module) -> None:
    """Replace every linear layer inside `module` by a RoundedLinear with the same parameters."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                linear = RoundedLinear(child.in_features, child.out_features, child.bias is not None)
                linear.load_state_dict(child.state_dict())
                setattr(parent, name, linear)
