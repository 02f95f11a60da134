// The weights of a model, as packed matrices in memory that somebody else owns.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

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

    // Runs visit(first byte, bytes) over every matrix.
    template <class Visit>
    void each_matrix(Visit&& visit) const {
        for (const LayerWeights& w : layers) {
            for (const PackedMatrix* part : {&w.qkv, &w.o, &w.gate_up, &w.down}) visit_matrix(*part, visit);
        }
    }

  protected:
    template <class Visit>
    static void visit_matrix(const PackedMatrix& w, Visit&& visit) {
        visit(w.cells, static_cast<size_t>(w.panels) * static_cast<size_t>(w.groups) * kCellBytes);
    }
};

struct ModelWeights : DecoderWeights {
    PackedMatrix embed, head;
    const float* final_norm;

    // Every matrix that a decoding step reads.
    template <class Visit>
    void each_matrix(Visit&& visit) const {
        DecoderWeights::each_matrix(visit);
        visit_matrix(head, visit);
    }
};

struct DraftWeights : DecoderWeights {
    std::vector<int> features;                // inputs: residual stream of the target after so many layers
    std::vector<const float*> feature_norms;  // one for each
    PackedMatrix fuse;                        // of all normed features, side by side
    const float *state_norm, *embed_norm;
    PackedMatrix input;  // of the normed state and the normed embedding, side by side
    const float* out_norm;
    PackedMatrix head;
    const int32_t* vocab_ids;  // [outputs of the head]: ids of the target, ascending
    int num_outputs;

    template <class Visit>
    void each_matrix(Visit&& visit) const {
        DecoderWeights::each_matrix(visit);
        for (const PackedMatrix* part : {&fuse, &input, &head}) visit_matrix(*part, visit);
    }
};

// Maps pages of a weight file now rather than one fault at a time in the first step. Only a hint.
void map_pages(const uint8_t* data, size_t bytes);

}  // namespace flashlet
