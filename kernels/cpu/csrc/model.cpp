#include "model.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace flashlet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPrivateRows = 2;      // up to here each thread quantizes for itself: cheaper than a barrier
constexpr int kRowChunk = 4;         // rows per claim where a stage works row by row
constexpr int kLogitRows = 24;       // rows of logits held at once
constexpr int kStagesPerLayer = 10;  // each ends with finish()

int stages_needed(int layers, int max_logit_rows) {
    return 2 + layers * kStagesPerLayer + 3 * ((max_logit_rows + kLogitRows - 1) / kLogitRows);
}

// Mapped, so that its pages are zero, cost nothing until used, and go back to the system with the model.
uint8_t* map_pool(size_t bytes) {
    void* pool =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pool == MAP_FAILED) throw std::bad_alloc();
    madvise(pool, bytes, MADV_HUGEPAGE);
    return static_cast<uint8_t*>(pool);
}

}  // namespace

struct Model::Worker {
    int index = 0;
    int stage = 0;  // index of the next chunk counter; equal on all threads
    std::vector<float> normed;
    std::vector<int16_t> quantized;
    std::vector<float> scales, scores, acc;
    std::unique_ptr<Sampler> sampler;
    Clock::time_point mark;
};

void Model::Unmap::operator()(uint8_t* p) const { munmap(p, bytes); }

size_t Model::block_bytes(const ModelShape& shape, KvFormat format) {
    return kv_cell_bytes(format, round_up(shape.head_dim, kLanes)) * static_cast<size_t>(shape.num_layers) *
           static_cast<size_t>(shape.num_kv_heads);
}

Model::Model(const KernelTable& kernels, const ModelShape& shape, const ModelWeights& weights,
             const ModelLimits& limits)
    : kernels_(kernels),
      shape_(shape),
      weights_(weights),
      limits_(limits),
      hidden_(round_up(shape.hidden_size, kGroup)),
      query_size_(shape.num_heads * shape.head_dim),
      kv_size_(shape.num_kv_heads * shape.head_dim),
      qkv_stride_(round_up(query_size_ + 2 * kv_size_, kGroup)),
      ffn_stride_(round_up(shape.intermediate_size, kGroup)),
      quantized_stride_(std::max({hidden_, round_up(query_size_, kGroup), ffn_stride_})),
      padded_vocab_(round_up(shape.vocab_size, kLanes)),
      cell_bytes_(kv_cell_bytes(limits.kv_format, round_up(shape.head_dim, kLanes))),
      block_bytes_(block_bytes(shape, limits.kv_format)),
      pool_bytes_(block_bytes_ * static_cast<size_t>(limits.num_blocks)),
      pool_(limits.threads),
      counters_(stages_needed(shape.num_layers, limits.max_rows + limits.max_slices)),
      kv_pool_(map_pool(pool_bytes_), Unmap{pool_bytes_}) {
    weights_.map_pages();
    const auto rows = static_cast<size_t>(limits.max_rows);
    const auto size = [&](int width) { return rows * static_cast<size_t>(width); };
    residual_.resize(size(hidden_));
    qkv_.resize(size(qkv_stride_));
    attended_.resize(size(round_up(query_size_, kGroup)));
    ffn_.resize(size(ffn_stride_));
    logits_.resize(static_cast<size_t>(kLogitRows) * static_cast<size_t>(padded_vocab_));
    quantized_.resize(std::max(size(quantized_stride_), static_cast<size_t>(kLogitRows * hidden_)));
    scales_.resize(std::max(rows, static_cast<size_t>(kLogitRows)));
    const int padded_dim = round_up(shape.head_dim, kLanes);
    queries_.resize(size(shape.num_heads * padded_dim));
    query_scales_.resize(size(shape.num_heads));
    row_slices_.resize(rows);
    units_.reserve(size(shape.num_heads));
    workers_.resize(static_cast<size_t>(pool_.size()));
    for (size_t i = 0; i < workers_.size(); ++i) {
        Worker& worker = workers_[i];
        worker.index = static_cast<int>(i);
        worker.normed.resize(static_cast<size_t>(quantized_stride_));
        worker.quantized.resize(static_cast<size_t>(kPrivateRows * quantized_stride_));
        worker.scales.resize(kPrivateRows);
        worker.scores.resize(static_cast<size_t>(kMaxTile) *
                             static_cast<size_t>(round_up(shape.context_length, kBlock)));
        worker.acc.resize(static_cast<size_t>(kMaxTile * padded_dim));
        worker.sampler = std::make_unique<Sampler>(kernels, shape.vocab_size);
    }
}

Model::~Model() = default;

// A block's cells of all layers lie together, so that its first use touches few pages.
uint8_t* Model::cell(int layer, int block, int kv_head) const {
    const auto index =
        (static_cast<size_t>(block) * static_cast<size_t>(shape_.num_layers) + static_cast<size_t>(layer)) *
            static_cast<size_t>(shape_.num_kv_heads) +
        static_cast<size_t>(kv_head);
    return kv_pool_.get() + index * cell_bytes_;
}

void Model::step(StepPlan& plan, float* logits) {
    plan_ = &plan;
    logits_out_ = logits;
    rotate_first_ = shape_.num_heads / shape_.num_kv_heads > kernels_.max_rows;
    for (size_t i = 0; i < plan.slices.size(); ++i) {
        const Slice& slice = plan.slices[i];
        rotate_first_ |= slice.rows > 1;
        std::fill_n(row_slices_.begin() + slice.first_row, slice.rows, static_cast<int>(i));
    }
    plan_attention(plan);
    counters_.reset();
    pool_.run([this](int index) { run(workers_[static_cast<size_t>(index)]); });
}

void Model::plan_attention(const StepPlan& plan) {
    units_.clear();
    const int group = shape_.num_heads / shape_.num_kv_heads;
    const int heads = std::min(group, kernels_.max_rows);
    const int tokens = kernels_.max_rows / heads;
    for (size_t i = 0; i < plan.slices.size(); ++i) {
        const Slice& slice = plan.slices[i];
        for (int row = 0; row < slice.rows; row += tokens) {
            for (int kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
                for (int head = 0; head < group; head += heads) {
                    units_.push_back({static_cast<int>(i), slice.first_row + row,
                                      std::min(tokens, slice.rows - row), kv_head, kv_head * group + head,
                                      std::min(heads, group - head)});
                }
            }
        }
    }
    // The longest contexts first, so that no thread is left with one at the end.
    const auto context = [&](const AttentionUnit& unit) {
        const Slice& slice = plan.slices[static_cast<size_t>(unit.slice)];
        return slice.start + unit.row - slice.first_row;
    };
    std::sort(units_.begin(), units_.end(),
              [&](const AttentionUnit& a, const AttentionUnit& b) { return context(a) > context(b); });
}

void Model::finish(Worker& worker, Stage stage) {
    ++worker.stage;
    pool_.barrier();
    if (worker.index != 0) return;
    const Clock::time_point now = Clock::now();
    profile_[static_cast<size_t>(stage)] += std::chrono::duration<double>(now - worker.mark).count();
    worker.mark = now;
}

void Model::run(Worker& worker) {
    worker.stage = 0;
    worker.mark = Clock::now();
    embed(worker);
    for (int index = 0; index < shape_.num_layers; ++index) {
        copy_features(worker, index);
        layer(worker, index);
    }
    copy_features(worker, shape_.num_layers);
    copy_features(worker, shape_.num_layers + 1);
    logits(worker);
}

// Runs between a barrier and the next change of the residual stream, which another barrier precedes.
void Model::copy_features(Worker& worker, int layers) {
    for (const FeatureCopy& copy : plan_->features) {
        if (copy.layers != layers) continue;
        for (int i = worker.index; i < copy.rows; i += pool_.size()) {
            const float* x =
                residual_.data() + static_cast<size_t>(copy.first_row + i) * static_cast<size_t>(hidden_);
            if (layers > shape_.num_layers) {
                kernels_.rms_norm(x, weights_.final_norm, shape_.hidden_size, shape_.rms_norm_eps,
                                  worker.normed.data());
                x = worker.normed.data();
            }
            std::copy_n(x, shape_.hidden_size, copy.out + static_cast<size_t>(i) * copy.stride);
        }
    }
}

void Model::embed(Worker& worker) {
    counters_.each(worker.stage, plan_->rows(), kRowChunk, [&](int begin, int end) {
        for (int row = begin; row < end; ++row) {
            kernels_.embed(weights_.embed, plan_->tokens[static_cast<size_t>(row)],
                           residual_.data() + static_cast<size_t>(row) * static_cast<size_t>(hidden_));
        }
    });
    finish(worker, Stage::kEmbed);
}

void Model::quantize_row(Worker& worker, const float* x, const float* norm, int width, int stride,
                         RowTarget target) {
    if (norm != nullptr) {
        std::fill_n(worker.normed.begin() + width, stride - width, 0.0f);
        kernels_.rms_norm(x, norm, width, shape_.rms_norm_eps, worker.normed.data());
        x = worker.normed.data();
    }
    const RowTile tile = tile_of(target.row, target.total, kernels_.max_rows);
    target.scales[target.row] = kernels_.quantize(
        x, stride, target.values + static_cast<size_t>(tile.first) * static_cast<size_t>(stride),
        target.row - tile.first, tile.rows);
}

QuantizedRows Model::quantized(Worker& worker, const float* x, const float* norm, int width, int stride) {
    const int total = plan_->rows();
    const bool alone = total <= kPrivateRows;
    int16_t* values = alone ? worker.quantized.data() : quantized_.data();
    float* scales = alone ? worker.scales.data() : scales_.data();
    const auto rows = [&](int begin, int end) {
        for (int row = begin; row < end; ++row) {
            quantize_row(worker, x + static_cast<size_t>(row) * static_cast<size_t>(stride), norm, width,
                         stride, {values, scales, row, total});
        }
    };
    if (alone) {
        rows(0, total);
    } else {
        counters_.each(worker.stage, total, kRowChunk, rows);
        finish(worker, Stage::kNorm);
    }
    return {values, scales, stride};
}

void Model::product(Worker& worker, const PackedMatrix& w, const QuantizedRows& x, int rows,
                    Epilogue epilogue, float* out, int out_stride, Stage stage) {
    // Four or more chunks per thread, in whole gate/up pairs, none larger than the second-level cache.
    const int chunk = std::clamp(w.panels / (8 * pool_.size()), 1, 16) * 2;
    counters_.each(worker.stage, w.panels, chunk, [&](int begin, int end) {
        kernels_.matmul(w, x, rows, begin, end, epilogue, out, out_stride);
    });
    finish(worker, stage);
}

void Model::layer(Worker& worker, int index) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(index)];
    const int rows = plan_->rows();
    product(worker, w.qkv, quantized(worker, residual_.data(), w.attn_norm, shape_.hidden_size, hidden_),
            rows, Epilogue::kStore, qkv_.data(), qkv_stride_, Stage::kQkv);
    if (rotate_first_) {  // tiles read keys that other units rotate: all of them must lie in the pool first
        counters_.each(worker.stage, rows, kRowChunk, [&](int begin, int end) {
            for (int row = begin; row < end; ++row) {
                for (int head = 0; head < shape_.num_kv_heads; ++head) rotate_and_store(index, row, head);
            }
        });
        finish(worker, Stage::kRope);
    }
    counters_.each(worker.stage, static_cast<int>(units_.size()), 1, [&](int begin, int end) {
        for (int i = begin; i < end; ++i) attend(worker, index, units_[static_cast<size_t>(i)]);
    });
    finish(worker, Stage::kAttention);
    const int query_stride = round_up(query_size_, kGroup);
    product(worker, w.o, quantized(worker, attended_.data(), nullptr, query_size_, query_stride), rows,
            Epilogue::kAdd, residual_.data(), hidden_, Stage::kOutput);
    product(worker, w.gate_up, quantized(worker, residual_.data(), w.ffn_norm, shape_.hidden_size, hidden_),
            rows, Epilogue::kGatedSilu, ffn_.data(), ffn_stride_, Stage::kGateUp);
    product(worker, w.down, quantized(worker, ffn_.data(), nullptr, shape_.intermediate_size, ffn_stride_),
            rows, Epilogue::kAdd, residual_.data(), hidden_, Stage::kDown);
}

// RoPE for one key-value head of one row and the query heads that share it; K and V go to the pool.
void Model::rotate_and_store(int layer, int row, int kv_head) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    const Slice& slice = slice_of(row);
    const int dim = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
    const int padded_dim = round_up(dim, kLanes);
    const int position = slice.start + row - slice.first_row;
    const size_t table = static_cast<size_t>(position) * static_cast<size_t>(dim / 2);
    float* qkv = qkv_.data() + static_cast<size_t>(row) * static_cast<size_t>(qkv_stride_);
    alignas(64) float head[512 + kLanes];
    const auto rotate = [&](float* x, const float* norm) {
        if (norm != nullptr) {
            std::fill_n(head, padded_dim, 0.0f);
            std::copy_n(x, dim, head);
            kernels_.rms_norm(head, norm, dim, shape_.rms_norm_eps, head);
            std::copy_n(head, dim, x);
        }
        kernels_.rope(x, weights_.rope_cos + table, weights_.rope_sin + table, dim);
    };
    float* key = qkv + query_size_ + kv_head * dim;
    rotate(key, w.k_norm);
    const int32_t block = plan_->block_tables[static_cast<size_t>(slice.table + position / kBlock)];
    kernels_.store_kv(cell(layer, block, kv_head), limits_.kv_format, position % kBlock, dim, key,
                      key + kv_size_);
    const float softmax_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        float* query = qkv + h * dim;
        rotate(query, w.q_norm);
        const auto slot =
            static_cast<size_t>(row) * static_cast<size_t>(shape_.num_heads) + static_cast<size_t>(h);
        if (limits_.kv_format == KvFormat::kInt8) {
            std::fill_n(head, padded_dim, 0.0f);
            std::copy_n(query, dim, head);
            int16_t* q = queries_.data() + slot * static_cast<size_t>(padded_dim);
            query_scales_[slot] = kernels_.quantize(head, padded_dim, q, 0, 1) * softmax_scale;
        } else {
            query_scales_[slot] = softmax_scale;
        }
    }
}

void Model::attend(Worker& worker, int layer, const AttentionUnit& unit) {
    const Slice& slice = plan_->slices[static_cast<size_t>(unit.slice)];
    const int dim = shape_.head_dim, padded_dim = round_up(dim, kLanes);
    if (!rotate_first_) rotate_and_store(layer, unit.row, unit.kv_head);
    AttentionTile tile;
    tile.rows = 0;
    tile.window = shape_.windows.empty() ? 0 : shape_.windows[static_cast<size_t>(layer)];
    tile.block_table = plan_->block_tables.data() + slice.table;
    tile.head_dim = dim;
    tile.kv = {cell(layer, 0, unit.kv_head), block_bytes_, limits_.kv_format};
    for (int row = unit.row; row < unit.row + unit.rows; ++row) {
        for (int head = unit.first_head; head < unit.first_head + unit.heads; ++head, ++tile.rows) {
            const auto slot =
                static_cast<size_t>(row) * static_cast<size_t>(shape_.num_heads) + static_cast<size_t>(head);
            tile.queries[tile.rows] = queries_.data() + slot * static_cast<size_t>(padded_dim);
            tile.queries_f32[tile.rows] =
                qkv_.data() + static_cast<size_t>(row) * static_cast<size_t>(qkv_stride_) + head * dim;
            tile.query_scales[tile.rows] = query_scales_[slot];
            tile.positions[tile.rows] = slice.start + row - slice.first_row;
            tile.outputs[tile.rows] =
                attended_.data() +
                static_cast<size_t>(row) * static_cast<size_t>(round_up(query_size_, kGroup)) + head * dim;
        }
    }
    kernels_.attention(tile,
                       {worker.scores.data(), round_up(shape_.context_length, kBlock), worker.acc.data()});
}

void Model::logits(Worker& worker) {
    const int total = static_cast<int>(plan_->logit_rows.size());
    for (int first = 0; first < total; first += kLogitRows) {
        const int rows = std::min(kLogitRows, total - first);
        counters_.each(worker.stage, rows, 1, [&](int begin, int end) {
            for (int i = begin; i < end; ++i) {
                const auto row = static_cast<size_t>(plan_->logit_rows[static_cast<size_t>(first + i)].row);
                quantize_row(worker, residual_.data() + row * static_cast<size_t>(hidden_),
                             weights_.final_norm, shape_.hidden_size, hidden_,
                             {quantized_.data(), scales_.data(), i, rows});
            }
        });
        finish(worker, Stage::kNorm);
        product(worker, weights_.head, {quantized_.data(), scales_.data(), hidden_}, rows, Epilogue::kStore,
                logits_.data(), padded_vocab_, Stage::kHead);
        counters_.each(worker.stage, rows, 1, [&](int begin, int end) {
            for (int i = begin; i < end; ++i) {
                float* row = logits_.data() + static_cast<size_t>(i) * static_cast<size_t>(padded_vocab_);
                if (logits_out_ != nullptr) {
                    std::copy_n(row, shape_.vocab_size,
                                logits_out_ +
                                    static_cast<size_t>(first + i) * static_cast<size_t>(shape_.vocab_size));
                }
                answer(worker, plan_->logit_rows[static_cast<size_t>(first + i)], row);
            }
        });
        finish(worker, Stage::kSample);
    }
}

void Model::answer(Worker& worker, LogitRow& item, float* row) {
    std::fill(row + shape_.vocab_size, row + padded_vocab_, -std::numeric_limits<float>::infinity());
    if (item.sampled) item.target = worker.sampler->sample(row, *item.params);
    if (item.top >= 0 && item.target >= 0)
        item.logprobs = worker.sampler->logprobs(row, item.target, item.top);
}

std::array<double, static_cast<size_t>(Stage::kCount)> Model::take_profile() {
    const auto result = profile_;
    profile_.fill(0.0);
    return result;
}

double Model::measure_read() {
    struct Span {
        const uint8_t* data;
        size_t bytes;
    };
    std::vector<Span> spans;
    size_t total = 0;
    weights_.each_matrix([&](const uint8_t* data, size_t bytes) {
        constexpr size_t kChunk = size_t{1} << 18;
        for (size_t at = 0; at < bytes; at += kChunk)
            spans.push_back({data + at, std::min(kChunk, bytes - at)});
        total += bytes;
    });
    std::atomic<uint64_t> sink{0};
    counters_.reset();
    const Clock::time_point begin = Clock::now();
    pool_.run([&](int) {
        counters_.each(0, static_cast<int>(spans.size()), 1, [&](int first, int last) {
            for (int i = first; i < last; ++i) {
                sink +=
                    kernels_.read(spans[static_cast<size_t>(i)].data, spans[static_cast<size_t>(i)].bytes);
            }
        });
    });
    return static_cast<double>(total) / std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace flashlet
