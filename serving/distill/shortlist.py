"""The shortlist of a draft: which panels of its head a drafted token need look at.

A hierarchical softmax (Goodman, "Classes for fast maximum entropy training", 2001) scores classes of words
first. Here a class is a panel, 16 outputs that a product multiplies together: outputs that are likely at the
same places share one, and a small matrix foretells the largest logit of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashlet.model.quantize import PANEL
from flashlet.model.rounded_linear import round_weight

ROUNDS = 12  # of clustering
DAMPING = 10.0  # of the least squares, in rows
MISSED = 0.003  # share of rows whose likeliest token may lie in a panel that is not looked at


@dataclass(frozen=True, slots=True)
class Shortlist:
    """How to arrange a head, and what tells which of its panels matter."""

    order: Tensor  # int64 [outputs]: the output that comes first, second, ...
    weight: Tensor  # [panels, hidden]
    bias: Tensor  # [panels]
    gap: float  # scores so far below the best are not looked at
    panels: float  # that are looked at, in the mean


def fit_shortlist(fitted: Tensor, chosen: Tensor, head: Tensor, bits: int, seed: int = 0) -> Shortlist:
    """The shortlist of `head` [outputs, hidden] for normed states like those of `fitted` [rows, hidden].

    Its weights have so many `bits`. Other rows, `chosen`, choose the gap.
    """
    moments = fitted.T @ fitted / len(fitted)
    values, vectors = torch.linalg.eigh(moments)
    # In this metric the distance of two outputs is by how much their logits differ, over all rows.
    seen = head @ (vectors * values.clamp(min=0).sqrt())
    order = torch.argsort(_panels_of_alike(seen, seed), stable=True)
    head = head[order]
    inputs = _with_one(fitted)
    best = torch.cat([_panel_max(part, head) for part in torch.split(fitted, 4096)])
    gram = inputs.T @ inputs + DAMPING * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram, inputs.T @ best)
    weight, bias = solution[:-1].T.contiguous(), solution[-1].contiguous()
    if bits == 4:
        weight = round_weight(weight)
    behind, scores = [], []
    for part in torch.split(chosen, 4096):
        score = part @ weight.T + bias
        likeliest = _panel_max(part, head).argmax(1, keepdim=True)
        score = score.amax(1, keepdim=True) - score
        behind.append(score.gather(1, likeliest)[:, 0])
        scores.append(score)
    gap = float(torch.cat(behind).quantile(1 - MISSED)) + 1e-3
    mean = float((torch.cat(scores) < gap).sum(1).float().mean())
    return Shortlist(order, weight, bias, gap, mean)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def _panel_max(x: Tensor, head: Tensor) -> Tensor:
    """Largest logit of each panel, [rows, panels]."""
    return (x @ head.T).view(len(x), -1, PANEL).amax(2)


def _panels_of_alike(points: Tensor, seed: int) -> Tensor:
    """int64 [outputs], the panel of each: k-means with as many points in every cluster."""
    panels = len(points) // PANEL
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(len(points), generator=generator)[:panels]]
    for _ in range(ROUNDS):
        nearest = _fill(torch.cdist(points, centres).numpy())
        centres = torch.zeros_like(centres).index_add_(0, nearest, points) / PANEL
    return nearest


def _fill(distances: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Tensor:
    """Those who have the nearest centre choose first, the others take what is left."""
    preferences = np.argsort(distances, axis=1)
    left, chosen = np.full(distances.shape[1], PANEL), np.empty(len(distances), np.int64)
    for point in np.argsort(distances.min(axis=1)):
        chosen[point] = next(panel for panel in preferences[point] if left[panel])
        left[chosen[point]] -= 1
    return torch.from_numpy(chosen)
