#include "draft_head.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace flashlet {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int kGuests = History::kMost;  // tokens of the text that the vocabulary does not have
constexpr float kGuestGap = 1.42f;       // below the largest logit, what a guest has before its weight
constexpr float kByDoubt = 1.11f;        // what the text says counts more where the draft is not sure,
constexpr float kByGap = 0.54f;  // and what the draft says about a token that follows in the text counts less
constexpr int kListChunk = 4;    // panels that a thread multiplies at once,
constexpr int kListAhead = 3;    // while it asks memory for those so many further on

}  // namespace

DraftHead::DraftHead(Team& team, const ModelShape& shape, const DraftWeights& weights, int vocab_size,
                     int max_rows)
    : team_(team),
      kernels_(team.kernels()),
      shape_(shape),
      weights_(weights),
      hidden_(round_up(shape.hidden_size, kGroup)),
      logit_stride_(round_up(weights.num_outputs + kGuests, kLanes)) {
    const auto rows = static_cast<size_t>(max_rows), stride = static_cast<size_t>(logit_stride_);
    logits_.resize(rows * stride);
    if (lists()) {
        scores_.resize(rows * static_cast<size_t>(num_panels()));
        listed_.resize(rows * static_cast<size_t>(num_panels()));
        num_listed_.resize(rows);
    }
    for (Worker& worker : team.workers()) {
        worker.draft_ids.assign(weights.vocab_ids, weights.vocab_ids + weights.num_outputs);
        worker.draft_ids.resize(stride);
        worker.draft_sampler =
            std::make_unique<Sampler>(kernels_, weights.num_outputs + kGuests, worker.draft_ids.data());
        if (!lists()) continue;
        worker.draft_logits.resize(stride);
        worker.draft_places.resize(static_cast<size_t>(num_panels()));
    }
    output_of_.assign(static_cast<size_t>(vocab_size), -1);
    for (int i = 0; i < weights.num_outputs; ++i) output_of_[static_cast<size_t>(weights.vocab_ids[i])] = i;
}

void DraftHead::look(Worker& worker, const float* states, std::vector<Proposal>& proposals, int rows) {
    if (lists()) return look_at_listed(worker, states, proposals, rows);
    const QuantizedRows x = team_.quantized(worker, weights_.head, rows, hidden_,
                                            [&](int row) { return normed(worker, states, row); });
    team_.product(worker, weights_.head, x, rows, Epilogue::kStore, logits_.data(), logit_stride_,
                  Stage::kDraft, &weights_.input);
}

// Each row looks at panels of its own, so that all are multiplied alone.
void DraftHead::look_at_listed(Worker& worker, const float* states, std::vector<Proposal>& proposals,
                               int rows) {
    const QuantizedRows x = team_.quantized_apart(worker, weights_.head, rows, hidden_,
                                                  [&](int row) { return normed(worker, states, row); });
    const int panels = weights_.shortlist.panels, chunk = std::gcd(panels, kListChunk);
    team_.each(worker, rows * panels, chunk, [&](int begin, int) {
        const int row = begin / panels, panel = begin % panels;
        kernels_.matmul(weights_.shortlist, x.alone(row), 1, panel, panel + chunk, Epilogue::kStore,
                        scores_of(row), num_panels(), {});
    });
    team_.finish(worker, Stage::kDraft);
    team_.each(worker, rows, 1, [&](int begin, int end) {
        for (int row = begin; row < end; ++row) {
            Proposal& proposal = proposals[static_cast<size_t>(row)];
            num_listed_[static_cast<size_t>(row)] = 0;
            if (proposal.stopped) continue;
            recall(proposal);
            list(proposal, row);
        }
    });
    team_.finish(worker, Stage::kDraft);
    multiply_listed(worker, x, rows);
    team_.finish(worker, Stage::kDraft, &weights_.input);
}

// The panels that may hold a likely token, and those of tokens that followed in the text.
void DraftHead::list(const Proposal& proposal, int row) {
    const float* scores = scores_of(row);
    const float gap = weights_.shortlist_gap * std::max(1.0f, proposal.params.temperature);
    const float above = kernels_.peak(scores, num_panels()) - gap;
    int32_t* begin = listed_of(row);
    int32_t* end = begin + kernels_.collect(scores, num_panels(), above, begin);
    for (int i = 0; i < proposal.num_said; ++i) {
        const int output = output_of_[static_cast<size_t>(proposal.said[static_cast<size_t>(i)].token)];
        const int panel = output / kLanes;
        int32_t* at = std::lower_bound(begin, end, panel);
        if (output < 0 || (at != end && *at == panel)) continue;
        std::copy_backward(at, end, end + 1);
        *at = panel;
        ++end;
    }
    num_listed_[static_cast<size_t>(row)] = static_cast<int>(end - begin);
}

void DraftHead::multiply_listed(Worker& worker, const QuantizedRows& x, int rows) {
    const auto count = [&](int row) { return num_listed_[static_cast<size_t>(row)]; };
    int total = 0;
    for (int row = 0; row < rows; ++row) total += count(row);
    team_.each(worker, total, kListChunk, [&](int begin, int end) {
        int row = 0, first = 0;  // of all listed panels, the first of this row's
        for (int i = begin; i < end; ++i) {
            while (i >= first + count(row)) first += count(row++);
            const int32_t* panel = listed_of(row) + (i - first);
            const uint8_t* next = weights_.input.cells;
            if (i - first + kListAhead < count(row)) {
                next = weights_.head.cells +
                       static_cast<size_t>(panel[kListAhead]) * weights_.head.panel_bytes();
            }
            kernels_.matmul(weights_.head, x.alone(row), 1, *panel, *panel + 1, Epilogue::kStore,
                            logits_of(row), logit_stride_, {next, false, true});
        }
    });
}

Sampler::Guess DraftHead::guess(Worker& worker, Proposal& proposal, int row) {
    float* logits = logits_of(row);
    int outputs = weights_.num_outputs;
    if (lists()) {
        outputs = gather(worker, row);
        logits = worker.draft_logits.data();
        worker.draft_sampler->set_vocab_size(outputs + kGuests);
    } else {
        recall(proposal);
    }
    std::fill_n(logits + outputs, round_up(outputs + kGuests, kLanes) - outputs, kNever);
    if (proposal.num_said > 0) remind(worker, proposal, logits, outputs);
    Sampler::Guess guess = worker.draft_sampler->guess(logits, proposal.params);
    if (guess.token >= 0) guess.token = worker.draft_ids[static_cast<size_t>(guess.token)];
    return guess;
}

// The logits of the panels that were looked at, side by side among the worker's, with room for guests, and
// how many they are; its ids and places become theirs.
int DraftHead::gather(Worker& worker, int row) {
    const int count = num_listed_[static_cast<size_t>(row)];
    for (int place = 0; place < count; ++place) {
        const int32_t panel = listed_of(row)[place];
        const auto from = static_cast<size_t>(panel * kLanes), to = static_cast<size_t>(place * kLanes);
        std::copy_n(logits_of(row) + from, kLanes, worker.draft_logits.data() + to);
        std::copy_n(weights_.vocab_ids + from, kLanes, worker.draft_ids.data() + to);
        worker.draft_places[static_cast<size_t>(panel)] = place;
    }
    return count * kLanes;
}

const float* DraftHead::normed(Worker& worker, const float* states, int row) {
    const float* state = states + static_cast<size_t>(row) * static_cast<size_t>(hidden_);
    return team_.normed(worker, state, weights_.out_norm, shape_.hidden_size, shape_.rms_norm_eps, hidden_);
}

// What followed in the text where it went as it does now.
void DraftHead::recall(Proposal& proposal) const {
    proposal.num_said =
        proposal.history == nullptr ? 0 : proposal.history->successors(proposal.tail, proposal.said);
    const auto by_token = [](const Successor& a, const Successor& b) { return a.token < b.token; };
    // Of equally likely guests the lowest id wins.
    std::sort(proposal.said.begin(), proposal.said.begin() + proposal.num_said, by_token);
}

// The draft sees little of the context but what the target's streams hold: weighs in what followed there
// before.
void DraftHead::remind(Worker& worker, const Proposal& proposal, float* logits, int outputs) const {
    const int padded = round_up(outputs + kGuests, kLanes);
    const float top = kernels_.peak(logits, padded), guest = top - kGuestGap;
    const float doubt = kByDoubt * std::log(kernels_.exp_sum(logits, padded, top, 1.0f));
    int next = outputs;
    for (int i = 0; i < proposal.num_said; ++i) {
        const auto [token, weight] = proposal.said[static_cast<size_t>(i)];
        int output = output_of_[static_cast<size_t>(token)];
        if (output >= 0) {
            if (lists())
                output = worker.draft_places[static_cast<size_t>(output / kLanes)] * kLanes + output % kLanes;
            logits[output] += (weight + doubt) + kByGap * (top - logits[output]);
        } else {
            worker.draft_ids[static_cast<size_t>(next)] = token;
            logits[next++] = guest + (weight + doubt);
        }
    }
}

}  // namespace flashlet
