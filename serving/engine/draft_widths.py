"""How many proposals are worth verifying."""

from __future__ import annotations

from collections.abc import Callable, Sequence

WORTHWHILE = 1.04  # times the speed without proposals


def best_widths(
    curves: Sequence[Sequence[float]], base_tokens: int, cost_ms: Callable[[int], float], limit: int
) -> list[int]:
    """Proposals per sequence that give the most expected tokens per millisecond of the whole step.

    `curves[i][j]` is the probability that the first j + 1 proposals of sequence i are right, so it falls
    with j; the step yields `base_tokens` without any. `cost_ms(n)` is what the step costs with n proposals
    in all, of which `limit` are allowed. None are worth it that promise less than WORTHWHILE more: chances
    and costs are estimates, and the best of many is the one most overrated.
    """
    # The likeliest first: of each curve that takes a leading part. All counts are tried, because the
    # cost of rows has stairs that a greedy search would not climb.
    ranked = sorted(((alive, index) for index, curve in enumerate(curves) for alive in curve), reverse=True)
    best, best_rate = 0, WORTHWHILE * base_tokens / cost_ms(0)
    tokens = float(base_tokens)
    for count, (alive, _) in enumerate(ranked[:limit], 1):
        tokens += alive
        if (rate := tokens / cost_ms(count)) > best_rate:
            best, best_rate = count, rate
    widths = [0] * len(curves)
    for _, index in ranked[:best]:
        widths[index] += 1
    return widths
