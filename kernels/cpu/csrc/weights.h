// The weights of a model: packed matrices, which somebody else owns until an arena takes them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "pages.h"
#include "team.h"

namespace flashlet {

// The caller keeps the arrays alive.
struct LayerWeights {
    const float* attn_norm;  // [hidden, padded to 16]
    PackedMatrix qkv;        // rows: query heads, key heads, value heads; no cells: a layer without attention
    const float* q_norm;     // [head_dim] or null
    const float* k_norm;
    PackedMatrix o;
    const float* ffn_norm;
    PackedMatrix gate_up;  // panels alternate
    PackedMatrix down;
};

struct DecoderWeights {
    std::vector<LayerWeights> layers;
    const float* rope_cos;  // [context_length][head_dim / 2]
    const float* rope_sin;

    // Every matrix of the layers that a step multiplies with, in the order in which it does.
    std::vector<PackedMatrix*> matrices() {
        std::vector<PackedMatrix*> all;
        for (LayerWeights& w : layers) {
            for (PackedMatrix* part : {&w.qkv, &w.o, &w.gate_up, &w.down}) {
                if (part->cells != nullptr) all.push_back(part);
            }
        }
        return all;
    }
};

struct ModelWeights : DecoderWeights {
    PackedMatrix embed, head;
    const float* final_norm;

    std::vector<PackedMatrix*> matrices() {
        std::vector<PackedMatrix*> all = DecoderWeights::matrices();
        all.push_back(&head);
        return all;
    }
};

struct DraftWeights : DecoderWeights {
    std::vector<int> features;                // inputs: residual stream of the target after so many layers
    std::vector<const float*> feature_norms;  // one for each
    PackedMatrix fuse;                        // of all normed features, side by side
    const float *state_norm, *embed_norm;
    PackedMatrix input;  // of the normed state and the normed embedding, side by side
    const float* out_norm;
    PackedMatrix shortlist;      // a score for each panel of the head; no cells: all are looked at
    float shortlist_gap = 0.0f;  // panels whose score is so far below the largest are not
    PackedMatrix head;
    const int32_t* vocab_ids;  // [outputs of the head]: ids of the target
    int num_outputs;

    std::vector<PackedMatrix*> matrices() {
        std::vector<PackedMatrix*> all{&fuse, &input};
        for (PackedMatrix* part : DecoderWeights::matrices()) all.push_back(part);
        if (shortlist.cells != nullptr) all.push_back(&shortlist);
        all.push_back(&head);
        return all;
    }
};

// Copies of matrices in huge pages, arranged as the kernels read them, so that the file's own pages can go.
class WeightArena {
  public:
    // The same weights over copies of the matrices that are multiplied with. All threads share the copying.
    template <class Weights>
    Weights take(Team& team, Weights weights) {
        copy(team, weights.matrices());
        return weights;
    }

    const uint8_t* data() const { return pages_.data(); }
    size_t bytes() const { return pages_.size(); }

  private:
    void copy(Team& team, const std::vector<PackedMatrix*>& matrices);

    Pages pages_;
};

}  // namespace flashlet
