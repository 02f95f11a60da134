#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

namespace flashlet {
namespace {

constexpr int kSplitUnits = 4;  // units of attention per thread, up to which threads share each

// In the longest context.
int spans(const ModelShape& shape) { return (shape.context_length + kSpan * kBlock - 1) / (kSpan * kBlock); }

// A thread that multiplies with a part of qkv has whole heads.
DecoderWeights with_whole_heads(DecoderWeights weights, int head_dim) {
    for (LayerWeights& layer : weights.layers) layer.qkv.unit = std::lcm(head_dim, kLanes) / kLanes;
    return weights;
}

}  // namespace

size_t Decoder::block_bytes(const ModelShape& shape, KvFormat format) {
    return kv_cell_bytes(format, round_up(shape.head_dim, kLanes)) * static_cast<size_t>(shape.num_layers) *
           static_cast<size_t>(shape.num_kv_heads);
}

int Decoder::widest_row(const ModelShape& shape) {
    return round_up(std::max({shape.hidden_size, shape.num_heads * shape.head_dim, shape.intermediate_size}),
                    kGroup);
}

int Decoder::partials(const ModelShape& shape) {
    return spans(shape) * kMaxTile * partial_stride(round_up(shape.head_dim, kLanes));
}

Decoder::Decoder(Team& team, const ModelShape& shape, const DecoderWeights& weights,
                 const PackedMatrix& after, const KvRegion& kv, int max_rows)
    : team_(team),
      kernels_(team.kernels()),
      shape_(shape),
      weights_(with_whole_heads(weights, shape.head_dim)),
      after_(after),
      kv_(kv),
      softmax_scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)))),
      cell_bytes_(kv_cell_bytes(kv.format, round_up(shape.head_dim, kLanes))),
      hidden_(round_up(shape.hidden_size, kGroup)),
      query_size_(shape.num_heads * shape.head_dim),
      kv_size_(shape.num_kv_heads * shape.head_dim),
      query_stride_(round_up(query_size_, kGroup)),
      qkv_stride_(round_up(query_size_ + 2 * kv_size_, kGroup)),
      ffn_stride_(round_up(shape.intermediate_size, kGroup)),
      partials_(partials(shape)),
      split_done_(static_cast<size_t>(team.size() > 1 ? kSplitUnits * team.size() : 0)) {
    const auto size = [&](int width) { return static_cast<size_t>(max_rows) * static_cast<size_t>(width); };
    qkv_.resize(size(qkv_stride_));
    attended_.resize(size(query_stride_));
    ffn_.resize(size(ffn_stride_));
    queries_.resize(size(shape.num_heads * round_up(shape.head_dim, kLanes)));
    query_scales_.resize(size(shape.num_heads));
    row_segments_.resize(size(1));
    units_.reserve(size(shape.num_heads));
    split_units_.reserve(split_done_.size() * static_cast<size_t>(spans(shape)));
    split_partials_.resize(split_done_.size() * static_cast<size_t>(partials_));
}

// A block's cells of all layers lie together, so that its first use touches few pages.
uint8_t* Decoder::cell(int layer, int block, int kv_head) const {
    const auto index =
        static_cast<size_t>(layer) * static_cast<size_t>(shape_.num_kv_heads) + static_cast<size_t>(kv_head);
    return kv_.base + static_cast<size_t>(block) * kv_.block_bytes + index * cell_bytes_;
}

void Decoder::plan(const std::vector<Segment>& segments, int singles) {
    segments_ = &segments;
    units_.clear();
    planned_rows_ = 0;
    int tokens =
        kernels_.attention_rows / std::min(shape_.num_heads / shape_.num_kv_heads, kernels_.attention_rows);
    // Alone, a segment makes few units: two tiles let threads share an odd number of heads evenly.
    if (segments.size() == 1) tokens = std::min(tokens, (segments[0].rows + 1) / 2);
    plan_units(tokens);
    // The longest contexts first, so that no thread is left with one at the end; of those that are alike,
    // units that read the same keys stay together.
    const auto order = [&](const AttentionUnit& unit) {
        const Segment& segment = segments[static_cast<size_t>(unit.segment)];
        const int blocks = (segment.start + unit.row - segment.first_row) / kBlock;
        return std::tuple(-blocks, unit.segment, unit.kv_head, unit.row, unit.first_head);
    };
    const auto sorted = std::find_if(units_.begin(), units_.end(),
                                     [&](const AttentionUnit& unit) { return unit.segment >= singles; });
    std::sort(sorted, units_.end(),
              [&](const AttentionUnit& a, const AttentionUnit& b) { return order(a) < order(b); });
    plan_split(singles > 0 ? kMaxAhead : 0);
}

void Decoder::plan_units(int tokens) {
    const int group = shape_.num_heads / shape_.num_kv_heads;
    const int heads = std::min(group, kernels_.attention_rows);
    for (size_t i = 0; i < segments_->size(); ++i) {
        const Segment& segment = (*segments_)[i];
        planned_rows_ += segment.rows;
        std::fill_n(row_segments_.begin() + segment.first_row, segment.rows, static_cast<int>(i));
        for (int kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
            for (int row = 0; row < segment.rows; row += tokens) {
                for (int head = 0; head < group; head += heads) {
                    units_.push_back({static_cast<int>(i), segment.first_row + row,
                                      std::min(tokens, segment.rows - row), kv_head, kv_head * group + head,
                                      std::min(heads, group - head)});
                }
            }
        }
    }
}

// Few units cannot be shared out evenly: then threads share the spans of each one's context, which may grow
// by `ahead` positions before the next plan.
void Decoder::plan_split(int ahead) {
    split_units_.clear();
    if (units_.size() > split_done_.size()) return;
    for (size_t i = 0; i < units_.size(); ++i) {
        const Segment& segment = (*segments_)[static_cast<size_t>(units_[i].segment)];
        const int row = units_[i].row + units_[i].rows - 1 - segment.first_row;
        const int last = std::min(segment.start + row + ahead, shape_.context_length - 1);
        for (int span = segment.first_visible / (kSpan * kBlock); span <= last / (kSpan * kBlock); ++span)
            split_units_.push_back({static_cast<int>(i), span});
    }
    if (split_units_.size() < 2 * units_.size()) split_units_.clear();
}

QuantizedRows Decoder::normed(Worker& worker, const PackedMatrix& w, const float* x, const float* norm,
                              int rows) {
    return team_.quantized(worker, w, rows, hidden_, [&](int row) {
        return team_.normed(worker, x + static_cast<size_t>(row) * static_cast<size_t>(hidden_), norm,
                            shape_.hidden_size, shape_.rms_norm_eps, hidden_);
    });
}

QuantizedRows Decoder::plain(Worker& worker, const PackedMatrix& w, const float* x, int rows, int stride) {
    return team_.quantized(worker, w, rows, stride, [&](int row) {
        return x + static_cast<size_t>(row) * static_cast<size_t>(stride);
    });
}

void Decoder::layer(Worker& worker, int index, float* x, int rows, int finished) {
    if (weights_.layers[static_cast<size_t>(index)].qkv.cells != nullptr)
        attention(worker, index, x, rows, finished);
    if (finished > 0) feed_forward(worker, index, x, finished);
}

void Decoder::attention(Worker& worker, int index, float* x, int rows, int finished) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(index)];
    team_.product(worker, w.qkv, normed(worker, w.qkv, x, w.attn_norm, rows), rows, Epilogue::kStore,
                  qkv_.data(), qkv_stride_, Stage::kQkv, &w.o, [&](int begin, int end) {
                      const int heads = shape_.num_heads + 2 * shape_.num_kv_heads, dim = shape_.head_dim;
                      store_heads(index, begin * kLanes / dim, std::min(end * kLanes / dim, heads), rows);
                  });
    if (finished == 0) return;
    const int group = shape_.num_heads / shape_.num_kv_heads;
    const int heads = std::min(group, kernels_.attention_rows);
    const int per_row = shape_.num_kv_heads * ((group + heads - 1) / heads);
    const int units = finished == planned_rows_ ? static_cast<int>(units_.size()) : finished * per_row;
    const auto attend_units = [&](int begin, int end) {
        for (int i = begin; i < end; ++i) attend(worker, index, units_[static_cast<size_t>(i)]);
    };
    const auto attend_spans = [&](int begin, int end) {
        for (int i = begin; i < end; ++i) attend_span(index, split_units_[static_cast<size_t>(i)]);
    };
    if (!split_units_.empty() && finished == planned_rows_) {
        team_.each(worker, static_cast<int>(split_units_.size()), 1, attend_spans);
    } else {
        team_.each(worker, units, 1, attend_units);
    }
    team_.finish(worker, Stage::kAttention, &w.o);
    team_.product(worker, w.o, plain(worker, w.o, attended_.data(), finished, query_stride_), finished,
                  Epilogue::kAdd, x, hidden_, Stage::kOutput, &w.gate_up);
}

void Decoder::feed_forward(Worker& worker, int index, float* x, int rows) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(index)];
    team_.product(worker, w.gate_up, normed(worker, w.gate_up, x, w.ffn_norm, rows), rows,
                  Epilogue::kGatedSilu, ffn_.data(), ffn_stride_, Stage::kGateUp, &w.down);
    team_.product(worker, w.down, plain(worker, w.down, ffn_.data(), rows, ffn_stride_), rows, Epilogue::kAdd,
                  x, hidden_, Stage::kDown, first_matrix(index + 1));
}

const PackedMatrix* Decoder::first_matrix(int layer) const {
    if (layer >= shape_.num_layers) return &after_;
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    return w.qkv.cells != nullptr ? &w.qkv : &w.gate_up;
}

// Heads [first, last) of the rows, as the product gives them: queries, keys, values.
void Decoder::store_heads(int layer, int first, int last, int rows) {
    for (int row = 0; row < rows; ++row) {
        for (int head = first; head < last; ++head) store_head(layer, head, row);
    }
}

// RoPE; then queries become integers, keys and values go to the pool.
void Decoder::store_head(int layer, int head, int row) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    const Segment& segment = (*segments_)[static_cast<size_t>(row_segments_[static_cast<size_t>(row)])];
    const int dim = shape_.head_dim, padded_dim = round_up(dim, kLanes);
    const int position = segment.start + row - segment.first_row, slot = position % kBlock;
    const int kv_head = head - shape_.num_heads;
    const auto target = [&](int index) { return cell(layer, segment.block_table[position / kBlock], index); };
    float* x = qkv_.data() + static_cast<size_t>(row) * static_cast<size_t>(qkv_stride_) + head * dim;
    if (kv_head >= shape_.num_kv_heads) {
        kernels_.store_value(target(kv_head - shape_.num_kv_heads), kv_.format, slot, dim, x);
        return;
    }
    alignas(64) float padded[512 + kLanes];
    if (const float* norm = kv_head < 0 ? w.q_norm : w.k_norm; norm != nullptr) {
        std::fill_n(padded, padded_dim, 0.0f);
        std::copy_n(x, dim, padded);
        kernels_.rms_norm(padded, norm, dim, shape_.rms_norm_eps, padded);
        std::copy_n(padded, dim, x);
    }
    const size_t table = static_cast<size_t>(position) * static_cast<size_t>(dim / 2);
    kernels_.rope(x, weights_.rope_cos + table, weights_.rope_sin + table, dim);
    if (kv_head >= 0) {
        kernels_.store_key(target(kv_head), kv_.format, slot, dim, x);
        return;
    }
    const auto query =
        static_cast<size_t>(row) * static_cast<size_t>(shape_.num_heads) + static_cast<size_t>(head);
    query_scales_[query] = softmax_scale_;
    if (kv_.format != KvFormat::kInt8) return;
    if (dim < padded_dim) {
        std::fill_n(padded, padded_dim, 0.0f);
        std::copy_n(x, dim, padded);
        x = padded;
    }
    int16_t* q = queries_.data() + query * static_cast<size_t>(padded_dim);
    query_scales_[query] *= kernels_.quantize(x, padded_dim, q, 0, 1);
}

AttentionTile Decoder::attention_tile(int layer, const AttentionUnit& unit) {
    const Segment& segment = (*segments_)[static_cast<size_t>(unit.segment)];
    const int dim = shape_.head_dim, padded_dim = round_up(dim, kLanes);
    AttentionTile tile;
    tile.rows = 0;
    tile.first_visible = segment.first_visible;
    tile.window = shape_.windows.empty() ? 0 : shape_.windows[static_cast<size_t>(layer)];
    tile.block_table = segment.block_table;
    tile.head_dim = dim;
    tile.kv = {cell(layer, 0, unit.kv_head), kv_.block_bytes, kv_.format};
    for (int row = unit.row; row < unit.row + unit.rows; ++row) {
        for (int head = unit.first_head; head < unit.first_head + unit.heads; ++head, ++tile.rows) {
            const auto slot =
                static_cast<size_t>(row) * static_cast<size_t>(shape_.num_heads) + static_cast<size_t>(head);
            tile.queries[tile.rows] = queries_.data() + slot * static_cast<size_t>(padded_dim);
            tile.queries_f32[tile.rows] =
                qkv_.data() + static_cast<size_t>(row) * static_cast<size_t>(qkv_stride_) + head * dim;
            tile.query_scales[tile.rows] = query_scales_[slot];
            tile.positions[tile.rows] = segment.start + row - segment.first_row;
            tile.outputs[tile.rows] =
                attended_.data() + static_cast<size_t>(row) * static_cast<size_t>(query_stride_) + head * dim;
        }
    }
    return tile;
}

void Decoder::attend(Worker& worker, int layer, const AttentionUnit& unit) {
    const AttentionTile tile = attention_tile(layer, unit);
    const VisibleRange seen = visible_range(tile);
    const int stride = tile.rows * partial_stride(round_up(shape_.head_dim, kLanes));
    for (int i = 0; i < seen.spans; ++i)
        kernels_.attend(tile, seen.first_span + i, worker.partials.data() + i * stride);
    kernels_.combine(tile, seen.spans, worker.partials.data());
}

// Whoever does the last span of a unit puts them all together.
void Decoder::attend_span(int layer, const SplitUnit& part) {
    const auto unit = static_cast<size_t>(part.unit);
    const AttentionTile tile = attention_tile(layer, units_[unit]);
    const VisibleRange seen = visible_range(tile);
    if (part.span < seen.first_span || part.span >= seen.first_span + seen.spans) return;  // nothing is seen
    const int stride = tile.rows * partial_stride(round_up(shape_.head_dim, kLanes));
    float* partials = split_partials_.data() + unit * static_cast<size_t>(partials_);
    kernels_.attend(tile, part.span, partials + (part.span - seen.first_span) * stride);
    if (split_done_[unit].fetch_add(1, std::memory_order_acq_rel) + 1 < seen.spans) return;
    split_done_[unit].store(0, std::memory_order_relaxed);  // for the next layer, behind a barrier
    kernels_.combine(tile, seen.spans, partials);
}

}  // namespace flashlet
