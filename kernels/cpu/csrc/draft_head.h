// What a draft expects after a state: the logits that matter, what the text says about them, and a choice
// (docs/numerics.md, "Draft").
#pragma once

#include <cstdint>
#include <vector>

#include "decoder.h"
#include "history.h"
#include "lines.h"
#include "sampler.h"
#include "team.h"
#include "weights.h"

namespace flashlet {

// Drafted tokens of one sequence, so far.
struct Proposal {
    int slice, num_tokens;
    int32_t last_token;  // that was sampled
    bool stopped;        // nothing more is to be drafted
    float confidence;    // that all are right
    const History* history;
    Tail tail;  // of the text with what is drafted
    SampleParams params;
    History::Successors said{};  // what followed in the text where it went as now, by token
    int num_said = 0;
};

class DraftHead {
  public:
    static constexpr int kStages = 4;  // of look() at most, with one for quantizing many rows

    // `weights` must outlive this.
    DraftHead(Team& team, const ModelShape& shape, const DraftWeights& weights, int vocab_size, int max_rows);

    // Logits behind the first `rows` of `states` [rows][hidden], one of each proposal.
    void look(Worker& worker, const float* states, std::vector<Proposal>& proposals, int rows);

    // A token after that row, an id of the target, and how sure the draft is of it; -1 if the logits are not
    // numbers.
    Sampler::Guess guess(Worker& worker, Proposal& proposal, int row);

  private:
    const float* normed(Worker& worker, const float* states, int row);
    void look_at_listed(Worker& worker, const float* states, std::vector<Proposal>& proposals, int rows);
    void recall(Proposal& proposal) const;
    void list(const Proposal& proposal, int row);
    void multiply_listed(Worker& worker, const QuantizedRows& x, int rows);
    int gather(Worker& worker, int row);
    void remind(Worker& worker, const Proposal& proposal, float* logits, int outputs) const;

    bool lists() const { return weights_.shortlist.cells != nullptr; }
    int num_panels() const { return weights_.head.panels; }
    float* logits_of(int row) {
        return logits_.data() + static_cast<size_t>(row) * static_cast<size_t>(logit_stride_);
    }
    float* scores_of(int row) {
        return scores_.data() + static_cast<size_t>(row) * static_cast<size_t>(num_panels());
    }
    int32_t* listed_of(int row) {
        return listed_.data() + static_cast<size_t>(row) * static_cast<size_t>(num_panels());
    }

    Team& team_;
    const KernelTable& kernels_;
    const ModelShape& shape_;
    const DraftWeights& weights_;
    const int hidden_, logit_stride_;
    Lines<float> logits_;             // [rows][logit_stride_]: of the vocabulary, then of guests
    Lines<float> scores_;             // [rows][panels]
    std::vector<int32_t> listed_;     // [rows][panels]: those that are looked at, ascending
    std::vector<int> num_listed_;     // [rows]
    std::vector<int32_t> output_of_;  // [token id]: index of its logit, -1: it has none
};

}  // namespace flashlet
