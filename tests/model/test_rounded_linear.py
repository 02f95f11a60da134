"""Training with 4-bit weights: they are those of the file, and their gradients those of the exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from flashlet.model.quantize import dequantize, quantize_matrix
from flashlet.model.rounded_linear import RoundedLinear, round_linears, round_weight, rounded_once


@pytest.mark.parametrize("shape", [(3, 31), (33, 64), (17, 100)])
def test_weights_are_those_of_the_file(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[0, :5] = 0.0
    weight[1] = 0.0
    weight[2] = torch.tensor([-1.0, 1.0, 0.5]).repeat(34)[: shape[1]]  # two extremes of one magnitude
    expected = dequantize(quantize_matrix(weight.numpy(), 4))
    np.testing.assert_array_equal(round_weight(weight).numpy(), expected)


def test_gradients_pass_through_the_rounding() -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(64, 8), nn.Sequential(nn.Linear(8, 8, bias=False)))
    names, first = list(module.state_dict()), module[0].weight
    values = first.detach().clone()
    round_linears(module)
    assert list(module.state_dict()) == names
    assert isinstance(module[0], RoundedLinear) and isinstance(module[1][0], RoundedLinear)
    linear, x = module[0], torch.randn(5, 64)
    torch.testing.assert_close(linear.weight, values, rtol=0, atol=0)
    torch.testing.assert_close(linear(x), x @ round_weight(values).T + linear.bias)
    linear(x).sum().backward()
    torch.testing.assert_close(linear.weight.grad, x.sum(0).expand(8, 64))


def test_changed_weights_are_rounded_anew() -> None:
    linear, x = RoundedLinear(32, 4), torch.randn(2, 32)
    with rounded_once(linear):
        first = linear(x)
        with torch.no_grad():
            torch._foreach_mul_(
                [linear.weight], -3.0
            )  # as optimizers do, which versions of tensors do not tell
        assert torch.equal(linear(x), first)
    with rounded_once(linear):
        assert not torch.equal(linear(x), first)
    torch.testing.assert_close(linear(x), x @ round_weight(linear.weight.detach()).T + linear.bias)
