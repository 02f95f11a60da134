"""Training that can stop and go on: one model, one loss, epochs of batches."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flashlet.serving.distill.windows import Batch

REPORT_SECONDS = 15.0
AVERAGED_BATCHES = 400  # most that count in the moving average of the weights; a tenth of them at first
LAST_RATE = 0.1  # of the learning rate, when the budget is used up

EpochOfBatches = Callable[[random.Random, int], Iterator[Batch]]  # shuffled by it, and how many to leave out


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How to train. The learning rate falls until `num_rows` or `seconds` are used up."""

    num_rows: int = 10_000_000  # rows of windows seen, padding and repetitions included
    seconds: float = math.inf
    batch_rows: int = 256
    learning_rate: float = 5e-4
    warmup_batches: int = 200
    weight_decay: float = 0.01
    seed: int = 0
    checkpoint_seconds: float = 600.0
    bf16: bool = False  # products in bfloat16; weights, sums of losses and the optimizer stay binary32


class Trainer:
    """Minimizes `loss(batch)` with AdamW over the parameters of `loss` that want gradients."""

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        epoch: EpochOfBatches,
        options: TrainingOptions,
        checkpoint: Path,
        rate_scale: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        """`model`: what checkpoints hold; it is part of `loss`, whose parameters `rate_scale` knows."""
        self.model, self.options = model, options
        self._epoch_of_batches, self._path = epoch, checkpoint
        self._accelerator = Accelerator()
        groups = [
            {
                "params": [parameter],
                "scale": rate_scale(name),
                "weight_decay": options.weight_decay if parameter.dim() > 1 else 0.0,
            }
            for name, parameter in loss.named_parameters()
            if parameter.requires_grad
        ]
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)
        # Steady weights at any time, while the learning rate is still high.
        self._average = AveragedModel(model, multi_avg_fn=_moving_average)
        self._loss, self._optimizer = self._accelerator.prepare(loss, optimizer)
        self.rows_seen, self.seconds, self.batches_seen = 0, 0.0, 0
        self._epoch, self._batches_in_epoch = 0, 0

    @property
    def average(self) -> nn.Module:
        """The model with averaged weights."""
        module: nn.Module = self._average.module
        return module

    @property
    def progress(self) -> float:
        """How much of the budget is used, 0 .. 1."""
        return min(1.0, max(self.rows_seen / self.options.num_rows, self.seconds / self.options.seconds))

    def run(self, report: Callable[[str], None], on_checkpoint: Callable[[], None]) -> None:
        """Train until the budget is used up, with a checkpoint now and then and at the end."""
        before, reported, saved = time.monotonic(), self.seconds, self.seconds
        losses: list[float] = []
        while self.progress < 1:
            for batch in self._epoch_of_batches(self._rng(), self._batches_in_epoch):
                losses.append(self._train(batch))
                now = time.monotonic()
                self.seconds += now - before
                before = now
                done = self.progress >= 1
                if done or self.seconds - reported > REPORT_SECONDS:
                    report(self._line(losses))
                    reported, losses = self.seconds, []
                if done or self.seconds - saved > self.options.checkpoint_seconds:
                    self.save()
                    on_checkpoint()
                    before, saved = time.monotonic(), self.seconds  # evaluations are not counted
                if done:
                    return
            self._epoch, self._batches_in_epoch = self._epoch + 1, 0

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "counters": [
                self.rows_seen,
                self.seconds,
                self.batches_seen,
                self._epoch,
                self._batches_in_epoch,
            ],
        }
        partial = self._path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self._path)

    def resume(self) -> bool:
        """Go on from the checkpoint; False if there is none."""
        if not self._path.exists():
            return False
        state = torch.load(self._path, map_location=self._accelerator.device)
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.rows_seen, self.seconds, self.batches_seen, self._epoch, self._batches_in_epoch = state[
            "counters"
        ]
        return True

    def _rng(self) -> random.Random:
        return random.Random(f"{self.options.seed}/{self._epoch}")

    def _train(self, batch: Batch) -> float:
        warmup = min(1.0, (self.batches_seen + 1) / self.options.warmup_batches)
        cosine = (1 + LAST_RATE + (1 - LAST_RATE) * math.cos(math.pi * self.progress)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = self.options.learning_rate * group["scale"] * warmup * cosine
        device = self._accelerator.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.bf16):
            loss = self._loss(batch.to(device))
        self._accelerator.backward(loss)
        self._accelerator.clip_grad_norm_(self._loss.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.update_parameters(self.model)
        self.rows_seen += int(batch.tokens[:, 1:].numel())
        self.batches_seen += 1
        self._batches_in_epoch += 1
        return float(loss.detach())

    def _line(self, losses: list[float]) -> str:
        mean, rate = sum(losses) / len(losses), self.rows_seen / self.seconds
        return (
            f"{self.rows_seen} rows, epoch {self._epoch}, {self.seconds:.0f} s, {rate:.0f} rows/s, "
            f"divergence {mean:.3f}"
        )


def _moving_average(average: Any, latest: Any, count: Tensor | int) -> None:
    """Both lists of tensors."""
    torch._foreach_lerp_(average, latest, 1 / min(AVERAGED_BATCHES, 1 + int(count) / 10))
