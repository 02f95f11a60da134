// Sixteen lanes in plain C++: the definition that the vector versions repeat.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace flashlet::FLASHLET_ISA {

struct F32x16 {
    float v[16];
};
struct I32x16 {
    int32_t v[16];
};

#define FLASHLET_EACH(expr)        \
    for (int i = 0; i < 16; ++i) { \
        r.v[i] = (expr);           \
    }                              \
    return r

inline F32x16 load(const float* p) {
    F32x16 r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void store(float* p, F32x16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline F32x16 splat(float x) {
    F32x16 r;
    FLASHLET_EACH(x);
}
inline F32x16 add(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(a.v[i] + b.v[i]);
}
inline F32x16 sub(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(a.v[i] - b.v[i]);
}
inline F32x16 mul(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(a.v[i] * b.v[i]);
}
inline F32x16 div(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(a.v[i] / b.v[i]);
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    F32x16 r;
    FLASHLET_EACH(std::fma(a.v[i], b.v[i], c.v[i]));
}
inline F32x16 max(F32x16 a, F32x16 b) {  // b where a is NaN
    F32x16 r;
    FLASHLET_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline F32x16 min(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
inline F32x16 abs(F32x16 a) {
    F32x16 r;
    FLASHLET_EACH(std::fabs(a.v[i]));
}
inline F32x16 round(F32x16 a) {  // to nearest even
    F32x16 r;
    FLASHLET_EACH(std::nearbyintf(a.v[i]));
}
inline I32x16 to_int(F32x16 a) {  // to nearest even
    I32x16 r;
    FLASHLET_EACH(static_cast<int32_t>(std::nearbyintf(a.v[i])));
}
inline F32x16 to_float(I32x16 a) {
    F32x16 r;
    FLASHLET_EACH(static_cast<float>(a.v[i]));
}
inline I32x16 splat_int(int32_t x) {
    I32x16 r;
    FLASHLET_EACH(x);
}
inline I32x16 add(I32x16 a, I32x16 b) {  // wraps around
    I32x16 r;
    FLASHLET_EACH(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i])));
}
inline I32x16 bit_and(I32x16 a, I32x16 b) {
    I32x16 r;
    FLASHLET_EACH(a.v[i] & b.v[i]);
}
inline I32x16 shift_left_23(I32x16 a) {
    I32x16 r;
    FLASHLET_EACH(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << 23));
}
inline I32x16 shift_right_23(I32x16 a) {  // arithmetic
    I32x16 r;
    FLASHLET_EACH(a.v[i] >> 23);
}
inline I32x16 bit_xor(I32x16 a, I32x16 b) {
    I32x16 r;
    FLASHLET_EACH(a.v[i] ^ b.v[i]);
}
inline I32x16 shift_out_9(I32x16 a) {  // zeros come in
    I32x16 r;
    FLASHLET_EACH(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> 9));
}
// The 64-bit product of unsigned numbers.
inline void multiply_wide(I32x16 a, uint32_t b, I32x16& high, I32x16& low) {
    for (int i = 0; i < 16; ++i) {
        const uint64_t product = uint64_t{static_cast<uint32_t>(a.v[i])} * b;
        high.v[i] = static_cast<int32_t>(product >> 32);
        low.v[i] = static_cast<int32_t>(product);
    }
}
inline I32x16 bits(F32x16 a) {
    I32x16 r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
inline F32x16 from_bits(I32x16 a) {
    F32x16 r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}
// a in lanes [begin, end), b elsewhere.
inline F32x16 select_range(F32x16 a, F32x16 b, int begin, int end) {
    F32x16 r;
    FLASHLET_EACH(i >= begin && i < end ? a.v[i] : b.v[i]);
}
inline F32x16 select_less(F32x16 x, F32x16 y, F32x16 a, F32x16 b) {  // x < y ? a : b
    F32x16 r;
    FLASHLET_EACH(x.v[i] < y.v[i] ? a.v[i] : b.v[i]);
}
inline bool any_greater(F32x16 a, F32x16 b) {
    bool any = false;
    for (int i = 0; i < 16; ++i) any |= a.v[i] > b.v[i];
    return any;
}
inline float fold_add(F32x16 a) {
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
    }
    return a.v[0];
}
inline float fold_max(F32x16 a) {
    float m = a.v[0];
    for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
}
inline I32x16 max(I32x16 a, I32x16 b) {
    I32x16 r;
    FLASHLET_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline int32_t fold_max(I32x16 a) {
    int32_t m = a.v[0];
    for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
}
template <int Rows>
inline I32x16 fold_rows_max(const I32x16* a) {  // lane i: the largest of a[i], of Rows vectors
    I32x16 r;
    FLASHLET_EACH(i < Rows ? fold_max(a[i]) : 0);
}
inline void store_int16(int16_t* p, I32x16 a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(a.v[i]);
}
inline void store_int8(int8_t* p, I32x16 a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u;
    const uint32_t mantissa = h & 1023u;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -value : value;
    }
    const uint32_t word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    std::memcpy(&value, &word, sizeof value);
    return value;
}
inline uint16_t float_to_half(float x) {  // to nearest even; overflow becomes infinity
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    const uint32_t sign = (word >> 16) & 0x8000u;
    const float magnitude = std::fabs(x);
    if (!(magnitude < 65520.0f))
        return static_cast<uint16_t>(sign | (magnitude == magnitude ? 0x7c00u : 0x7e00u));
    if (magnitude < 0x1p-14f)
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyintf(magnitude * 0x1p24f)));
    word &= 0x7fffffffu;
    word += 0xfffu + ((word >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((word - 0x38000000u) >> 13));
}
inline F32x16 load_half(const uint16_t* p) {
    F32x16 r;
    FLASHLET_EACH(half_to_float(p[i]));
}
inline void store_half(uint16_t* p, F32x16 a) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
}

// Weights of kInputs inputs x 16 outputs, one step of a panel.
inline constexpr int kProductRows = 4, kAttentionRows = 4;  // of a tile
inline constexpr int kFewRows = 1;
inline constexpr int kInputs = 2;
struct Weights {
    const int8_t* p;  // [16 outputs][2 inputs]
};
inline Weights load_weights(const int8_t* p) { return {p}; }
// acc[o] += sum over the inputs of w[o][k] * x[k].
inline void accumulate_dot(I32x16& acc, Weights w, const int16_t* x) {
    for (int i = 0; i < 16; ++i) acc.v[i] += w.p[2 * i] * x[0] + w.p[2 * i + 1] * x[1];
}
// Puts the integers of a row into the order that accumulate_dot wants: here, as they are.
inline void arrange(int16_t*, int) {}
inline void prefetch(const void*) {}

#undef FLASHLET_EACH

}  // namespace flashlet::FLASHLET_ISA
