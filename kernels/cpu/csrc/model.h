// A model on the CPU: the target, its draft if there is one, KV pool and threads; one call per ragged step.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "coarse_head.h"
#include "decoder.h"
#include "draft.h"
#include "lines.h"
#include "step_plan.h"
#include "team.h"
#include "weights.h"

namespace flashlet {

struct ModelLimits {
    int threads, num_blocks, max_rows, max_slices;
    KvFormat kv_format;
};

class Model {
  public:
    Model(const KernelTable& kernels, const ModelShape& shape, const ModelWeights& weights,
          const ModelLimits& limits, const DraftModel* draft = nullptr);
    ~Model();

    // Runs the step and fills in its results. Where `logits` is given, the logits of each logit row are
    // copied there, [rows][vocab_size]. The block table of a slice with a draft order is followed by one
    // spare block, num_blocks + index of the slice: drafted rows may lie beyond the table.
    void step(StepPlan& plan, float* logits);

    // Seconds spent per stage on the first thread since the last call.
    Profile take_profile() { return team_.take_profile(); }

    // Bytes per second at which all threads together read the weights, once through.
    double measure_read();

    size_t kv_bytes() const { return kv_pool_.size(); }
    int threads() const { return team_.size(); }
    static size_t block_bytes(const ModelShape& shape, KvFormat format, const DraftModel* draft = nullptr);

  private:
    void run(Worker& worker);
    void embed(Worker& worker);
    void keep_features(Worker& worker, int layers);
    const float* residual(Worker& worker, int layers, int row);
    void logits(Worker& worker);
    bool only_largest(int first, int rows) const;
    void note_peaks(int rows, int begin, int end);
    int32_t best_token(int row) const;
    size_t chunks_of_head() const {
        return static_cast<size_t>((weights_.head.panels + head_chunk_ - 1) / head_chunk_);
    }
    void answer(Worker& worker, LogitRow& item, int row, bool coarse);
    void check_proposal(int index);

    const KernelTable& kernels_;
    const ModelShape shape_;
    const int hidden_, padded_vocab_;
    const size_t block_bytes_;
    Team team_;
    WeightArena arena_;
    const ModelWeights weights_;
    Pages kv_pool_;
    Decoder decoder_;
    std::unique_ptr<Draft> draft_;
    Lines<float> residual_, logits_;
    const int head_chunk_;  // panels that a thread multiplies at once
    const CoarseHead coarse_head_;
    Lines<float> peaks_;  // [kLogitRows][chunks], the largest logit of each; NaN if one is not a number
    std::vector<Segment> segments_;
    std::unique_ptr<std::atomic<int>[]> wrong_;  // of each slice: logit row of a proposal that was wrong
    bool drafting_ = false;                      // some slice of the step has a draft order
    StepPlan* plan_ = nullptr;
    float* logits_out_ = nullptr;
};

}  // namespace flashlet
