// The weights of a model, as packed matrices in memory that somebody else owns.
#pragma once

#include <vector>

#include "kernels.h"

namespace flashlet {

// The caller keeps the arrays alive.
struct LayerWeights {
    const float* attn_norm;  // [hidden, padded to 16]
    PackedMatrix qkv;        // rows: query heads, key heads, value heads
    const float* q_norm;     // [head_dim] or null
    const float* k_norm;
    PackedMatrix o;
    const float* ffn_norm;
    PackedMatrix gate_up;  // panels alternate
    PackedMatrix down;
};

struct ModelWeights {
    std::vector<LayerWeights> layers;
    PackedMatrix embed, head;
    const float* final_norm;
    const float* rope_cos;  // [context_length][head_dim / 2]
    const float* rope_sin;

    // Runs visit(first byte, bytes) over every matrix that a decoding step reads.
    template <class Visit>
    void each_matrix(Visit&& visit) const {
        const auto matrix = [&](const PackedMatrix& w) {
            visit(w.cells, static_cast<size_t>(w.panels) * static_cast<size_t>(w.groups) * kCellBytes);
        };
        for (const LayerWeights& w : layers) {
            for (const PackedMatrix* part : {&w.qkv, &w.o, &w.gate_up, &w.down}) matrix(*part);
        }
        matrix(head);
    }

    // Maps the pages of the weight file now rather than one fault at a time in the first step. Only a hint.
    void map_pages() const;
};

}  // namespace flashlet
