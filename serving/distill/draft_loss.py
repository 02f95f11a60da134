"""What a draft is trained for: the target's distribution at every step of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.draft_module import DraftModule
from flashlet.model.rounded_linear import rounded_once
from flashlet.serving.distill.target import TargetParts
from flashlet.serving.distill.windows import Batch


class DraftLoss(nn.Module):
    """KL divergence from the target's distribution over the reduced vocabulary to the draft's.

    The draft's is what the server drafts by, with what the text says: its weights need not know that.
    A rollout takes the tokens that the target chose: later steps only matter where the earlier were right.
    """

    def __init__(self, draft: DraftModule, target: TargetParts, step_decay: float = 0.8) -> None:
        """`step_decay`: weight of each step relative to the one before."""
        super().__init__()
        self.draft, self._target, self._decay = draft, target, step_decay

    def forward(self, batch: Batch) -> Tensor:
        """Weighted mean over rows and steps, in nats."""
        with rounded_once(self.draft):
            return self._divergence(batch)

    def _divergence(self, batch: Batch) -> Tensor:
        target, num_steps = self._target.to(batch.rows.device), batch.weights.shape[-1]
        embeddings = target.embed(batch.tokens[:, 1:])
        outputs = self.draft.rollout(batch.features, embeddings, batch.starts, batch.rows, num_steps)
        with torch.no_grad():
            logged = target.reduced_logits(batch.features[:, :, -1]).float().log_softmax(-1)
            expected = logged.exp()
            entropy = -(expected * logged).sum(-1)
        step, window, selected = (batch.weights > 0).permute(2, 0, 1).nonzero(as_tuple=True)
        row = batch.rows[window, selected] + step
        # All steps at once: the head is most of the work.
        logits = self.draft.logits(torch.stack(outputs)[step, window, selected]).float()
        said = batch.reminder_ids[window, row + 2], batch.reminders[window, row + 2]
        losses = functional.cross_entropy(
            target.remind(logits, *said), expected[window, row + 1], reduction="none"
        )
        total = (self._decay**step * (losses - entropy[window, row + 1])).sum()
        scale = sum(self._decay**step for step in range(num_steps))
        mean: Tensor = total / (batch.weights[..., 0].sum().clamp(min=1) * scale)
        return mean
