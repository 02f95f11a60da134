"""A run that trains one draft: its folder, from the first weights to the exported file.

config.json     DraftConfig
vocab_ids.npy   int32, the target's ids of the draft's outputs
checkpoint.pt   weights, optimizer and counters: training goes on from here
best.pt         weights that were best on the held-out conversations
evaluation.json their acceptance
log.jsonl       what every evaluation said
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashlet.model.draft import SHORTLIST_UNIT, DraftConfig, load_draft, save_draft
from flashlet.model.draft_module import DraftModule
from flashlet.model.draft_tensors import draft_tensors
from flashlet.model.errors import FlashletError
from flashlet.model.quantize import PANEL
from flashlet.model.rounded_linear import round_weight, rounded_once
from flashlet.model.weights import open_weights
from flashlet.serving.distill.corpus import Corpus
from flashlet.serving.distill.draft_loss import DraftLoss
from flashlet.serving.distill.evaluation import Evaluation, StepCosts, evaluate
from flashlet.serving.distill.initial import frequent_tokens, initial_draft
from flashlet.serving.distill.shortlist import Shortlist, fit_shortlist
from flashlet.serving.distill.target import TargetParts
from flashlet.serving.distill.training import Trainer, TrainingOptions
from flashlet.serving.distill.windows import Batch, batches, make_windows

WINDOW = 512  # rows; longer conversations are cut
SHORTLIST_ROWS, SHORTLIST_STEPS = 60_000, 3  # drafted rows that a shortlist is fitted to, of rollouts so long


@dataclass(frozen=True, slots=True)
class DraftShape:
    """What may be chosen about a draft's architecture; the rest is the target's."""

    output_vocab_size: int = 8192
    features: tuple[int, ...] = ()  # some of the corpus's; empty: all
    num_layers: int = 1
    attention: bool = False
    window: int = 0
    bits: int = 4  # of a weight, 4 or 8


class DraftRun:
    """A run in `folder` for the model at `model_path`, on one or more corpora of it."""

    def __init__(self, folder: Path, model_path: Path, corpora: Sequence[Corpus]) -> None:
        """Raises FlashletError if the corpora are of different models or layers."""
        first = corpora[0].info
        for corpus in corpora:
            if (corpus.info.model, corpus.info.features) != (first.model, first.features):
                raise FlashletError("expected corpora of one model and the same layers, found several")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._source, self._corpora = folder, open_weights(model_path), corpora

    @property
    def exists(self) -> bool:
        """Whether the run was begun."""
        return (self.folder / "vocab_ids.npy").exists()

    def begin(self, shape: DraftShape, seed: int) -> float:
        """Choose vocabulary and shape and write the first weights; returns the share of tokens covered."""
        target, info = self._source.config, self._corpora[0].info
        vocab_ids, covered = frequent_tokens(self._corpora, shape.output_vocab_size, target.vocab_size)
        features = shape.features or info.features
        self._check_last(features)
        heads = shape.attention
        config = DraftConfig(
            hidden_size=target.hidden_size,
            vocab_size=target.vocab_size,
            target_layers=target.num_layers,
            features=features,
            output_vocab_size=len(vocab_ids),
            intermediate_size=target.intermediate_size,
            num_layers=shape.num_layers,
            attention=shape.attention,
            num_heads=target.num_heads * heads,
            num_kv_heads=target.num_kv_heads * heads,
            head_dim=target.head_dim * heads,
            window=shape.window,
            rms_norm_eps=target.rms_norm_eps,
            rope=target.rope,
            target_fingerprint=info.model,
            bits=shape.bits,
        )
        parts = TargetParts.load(self._source, vocab_ids)
        draft = initial_draft(config, parts, self._select(config), target.context_length, seed)
        self._write_beginning(draft, vocab_ids)
        return covered

    def begin_with(self, path: Path) -> None:
        """Begin with the draft in the file at `path`: its shape, its vocabulary and its weights.

        Raises what `load_draft` raises, FlashletError for features that the corpora do not have.
        """
        target = self._source.config
        config, arrays = load_draft(path, target)
        self._check_last(config.features)
        self._select(config)
        config = replace(config, target_fingerprint=self._corpora[0].info.model, shortlist_gap=0.0)
        draft = DraftModule(config, target.context_length)
        draft.load_tensors(draft_tensors(config, arrays))
        self._write_beginning(draft, arrays["vocab_ids"])

    def train(self, options: TrainingOptions, num_steps: int, report: Callable[[str], None]) -> None:
        """Train on rollouts of `num_steps`, and keep the weights with the best acceptance.

        Goes on from the checkpoint if there is one.
        """
        draft, target = self.load()
        corpora = self._select(draft.config)
        windows, held_out = make_windows(corpora, False, WINDOW), make_windows(corpora, True, WINDOW)
        before = evaluate(draft, target, held_out)  # anew: there may be other conversations since
        best = before.tokens
        report(f"before: {_line(before)}")

        def epoch(rng: random.Random, skip: int) -> Iterator[Batch]:
            return batches(windows, options.batch_rows, num_steps, rng, skip)

        loss = DraftLoss(draft, target)
        trainer = Trainer(draft, loss, epoch, options, self.folder / "checkpoint.pt", _rate_scale)
        if trainer.resume():
            report(f"going on after {trainer.rows_seen} rows")
        else:
            self._write_evaluation(before, trainer)

        def check() -> None:
            nonlocal best
            averaged = cast("DraftModule", trainer.average)
            result = evaluate(averaged, target, held_out)
            report(_line(result))
            with (self.folder / "log.jsonl").open("ab") as stream:
                line = {"rows": trainer.rows_seen, "seconds": round(trainer.seconds), **_everything(result)}
                stream.write(msgspec.json.encode(line) + b"\n")
            if result.tokens > best:
                best = result.tokens
                torch.save(averaged.state_dict(), self.folder / "best.pt")
                self._write_evaluation(result, trainer)

        trainer.run(report, check)

    def load(self) -> tuple[DraftModule, TargetParts]:
        """The best weights so far, and what evaluates them."""
        config = DraftConfig.from_json((self.folder / "config.json").read_text())
        target = TargetParts.load(self._source, np.load(self.folder / "vocab_ids.npy"))
        draft = DraftModule(config, self._source.config.context_length)
        draft.load_state_dict(torch.load(self.folder / "best.pt"))
        return draft, target

    def evaluate(self, num_steps: int = 4) -> Evaluation:
        """The best weights on the held-out conversations."""
        draft, target = self.load()
        return evaluate(draft, target, make_windows(self._select(draft.config), True, WINDOW), num_steps)

    def export(self, path: Path, card: dict[str, Any]) -> str:
        """Write the best weights as a draft file; `card` is added to what the run knows of itself.

        The file gets a shortlist where its vocabulary allows; returns what is to be said about that.
        """
        draft, target = self.load()
        config, tensors = draft.config, {**draft.tensors(), "vocab_ids": target.vocab_ids}
        known = self.folder / "evaluation.json"
        measured = msgspec.json.decode(known.read_bytes()) if known.exists() else {}
        measured["corpus_tokens"] = sum(corpus.num_tokens for corpus in self._corpora)
        said = f"no shortlist: its vocabulary is no multiple of {SHORTLIST_UNIT}"
        if config.output_vocab_size % SHORTLIST_UNIT == 0:
            found = self._shortlist(draft, target)
            order = found.order.numpy()
            config = replace(config, shortlist_gap=found.gap)
            tensors |= {"head": tensors["head"][order], "vocab_ids": target.vocab_ids[order]}
            tensors |= {"shortlist": found.weight.numpy(), "shortlist_bias": found.bias.numpy()}
            measured["shortlist_panels"] = round(found.panels, 1)
            said = (
                f"looks at {found.panels:.0f} of {config.output_vocab_size // PANEL} panels of its vocabulary"
            )
        save_draft(path, config, tensors, {**measured, **card})
        return said

    @torch.inference_mode()
    def _shortlist(self, draft: DraftModule, target: TargetParts) -> Shortlist:
        def rows_of(held_out: bool) -> Tensor:
            windows, rng = make_windows(self._select(draft.config), held_out, WINDOW), random.Random(0)
            rows: list[Tensor] = []
            for batch in batches(windows, 4096, SHORTLIST_STEPS, rng, remind=False):
                embeddings = target.embed(batch.tokens[:, 1:])
                outputs = draft.rollout(batch.features, embeddings, batch.starts, batch.rows, SHORTLIST_STEPS)
                normed = draft.out_norm(torch.stack(outputs, dim=2))
                rows.append(normed[batch.weights > 0])
                if sum(map(len, rows)) >= SHORTLIST_ROWS:
                    break
            if not rows and not held_out:
                raise FlashletError("expected answers of the corpora to fit the shortlist to, found none")
            return torch.cat(rows) if rows else rows_of(held_out=False)  # a small corpus holds out nothing

        draft.eval()
        with rounded_once(draft):
            bits, head = draft.config.bits, draft.head.weight
            return fit_shortlist(
                rows_of(held_out=False),
                rows_of(held_out=True),
                round_weight(head) if bits == 4 else head,
                bits,
            )

    def _check_last(self, features: Sequence[int]) -> None:
        """Training takes the target's distribution from there."""
        if features[-1] != self._source.config.num_layers:
            raise FlashletError(
                f"features: expected the last one to be {self._source.config.num_layers}, the target's final "
                f"stream, got {features[-1]}"
            )

    def _write_beginning(self, draft: DraftModule, vocab_ids: NDArray[np.int32]) -> None:
        torch.save(draft.state_dict(), self.folder / "best.pt")
        (self.folder / "config.json").write_text(draft.config.to_json())
        np.save(self.folder / "vocab_ids.npy", vocab_ids)

    def _select(self, config: DraftConfig) -> list[Corpus]:
        return [corpus.with_features(config.features) for corpus in self._corpora]

    def _write_evaluation(self, result: Evaluation, trainer: Trainer) -> None:
        counters = {
            "accepted": result.tokens,
            "rows": trainer.rows_seen,
            "seconds": trainer.seconds,
            "batches": trainer.batches_seen,
            "options": asdict(trainer.options),
        }
        (self.folder / "evaluation.json").write_bytes(msgspec.json.encode(counters | _everything(result)))


def _rate_scale(name: str) -> float:
    """What was fitted in closed form is wide and already good: it learns more slowly than the layers."""
    if ".head." in name:
        return 0.1
    return 0.25 if ".fuse." in name or ".input." in name else 1.0


def _everything(result: Evaluation) -> dict[str, Any]:
    return dict(result.as_dict(StepCosts()))


def _line(result: Evaluation) -> str:
    parts = []
    for name, item in (("greedy", result.greedy["all"]), ("sampled", result.sampled["all"])):
        shares = " ".join(f"{share:.3f}" for share in item.conditional)
        parts.append(f"{name} acceptance {shares} ({item.tokens:.2f} tokens)")
    return ", ".join(parts)
