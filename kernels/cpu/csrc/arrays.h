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

#include "model.h"

namespace flashlet {

namespace nb = nanobind;

using FloatArray = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
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
            cells.shape(2) != kCellBytes) {
            throw std::invalid_argument(name + ": expected packed shape (" + std::to_string(panels) + ", " +
                                        std::to_string(groups) + ", " + std::to_string(kCellBytes) + ")");
        }
        PackedMatrix matrix;
        matrix.cells = cells.data();
        matrix.panels = static_cast<int>(panels);
        matrix.groups = static_cast<int>(groups);
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

inline ModelWeights read_weights(const ModelShape& shape, Arrays& arrays) {
    ModelWeights weights;
    const auto hidden = static_cast<size_t>(shape.hidden_size), dim = static_cast<size_t>(shape.head_dim);
    const int queries = shape.num_heads * shape.head_dim, kv = shape.num_kv_heads * shape.head_dim;
    for (int i = 0; i < shape.num_layers; ++i) {
        const std::string prefix = "layers." + std::to_string(i) + ".";
        const bool normed = arrays.has(prefix + "q_norm");
        weights.layers.push_back(
            {arrays.padded(prefix + "attn_norm", hidden),
             arrays.packed(prefix + "qkv", queries + 2 * kv, shape.hidden_size),
             normed ? arrays.padded(prefix + "q_norm", dim) : nullptr,
             normed ? arrays.padded(prefix + "k_norm", dim) : nullptr,
             arrays.packed(prefix + "o", shape.hidden_size, queries),
             arrays.padded(prefix + "ffn_norm", hidden),
             arrays.packed(prefix + "gate_up", 2 * round_up(shape.intermediate_size, kLanes),
                           shape.hidden_size),
             arrays.packed(prefix + "down", shape.hidden_size, shape.intermediate_size)});
    }
    weights.embed = arrays.packed("embed", shape.vocab_size, shape.hidden_size);
    weights.head =
        arrays.has("head") ? arrays.packed("head", shape.vocab_size, shape.hidden_size) : weights.embed;
    weights.final_norm = arrays.padded("final_norm", hidden);
    const size_t table = static_cast<size_t>(shape.context_length) * dim / 2;
    weights.rope_cos = arrays.floats("rope_cos", table);
    weights.rope_sin = arrays.floats("rope_sin", table);
    return weights;
}

}  // namespace flashlet
