// Decoder layers over a KV pool: attention with RoPE and a gated feed-forward, for rows of several sequences.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "lines.h"
#include "team.h"
#include "weights.h"

namespace flashlet {

struct ModelShape {
    int vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim,
        context_length;
    float rms_norm_eps;
    std::vector<int> windows;  // per layer; 0: full attention
};

// Consecutive rows of one sequence, at positions start, start + 1, ...
struct Segment {
    int first_row, rows, start;
    int first_visible;  // no row sees positions before this one
    const int32_t* block_table;
};

// Where the decoder's cells of block 0 lie in the pool, and the distance to those of the next block.
struct KvRegion {
    uint8_t* base;
    size_t block_bytes;
    KvFormat format;
};

class Decoder {
  public:
    // `after`: the matrix whose product follows the last layer.
    Decoder(Team& team, const ModelShape& shape, const DecoderWeights& weights, const PackedMatrix& after,
            const KvRegion& kv, int max_rows);

    // On one thread, before the layers. The first `singles` segments have one row each and keep their order:
    // layers may then run on fewer of them, read keys that the other segments store, and run again after
    // their starts have moved, up to kMaxAhead positions in all.
    void plan(const std::vector<Segment>& segments, int singles);

    // One layer on rows [0, rows) of the residual stream x. Keys and values of all of them are stored; only
    // the first `finished` rows go on: all, or so many singles.
    void layer(Worker& worker, int index, float* x, int rows, int finished);

    // The first matrix that a layer multiplies with, or the one behind the layers.
    const PackedMatrix* first_matrix(int layer) const;

    static constexpr int kMaxAhead = 8;
    static constexpr int kStagesPerLayer = 10;       // at most; each ends with finish()
    static int widest_row(const ModelShape& shape);  // of quantized activations
    static int partials(const ModelShape& shape);    // floats of attention over the longest context
    static size_t block_bytes(const ModelShape& shape, KvFormat format);

  private:
    struct AttentionUnit {
        int segment, row, rows;
        int kv_head, first_head, heads;
    };
    struct SplitUnit {  // one span of the context of a unit that several threads share
        int unit, span;
    };

    void attention(Worker& worker, int index, float* x, int rows, int finished);
    void feed_forward(Worker& worker, int index, float* x, int rows);
    QuantizedRows normed(Worker& worker, const PackedMatrix& w, const float* x, const float* norm, int rows);
    QuantizedRows plain(Worker& worker, const PackedMatrix& w, const float* x, int rows, int stride);
    void store_heads(int layer, int first, int last, int rows);
    void store_head(int layer, int head, int row);
    void plan_units(int tokens);
    void plan_split(int ahead);
    AttentionTile attention_tile(int layer, const AttentionUnit& unit);
    void attend(Worker& worker, int layer, const AttentionUnit& unit);
    void attend_span(int layer, const SplitUnit& part);
    uint8_t* cell(int layer, int block, int kv_head) const;

    Team& team_;
    const KernelTable& kernels_;
    const ModelShape shape_;
    const DecoderWeights weights_;
    const PackedMatrix after_;
    const KvRegion kv_;
    const float softmax_scale_;
    const size_t cell_bytes_;
    const int hidden_, query_size_, kv_size_, query_stride_, qkv_stride_, ffn_stride_;
    Lines<float> qkv_, attended_, ffn_, query_scales_;
    Lines<int16_t> queries_;
    std::vector<int> row_segments_;
    std::vector<AttentionUnit> units_;
    std::vector<SplitUnit> split_units_;  // empty where there are units enough to keep every thread busy
    const int partials_;                  // floats of one unit over the longest context
    std::vector<std::atomic<int>> split_done_;  // per unit: spans that are done in this layer
    Lines<float> split_partials_;
    const std::vector<Segment>* segments_ = nullptr;
    int planned_rows_ = 0;
};

}  // namespace flashlet
