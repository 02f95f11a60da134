// Reads numbers, a model's shape and its weights from Python objects.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "draft.h"
#include "weights.h"

namespace flashlet {

namespace nb = nanobind;

using FloatArray = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using IdArray = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using ByteArray = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;

// A number out of Python; nanobind's own error would neither say which one nor be a ValueError.
template <class T>
T number(const nb::handle& value, const char* name) {
    T result{};
    if (!nb::try_cast(value, result)) {
        throw std::invalid_argument(std::string(name) + ": expected a number of " +
                                    std::to_string(8 * sizeof(T)) + " bits, got " + nb::repr(value).c_str());
    }
    return result;
}

// The arrays of a weight cache, checked against the shape and kept alive.
class Arrays {
  public:
    explicit Arrays(const nb::dict& arrays) : arrays_(arrays) {}

    bool has(const std::string& name) const { return arrays_.contains(name.c_str()); }

    PackedMatrix packed(const std::string& name, int rows, int inputs) const {
        const auto cells = array<ByteArray>(name, "bytes");
        const auto panels = static_cast<size_t>(round_up(rows, kLanes) / kLanes);
        const auto groups = static_cast<size_t>(round_up(inputs, kGroup) / kGroup);
        if (cells.ndim() != 3 || cells.shape(0) != panels || cells.shape(1) != groups ||
            (cells.shape(2) != kCellBytes && cells.shape(2) != kHalfCellBytes)) {
            throw std::invalid_argument(name + ": expected packed shape (" + std::to_string(panels) + ", " +
                                        std::to_string(groups) + ", " + std::to_string(kCellBytes) + " or " +
                                        std::to_string(kHalfCellBytes) + ")");
        }
        PackedMatrix matrix;
        matrix.cells = cells.data();
        matrix.panels = static_cast<int>(panels);
        matrix.groups = static_cast<int>(groups);
        matrix.format = cells.shape(2) == kCellBytes ? WeightFormat::kInt8 : WeightFormat::kInt4;
        if (has(name + "_bias")) matrix.bias = floats(name + "_bias", panels * kLanes);
        return matrix;
    }

    const float* floats(const std::string& name, size_t size) const {
        const auto values = array<FloatArray>(name, "binary32");
        if (values.size() != size) {
            throw std::invalid_argument(name + ": expected " + std::to_string(size) + " floats, got " +
                                        std::to_string(values.size()));
        }
        return values.data();
    }

    // Token ids below `limit`.
    const int32_t* ids(const std::string& name, int size, int limit) const {
        const auto values = array<IdArray>(name, "32-bit integers");
        const bool fits = values.size() == static_cast<size_t>(size) &&
                          std::all_of(values.data(), values.data() + values.size(),
                                      [&](int32_t id) { return id >= 0 && id < limit; });
        if (!fits) {
            throw std::invalid_argument(name + ": expected " + std::to_string(size) + " ids below " +
                                        std::to_string(limit));
        }
        return values.data();
    }

    // A copy padded with zeros, for kernels that read whole vectors.
    const float* padded(const std::string& name, size_t size) {
        const float* values = floats(name, size);
        std::vector<float>& copy = copies_[name];
        copy.assign(static_cast<size_t>(round_up(static_cast<int>(size), kLanes)), 0.0f);
        std::copy(values, values + size, copy.begin());
        return copy.data();
    }

  private:
    // Never a converted copy, which nobody would keep alive.
    template <class Array>
    Array array(const std::string& name, const char* type) const {
        if (!has(name)) throw std::invalid_argument(name + ": missing among the weights");
        Array result;
        if (!nb::try_cast(arrays_[name.c_str()], result, false)) {
            throw std::invalid_argument(name + ": expected a contiguous array of " + type);
        }
        return result;
    }

    nb::dict arrays_;
    std::map<std::string, std::vector<float>> copies_;
};

inline ModelShape read_shape(const nb::handle& config) {
    const auto number = [&](const char* name) { return nb::cast<int>(config.attr(name)); };
    ModelShape shape{number("vocab_size"),
                     number("hidden_size"),
                     number("intermediate_size"),
                     number("num_layers"),
                     number("num_heads"),
                     number("num_kv_heads"),
                     number("head_dim"),
                     number("context_length"),
                     nb::cast<float>(config.attr("rms_norm_eps")),
                     {}};
    shape.windows = nb::cast<std::vector<int>>(config.attr("sliding_windows"));
    if (shape.head_dim > 512) throw std::invalid_argument("head_dim: expected at most 512");
    return shape;
}

// The decoder layers, named "layers.<index>.<part>"; `attentive` says whether they have attention.
inline void read_layers(const ModelShape& shape, Arrays& arrays, bool attentive, DecoderWeights& weights) {
    const auto hidden = static_cast<size_t>(shape.hidden_size), dim = static_cast<size_t>(shape.head_dim);
    const int queries = shape.num_heads * shape.head_dim, kv = shape.num_kv_heads * shape.head_dim;
    for (int i = 0; i < shape.num_layers; ++i) {
        const std::string prefix = "layers." + std::to_string(i) + ".";
        LayerWeights& layer = weights.layers.emplace_back();
        if (attentive) {
            layer.attn_norm = arrays.padded(prefix + "attn_norm", hidden);
            layer.qkv = arrays.packed(prefix + "qkv", queries + 2 * kv, shape.hidden_size);
            layer.o = arrays.packed(prefix + "o", shape.hidden_size, queries);
        }
        if (arrays.has(prefix + "q_norm")) {
            layer.q_norm = arrays.padded(prefix + "q_norm", dim);
            layer.k_norm = arrays.padded(prefix + "k_norm", dim);
        }
        layer.ffn_norm = arrays.padded(prefix + "ffn_norm", hidden);
        layer.gate_up = arrays.packed(prefix + "gate_up", 2 * round_up(shape.intermediate_size, kLanes),
                                      shape.hidden_size);
        layer.down = arrays.packed(prefix + "down", shape.hidden_size, shape.intermediate_size);
    }
    const size_t table = static_cast<size_t>(shape.context_length) * dim / 2;
    weights.rope_cos = arrays.floats("rope_cos", table);
    weights.rope_sin = arrays.floats("rope_sin", table);
}

inline ModelWeights read_weights(const ModelShape& shape, Arrays& arrays) {
    ModelWeights weights;
    read_layers(shape, arrays, true, weights);
    weights.embed = arrays.packed("embed", shape.vocab_size, shape.hidden_size);
    if (weights.embed.format != WeightFormat::kInt8)
        throw std::invalid_argument("embed: expected int8 weights, got 4-bit ones");
    weights.head =
        arrays.has("head") ? arrays.packed("head", shape.vocab_size, shape.hidden_size) : weights.embed;
    weights.final_norm = arrays.padded("final_norm", static_cast<size_t>(shape.hidden_size));
    return weights;
}

// From a DraftConfig of model/draft.py, for a target of this shape.
inline DraftModel read_draft(const nb::handle& config, const ModelShape& target, Arrays& arrays) {
    DraftModel draft;
    draft.shape = read_shape(config.attr("layers_config")(target.context_length));
    DraftWeights& weights = draft.weights;
    read_layers(draft.shape, arrays, nb::cast<bool>(config.attr("attention")), weights);
    const int hidden = draft.shape.hidden_size;
    const auto width = static_cast<size_t>(hidden);
    if (hidden != target.hidden_size) throw std::invalid_argument("draft: expected the target's hidden size");
    weights.features = nb::cast<std::vector<int>>(config.attr("features"));
    for (size_t i = 0; i < weights.features.size(); ++i)
        weights.feature_norms.push_back(arrays.padded("feature_norm." + std::to_string(i), width));
    weights.fuse = arrays.packed("fuse", hidden, static_cast<int>(weights.features.size()) * hidden);
    weights.state_norm = arrays.padded("state_norm", width);
    weights.embed_norm = arrays.padded("embed_norm", width);
    weights.input = arrays.packed("input", hidden, 2 * hidden);
    weights.out_norm = arrays.padded("out_norm", width);
    weights.num_outputs = draft.shape.vocab_size;
    weights.head = arrays.packed("head", weights.num_outputs, hidden);
    weights.shortlist_gap = nb::cast<float>(config.attr("shortlist_gap"));
    if (weights.shortlist_gap > 0.0f) {
        const int panels = weights.num_outputs / kLanes;
        weights.shortlist = arrays.packed("shortlist", panels, hidden);
        weights.shortlist.bias = arrays.padded("shortlist_bias", static_cast<size_t>(panels));
        if (weights.num_outputs % (kLanes * kLanes) != 0)
            throw std::invalid_argument("draft: expected whole panels of scores");
        if (weights.shortlist.format != weights.head.format)
            throw std::invalid_argument("shortlist: expected weights of as many bits as the head's");
    }
    weights.vocab_ids = arrays.ids("vocab_ids", weights.num_outputs, target.vocab_size);
    return draft;
}

}  // namespace flashlet
