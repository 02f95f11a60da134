"""How often a draft is right: acceptance by position and kind of conversation, and what that is worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashlet.model.draft_module import DraftModule
from flashlet.model.draft_transformer import SHARPER
from flashlet.model.rounded_linear import rounded_once
from flashlet.serving.distill.target import TargetParts
from flashlet.serving.distill.windows import Batch, Window, batches

BATCH_ROWS = 2048


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Milliseconds of one step: the target over m rows, and the draft for each token."""

    target: float = 4.2
    further_row: float = 0.1
    draft: float = 0.05

    def speedup(self, acceptance: Sequence[float]) -> tuple[float, int]:
        """Best expected speed over that without a draft, and how many tokens to draft for it."""
        best, kept, tokens = (1.0, 0), 1.0, 1.0
        for count, share in enumerate(acceptance, 1):
            kept *= share
            tokens += kept
            cost = self.target + count * (self.further_row + self.draft)
            best = max(best, (tokens * self.target / cost, count))
        return best


@dataclass(slots=True)
class Acceptance:
    """Drafts tried at each position after all before were accepted, and those that were right."""

    tried: NDArray[np.int64]  # [steps]
    right: NDArray[np.int64]  # [steps]

    @property
    def conditional(self) -> list[float]:
        """Share accepted at each position, given that the positions before were."""
        shares: list[float] = (self.right / np.maximum(self.tried, 1)).tolist()
        return shares

    @property
    def tokens(self) -> float:
        """Mean number of accepted tokens when all positions are drafted."""
        return float(self.right.sum() / max(int(self.tried[0]), 1))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Acceptance on held-out conversations, greedy and sampled apart."""

    greedy: dict[str, Acceptance]  # by kind, and "all"
    sampled: dict[str, Acceptance]

    @property
    def tokens(self) -> float:
        """Mean number of accepted tokens, greedy and sampled answers counting alike."""
        return (self.greedy["all"].tokens + self.sampled["all"].tokens) / 2

    def as_dict(self, costs: StepCosts) -> dict[str, dict[str, dict[str, object]]]:
        """For reports and cards."""
        return {
            name: {kind: _summary(item, costs) for kind, item in sorted(part.items())}
            for name, part in (("greedy", self.greedy), ("sampled", self.sampled))
        }


@torch.inference_mode()
def evaluate(
    draft: DraftModule, target: TargetParts, windows: Sequence[Window], num_steps: int = 4, seed: int = 0
) -> Evaluation:
    """Acceptance about as the server would see it, drafting `num_steps` tokens each time.

    Sampled conversations are judged under the noise that made the target choose so, drawn from its
    posterior (Maddison et al. 2014, "A* Sampling", section 3), since the draft samples with the same noise.
    """
    device = target.embedding.device
    generator = torch.Generator(device).manual_seed(seed)
    result = Evaluation(defaultdict(lambda: _nothing(num_steps)), defaultdict(lambda: _nothing(num_steps)))
    draft.eval()
    for sampled in (False, True):
        part = [item for item in windows if (item.conversation.temperature > 0) == sampled]
        for batch in batches(part, BATCH_ROWS, num_steps):
            moved = batch.to(device)
            with rounded_once(draft):
                right = _right(draft, target, moved, generator)
            _count(result.sampled if sampled else result.greedy, moved, right)
    draft.train()
    return result


def _right(draft: DraftModule, target: TargetParts, batch: Batch, generator: torch.Generator) -> Tensor:
    """bool [batch, selected, steps]: whether each drafted token is the one that the target chose."""
    num_steps = batch.weights.shape[-1]
    embeddings = target.embed(batch.tokens[:, 1:])
    outputs = draft.rollout(batch.features, embeddings, batch.starts, batch.rows, num_steps)
    temperature = torch.tensor(
        [window.conversation.temperature for window in batch.windows], device=batch.rows.device
    )[:, None, None]
    sampled = bool((temperature > 0).any())
    expected = target.reduced_logits(batch.features[:, :, -1]) if sampled else None
    index = torch.arange(len(batch.rows), device=batch.rows.device)[:, None]
    last = batch.tokens.shape[1] - 1
    right = []
    for step, output in enumerate(outputs):
        predicted = (batch.rows + step + 2).clamp(max=last)
        said = batch.reminder_ids[index, predicted], batch.reminders[index, predicted]
        logits = target.remind(draft.logits(output), *said)
        wanted = target.places[batch.tokens[index, predicted]]
        if expected is not None:
            own = expected[index, (batch.rows + step + 1).clamp(max=last - 1)] / temperature
            noise = _posterior_noise(own, wanted.clamp(min=0), generator)
            logits = logits / (temperature * float(SHARPER)) + noise
        right.append(logits.argmax(-1) == wanted)
    return torch.stack(right, dim=-1)


def _posterior_noise(logits: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise [..., n] under which argmax(logits + noise) is `chosen` [...]."""

    def gumbel(shape: torch.Size) -> Tensor:
        draws = torch.empty(shape, device=logits.device).exponential_(generator=generator)
        return -draws.clamp(min=1e-20).log()

    top = logits.logsumexp(-1, keepdim=True) + gumbel(chosen[..., None].shape)
    below = -torch.logaddexp(-top, -(logits + gumbel(logits.shape)))
    return below.scatter(-1, chosen[..., None], top) - logits


def _count(into: dict[str, Acceptance], batch: Batch, right: Tensor) -> None:
    """Walk through each answer as the server does: what is accepted is not drafted again.

    Where a draft was wrong the text is hard to foresee, and the next one starts just there: acceptance
    over all rows would be too high.
    """
    valid, correct = (batch.weights > 0).cpu().numpy(), right.cpu().numpy()
    for index, window in enumerate(batch.windows):
        rows = batch.rows[index].tolist()
        for answer in window.conversation.answers:
            first, end = answer.start - window.start - 1, answer.end - window.start
            place = {row: k for k, row in enumerate(rows) if first <= row < end and valid[index, k, 0]}
            row = min(place, default=0)
            while row in place:
                known = valid[index, place[row]]
                accepted = np.logical_and.accumulate(correct[index, place[row]] & known)
                tried = known & np.concatenate([[True], accepted[:-1]])
                for kind in (answer.kind, "all"):
                    into[kind].tried += tried
                    into[kind].right += accepted
                row += int(accepted.sum()) + 1


def _nothing(num_steps: int) -> Acceptance:
    return Acceptance(np.zeros(num_steps, np.int64), np.zeros(num_steps, np.int64))


def _summary(item: Acceptance, costs: StepCosts) -> dict[str, object]:
    speedup, count = costs.speedup(item.conditional)
    return {
        "rows": int(item.tried[0]),
        "acceptance": [round(share, 3) for share in item.conditional],
        "speedup": round(speedup, 2),
        "draft_tokens": count,
    }
