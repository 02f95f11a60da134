// A tiny random model for the tests.
#pragma once

#include <memory>
#include <utility>

#include "data.h"
#include "model.h"

namespace flashlet {

inline constexpr int kContext = 96;

inline ModelShape tiny_shape(int layers, int heads, int kv_heads, int head_dim) {
    ModelShape shape{};
    shape.vocab_size = 37;
    shape.hidden_size = 48;
    shape.intermediate_size = 72;
    shape.num_layers = layers;
    shape.num_heads = heads;
    shape.num_kv_heads = kv_heads;
    shape.head_dim = head_dim;
    shape.context_length = kContext;
    shape.rms_norm_eps = 1e-5f;
    for (int layer = 0; layer < layers; ++layer) shape.windows.push_back(layer % 2 * 20);
    return shape;
}

// Makes random arrays and owns them.
class RandomArrays {
  public:
    PackedMatrix matrix(int outputs, int inputs, bool biased = false) {
        matrices_.push_back(std::make_unique<Matrix>(random_matrix(random_, outputs, inputs, biased)));
        return matrices_.back()->view();
    }
    const float* vector(int n) {
        auto values = random_.floats(static_cast<size_t>(n), 0.5f, 1.5f);
        values.resize(static_cast<size_t>(round_up(n, kLanes)));
        vectors_.push_back(std::make_unique<std::vector<float>>(std::move(values)));
        return vectors_.back()->data();
    }
    void decoder(const ModelShape& shape, DecoderWeights& weights) {
        const int query = shape.num_heads * shape.head_dim, kv = shape.num_kv_heads * shape.head_dim;
        for (int layer = 0; layer < shape.num_layers; ++layer) {
            LayerWeights w{};
            w.attn_norm = vector(shape.hidden_size);
            w.qkv = matrix(query + 2 * kv, shape.hidden_size, true);
            w.q_norm = vector(shape.head_dim);
            w.k_norm = vector(shape.head_dim);
            w.o = matrix(shape.hidden_size, query);
            w.ffn_norm = vector(shape.hidden_size);
            w.gate_up = matrix(2 * round_up(shape.intermediate_size, kLanes), shape.hidden_size);
            w.down = matrix(shape.hidden_size, shape.intermediate_size, true);
            weights.layers.push_back(w);
        }
        weights.rope_cos = vector(kContext * shape.head_dim / 2);
        weights.rope_sin = vector(kContext * shape.head_dim / 2);
    }

  private:
    Random random_{1};
    std::vector<std::unique_ptr<Matrix>> matrices_;
    std::vector<std::unique_ptr<std::vector<float>>> vectors_;
};

class TinyWeights {
  public:
    explicit TinyWeights(const ModelShape& shape) {
        arrays_.decoder(shape, model);
        model.embed = arrays_.matrix(shape.vocab_size, shape.hidden_size);
        model.head = arrays_.matrix(shape.vocab_size, shape.hidden_size);
        model.final_norm = arrays_.vector(shape.hidden_size);
    }

    ModelWeights model;

  private:
    RandomArrays arrays_;
};

}  // namespace flashlet
