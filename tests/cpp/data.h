// Seeded random inputs, and operations of docs/numerics.md in their most literal form.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "isa.h"

namespace flashlet {

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {  // splitmix64
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    int integer(int low, int high) {  // both included
        return low + static_cast<int>(next() % static_cast<uint64_t>(high - low + 1));
    }
    float uniform(float low, float high) {
        return low + (high - low) * static_cast<float>(next() >> 40) * 0x1p-24f;
    }
    std::vector<float> floats(size_t n, float low = -1.0f, float high = 1.0f) {
        std::vector<float> values(n);
        for (float& value : values) value = uniform(low, high);
        return values;
    }

  private:
    uint64_t state_;
};

// Value of a finite binary16.
inline float half_value(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
    return half >> 15 != 0 ? -magnitude : magnitude;
}

// A matrix in the packed layout that owns its cells.
struct Matrix {
    std::vector<uint8_t> cells;
    std::vector<float> bias;
    int panels, groups;
    WeightFormat format = WeightFormat::kInt8;

    Matrix(int panel_count, int group_count)
        : cells(static_cast<size_t>(panel_count * group_count * kCellBytes)),
          panels(panel_count),
          groups(group_count) {}
    PackedMatrix view() const {
        return {cells.data(), bias.empty() ? nullptr : bias.data(), panels, groups, format};
    }
    size_t cell(int output, int input) const {
        return static_cast<size_t>((output / kLanes * groups + input / kGroup) * kCellBytes);
    }
    int8_t& code(int output, int input) {
        const int k = input % kGroup;
        return reinterpret_cast<int8_t&>(
            cells[cell(output, input) +
                  static_cast<size_t>(kScaleBytes + k / 2 * 2 * kLanes + output % kLanes * 2 + k % 2)]);
    }
    uint16_t& scale(int output, int input) {
        return reinterpret_cast<uint16_t*>(cells.data() + cell(output, input))[output % kLanes];
    }
};

// Random codes; scales of about 2^-9 to 2^-5; rows from `outputs` on and columns from `inputs` on are zero.
inline Matrix random_matrix(Random& random, int outputs, int inputs, bool biased = false) {
    Matrix matrix(round_up(outputs, kLanes) / kLanes, round_up(inputs, kGroup) / kGroup);
    for (int o = 0; o < outputs; ++o) {
        for (int i = 0; i < inputs; ++i) {
            matrix.code(o, i) = static_cast<int8_t>(random.integer(-127, 127));
            if (i % kGroup == 0) matrix.scale(o, i) = static_cast<uint16_t>(random.integer(0x1800, 0x27ff));
        }
    }
    if (biased) {
        matrix.bias = random.floats(static_cast<size_t>(matrix.panels * kLanes));
        std::fill(matrix.bias.begin() + outputs, matrix.bias.end(), 0.0f);
    }
    return matrix;
}

// A row as integers and a scale.
struct Quantized {
    std::vector<int> q;
    float scale;
};

inline Quantized naive_quantize(const float* x, int n, int most) {
    float largest = 0.0f;
    for (int i = 0; i < n; ++i) largest = std::fmax(largest, std::fabs(x[i]));
    Quantized result{std::vector<int>(static_cast<size_t>(n)), 0.0f};
    if (largest < 0x1p-100f) return result;
    const float inverse = static_cast<float>(most) / largest;
    for (int i = 0; i < n; ++i)
        result.q[static_cast<size_t>(i)] = static_cast<int>(std::nearbyint(x[i] * inverse));
    result.scale = largest / static_cast<float>(most);
    return result;
}

inline float kernel_exp(const KernelTable& kernels, float x) {
    float values[kLanes] = {x};
    kernels.exp(values, kLanes, values);
    return values[0];
}

// The sum of docs/numerics.md: sixteen lanes, folded.
class LaneSum {
  public:
    void add(int index, float x) { lanes_[index % kLanes] += x; }
    float fold() const {
        float lanes[kLanes];
        std::copy(lanes_, lanes_ + kLanes, lanes);
        for (int width = kLanes / 2; width > 0; width /= 2) {
            for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
        }
        return lanes[0];
    }

  private:
    float lanes_[kLanes] = {};
};

}  // namespace flashlet
