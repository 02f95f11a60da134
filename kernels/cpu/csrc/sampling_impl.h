// Vector work of sampling: maxima, sums of exponentials, Gumbel noise.
#pragma once

#include "rows_impl.h"

namespace flashlet::FLASHLET_ISA {

// Philox-4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
struct Philox {
    uint32_t word[4];
};

inline Philox philox(uint64_t seed, uint64_t position, uint32_t index) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    uint32_t c0 = index, c1 = static_cast<uint32_t>(position), c2 = static_cast<uint32_t>(position >> 32),
             c3 = 0;
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xd2511f53u} * c0, product1 = uint64_t{0xcd9e8d57u} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
        c1 = static_cast<uint32_t>(product1);
        c3 = static_cast<uint32_t>(product0);
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

// Noise of tokens 16 i .. 16 i + 15.
inline F32x16 gumbel16(uint64_t seed, uint64_t position, uint32_t index) {
    float uniform[kLanes];
    for (uint32_t j = 0; j < 4; ++j) {
        const Philox random = philox(seed, position, index * 4 + j);
        for (int w = 0; w < 4; ++w) {
            uniform[j * 4 + w] = (static_cast<float>(random.word[w] >> 9) + 0.5f) * 0x1p-23f;
        }
    }
    const F32x16 zero = splat(0.0f);
    return sub(zero, log16(sub(zero, log16(load(uniform)))));
}

float gumbel(uint64_t seed, uint64_t position, uint32_t token) {
    float noise[kLanes];
    store(noise, gumbel16(seed, position, token / kLanes));
    return noise[token % kLanes];
}

int argmax(const float* x, int n) {
    F32x16 top = splat(-__builtin_inff());
    for (int i = 0; i < n; i += kLanes) top = max(load(x + i), top);
    const float largest = fold_max(top);
    for (int i = 0; i < n; ++i) {
        if (x[i] == largest && largest > -__builtin_inff()) return i;
    }
    return -1;
}

inline constexpr float kMaxNoise = 16.7f;  // -log(-log(1 - 2^-24)) = 16.64

int gumbel_argmax(const float* x, int n, float temperature, uint64_t seed, uint64_t position) {
    int best = argmax(x, n);
    float best_value = x[best] / temperature + gumbel(seed, position, static_cast<uint32_t>(best));
    for (int i = 0; i < n; i += kLanes) {
        const F32x16 scaled = div(load(x + i), splat(temperature));
        if (!any_greater(add(scaled, splat(kMaxNoise)), splat(best_value)))
            continue;  // no noise can lift these
        float noisy[kLanes];
        store(noisy, add(scaled, gumbel16(seed, position, static_cast<uint32_t>(i / kLanes))));
        for (int j = 0; j < kLanes; ++j) {
            if (noisy[j] > best_value || (noisy[j] == best_value && i + j < best)) {
                best_value = noisy[j];
                best = i + j;
            }
        }
    }
    return best;
}

float exp_sum(const float* x, int n, float largest, float temperature) {
    // exp() clamps at -87, so masked entries must be left out rather than underflow.
    const F32x16 floor = splat(-__builtin_inff());
    F32x16 sum = splat(0.0f);
    for (int i = 0; i < n; i += kLanes) {
        const F32x16 v = load(x + i);
        sum = add(sum,
                  select_less(floor, v, exp16(div(sub(v, splat(largest)), splat(temperature))), splat(0.0f)));
    }
    return fold_add(sum);
}

void exp(const float* x, int n, float* y) {
    for (int i = 0; i < n; i += kLanes) store(y + i, exp16(load(x + i)));
}

void log(const float* x, int n, float* y) {
    for (int i = 0; i < n; i += kLanes) store(y + i, log16(load(x + i)));
}

inline constexpr size_t kReadAhead = 2048;  // floats

uint64_t read(const uint8_t* data, size_t bytes) {
    I32x16 sums[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    const float* words = reinterpret_cast<const float*>(data);
    for (size_t i = 0; i + 64 <= bytes / sizeof(float); i += 64) {
        for (int j = 0; j < 4; ++j) prefetch(words + i + kReadAhead + j * kLanes);
        for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], bits(load(words + i + j * kLanes)));
    }
    const F32x16 total = from_bits(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    float lanes[kLanes];
    store(lanes, total);
    uint64_t sum = 0;
    for (int i = 0; i < kLanes; ++i) {
        uint32_t word;
        __builtin_memcpy(&word, lanes + i, sizeof word);
        sum += word;
    }
    return sum;
}

}  // namespace flashlet::FLASHLET_ISA
