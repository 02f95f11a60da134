"""The draft to begin with: fitted in closed form, so that it starts far from random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flashlet.model.draft import DraftConfig
from flashlet.model.draft_module import DraftModule
from flashlet.serving.distill.corpus import Corpus
from flashlet.serving.distill.target import TargetParts

FIT_ROWS = 60_000  # enough for a few thousand inputs
FIT_STEPS = 3
PRIOR, PRIOR_OFFSET = 0.015, 500
SCALE_ROWS = 2000
SCALES = tuple(step / 20 for step in range(2, 25))
RIDGE = 0.01  # relative to the mean square of an input


def frequent_tokens(
    corpora: Sequence[Corpus], count: int, vocab_size: int
) -> tuple[NDArray[np.int32], float]:
    """The tokens to expect most in answers, ascending, and the share of the held-out answers they cover.

    Counted in the training conversations. A prior helps where the corpus is small: BPE numbers its tokens
    in the order of their merges, so low ids are frequent, about as Zipf's law has it.
    """
    counts, held_out = np.zeros(vocab_size), np.zeros(vocab_size)
    for corpus in corpora:
        for item in corpus.conversations:
            tokens = corpus.tokens(item)
            if not item.held_out:
                np.add.at(counts, tokens, 1)
                continue
            for answer in item.answers:
                np.add.at(held_out, tokens[answer.start : answer.end], 1)
    counts += PRIOR * counts.sum() / (np.arange(vocab_size) + PRIOR_OFFSET)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:count]).astype(np.int32)
    return chosen, float(held_out[chosen].sum() / max(held_out.sum(), 1))


def initial_draft(
    config: DraftConfig, target: TargetParts, corpora: Sequence[Corpus], context_length: int, seed: int
) -> DraftModule:
    """A draft that already predicts linearly, with the target's head.

    State and output are the target's final state, scaled to a root mean square of 1. The input matrices are
    the least-squares map from the features of a row and its next token's embedding to the next row's state;
    the layers are random and add nothing yet. (The target's own last layers were worse: the size of what
    they compute inside does not suit an optimizer.)
    """
    torch.manual_seed(seed)
    draft = DraftModule(config, context_length)
    hidden = config.hidden_size
    with torch.no_grad():
        for name, parameter in draft.layers.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif parameter.dim() > 1:
                parameter.normal_(std=hidden**-0.5)
        draft.fuse.weight.zero_()
        draft.fuse.weight[:, -hidden:] = torch.eye(hidden)
        draft.head.weight.copy_(target.head)
        _fit_inputs(draft, target, corpora)
    return draft


def _fit_inputs(draft: DraftModule, target: TargetParts, corpora: Sequence[Corpus]) -> None:
    """Set the map of the lower features, then the input matrix, by regression on a sample.

    The input matrix is fitted again with the rows that it drafts itself, once for each further step.
    """
    features, embeddings, following = _sample(draft, target, corpora)
    hidden = draft.config.hidden_size
    # Balanced inputs: some dimensions of the stream are a hundred times larger than others.
    size = (features[:, -1] * target.final_norm).square().mean().sqrt()
    scales = [1 / part.square().mean(0).sqrt().clamp(min=1e-3) for part in features.unbind(1)]
    scales[-1] = target.final_norm / size
    for norm, scale in zip(draft.feature_norms.parameters(), scales, strict=True):
        norm.copy_(scale)
    features, following = features * torch.stack(scales), [part * scales[-1] for part in following]
    draft.out_norm.weight.fill_(size)
    lower, state = features[:, :-1].flatten(1), features[:, -1]
    if lower.shape[1]:
        both = _regress([torch.cat([lower, state, embeddings[0]], dim=1)], [following[0] - state])
        draft.fuse.weight[:, :-hidden] = both[:, : lower.shape[1]]
        state = state + lower @ both[:, : lower.shape[1]].T
    states, inputs = [state], []
    for step in range(FIT_STEPS):
        inputs.append(torch.cat([functional.rms_norm(states[-1], (hidden,)), embeddings[step]], dim=1))
        changes = [wanted - state for wanted, state in zip(following[: step + 1], states, strict=True)]
        weight = _regress(inputs, changes)
        states.append(states[-1] + inputs[-1] @ weight.T)
    draft.input.weight.copy_(weight)
    _fit_scale(draft, target, torch.cat(states[1:]), torch.cat(following))


def _fit_scale(draft: DraftModule, target: TargetParts, outputs: Tensor, following: Tensor) -> None:
    """Scale the output norm so that the draft is as sure as it may be: the least divergence on a sample."""
    chosen = torch.randint(len(outputs), (SCALE_ROWS,))
    expected = functional.linear(draft.out_norm(following[chosen]), target.head).softmax(-1)
    logits = draft.logits(outputs[chosen])
    losses = {scale: functional.cross_entropy(scale * logits, expected).item() for scale in SCALES}
    draft.out_norm.weight.mul_(min(losses, key=losses.__getitem__))


def _sample(
    draft: DraftModule, target: TargetParts, corpora: Sequence[Corpus]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Normed features of rows, [rows, features, hidden], and for each step what it sees and should predict.

    That is the normed embedding of the next token and the normed final stream of the next row, both
    [rows, hidden].
    """
    hidden, num_rows = (draft.config.hidden_size,), 0
    features: list[Tensor] = []
    embeddings: list[list[Tensor]] = [[] for _ in range(FIT_STEPS)]
    following: list[list[Tensor]] = [[] for _ in range(FIT_STEPS)]
    for corpus, item in ((part, item) for part in corpora for item in part.conversations):
        count = item.length - 1 - FIT_STEPS  # the last row has no features
        if item.held_out or count < 1 or num_rows > FIT_ROWS:
            continue
        rows = torch.from_numpy(corpus.features(item)[:-1].astype(np.float32))
        normed = functional.rms_norm(rows, hidden)
        entering = functional.rms_norm(
            target.embed(torch.from_numpy(corpus.tokens(item).astype(np.int64))), hidden
        )
        features.append(normed[:count])
        for step in range(FIT_STEPS):
            embeddings[step].append(entering[step + 1 : step + 1 + count])
            following[step].append(normed[step + 1 : step + 1 + count, -1])
        num_rows += count
    return (
        torch.cat(features),
        [torch.cat(part) for part in embeddings],
        [torch.cat(part) for part in following],
    )


def _regress(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Ridge regression over all pairs of row blocks: weights [out, in]."""
    gram = torch.stack([part.T @ part for part in inputs]).sum(0)
    moment = torch.stack([left.T @ right for left, right in zip(inputs, outputs, strict=True)]).sum(0)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weight: Tensor = torch.linalg.solve(gram, moment)
    return weight.T
