#include "draft.h"

#include <algorithm>

namespace flashlet {
namespace {

constexpr float kSharper = 0.8f;  // a draft that is not sure what the target believes is right more often so
constexpr double kLeastShare = 1e-3;  // of the likeliest token's probability, for a token that may be drawn

int fused_width(const DraftModel& model) {
    return static_cast<int>(model.weights.features.size()) * model.shape.hidden_size;
}

static_assert(kMaxDraftTokens <= Decoder::kMaxAhead);

}  // namespace

int Draft::stages(const ModelShape& shape) {
    const int choice = 1, enter = 2, fuse = 2, arrange = 1;
    const int round = enter + shape.num_layers * Decoder::kStagesPerLayer + DraftHead::kStages + choice;
    return arrange + fuse + kMaxDraftTokens * round;
}

int Draft::widest_row(const DraftModel& model) {
    return std::max({round_up(fused_width(model), kGroup), round_up(2 * model.shape.hidden_size, kGroup),
                     Decoder::widest_row(model.shape)});
}

Draft::Draft(Team& team, const DraftModel& model, const KvRegion& kv, const Target& target)
    : team_(team),
      kernels_(team.kernels()),
      shape_(model.shape),
      weights_(arena_.take(team, model.weights)),
      target_(target),
      hidden_(round_up(shape_.hidden_size, kGroup)),
      fused_stride_(round_up(fused_width(model), kGroup)),
      input_stride_(round_up(2 * shape_.hidden_size, kGroup)),
      decoder_(team, shape_, weights_, weights_.head, kv, target.max_rows),
      head_(team, shape_, weights_, target.vocab_size, target.max_slices) {
    const auto rows = static_cast<size_t>(target.max_rows), slices = static_cast<size_t>(target.max_slices);
    features_.resize(rows * static_cast<size_t>(fused_stride_));
    states_.resize(rows * static_cast<size_t>(hidden_));
    proposals_.reserve(slices);
    rows_.reserve(rows);
    segments_.reserve(2 * slices);
}

bool Draft::keeps(int layers) const {
    return std::find(weights_.features.begin(), weights_.features.end(), layers) != weights_.features.end();
}

void Draft::keep(Worker& worker, int layers, int row, const float* x) {
    float* out = features_.data() + static_cast<size_t>(row) * static_cast<size_t>(fused_stride_);
    for (size_t i = 0; i < weights_.features.size(); ++i, out += shape_.hidden_size) {
        if (weights_.features[i] != layers) continue;
        const float* y = team_.normed(worker, x, weights_.feature_norms[i], shape_.hidden_size,
                                      shape_.rms_norm_eps, hidden_);
        std::copy_n(y, shape_.hidden_size, out);
    }
}

void Draft::run(Worker& worker, StepPlan& plan) {
    worker.drafting = true;
    if (worker.index == 0) {
        plan_ = &plan;
        arrange();
    }
    team_.finish(worker, Stage::kDraft, &weights_.fuse);
    if (rows_.empty()) return;
    follow(worker);
    const auto active = [&](int round) {  // proposals up to the last that wants a token in this round
        const auto end = std::find_if(proposals_.rbegin(), proposals_.rend(), [&](const Proposal& item) {
            return item.num_tokens > round && !item.stopped;
        });
        return static_cast<int>(proposals_.rend() - end);
    };
    for (int round = 0; active(round) > 0; ++round) {
        if (round > 0) {
            enter(worker, active(round));
            layers(worker, active(round), active(round));
        }
        choose(worker, active(round));
    }
}

// Rows that the draft can follow: those whose next token is known. None where sampling has failed.
int Draft::known(const Slice& slice) const {
    if (!slice.sampled) return slice.rows;
    const int accepted = plan_->accepted(slice);
    return plan_->sample(slice, accepted).target < 0 ? 0 : slice.known() + accepted;
}

// Tokens that can follow the sampled one: the context ends.
int Draft::room(const Slice& slice) const {
    return std::max(0, shape_.context_length - 1 - (slice.start + known(slice)));
}

void Draft::arrange() {
    proposals_.clear();
    rows_.clear();
    segments_.clear();
    const std::vector<Slice>& slices = plan_->slices;
    for (size_t i = 0; i < slices.size(); ++i) {
        const int wanted = slices[i].sampled ? std::min(slices[i].draft.num_tokens, room(slices[i])) : 0;
        if (wanted > 0 && known(slices[i]) > 0) add_proposal(static_cast<int>(i), wanted);
    }
    std::sort(proposals_.begin(), proposals_.end(),
              [](const Proposal& a, const Proposal& b) { return a.num_tokens > b.num_tokens; });
    for (const Proposal& proposal : proposals_) {
        const Slice& slice = slices[static_cast<size_t>(proposal.slice)];
        add_segment(slice, known(slice) - 1, 1, proposal.last_token);
    }
    const bool attentive = weights_.layers[0].qkv.cells != nullptr;  // else nobody reads the other rows
    for (size_t i = 0; attentive && i < slices.size(); ++i) {
        const Slice& slice = slices[i];
        if (slice.draft.num_tokens < 0 || known(slice) == 0) continue;
        const bool proposes = std::any_of(proposals_.begin(), proposals_.end(), [&](const Proposal& item) {
            return item.slice == static_cast<int>(i);
        });
        const int32_t last =
            slice.sampled ? plan_->sample(slice, plan_->accepted(slice)).target : slice.draft.next_token;
        add_segment(slice, 0, known(slice) - (proposes ? 1 : 0), last);
    }
    decoder_.plan(segments_, static_cast<int>(proposals_.size()));
}

void Draft::add_proposal(int index, int num_tokens) {
    Slice& slice = plan_->slices[static_cast<size_t>(index)];
    const int accepted = plan_->accepted(slice);
    const LogitRow& sampled = plan_->sample(slice, accepted);
    Tail tail;
    if (slice.draft.history != nullptr) {
        tail = slice.draft.history->tail();
        for (int i = 0; i < accepted; ++i) tail.push(plan_->token(slice, slice.known() + i));
        tail.push(sampled.target);
    }
    SampleParams params;
    params.temperature = sampled.params->temperature * kSharper;
    params.top_k = sampled.params->top_k;
    params.top_p = sampled.params->top_p;
    params.min_p = std::max(sampled.params->min_p, kLeastShare);
    params.seed = sampled.params->seed;
    params.position = sampled.params->position + 1;
    proposals_.push_back(
        {index, num_tokens, sampled.target, false, 1.0f, slice.draft.history, tail, std::move(params)});
}

// Rows first .. first + count - 1 of the slice. `last_token` follows its last known row.
void Draft::add_segment(const Slice& slice, int first, int count, int32_t last_token) {
    if (count == 0) return;
    segments_.push_back({static_cast<int>(rows_.size()), count, slice.start + first, slice.draft.start,
                         plan_->block_tables.data() + slice.table});
    for (int i = first; i < first + count; ++i) {
        const bool last = i + 1 == known(slice);
        rows_.push_back({slice.first_row + i, last ? last_token : plan_->token(slice, i + 1)});
    }
}

void Draft::follow(Worker& worker) {
    const auto rows = static_cast<int>(rows_.size());
    const QuantizedRows fused = team_.quantized(worker, weights_.fuse, rows, fused_stride_, [&](int row) {
        const int target_row = rows_[static_cast<size_t>(row)].target_row;
        return features_.data() + static_cast<size_t>(target_row) * static_cast<size_t>(fused_stride_);
    });
    team_.product(worker, weights_.fuse, fused, rows, Epilogue::kStore, states_.data(), hidden_,
                  Stage::kDraft, &weights_.input);
    enter(worker, rows);
    layers(worker, rows, static_cast<int>(proposals_.size()));
}

void Draft::layers(Worker& worker, int rows, int finished) {
    for (int index = 0; index < shape_.num_layers; ++index)
        decoder_.layer(worker, index, states_.data(), rows, index + 1 < shape_.num_layers ? rows : finished);
}

// Adds to each state what comes of it and of the token that follows.
void Draft::enter(Worker& worker, int rows) {
    const int width = shape_.hidden_size;
    const QuantizedRows x = team_.quantized(worker, weights_.input, rows, input_stride_, [&](int row) {
        float* y = worker.normed.data();
        const float* state = states_.data() + static_cast<size_t>(row) * static_cast<size_t>(hidden_);
        kernels_.rms_norm(state, weights_.state_norm, width, shape_.rms_norm_eps, y);
        kernels_.embed(target_.embed, rows_[static_cast<size_t>(row)].next_token, y + width);
        kernels_.rms_norm(y + width, weights_.embed_norm, width, shape_.rms_norm_eps, y + width);
        std::fill(y + 2 * width, y + input_stride_, 0.0f);
        return y;
    });
    if (rows <= team_.private_rows())
        team_.finish(worker, Stage::kDraft);  // nobody reads the states any more
    team_.product(worker, weights_.input, x, rows, Epilogue::kAdd, states_.data(), hidden_, Stage::kDraft,
                  decoder_.first_matrix(0));
}

// The next token of the first `rows` proposals. Each then stands for one row more.
void Draft::choose(Worker& worker, int rows) {
    head_.look(worker, states_.data(), proposals_, rows);
    team_.each(worker, rows, 1, [&](int begin, int end) {
        for (int row = begin; row < end; ++row) {
            const auto at = static_cast<size_t>(row);
            Proposal& proposal = proposals_[at];
            Slice& slice = plan_->slices[static_cast<size_t>(proposal.slice)];
            if (!proposal.stopped) propose(worker, proposal, slice, row);
            rows_[at].next_token = slice.drafted[static_cast<size_t>(std::max(slice.num_drafted - 1, 0))];
            ++segments_[at].start;
        }
    });
    team_.finish(worker, Stage::kDraft, &weights_.input);
}

// One more token, unless the logits are not numbers.
void Draft::propose(Worker& worker, Proposal& proposal, Slice& slice, int row) {
    const auto [token, confidence] = head_.guess(worker, proposal, row);
    proposal.stopped = token < 0;
    if (proposal.stopped) return;
    const auto at = static_cast<size_t>(slice.num_drafted++);
    slice.drafted[at] = token;
    proposal.tail.push(token);
    slice.confidences[at] = confidence;
    proposal.confidence *= confidence;
    proposal.stopped =
        proposal.confidence < slice.draft.least_confidence || slice.num_drafted == proposal.num_tokens;
    ++proposal.params.position;
}

}  // namespace flashlet
