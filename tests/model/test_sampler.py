"""The reference sampler: known answers, hand-computed filters, and the distribution it draws from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashlet.model.sampler import confidence, gumbel_noise, philox4x32, sample, token_logprobs
from flashlet.model.sampling import NoTokenError, SampleRequest, SamplingParams


def _logits(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _request(position: int = 5, **params: Any) -> SampleRequest:
    return SampleRequest(SamplingParams(**params), position)


def _drawn(logits: NDArray[np.float32], draws: int = 300, **params: Any) -> set[int]:
    """Token ids that turn up in `draws` positions."""
    return {sample(logits, _request(position, **params)) for position in range(draws)}


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    """Vectors that the authors of the generator publish (Random123, kat_vectors)."""
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == expected


def test_noise_is_keyed_by_seed_position_and_token() -> None:
    seed, position = 0x1234567890ABCDEF, (7 << 32) + 3
    noise = gumbel_noise(seed, position, 11)
    words = philox4x32(np.array([2, 3, 7, 0], np.uint32), (0x90ABCDEF, 0x12345678))
    u = ((int(words[1]) >> 9) + 0.5) * 2.0**-23
    assert noise[9] == np.float32(-np.log(-np.log(u)))
    assert (noise.shape, noise.dtype) == ((11,), np.float32)
    np.testing.assert_array_equal(noise, gumbel_noise(seed, position, 64)[:11])
    for other in (gumbel_noise(seed + 1, position, 11), gumbel_noise(seed, position + 1, 11)):
        assert not np.isin(noise, other).any()


def test_noise_has_the_moments_of_gumbel() -> None:
    noise = gumbel_noise(1, 2, 200_000).astype(np.float64)
    assert abs(noise.mean() - np.euler_gamma) < 0.01
    assert abs(noise.var() - np.pi**2 / 6) < 0.03
    assert np.isfinite(noise).all()


def test_draws_follow_the_softmax() -> None:
    logits = _logits(0.0, 1.0, -1.0, 2.0, 0.5)
    draws = [sample(logits, _request(position, temperature=0.8, seed=42)) for position in range(4000)]
    expected = np.exp(logits / 0.8)
    expected *= 4000 / expected.sum()
    counts = np.bincount(draws, minlength=5)
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees: p = 0.001


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    assert sample(_logits(1, 3, 3, 2), _request(temperature=0)) == 1
    assert sample(_logits(1, 3, 3, 2), _request(temperature=1e-30)) == 1


def test_top_k_keeps_exactly_k_and_low_ids_among_equals() -> None:
    assert _drawn(_logits(0, 1, 1, 1, 0), top_k=2) == {1, 2}
    assert _drawn(_logits(0, 1, 1, 1, 0), top_k=99) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, {0}), (0.41, {0, 1}), (0.71, {0, 1, 2}), (1e-9, {0}), (0.999, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_shortest_prefix(top_p: float, kept: set[int]) -> None:
    assert _drawn(np.log(_logits(0.4, 0.3, 0.2, 0.1)), top_p=top_p) == kept


def test_top_p_reaches_its_sum_exactly() -> None:
    assert _drawn(_logits(0, 0, 0, 0), top_p=0.5) == {0, 1}


def test_top_p_counts_what_top_k_left() -> None:
    """0.4 of 0.4 + 0.3 is 0.57."""
    assert _drawn(np.log(_logits(0.4, 0.3, 0.2, 0.1)), top_k=2, top_p=0.56) == {0}
    assert _drawn(np.log(_logits(0.4, 0.3, 0.2, 0.1)), top_k=2, top_p=0.58) == {0, 1}


def test_min_p_is_relative_to_the_most_likely_token() -> None:
    logits = np.log(_logits(0.4, 0.3, 0.19, 0.11))
    assert _drawn(logits, min_p=0.5) == {0, 1}
    assert _drawn(logits, min_p=1.0) == {0}
    assert _drawn(logits, min_p=0.5, temperature=4.0) == {0, 1, 2, 3}  # filters come after the temperature


def test_penalties_and_bias_change_logits_in_order() -> None:
    def greedy(logits: NDArray[np.float32], **params: Any) -> int:
        request = SampleRequest(
            SamplingParams(temperature=0, **params), 9, prompt=[0, 0], output=[1, 2, 2, 2]
        )
        return sample(logits, request)

    assert greedy(_logits(2.0, 1.5, 0.0, 0.9), repetition_penalty=2.0) == 0  # 1.0 0.75 0.0 0.9
    assert greedy(_logits(1.7, 1.5, 0.0, 0.9), repetition_penalty=2.0) == 3  # 0.85 0.75 0.0 0.9
    assert greedy(_logits(-1.0, -9.0, -9.0, -1.5), repetition_penalty=2.0) == 3  # -2 -18 -18 -1.5
    assert greedy(_logits(0.0, 0.9, 1.1, 0.5), presence_penalty=0.5) == 2  # 0.0 0.4 0.6 0.5
    assert greedy(_logits(0.0, 0.9, 1.1, 0.5), presence_penalty=0.7) == 3  # 0.0 0.2 0.4 0.5
    assert greedy(_logits(0.0, 0.9, 1.8, 0.5), frequency_penalty=0.3) == 2  # 0.0 0.6 0.9 0.5
    assert greedy(_logits(0.0, 0.9, 1.8, 0.5), frequency_penalty=0.5) == 3  # 0.0 0.4 0.3 0.5
    assert greedy(_logits(0.0, 0.9, 1.8, 0.5), logit_bias=((0, 2.0), (2, -1.0))) == 0
    assert greedy(_logits(4.0, 0.0, 0.0, 1.5), repetition_penalty=4.0, logit_bias=((0, 1.0),)) == 0  # 2.0


def test_input_logits_stay_as_they_are() -> None:
    logits = _logits(1, 2, 3)
    sample(logits, _request(logit_bias=((0, 5.0),)))
    assert logits.tolist() == [1, 2, 3]


def test_suppressed_and_masked_tokens_are_never_drawn() -> None:
    logits = np.zeros(40, np.float32)
    allowed = np.array([0b1011, 0b1], np.uint32)  # 0, 1, 3 and 32
    drawn = {
        sample(logits, SampleRequest(SamplingParams(), position, suppressed=[1], allowed=allowed))
        for position in range(100)
    }
    assert drawn == {0, 3, 32}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_is_an_error(temperature: float) -> None:
    request = SampleRequest(SamplingParams(temperature=temperature), 0, allowed=np.zeros(1, np.uint32))
    with pytest.raises(NoTokenError, match="nothing to sample"):
        sample(_logits(1, 2), request)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_invalid_logits_are_an_error(bad: float) -> None:
    with pytest.raises(NoTokenError):
        sample(_logits(1, bad), _request())
    with pytest.raises(NoTokenError):
        token_logprobs(_logits(1, bad), 0, 1)


def test_token_logprobs_are_the_log_softmax_of_raw_logits() -> None:
    result = token_logprobs(np.log(_logits(0.1, 0.4, 0.4, 0.1)) + np.float32(3), 0, 3)
    assert result.token_id == 0
    assert result.logprob == pytest.approx(np.log(0.1), abs=1e-6)
    assert [token_id for token_id, _ in result.top] == [1, 2, 0]
    assert [logprob for _, logprob in result.top] == pytest.approx(np.log([0.4, 0.4, 0.1]), abs=1e-6)
    assert token_logprobs(_logits(1, 2), 1, 0).top == ()
    assert len(token_logprobs(_logits(1, 2), 1, 9).top) == 2


def test_confidence_of_a_greedy_guess_is_its_probability() -> None:
    assert confidence(_logits(0, np.log(3)), _request(temperature=0), 1) == pytest.approx(0.75)


def test_confidence_of_a_drawn_guess_is_its_lead() -> None:
    """The same logits: sure where the noise agrees, unsure where it nearly chose another token."""
    logits, found = _logits(0.5, 0, -30), []
    for position in range(50):
        request = _request(position, temperature=0.5, min_p=1e-3, seed=9)
        noise = gumbel_noise(9, position, 3)
        lead = abs((1.0 + float(noise[0])) - float(noise[1]))
        found.append(confidence(logits, request, sample(logits, request)))
        assert found[-1] == pytest.approx(1 / (1 + np.exp(-lead / 2)), rel=1e-5)
    assert min(found) < 0.6 < 0.8 < max(found)


def test_confidence_among_very_many_tokens_is_the_probability() -> None:
    logits = np.zeros(400, np.float32)
    assert confidence(logits, _request(temperature=0.7), 3) == pytest.approx(1 / 400)
