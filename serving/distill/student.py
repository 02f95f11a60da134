"""A student that serves alone: some layers of the teacher, trained on the teacher's distribution."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flashlet.model.decoder_module import DecoderModule
from flashlet.model.errors import FlashletError
from flashlet.model.hf_export import write_hf_folder
from flashlet.model.parameters import parameter_shapes
from flashlet.model.weights import open_weights
from flashlet.serving.distill.corpus import Corpus
from flashlet.serving.distill.training import Trainer, TrainingOptions
from flashlet.serving.distill.windows import Batch, Window, batches, make_windows

WINDOW = 512  # rows
TOP_K = 64  # tokens of the teacher's distribution that are told apart
CHECKPOINT = "checkpoint.pt"
SAMPLE_WINDOWS = 8  # to choose layers on


@dataclass(frozen=True, slots=True)
class Quality:
    """A model on the held-out answers."""

    perplexity: float
    agreement: float  # share of positions where its most likely token is the teacher's
    divergence: float  # KL from the teacher, nats

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.2f}, agreement {self.agreement:.1%}, "
            f"divergence {self.divergence:.3f}"
        )


class Teacher:
    """The teacher's distribution from the final stream that the corpus holds: nothing is computed twice."""

    def __init__(self, model: DecoderModule) -> None:
        self._norm, self._head = model.model.norm.weight, model.head
        self._eps = model.config.rms_norm_eps

    @torch.no_grad()
    def logits(self, stream: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocabulary]."""
        normed = functional.rms_norm(stream, self._norm.shape, self._norm, self._eps)
        return functional.linear(normed, self._head)


class StudentLoss(nn.Module):
    """KL divergence from the teacher's top k tokens, and all others taken as one, to the student's."""

    def __init__(self, student: DecoderModule, teacher: Teacher) -> None:
        super().__init__()
        self.student, self._teacher = student, teacher

    def forward(self, batch: Batch) -> Tensor:
        """Mean over rows, in nats."""
        states, _ = self.student(batch.tokens[:, :-1])
        rows = _valid_rows(batch)
        expected = self._teacher.logits(batch.features[:, :, -1][rows]).log_softmax(-1)
        top = expected.topk(min(TOP_K, expected.shape[-1] - 1))
        found = self.student.logits(states[rows]).log_softmax(-1).gather(-1, top.indices)
        result: Tensor = functional.kl_div(
            _with_rest(found), _with_rest(top.values), log_target=True, reduction="batchmean"
        )
        return result


class StudentRun:
    """Makes a student, a Hugging Face folder, from the model at `model_path` and corpora of it."""

    def __init__(self, folder: Path, model_path: Path, corpora: Sequence[Corpus]) -> None:
        self._folder, self._path = folder, model_path
        self._source = open_weights(model_path)
        config = self._source.config
        if any(corpus.info.features[-1] != config.num_layers for corpus in corpora):
            raise FlashletError(f"expected corpora with the stream after layer {config.num_layers}")
        self._corpora = [corpus.with_features((config.num_layers,)) for corpus in corpora]
        self._full = DecoderModule.load(self._source, config, range(config.num_layers))
        self._teacher = Teacher(self._full)

    def run(
        self, num_layers: int, options: TrainingOptions, report: Callable[[str], None]
    ) -> dict[str, Quality]:
        """Prune to `num_layers`, train and write the folder; returns the quality before and after.

        Raises FlashletError unless 1 <= num_layers < the teacher's.
        """
        config = self._source.config
        if not 1 <= num_layers < config.num_layers:
            raise FlashletError(f"layers: expected 1 to {config.num_layers - 1}, got {num_layers}")
        held_out, windows = (make_windows(self._corpora, part, WINDOW) for part in (True, False))
        layers = choose_layers(self._full, windows, num_layers)
        report(f"keeping the layers {', '.join(map(str, layers))}")
        student = DecoderModule.load(self._source, replace(config, num_layers=num_layers), layers)
        result = {"teacher": measure(self._full, self._teacher, held_out)}
        result["pruned"] = measure(student, self._teacher, held_out)
        for name, quality in result.items():
            report(f"{name}: {quality}")
        student = self._train(student, windows, options, report)
        result["distilled"] = measure(student, self._teacher, held_out)
        report(f"distilled: {result['distilled']}")
        self._write(student)
        (self._folder / CHECKPOINT).unlink()
        return result

    def _train(
        self,
        student: DecoderModule,
        windows: Sequence[Window],
        options: TrainingOptions,
        report: Callable[[str], None],
    ) -> DecoderModule:
        def epoch(rng: random.Random, skip: int) -> Iterator[Batch]:
            return batches(windows, options.batch_rows, 1, rng, skip, remind=False)

        self._folder.mkdir(parents=True, exist_ok=True)
        loss = StudentLoss(student, self._teacher)
        trainer = Trainer(student, loss, epoch, options, self._folder / CHECKPOINT)
        if trainer.resume():
            report(f"going on after {trainer.rows_seen} rows")
        trainer.run(report, lambda: None)
        return cast("DecoderModule", trainer.average)

    def _write(self, student: DecoderModule) -> None:
        """The parameters by name; a tied head is the embedding, and is not written."""
        parameters = dict(student.named_parameters())
        names = parameter_shapes(student.config)
        tensors = {name: parameters[name].detach().cpu().numpy() for name in names}
        write_hf_folder(self._folder, student.config, tensors, self._path)


@torch.inference_mode()
def choose_layers(model: DecoderModule, windows: Sequence[Window], count: int) -> list[int]:
    """The `count` layers that turn the residual stream the most (block influence, Men et al. 2024).

    The first and the last layer are always kept if there is room.
    """
    layers = model.config.num_layers
    influence = np.zeros(layers)
    for batch in batches(windows[:SAMPLE_WINDOWS], WINDOW, 1, remind=False):
        _, streams = model(batch.tokens[:, :-1], range(layers + 1))
        rows = _valid_rows(batch)
        for index in range(layers):
            similarity = functional.cosine_similarity(streams[index][rows], streams[index + 1][rows], dim=-1)
            influence[index] += float((1 - similarity).sum())
    influence[[0, -1]] = np.inf
    return sorted(np.argsort(-influence, kind="stable")[:count].tolist())


@torch.inference_mode()
def measure(model: DecoderModule, teacher: Teacher, windows: Sequence[Window]) -> Quality:
    """Quality on the answers of `windows`; the teacher's own divergence is that of its int8 arithmetic."""
    surprise, agreed, divergence, count = 0.0, 0, 0.0, 0
    for batch in batches(windows, WINDOW, 1, remind=False):
        states, _ = model(batch.tokens[:, :-1])
        index = torch.arange(len(batch.rows))[:, None].expand_as(batch.rows)
        kept = batch.weights[..., 0] > 0
        index, rows = index[kept], batch.rows[kept] + 1
        logs = model.logits(states[index, rows]).log_softmax(-1)
        expected = teacher.logits(batch.features[index, rows, -1]).log_softmax(-1)
        surprise -= float(logs.gather(-1, batch.tokens[index, rows + 1][:, None]).sum())
        agreed += int((logs.argmax(-1) == expected.argmax(-1)).sum())
        divergence += float(functional.kl_div(logs, expected, log_target=True, reduction="sum"))
        count += len(rows)
    return Quality(float(np.exp(surprise / count)), agreed / count, divergence / count)


def _valid_rows(batch: Batch) -> Tensor:
    """bool [batch, length]: rows with features; a conversation's last row has none."""
    length = batch.tokens.shape[1] - 1
    ends = [min(window.length, window.conversation.length - 1 - window.start) for window in batch.windows]
    device = batch.tokens.device
    return torch.arange(length, device=device)[None] < torch.tensor(ends, device=device)[:, None]


def _with_rest(logs: Tensor) -> Tensor:
    """Log-probabilities [rows, k] with that of all other tokens appended."""
    rest = torch.log1p(-logs.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([logs, rest], dim=-1)
