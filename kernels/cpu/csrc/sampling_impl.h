// Vector work of sampling: maxima, sums of exponentials, Gumbel noise.
#pragma once

#include "rows_impl.h"

namespace flashlet::FLASHLET_ISA {

inline constexpr int kNoiseRun = 64;  // tokens whose noise is made together: sixteen counters of four words

// Random numbers of tokens 4 quad + w, for each word w and lane.
// Philox-4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
inline void uniform_quads(uint64_t seed, uint64_t position, I32x16 quads, F32x16* uniform) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    I32x16 word[4] = {quads, splat_int(static_cast<int32_t>(position)),
                      splat_int(static_cast<int32_t>(position >> 32)), splat_int(0)};
    for (int round = 0; round < 10; ++round) {
        I32x16 high0, low0, high1, low1;
        multiply_wide(word[0], 0xd2511f53u, high0, low0);
        multiply_wide(word[2], 0xcd9e8d57u, high1, low1);
        word[0] = bit_xor(bit_xor(high1, word[1]), splat_int(static_cast<int32_t>(key0)));
        word[2] = bit_xor(bit_xor(high0, word[3]), splat_int(static_cast<int32_t>(key1)));
        word[1] = low1;
        word[3] = low0;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    for (int w = 0; w < 4; ++w)
        uniform[w] = mul(add(to_float(shift_out_9(word[w])), splat(0.5f)), splat(0x1p-23f));
}

// The same of tokens 64 run + 4 lane + w.
inline void uniform_run(uint64_t seed, uint64_t position, uint32_t run, F32x16* uniform) {
    static constexpr float kCount[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const I32x16 quads = add(splat_int(static_cast<int32_t>(run * kLanes)), to_int(load(kCount)));
    uniform_quads(seed, position, quads, uniform);
}

inline F32x16 gumbel16(F32x16 uniform) {
    const F32x16 zero = splat(0.0f);
    return sub(zero, log16(sub(zero, log16(uniform))));
}

// Noise in the order of tokens.
inline void gumbel_run(const F32x16* uniform, float* noise) {
    for (int w = 0; w < 4; ++w) {
        float lanes[kLanes];
        store(lanes, gumbel16(uniform[w]));
        for (int i = 0; i < kLanes; ++i) noise[4 * i + w] = lanes[i];
    }
}

// Noise of sixteen tokens in any order.
inline F32x16 gumbel_of(uint64_t seed, uint64_t position, const int32_t* tokens) {
    alignas(64) float quads[kLanes], words[kLanes];  // exactly: there are fewer than 2^24
    for (int i = 0; i < kLanes; ++i) {
        quads[i] = static_cast<float>(tokens[i] / 4);
        words[i] = static_cast<float>(tokens[i] % 4);
    }
    F32x16 uniform[4];
    uniform_quads(seed, position, to_int(load(quads)), uniform);
    const F32x16 w = load(words);
    const F32x16 low = select_less(w, splat(0.5f), uniform[0], uniform[1]);
    const F32x16 high = select_less(w, splat(2.5f), uniform[2], uniform[3]);
    return gumbel16(select_less(w, splat(1.5f), low, high));
}

void gumbel(uint64_t seed, uint64_t position, const int32_t* tokens, int n, float* noise) {
    for (int i = 0; i < n; i += kLanes) {
        const int count = n - i < kLanes ? n - i : kLanes;
        int32_t ids[kLanes] = {};
        __builtin_memcpy(ids, tokens + i, static_cast<size_t>(count) * sizeof *ids);
        alignas(64) float lanes[kLanes];
        store(lanes, gumbel_of(seed, position, ids));
        __builtin_memcpy(noise + i, lanes, static_cast<size_t>(count) * sizeof *lanes);
    }
}

inline float gumbel_of_one(uint64_t seed, uint64_t position, int32_t token) {
    float noise;
    gumbel(seed, position, &token, 1, &noise);
    return noise;
}

inline constexpr int kChains = 4;  // results kept side by side, as each waits for the one before

int argmax(const float* x, int n) {
    F32x16 tops[kChains];
    for (F32x16& top : tops) top = splat(-__builtin_inff());
    int at = 0;
    for (; at + kChains * kLanes <= n; at += kChains * kLanes) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) tops[c] = max(load(x + at + c * kLanes), tops[c]);
    }
    for (; at < n; at += kLanes) tops[0] = max(load(x + at), tops[0]);
    const float largest = fold_max(max(max(tops[0], tops[1]), max(tops[2], tops[3])));
    if (!(largest > -__builtin_inff())) return -1;
    for (int i = 0; i < n; i += kLanes) {
        const F32x16 candidate = select_less(load(x + i), splat(largest), splat(0.0f), splat(1.0f));
        if (!any_greater(candidate, splat(0.0f))) continue;
        for (int j = i; j < i + kLanes; ++j) {
            if (x[j] == largest) return j;
        }
    }
    return -1;
}

// 0 times the positive ones is NaN if one of them is infinite or NaN.
float peak(const float* x, int n) {
    const F32x16 zero = splat(0.0f);
    F32x16 tops[kChains], invalid[kChains];
    for (int c = 0; c < kChains; ++c) {
        tops[c] = splat(-__builtin_inff());
        invalid[c] = zero;
    }
    const auto look = [&](int at, int chain) {
        const F32x16 v = load(x + at);
        tops[chain] = max(v, tops[chain]);
        invalid[chain] = fma(max(zero, v), zero, invalid[chain]);
    };
    int at = 0;
    for (; at + kChains * kLanes <= n; at += kChains * kLanes) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) look(at + c * kLanes, c);
    }
    for (; at < n; at += kLanes) look(at, 0);
    return fold_max(max(max(tops[0], tops[1]), max(tops[2], tops[3]))) +
           fold_add(add(add(invalid[0], invalid[1]), add(invalid[2], invalid[3])));
}

int collect(const float* x, int n, float above, int32_t* found) {
    int count = 0;
    for (int i = 0; i < n; i += kLanes) {
        if (!any_greater(load(x + i), splat(above))) continue;
        for (int j = i; j < i + kLanes; ++j) {
            if (x[j] > above) found[count++] = j;
        }
    }
    return count;
}

inline constexpr float kMaxNoise = 16.7f;  // -log(-log(1 - 2^-24)) = 16.64

// At most this much noise comes of a random number u: -log(-log(u)) <= -log(1 - u), whose integer logarithm
// is cheap.
inline float most_noise(float u) {
    const float rest = 1.0f - u;
    int32_t word;
    __builtin_memcpy(&word, &rest, sizeof word);
    constexpr float kSlack = 1e-3f;  // the logarithm of the noise itself is only nearly exact
    return static_cast<float>(127 - (word >> 23)) * 0.693148f + kSlack;
}

// Values of x up to here cannot reach `best` after division by the temperature, with noise up to `most`. The
// margin is wider than all rounding on the way.
inline float out_of_reach(float best, float most, float temperature) {
    if (!(best < __builtin_inff())) return -__builtin_inff();
    return (best - most - (__builtin_fabsf(best) + most) * 0x1p-20f) * temperature;
}

int gumbel_argmax_of(const float* x, const int32_t* ids, int n, int best, float temperature, uint64_t seed,
                     uint64_t position) {
    float best_value = x[best] / temperature + gumbel_of_one(seed, position, ids[best]);
    alignas(64) float noise[kLanes];
    for (int i = 0; i < n; i += kLanes) {
        if (!any_greater(load(x + i), splat(out_of_reach(best_value, kMaxNoise, temperature)))) continue;
        store(noise, gumbel_of(seed, position, ids + i));
        for (int j = i; j < i + kLanes; ++j) {
            const float value = x[j] / temperature + noise[j - i];
            if (value > best_value || (value == best_value && j < best)) {
                best_value = value;
                best = j;
            }
        }
    }
    return best;
}

int gumbel_argmax(const float* x, const int32_t* ids, int n, int best, float temperature, uint64_t seed,
                  uint64_t position) {
    if (ids != nullptr) return gumbel_argmax_of(x, ids, n, best, temperature, seed, position);
    float best_value = x[best] / temperature + gumbel_of_one(seed, position, best);
    for (int i = 0; i < n; i += kNoiseRun) {
        const int count = n - i < kNoiseRun ? n - i : kNoiseRun;
        F32x16 largest = load(x + i);
        for (int j = kLanes; j < count; j += kLanes) largest = max(load(x + i + j), largest);
        if (!any_greater(largest, splat(out_of_reach(best_value, kMaxNoise, temperature)))) continue;
        F32x16 uniform[4];
        uniform_run(seed, position, static_cast<uint32_t>(i / kNoiseRun), uniform);
        // Logarithms are dear: most runs end with what their largest number can give.
        const float u = fold_max(max(max(uniform[0], uniform[1]), max(uniform[2], uniform[3])));
        if (!any_greater(largest, splat(out_of_reach(best_value, most_noise(u), temperature)))) continue;
        alignas(64) float noise[kNoiseRun];
        gumbel_run(uniform, noise);
        for (int j = 0; j < count; ++j) {
            const float value = x[i + j] / temperature + noise[j];
            if (value > best_value || (value == best_value && i + j < best)) {
                best_value = value;
                best = i + j;
            }
        }
    }
    return best;
}

template <class Scaled>
inline float exp_sum(const float* x, int n, float largest, Scaled&& scaled) {
    // exp() clamps at -87, so masked entries must be left out rather than underflow.
    const F32x16 floor = splat(-__builtin_inff());
    F32x16 sum = splat(0.0f);
    for (int i = 0; i < n; i += kLanes) {
        const F32x16 v = load(x + i), e = exp16(scaled(sub(v, splat(largest))));
        sum = add(sum, select_less(floor, v, e, splat(0.0f)));
    }
    return fold_add(sum);
}

float exp_sum(const float* x, int n, float largest, float temperature) {
    if (temperature == 1.0f)  // dividing takes as long as exp()
        return exp_sum(x, n, largest, [](F32x16 v) { return v; });
    return exp_sum(x, n, largest, [&](F32x16 v) { return div(v, splat(temperature)); });
}

void exp(const float* x, int n, float* y) {
    for (int i = 0; i < n; i += kLanes) store(y + i, exp16(load(x + i)));
}

void log(const float* x, int n, float* y) {
    for (int i = 0; i < n; i += kLanes) store(y + i, log16(load(x + i)));
}

inline constexpr size_t kReadAhead = 2048;  // floats

uint64_t read(const uint8_t* data, size_t bytes, bool pages) {
    I32x16 sums[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    const float* words = reinterpret_cast<const float*>(data);
    for (size_t i = 0; i + 64 <= bytes / sizeof(float); i += 64) {
        for (int j = 0; j < 4 && !pages; ++j) prefetch(words + i + kReadAhead + j * kLanes);
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
