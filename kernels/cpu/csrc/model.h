// The transformer on the CPU: weights, KV pool, threads and sampler, one call per ragged step.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "sampler.h"
#include "thread_pool.h"
#include "weights.h"

namespace flashlet {

struct ModelShape {
    int vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim,
        context_length;
    float rms_norm_eps;
    std::vector<int> windows;  // per layer; 0: full attention
};

struct ModelLimits {
    int threads, num_blocks, max_rows, max_slices;
    KvFormat kv_format;
};

// One sequence's part of a step: rows first_row .. first_row + rows - 1 at positions start ...
struct Slice {
    int first_row, rows, start;
    int table;     // offset of its block table in StepPlan::block_tables
    int proposed;  // the last so many rows are tokens to verify
};

// A row whose logits are needed, and what for.
struct LogitRow {
    int row;
    int slice;
    bool sampled;       // else: score `target`
    int32_t target;     // in: token to score; out: token sampled, -1 if none was possible
    int top;            // log-probabilities to list; -1: none wanted
    Logprobs logprobs;  // out
    const SampleParams* params;
};

// The residual stream of some rows is wanted after `layers` layers; layers + 1: after the final norm.
struct FeatureCopy {
    int first_row, rows, layers;
    float* out;  // of the first row; the next one's lies `stride` floats on
    size_t stride;
};

struct StepPlan {
    std::vector<int32_t> tokens;  // [rows]
    std::vector<Slice> slices;
    std::vector<int32_t> block_tables;
    std::vector<LogitRow> logit_rows;
    std::vector<FeatureCopy> features;
    int rows() const { return static_cast<int>(tokens.size()); }
    // The token proposed after a sampled row, -1 if there is none.
    int32_t proposed(const LogitRow& item) const {
        const Slice& slice = slices[static_cast<size_t>(item.slice)];
        const bool last = item.row + 1 == slice.first_row + slice.rows;
        return last ? -1 : tokens[static_cast<size_t>(item.row) + 1];
    }
};

enum class Stage { kEmbed, kNorm, kQkv, kRope, kAttention, kOutput, kGateUp, kDown, kHead, kSample, kCount };

class Model {
  public:
    Model(const KernelTable& kernels, const ModelShape& shape, const ModelWeights& weights,
          const ModelLimits& limits);
    ~Model();

    // Runs the step and fills in plan.logit_rows. Where `logits` is given, the logits of each logit row are
    // copied there, [rows][vocab_size].
    void step(StepPlan& plan, float* logits);

    // Seconds spent per stage on the first thread since the last call.
    std::array<double, static_cast<size_t>(Stage::kCount)> take_profile();

    // Bytes per second at which all threads together read the weights, once through.
    double measure_read();

    size_t kv_bytes() const { return pool_bytes_; }
    int threads() const { return pool_.size(); }
    static size_t block_bytes(const ModelShape& shape, KvFormat format);

  private:
    struct Worker;
    struct AttentionUnit {
        int slice, row, rows;  // rows of the step
        int kv_head, first_head, heads;
    };

    void plan_attention(const StepPlan& plan);
    void run(Worker& worker);
    void embed(Worker& worker);
    void layer(Worker& worker, int index);
    struct RowTarget {  // row `row` of `total` rows of quantized activations
        int16_t* values;
        float* scales;
        int row, total;
    };
    QuantizedRows quantized(Worker& worker, const float* x, const float* norm, int width, int stride);
    void quantize_row(Worker& worker, const float* x, const float* norm, int width, int stride,
                      RowTarget target);
    void product(Worker& worker, const PackedMatrix& w, const QuantizedRows& x, int rows, Epilogue epilogue,
                 float* out, int out_stride, Stage stage);
    void rotate_and_store(int layer, int row, int kv_head);
    void attend(Worker& worker, int layer, const AttentionUnit& unit);
    void copy_features(Worker& worker, int layers);
    void logits(Worker& worker);
    void answer(Worker& worker, LogitRow& item, float* row);
    void finish(Worker& worker, Stage stage);
    uint8_t* cell(int layer, int block, int kv_head) const;
    const Slice& slice_of(int row) const {
        return plan_->slices[static_cast<size_t>(row_slices_[static_cast<size_t>(row)])];
    }

    const KernelTable& kernels_;
    const ModelShape shape_;
    const ModelWeights weights_;
    const ModelLimits limits_;
    const int hidden_, query_size_, kv_size_, qkv_stride_, ffn_stride_, quantized_stride_, padded_vocab_;
    const size_t cell_bytes_, block_bytes_, pool_bytes_;
    ThreadPool pool_;
    ChunkCounters counters_;
    struct Unmap {
        size_t bytes;
        void operator()(uint8_t* p) const;
    };
    std::unique_ptr<uint8_t, Unmap> kv_pool_;
    std::vector<float> residual_, qkv_, attended_, ffn_, logits_;
    std::vector<int16_t> quantized_, queries_;
    std::vector<float> scales_, query_scales_;
    std::vector<int> row_slices_;
    std::vector<AttentionUnit> units_;
    std::vector<Worker> workers_;
    bool rotate_first_ = false;
    StepPlan* plan_ = nullptr;
    float* logits_out_ = nullptr;
    std::array<double, static_cast<size_t>(Stage::kCount)> profile_{};
};

}  // namespace flashlet
