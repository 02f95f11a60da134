"""Which panels of a draft's head are worth a look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashlet.serving.distill.shortlist import MISSED, fit_shortlist

PANELS, HIDDEN, TOPICS = 32, 24, 8


@pytest.fixture(scope="module")
def head() -> Tensor:
    """Outputs of a few topics, all mixed."""
    generator = torch.Generator().manual_seed(1)
    topics = 3 * torch.randn(TOPICS, HIDDEN, generator=generator)
    own = torch.randn(PANELS * 16, HIDDEN, generator=generator)
    return topics[torch.randint(TOPICS, (PANELS * 16,), generator=generator)] + own


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_likeliest_outputs_lie_in_few_panels_that_are_looked_at(head: Tensor, bits: int) -> None:
    found = fit_shortlist(rows(6000, 2), rows(4000, 3), head, bits)
    assert torch.equal(found.order.sort().values, torch.arange(len(head)))
    fresh = rows(4000, 4)
    scores = fresh @ found.weight.T + found.bias
    looked_at = scores > scores.amax(1, keepdim=True) - found.gap
    likeliest = (fresh @ head[found.order].T).argmax(1) // 16
    missed = 1 - looked_at.gather(1, likeliest[:, None]).float().mean()
    assert missed < 3 * MISSED
    share = looked_at.float().mean()
    assert share < 0.7
    assert share == pytest.approx(found.panels / PANELS, rel=0.1)
    alone = fit_shortlist(rows(6000, 2), rows(4000, 3), head[torch.randperm(len(head))], bits)
    assert alone.panels == pytest.approx(found.panels, rel=0.2)  # whatever the order was before


def test_the_same_seed_gives_the_same(head: Tensor) -> None:
    first, second = (fit_shortlist(rows(2000, 2), rows(1000, 3), head, 4) for _ in range(2))
    assert torch.equal(first.order, second.order)
    assert first.gap == second.gap
