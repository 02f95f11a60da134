#include "model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "isa.h"

namespace flashlet {
namespace {

constexpr int kLogitRows = 24;  // rows of logits held at once

TeamLimits team_limits(const ModelShape& shape, const ModelLimits& limits, const DraftModel* draft) {
    const int logit_rows = limits.max_rows + limits.max_slices;
    const int stages = 2 + shape.num_layers * Decoder::kStagesPerLayer +
                       3 * ((logit_rows + kLogitRows - 1) / kLogitRows) +
                       (draft != nullptr ? Draft::stages(draft->shape) : 0);
    const int width = Decoder::widest_row(shape), partials = Decoder::partials(shape);
    return {limits.threads,
            stages,
            std::max(limits.max_rows, kLogitRows),
            draft != nullptr ? std::max(width, Draft::widest_row(*draft)) : width,
            draft != nullptr ? std::max(partials, Decoder::partials(draft->shape)) : partials,
            shape.vocab_size};
}

}  // namespace

size_t Model::block_bytes(const ModelShape& shape, KvFormat format, const DraftModel* draft) {
    return Decoder::block_bytes(shape, format) + (draft != nullptr ? draft->block_bytes(format) : 0);
}

Model::Model(const KernelTable& kernels, const ModelShape& shape, const ModelWeights& weights,
             const ModelLimits& limits, const DraftModel* draft)
    : kernels_(kernels),
      shape_(shape),
      hidden_(round_up(shape.hidden_size, kGroup)),
      padded_vocab_(round_up(shape.vocab_size, kLanes)),
      block_bytes_(block_bytes(shape, limits.kv_format, draft)),
      team_(kernels, team_limits(shape, limits, draft)),
      weights_(arena_.take(team_, weights)),
      kv_pool_(block_bytes_ * (static_cast<size_t>(limits.num_blocks) +
                               (draft != nullptr ? static_cast<size_t>(limits.max_slices) : size_t{0})),
               false),
      decoder_(team_, shape, weights_, weights_.head, {kv_pool_.data(), block_bytes_, limits.kv_format},
               limits.max_rows),
      head_chunk_(team_.chunk_of(weights_.head)),
      coarse_head_(team_, weights.head, weights_.head, shape.vocab_size, head_chunk_) {
    peaks_.resize(kLogitRows * chunks_of_head());
    residual_.resize(static_cast<size_t>(limits.max_rows) * static_cast<size_t>(hidden_));
    logits_.resize(static_cast<size_t>(kLogitRows) * static_cast<size_t>(padded_vocab_));
    segments_.reserve(static_cast<size_t>(limits.max_slices));
    wrong_ = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(limits.max_slices));
    if (draft == nullptr) return;
    uint8_t* cells = kv_pool_.data() + Decoder::block_bytes(shape, limits.kv_format);
    const Draft::Target target{weights.embed, shape.vocab_size, limits.max_rows, limits.max_slices};
    draft_ = std::make_unique<Draft>(team_, *draft, KvRegion{cells, block_bytes_, limits.kv_format}, target);
}

Model::~Model() = default;

void Model::step(StepPlan& plan, float* logits) {
    plan_ = &plan;
    logits_out_ = logits;
    drafting_ = false;
    segments_.clear();
    for (const Slice& slice : plan.slices) {
        segments_.push_back(
            {slice.first_row, slice.rows, slice.start, 0, plan.block_tables.data() + slice.table});
        drafting_ |= draft_ != nullptr && slice.draft.num_tokens >= 0;
    }
    for (const Slice& slice : plan.slices) {
        if (slice.copied < 0) continue;
        const int32_t block = plan.block_tables[static_cast<size_t>(slice.table + slice.start / kBlock)];
        const auto bytes = [&](int32_t index) {
            return kv_pool_.data() + static_cast<size_t>(index) * block_bytes_;
        };
        std::copy_n(bytes(slice.copied), block == slice.copied ? 0 : block_bytes_, bytes(block));
    }
    std::fill_n(wrong_.get(), plan.slices.size(), std::numeric_limits<int>::max());
    decoder_.plan(segments_, 0);
    team_.run([this](Worker& worker) { run(worker); });
}

void Model::run(Worker& worker) {
    embed(worker);
    keep_features(worker, 0);
    for (int index = 0; index < shape_.num_layers; ++index) {
        decoder_.layer(worker, index, residual_.data(), plan_->rows(), plan_->rows());
        keep_features(worker, index + 1);
    }
    keep_features(worker, shape_.num_layers + 1);
    logits(worker);
    if (drafting_) draft_->run(worker, *plan_);
}

void Model::embed(Worker& worker) {
    team_.each(worker, plan_->rows(), team_.row_chunk(plan_->rows()), [&](int begin, int end) {
        for (int row = begin; row < end; ++row) {
            kernels_.embed(weights_.embed, plan_->tokens[static_cast<size_t>(row)],
                           residual_.data() + static_cast<size_t>(row) * static_cast<size_t>(hidden_));
        }
    });
    team_.finish(worker, Stage::kEmbed);
}

// A row of the residual stream, which has passed so many layers; one more: after the final norm.
const float* Model::residual(Worker& worker, int layers, int row) {
    const float* x = residual_.data() + static_cast<size_t>(row) * static_cast<size_t>(hidden_);
    if (layers <= shape_.num_layers) return x;
    return team_.normed(worker, x, weights_.final_norm, shape_.hidden_size, shape_.rms_norm_eps, hidden_);
}

// Runs between a barrier and the next change of the residual stream, which another barrier precedes.
void Model::keep_features(Worker& worker, int layers) {
    for (const FeatureCopy& copy : plan_->features) {
        if (copy.layers != layers) continue;
        for (int i = worker.index; i < copy.rows; i += team_.size()) {
            std::copy_n(residual(worker, layers, copy.first_row + i), shape_.hidden_size,
                        copy.out + static_cast<size_t>(i) * copy.stride);
        }
    }
    if (!drafting_ || !draft_->keeps(layers)) return;
    for (int row = worker.index; row < plan_->rows(); row += team_.size())
        draft_->keep(worker, layers, row, residual(worker, layers, row));
}

void Model::logits(Worker& worker) {
    const int total = static_cast<int>(plan_->logit_rows.size());
    // Without drafts, that of the next step, should one follow at once.
    const PackedMatrix* next = drafting_ ? draft_->first_matrix() : decoder_.first_matrix(0);
    for (int first = 0; first < total; first += kLogitRows) {
        const int rows = std::min(kLogitRows, total - first);
        const auto row_of = [&](int i) {
            return residual(worker, shape_.num_layers + 1,
                            plan_->logit_rows[static_cast<size_t>(first + i)].row);
        };
        const bool coarse = coarse_head_.pays(rows) && only_largest(first, rows);
        const QuantizedRows x = coarse ? team_.coarsely_quantized(worker, rows, hidden_, row_of)
                                       : team_.quantized(worker, weights_.head, rows, hidden_, row_of);
        team_.product(worker, weights_.head, x, rows, Epilogue::kStore, logits_.data(), padded_vocab_,
                      Stage::kHead, next, [&](int begin, int end) { note_peaks(rows, begin, end); });
        team_.each(worker, rows, 1, [&](int begin, int end) {
            for (int i = begin; i < end; ++i) {
                float* row = logits_.data() + static_cast<size_t>(i) * static_cast<size_t>(padded_vocab_);
                if (logits_out_ != nullptr) {
                    std::copy_n(row, shape_.vocab_size,
                                logits_out_ +
                                    static_cast<size_t>(first + i) * static_cast<size_t>(shape_.vocab_size));
                }
                LogitRow& item = plan_->logit_rows[static_cast<size_t>(first + i)];
                if (item.sampled && first + i > wrong_[static_cast<size_t>(item.slice)]) continue;
                answer(worker, item, i, coarse);
                check_proposal(first + i);
            }
        });
        team_.finish(worker, Stage::kSample, next);
    }
}

// Whether the largest logit is all that anybody asks of these rows.
bool Model::only_largest(int first, int rows) const {
    const auto begin = plan_->logit_rows.begin() + first;
    return logits_out_ == nullptr && std::all_of(begin, begin + rows, [](const LogitRow& item) {
               return item.sampled && item.top < 0 && item.params->greedy() && !item.params->adjusts();
           });
}

// Of the logits of panels [begin, end), while they are in the cache of the thread that multiplied them.
void Model::note_peaks(int rows, int begin, int end) {
    const auto first = static_cast<size_t>(begin) * kLanes, last = static_cast<size_t>(end) * kLanes;
    for (int row = 0; row < rows; ++row) {
        float* x = logits_.data() + static_cast<size_t>(row) * static_cast<size_t>(padded_vocab_);
        if (end == weights_.head.panels)
            std::fill(x + shape_.vocab_size, x + last, -std::numeric_limits<float>::infinity());
        peaks_[static_cast<size_t>(row) * chunks_of_head() + static_cast<size_t>(begin / head_chunk_)] =
            kernels_.peak(x + first, static_cast<int>(last - first));
    }
}

// First of the largest logits; -1 where no token is possible.
int32_t Model::best_token(int row) const {
    const auto begin = peaks_.begin() + row * static_cast<std::ptrdiff_t>(chunks_of_head());
    const auto end = begin + static_cast<std::ptrdiff_t>(chunks_of_head());
    if (std::any_of(begin, end, [](float peak) { return std::isnan(peak); })) return -1;
    const int first = static_cast<int>(std::max_element(begin, end) - begin) * head_chunk_ * kLanes;
    const float* x = logits_.data() + static_cast<size_t>(row) * static_cast<size_t>(padded_vocab_) + first;
    const int found = kernels_.argmax(x, std::min(head_chunk_ * kLanes, padded_vocab_ - first));
    return found < 0 ? found : first + found;
}

void Model::answer(Worker& worker, LogitRow& item, int row, bool coarse) {
    float* logits = logits_.data() + static_cast<size_t>(row) * static_cast<size_t>(padded_vocab_);
    if (coarse) {
        const float* peaks = peaks_.data() + static_cast<size_t>(row) * chunks_of_head();
        item.target = coarse_head_.best(worker, residual(worker, shape_.num_layers + 1, item.row), logits,
                                        peaks, best_token(row));
        return;
    }
    if (item.sampled) item.target = worker.sampler->sample(logits, *item.params, best_token(row));
    if (item.top >= 0 && item.target >= 0)
        item.logprobs = worker.sampler->logprobs(logits, item.target, item.top);
}

// Where a proposal was wrong, nobody asks for what is sampled behind it.
void Model::check_proposal(int index) {
    const LogitRow& item = plan_->logit_rows[static_cast<size_t>(index)];
    const Slice& slice = plan_->slices[static_cast<size_t>(item.slice)];
    const int proposal = index - slice.first_sample;
    if (item.sampled && proposal < slice.proposed &&
        item.target != plan_->token(slice, slice.known() + proposal))
        wrong_[static_cast<size_t>(item.slice)] = index;
}

double Model::measure_read() {
    constexpr size_t kChunk = size_t{1} << 18;
    const auto chunks = static_cast<int>((arena_.bytes() + kChunk - 1) / kChunk);
    const bool pages = reads_pages_ahead();
    std::atomic<uint64_t> sink{0};
    const auto begin = std::chrono::steady_clock::now();
    team_.run([&](Worker& worker) {
        team_.each(worker, chunks, 1, [&](int first, int last) {
            for (auto at = static_cast<size_t>(first) * kChunk; at < static_cast<size_t>(last) * kChunk;
                 at += kChunk)
                sink += kernels_.read(arena_.data() + at, std::min(kChunk, arena_.bytes() - at), pages);
        });
    });
    return static_cast<double>(arena_.bytes()) /
           std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace flashlet
