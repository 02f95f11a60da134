"""Speculation: who proposes which tokens of which sequences, as long as it is faster than not to.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023). A proposal is right if
it is the token that the sampler chooses, so that outputs do not depend on it.
"""

from __future__ import annotations

from collections import abc
from itertools import repeat

from flashlet.kernels.cpu import Acceptance, StepCosts, TokenHistory, best_rate, best_widths, could_pay
from flashlet.model.step import DraftRequest, SliceOutput
from flashlet.serving.engine.live_comparison import LiveComparison, Phase
from flashlet.serving.engine.plan import Part
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.sequence_draft import SequenceDraft

MAX_MATCH: int = TokenHistory.MAX_MATCH  # longest match that n-grams tell from shorter ones
MAX_NGRAM_TOKENS = 12  # most tokens that n-grams propose at once
MODEL_PRIOR = (0.55,)  # by position
CONFIDENCES = 10  # parts of 0 .. 1 that are told apart
CONFIDENCE_PRIOR = tuple((part + 0.5) / CONFIDENCES for part in range(CONFIDENCES))  # as sure as it says
MATCH_PRIOR = (0.0, 0.0, 0.3, 0.4, 0.5, 0.6, 0.6, 0.7, 0.8)  # by length of the match
MANY = 8  # sequences in a step, whose proposals take a hundredth of it to plan
VAIN = 16  # such steps in a row without proposals and drafts, after which planning is left out
RARELY = 4  # but in every fourth step
QUIET = 16  # steps without drafting after which the draft model follows no longer
HICCUP = 1.5  # times the usual: a step that took longer says nothing about speculation
NEARLY_SURE = 0.9  # chance of a proposal as good as they come
A_FEW = 15  # proposals: where none of so many would pay, more are not looked for
MARGIN = 0.1  # of its speed that a sequence must gain by n-grams over a draft model, which knows them


class Drafter:
    """Fills in proposals and draft requests of planned steps, and learns from their results."""

    def __init__(self, costs: StepCosts, max_model_tokens: int) -> None:
        """`max_model_tokens`: what the draft model can propose at once; 0 without one."""
        self.costs = costs
        self._comparisons: dict[int, LiveComparison] = {}  # by load: what pays alone may not pay in company
        self._last_load = 1
        self._vain: dict[int, int] = {}  # by load: decode steps in a row without proposals and drafts
        self._max_model_tokens = max_model_tokens
        self._by_position = _shared_acceptance(max(1, max_model_tokens), MODEL_PRIOR)
        self._by_confidence = _shared_acceptance(CONFIDENCES, CONFIDENCE_PRIOR)
        self._by_match = _shared_acceptance(MAX_MATCH + 1, MATCH_PRIOR)

    @property
    def comparison(self) -> LiveComparison:
        """Of speeds with and without speculation, at the load of the latest step."""
        known = self._comparisons.get(self._last_load)
        if known is None:
            known = self._comparisons[self._last_load] = LiveComparison(self.costs)
        return known

    def plan(self, parts: abc.Sequence[Part], free_rows: int) -> None:
        """Decide proposals and draft requests of a step that has room for `free_rows` more rows."""
        num_decodes = num_rows = 0
        for part in parts:
            num_decodes += part.decodes
            num_rows += part.num_tokens
        only_decodes = num_decodes == len(parts)
        # Steps of 1, 2 to 3, 4 to 7 ... decoding sequences are alike.
        self._last_load = num_decodes.bit_length()
        phase = self.comparison.phase if self.costs.known else Phase.OFF
        if phase in (Phase.WIND_DOWN, Phase.PLAIN) and not only_decodes:
            phase = Phase.SPECULATE  # what such a step takes proves nothing
        if phase is Phase.OFF:
            for part in parts:
                if part.sequence.draft is not None:
                    part.sequence.draft.forget()
            return
        vain = self._vain.get(self._last_load, 0)
        due = len(parts) < MANY or not only_decodes or vain < VAIN or vain % RARELY == 0
        # Whose prompt is computed will decode soon: proposals that do not pay then only delay it now.
        pays = due and could_pay(len(parts), self.costs.verifying(len(parts), A_FEW), NEARLY_SURE)
        if pays and phase is not Phase.PLAIN:
            decodes = [part for part in parts if part.decodes and part.may_propose]
            self._propose(decodes, num_rows, free_rows)
        if self._max_model_tokens and self.costs.drafts_known:
            self._request_drafts(parts, phase, pays=pays)
        if phase is Phase.SPECULATE and only_decodes:
            used = any(part.proposed or (part.draft and part.draft.num_tokens) for part in parts)
            self._vain[self._last_load] = 0 if used else vain + 1

    def learn(self, part: Part, output: SliceOutput) -> None:
        """Compare proposals with what came; keep those for the next step."""
        draft = part.sequence.draft
        if draft is None or not part.samples:
            return
        draft.learn(output.token_ids)
        draft.match = None
        draft.model_tokens = output.proposed
        draft.num_asked = 0 if part.draft is None else part.draft.num_tokens
        draft.confidences = [min(int(CONFIDENCES * value), CONFIDENCES - 1) for value in output.confidences]

    def step_done(self, parts: abc.Sequence[Part], num_tokens: int, ms: float) -> None:
        """A planned step that gave `num_tokens` new tokens took so long, everything around it included."""
        if not (parts and self.costs.known):
            return
        rows = drafted = 0
        for part in parts:
            if not part.decodes:
                return
            rows += part.num_rows
            if part.draft is not None and part.draft.num_tokens and part.sequence.draft is not None:
                drafted += len(part.sequence.draft.model_tokens)
        usual = self.costs.observe(len(parts), rows, drafted, ms)
        speculated = drafted > 0 or rows > len(parts)
        self.comparison.step_done(len(parts), num_tokens, min(ms, HICCUP * usual), speculated=speculated)

    def _propose(self, decodes: list[Part], num_rows: int, free_rows: int) -> None:
        """Let sequences bring as many proposals as pay, in a step of `num_rows` rows without them."""
        if not decodes or free_rows <= 0:
            return
        cost_ms = self._verifying_costs(num_rows, len(decodes), A_FEW)
        if not could_pay(len(decodes), cost_ms, NEARLY_SURE):
            return

        def promise(curve: list[float]) -> float:
            return best_rate(curve, len(decodes), cost_ms)

        margin = 1 + MARGIN / len(decodes)
        candidates = [self._candidate(part.sequence, promise, margin) for part in decodes]
        curves = [curve for _, curve in candidates]
        if (most := min(free_rows, sum(map(len, curves)))) > A_FEW:
            cost_ms = self._verifying_costs(num_rows, len(decodes), most)
        widths = best_widths(curves, len(decodes), cost_ms[: most + 1])
        for part, (proposed, _), width in zip(decodes, candidates, widths, strict=True):
            part.proposed = proposed[:width]

    def _verifying_costs(self, num_rows: int, num_sequences: int, most: int) -> list[float]:
        """Milliseconds by the number of proposals. What other rows than those of the sequences cost is for
        prompts, not for these tokens.
        """
        cost_ms = self.costs.verifying(num_rows, most)
        others = 0.0 if num_rows == num_sequences else cost_ms[0] - self.costs.ms(num_sequences)
        return [ms - others for ms in cost_ms] if others else cost_ms

    def _candidate(
        self, sequence: Sequence, promise: abc.Callable[[list[float]], float], margin: float
    ) -> tuple[list[int], list[float]]:
        """What could be proposed for `sequence`, and the chances of its first 1, 2, ... tokens."""
        if sequence.request.draft == "none":
            return [], []
        draft = self._draft_of(sequence)
        draft.look_up(sequence, MAX_NGRAM_TOKENS)
        num_drafted = self._max_model_tokens if sequence.request.draft == "auto" else 0
        limit = sequence.max_tokens - sequence.num_output_tokens - 1
        return draft.best(sequence, limit, num_drafted, promise, margin)

    def _request_drafts(self, parts: abc.Sequence[Part], phase: Phase, *, pays: bool) -> None:
        """Ask the draft model for proposals for the next step where they should pay, or else to follow."""
        sampling = [part for part in parts if part.samples]
        widths, least = [0] * len(sampling), 0.0
        cost_ms = None
        if phase is Phase.SPECULATE and pays and sampling:
            cost_ms = self._drafting_costs(len(sampling))
        if cost_ms is not None:
            curves = [self._model_curve(part) for part in sampling]
            widths = best_widths(curves, len(sampling), cost_ms)
            self._forget_a_little(sampling, curves, widths)
            # The draft stops by itself where it is not sure, and may go on where it is.
            widths = [len(curve) if width else 0 for curve, width in zip(curves, widths, strict=True)]
            least = self._least_confidence(len(sampling), cost_ms)
        if phase is Phase.SPECULATE:
            _count_quiet(sampling, widths)
        for part, width in zip(sampling, widths, strict=True):
            draft = part.sequence.draft
            if width or (draft and draft.followed_from is not None and draft.num_quiet < QUIET):
                self._follow(part, width, least)
        if len(sampling) < len(parts) and self._model_pays(len(parts)):
            for part in parts:
                if not part.samples and part.sequence.max_tokens and part.sequence.request.draft == "auto":
                    self._follow(part, 0)
        for part in parts:
            if part.draft is None and part.sequence.draft is not None:
                part.sequence.draft.followed_from = None

    def _forget_a_little(self, sampling: list[Part], curves: list[list[float]], widths: list[int]) -> None:
        """Let what speaks against the draft model fade where it could propose but is not asked."""
        if any(curves) and not any(widths):
            self._by_position.fade()
        for part, curve, width in zip(sampling, curves, widths, strict=True):
            if curve and not width:
                self._draft_of(part.sequence).by_position.fade()

    def _least_confidence(self, num_sequences: int, cost_ms: list[float]) -> float:
        """Chance that all proposals are right below which one more does not pay, drafted and verified."""
        one_more = (cost_ms[3 * num_sequences] - cost_ms[num_sequences]) / 2  # of each
        return max(0.0, one_more / cost_ms[0] / self._by_position.rate(0))

    def _follow(self, part: Part, num_tokens: int, least_confidence: float = 0.0) -> None:
        """Let the draft model follow `part`, from here on or still, and propose `num_tokens`."""
        sequence = part.sequence
        draft = self._draft_of(sequence)
        if draft.followed_from is None:
            draft.followed_from = sequence.num_computed
        end = sequence.num_computed + part.num_tokens
        next_token = sequence.tokens[end] if end < len(sequence.tokens) else None
        history = None
        if num_tokens:
            history = draft.history
            history.extend(sequence.tokens)
        part.draft = DraftRequest(num_tokens, draft.followed_from, next_token, least_confidence, history)

    def _model_curve(self, part: Part) -> list[float]:
        """Chances of the draft model's next proposals for `part`; empty where it is not to propose."""
        sequence = part.sequence
        if sequence.request.draft != "auto" or not part.may_propose:
            return []
        draft = self._draft_of(sequence)
        useful = sequence.max_tokens - sequence.num_output_tokens - 2  # behind this step's and the next's
        if draft.uses_match or useful <= 0:
            return []
        return draft.by_position.survival(range(min(self._max_model_tokens, useful)))

    def _drafting_costs(self, num_sequences: int) -> list[float] | None:
        """Milliseconds by the number of tokens that are drafted in a step and verified in the next, if that
        could pay.
        """
        most = num_sequences * max(3, self._max_model_tokens)  # three are what _least_confidence asks
        cost_ms = self.costs.drafting(num_sequences, A_FEW)
        if not could_pay(num_sequences, cost_ms, NEARLY_SURE):
            return None
        if most > A_FEW:
            cost_ms = self.costs.drafting(num_sequences, most)
        return cost_ms

    def _model_pays(self, num_sequences: int) -> bool:
        """Whether the draft model would be asked for anything if so many sequences decoded."""
        cost_ms = self._drafting_costs(num_sequences)
        curves = [self._by_position.survival(range(self._max_model_tokens))] * num_sequences
        return cost_ms is not None and any(best_widths(curves, num_sequences, cost_ms))

    def _draft_of(self, sequence: Sequence) -> SequenceDraft:
        """State of `sequence`, made when it is first needed."""
        if sequence.draft is None:
            sequence.draft = SequenceDraft(
                _own_acceptance(self._by_position, weight=3, decay=0.95, fading=0.99),
                _own_acceptance(self._by_confidence, weight=8, decay=0.98, fading=1.0),
                _own_acceptance(self._by_match, weight=3, decay=0.95, fading=0.99),
            )
        return sequence.draft


def _shared_acceptance(size: int, prior: abc.Sequence[float]) -> Acceptance:
    """Of all sequences together, which is what is believed about a new one."""
    known = [*prior, *repeat(prior[-1], size - len(prior))]
    return Acceptance(known, weight=8, decay=0.995, fading=0.999)


def _own_acceptance(shared: Acceptance, weight: float, decay: float, fading: float) -> Acceptance:
    """Of one sequence: what it shows counts for all."""
    return Acceptance(shared, weight, decay, fading)


def _count_quiet(sampling: list[Part], widths: list[int]) -> None:
    """Note where the draft model is not asked, unless n-grams are better just now."""
    for part, width in zip(sampling, widths, strict=True):
        draft = part.sequence.draft
        if width and draft:
            draft.num_quiet = 0
        elif draft and not draft.uses_match:
            draft.num_quiet += 1
