"""Reference sampler: numpy definition of what `SamplingParams` means.

Logits go through penalties, bias and masks, then temperature and the three filters; the token is
argmax(logit / T + Gumbel noise), which draws from the softmax of what is left (the Gumbel-max trick).
The noise is a function of (seed, position, token id) alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashlet.model.sampling import NoTokenError, SampleRequest, SamplingParams, TokenLogprobs

_PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = np.uint64(0xFFFFFFFF)
_GREEDY_BELOW = 1e-5  # temperatures that would overflow binary32
_FEW_TOKENS = 256  # up to which a confidence looks at each
_LEAD_WEIGHT = 0.5


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Random words [..., 4] of Philox-4x32-10 for counters [..., 4] (Salmon et al. 2011)."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    for r in range(10):
        k0, k1 = (np.uint64((k + r * weyl) & 0xFFFFFFFF) for k, weyl in zip(key, _PHILOX_WEYL, strict=True))
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> np.uint64(32)) ^ c3 ^ k1,
            product0 & _WORD,
        )
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def gumbel_noise(seed: int, position: int, vocab_size: int) -> NDArray[np.float32]:
    """Standard Gumbel noise [vocab_size] of one position, computed in binary64 and rounded."""
    counter = np.zeros((-(-vocab_size // 4), 4), np.uint32)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 1] = position & 0xFFFFFFFF
    counter[:, 2] = position >> 32
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:vocab_size]
    uniform = ((words >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise.astype(np.float32)


def sample(logits: NDArray[np.float32], request: SampleRequest) -> int:
    """Choose the next token from float32 logits [vocab].

    Raises NoTokenError for logits that are NaN or infinite, or if masks leave no token.
    """
    scores = _mask(_penalize(_checked(logits), request), request)
    if not (scores > -np.inf).any():
        raise NoTokenError("masked and suppressed tokens leave nothing to sample")
    if request.params.temperature < _GREEDY_BELOW:
        return int(np.argmax(scores))
    kept, drawn = _draw(scores, request)
    return int(kept[np.argmax(drawn)])


def confidence(logits: NDArray[np.float32], request: SampleRequest, token_id: int) -> float:
    """How sure a draft with these logits is that the target's `sample` gives `token_id`, as it would itself.

    Its probability where nothing is drawn, or from very many tokens. Else, as the target draws with the same
    noise, the lead over the others counts: 1 / sum(exp((z - max z) / 2)) over values z with their noise.
    """
    temperature = request.params.temperature
    if temperature >= _GREEDY_BELOW:
        _, drawn = _draw(logits, request)
        if len(drawn) <= _FEW_TOKENS:
            return float(1 / np.exp((drawn - drawn.max()).astype(np.float64) * _LEAD_WEIGHT).sum())
    values = logits.astype(np.float64) / (1.0 if temperature < _GREEDY_BELOW else temperature)
    weights = np.exp(values - values.max())
    return float(weights[token_id] / weights.sum())


def token_logprobs(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    """Log-softmax in binary64 of raw logits [vocab] at `token_id`, and the `num_top` most likely tokens."""
    values = _checked(logits).astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    top = _in_order(logits, num_top)
    return TokenLogprobs(token_id, float(values[token_id]), tuple((int(i), float(values[i])) for i in top))


def _draw(
    scores: NDArray[np.float32], request: SampleRequest
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids that may be drawn from adjusted logits, and their values with the noise: the largest wins."""
    scores = scores / np.float32(request.params.temperature)
    kept = _filter(scores, request.params)
    noise = gumbel_noise(request.params.seed, request.position, len(scores))
    return kept, scores[kept] + noise[kept]


def _checked(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise NoTokenError("the model produced logits that are not numbers")
    return logits


def _penalize(logits: NDArray[np.float32], request: SampleRequest) -> NDArray[np.float32]:
    params = request.params
    scores = logits.astype(np.float32, copy=True)
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate([_ids(request.prompt), _ids(request.output)]))
        penalty = np.float32(params.repetition_penalty)
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        generated, counts = np.unique(_ids(request.output), return_counts=True)
        scores[generated] -= counts.astype(np.float32) * np.float32(params.frequency_penalty)
        scores[generated] -= np.float32(params.presence_penalty)
    for token_id, bias in params.logit_bias:
        scores[token_id] += np.float32(bias)
    return scores


def _mask(scores: NDArray[np.float32], request: SampleRequest) -> NDArray[np.float32]:
    if len(request.suppressed):
        scores[_ids(request.suppressed)] = -np.inf
    if request.allowed is not None:
        bits = np.unpackbits(request.allowed.astype("<u4").view(np.uint8), bitorder="little")
        scores[bits[: len(scores)] == 0] = -np.inf
    return scores


def _filter(scores: NDArray[np.float32], params: SamplingParams) -> NDArray[np.int64]:
    """Token ids that top_k, top_p and min_p leave, from scores already divided by the temperature."""
    count = min(params.top_k or len(scores), int(np.count_nonzero(scores > -np.inf)))
    if count == len(scores) and params.top_p >= 1.0 and params.min_p == 0.0:
        return np.arange(len(scores))
    kept = _in_order(scores, count)
    weights = np.exp(scores[kept].astype(np.float64) - np.float64(scores[kept[0]]))
    if params.top_p < 1.0:
        cumulative = np.cumsum(weights)
        kept = kept[: int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1]
    return np.sort(kept[weights[: len(kept)] >= params.min_p])


def _in_order(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest values: value descending, then id ascending."""
    return np.argsort(-values, kind="stable")[:count]


def _ids(token_ids: object) -> NDArray[np.int64]:
    return np.asarray(token_ids, dtype=np.int64)
