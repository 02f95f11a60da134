// Elementary functions and operations on one row.
#pragma once

#include "kernels.h"

namespace flashlet::FLASHLET_ISA {

inline F32x16 exp16(F32x16 x) {
    x = min(splat(88.0f), max(splat(-87.0f), x));  // in this order NaN stays NaN
    const F32x16 n = round(mul(x, splat(1.44269504f)));
    F32x16 r = fma(n, splat(-0.693145752f), x);
    r = fma(n, splat(-1.42860677e-6f), r);
    F32x16 p = splat(1.0f / 720.0f);
    p = fma(p, r, splat(1.0f / 120.0f));
    p = fma(p, r, splat(1.0f / 24.0f));
    p = fma(p, r, splat(1.0f / 6.0f));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return mul(p, from_bits(shift_left_23(add(to_int(n), splat_int(127)))));
}

// Natural logarithm of positive normal numbers: m in [sqrt(1/2), sqrt(2)), then the odd series of
// 2 atanh(s) with s = (m - 1) / (m + 1), which is accurate to an ulp or two near 1 as well.
inline F32x16 log16(F32x16 x) {
    const I32x16 offset = add(bits(x), splat_int(-0x3f3504f3));
    const F32x16 e = to_float(shift_right_23(offset));
    const F32x16 m = from_bits(add(bit_and(offset, splat_int(0x007fffff)), splat_int(0x3f3504f3)));
    const F32x16 s = div(sub(m, splat(1.0f)), add(m, splat(1.0f)));
    const F32x16 z = mul(s, s);
    F32x16 p = splat(2.0f / 11.0f);
    p = fma(p, z, splat(2.0f / 9.0f));
    p = fma(p, z, splat(2.0f / 7.0f));
    p = fma(p, z, splat(2.0f / 5.0f));
    p = fma(p, z, splat(2.0f / 3.0f));
    const F32x16 tail = mul(mul(s, z), p);
    return fma(e, splat(0.693147181f), add(tail, add(s, s)));
}

inline F32x16 silu16(F32x16 x) { return div(x, add(splat(1.0f), exp16(sub(splat(0.0f), x)))); }

void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
    const int padded = round_up(n, kLanes);
    F32x16 squares = splat(0.0f);
    for (int i = 0; i < padded; i += kLanes) {
        const F32x16 v = load(x + i);
        squares = fma(v, v, squares);
    }
    const float mean = fold_add(squares) / static_cast<float>(n);
    const F32x16 r = splat(1.0f / __builtin_sqrtf(mean + eps));
    for (int i = 0; i < padded; i += kLanes) store(y + i, mul(mul(load(x + i), r), load(weight + i)));
}

// Of floats without their signs, which as integers are in the same order, infinity and NaN above all others.
inline I32x16 magnitude(F32x16 x) { return bit_and(bits(x), splat_int(0x7fffffff)); }
inline constexpr int32_t kInfinity = 0x7f800000;

// NaN if a value is NaN or infinite: the one must show, and the other would scale everything to zero.
inline float abs_max(const float* x, int n) {
    I32x16 m[2] = {splat_int(0), splat_int(0)};
    int i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        m[0] = max(m[0], magnitude(load(x + i)));
        m[1] = max(m[1], magnitude(load(x + i + kLanes)));
    }
    if (i < n) m[0] = max(m[0], magnitude(load(x + i)));
    const int32_t largest = fold_max(max(m[0], m[1]));
    return largest < kInfinity ? __builtin_bit_cast(float, largest) : __builtin_nanf("");
}

inline constexpr float kTiny = 0x1p-100f;  // below this a row counts as zero, so that 1 / scale stays finite

// Not zero where it is NaN: the scale carries that on.
inline float inverse_step(float largest, int limit) {
    return largest < kTiny ? 0.0f : static_cast<float>(limit) / largest;
}
inline float step_of(float largest, int limit) {
    return largest < kTiny ? 0.0f : largest / static_cast<float>(limit);
}

// To -Limit .. Limit.
template <int Limit>
float quantize(const float* x, int n, int16_t* tile, int index, int rows) {
    const float largest = abs_max(x, n);
    const F32x16 inverse = splat(inverse_step(largest, Limit));
    int16_t* out = tile + index * kLanes;
    for (int i = 0; i < n; i += kLanes, out += rows * kLanes) {
        store_int16(out, to_int(mul(load(x + i), inverse)));
        arrange(out, kLanes);
    }
    return step_of(largest, Limit);
}

void embed(const PackedMatrix& w, int row, float* out) {
    const int lane = row % kLanes;
    const uint8_t* cell = w.cells + static_cast<size_t>(row / kLanes) * w.groups * kCellBytes;
    for (int g = 0; g < w.groups; ++g, cell += kCellBytes) {
        float scales[kLanes];
        store(scales, load_half(reinterpret_cast<const uint16_t*>(cell)));
        const int8_t* codes = reinterpret_cast<const int8_t*>(cell + kScaleBytes) + 2 * lane;
        for (int k = 0; k < kGroup; k += 2, codes += 2 * kLanes) {
            *out++ = static_cast<float>(codes[0]) * scales[lane];
            *out++ = static_cast<float>(codes[1]) * scales[lane];
        }
    }
}

}  // namespace flashlet::FLASHLET_ISA
