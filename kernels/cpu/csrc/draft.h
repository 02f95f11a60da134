// The draft model: follows the target's rows, and proposes what may come next (docs/numerics.md, "Draft").
#pragma once

#include <cstdint>
#include <vector>

#include "decoder.h"
#include "draft_head.h"
#include "lines.h"
#include "step_plan.h"

namespace flashlet {

struct DraftModel {
    ModelShape shape;  // of its own layers
    DraftWeights weights;
    bool has_attention() const { return weights.layers[0].qkv.cells != nullptr; }
    size_t block_bytes(KvFormat format) const {
        return has_attention() ? Decoder::block_bytes(shape, format) : 0;
    }
};

class Draft {
  public:
    struct Target {
        PackedMatrix embed;
        int vocab_size, max_rows, max_slices;
    };
    Draft(Team& team, const DraftModel& model, const KvRegion& kv, const Target& target);

    // Keeps a row of the target's residual stream if it is among the draft's inputs.
    void keep(Worker& worker, int layers, int row, const float* x);
    bool keeps(int layers) const;

    // After sampling: follows the accepted rows of every slice that asks for it, and proposes.
    void run(Worker& worker, StepPlan& plan);

    const PackedMatrix* first_matrix() const { return &weights_.fuse; }

    static int stages(const ModelShape& shape);
    static int widest_row(const DraftModel& model);

  private:
    struct Row {
        int target_row;
        int32_t next_token;
    };

    void arrange();
    void add_proposal(int slice, int num_tokens);
    void add_segment(const Slice& slice, int first, int count, int32_t last_token);
    int room(const Slice& slice) const;
    int known(const Slice& slice) const;
    void follow(Worker& worker);
    void layers(Worker& worker, int rows, int finished);
    void enter(Worker& worker, int rows);
    void choose(Worker& worker, int rows);
    void propose(Worker& worker, Proposal& proposal, Slice& slice, int row);

    Team& team_;
    const KernelTable& kernels_;
    const ModelShape shape_;
    WeightArena arena_;
    const DraftWeights weights_;
    const Target target_;
    const int hidden_, fused_stride_, input_stride_;
    Decoder decoder_;
    DraftHead head_;
    Lines<float> features_;  // normed, side by side: [rows][fused_stride_]
    Lines<float> states_;    // [rows][hidden_]
    // The batch: the last known row of each proposal, those that want most tokens first, then all other rows.
    std::vector<Proposal> proposals_;
    std::vector<Row> rows_;
    std::vector<Segment> segments_;
    StepPlan* plan_ = nullptr;
};

}  // namespace flashlet
