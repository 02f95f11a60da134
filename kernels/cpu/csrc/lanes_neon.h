// Sixteen lanes in four NEON registers; products by the dot-product instructions of ARMv8.2.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace flashlet::FLASHLET_ISA {

struct F32x16 {
    float32x4_t v[4];
};
struct I32x16 {
    int32x4_t v[4];
};

#define FLASHLET_EACH(expr)       \
    for (int i = 0; i < 4; ++i) { \
        r.v[i] = (expr);          \
    }                             \
    return r

inline F32x16 load(const float* p) {
    F32x16 r;
    FLASHLET_EACH(vld1q_f32(p + 4 * i));
}
inline void store(float* p, F32x16 a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline F32x16 splat(float x) {
    F32x16 r;
    FLASHLET_EACH(vdupq_n_f32(x));
}
inline F32x16 add(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(vaddq_f32(a.v[i], b.v[i]));
}
inline F32x16 sub(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(vsubq_f32(a.v[i], b.v[i]));
}
inline F32x16 mul(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(vmulq_f32(a.v[i], b.v[i]));
}
inline F32x16 div(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(vdivq_f32(a.v[i], b.v[i]));
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    F32x16 r;
    FLASHLET_EACH(vfmaq_f32(c.v[i], a.v[i], b.v[i]));
}
// FMAX would return the NaN of either side, and +0 for -0; the others return b.
inline F32x16 max(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]));
}
inline F32x16 min(F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]));
}
inline F32x16 abs(F32x16 a) {
    F32x16 r;
    FLASHLET_EACH(vabsq_f32(a.v[i]));
}
inline F32x16 round(F32x16 a) {
    F32x16 r;
    FLASHLET_EACH(vrndnq_f32(a.v[i]));
}
inline I32x16 to_int(F32x16 a) {
    I32x16 r;
    FLASHLET_EACH(vcvtnq_s32_f32(a.v[i]));
}
inline F32x16 to_float(I32x16 a) {
    F32x16 r;
    FLASHLET_EACH(vcvtq_f32_s32(a.v[i]));
}
inline I32x16 splat_int(int32_t x) {
    I32x16 r;
    FLASHLET_EACH(vdupq_n_s32(x));
}
inline I32x16 add(I32x16 a, I32x16 b) {
    I32x16 r;
    FLASHLET_EACH(vaddq_s32(a.v[i], b.v[i]));
}
inline I32x16 bit_and(I32x16 a, I32x16 b) {
    I32x16 r;
    FLASHLET_EACH(vandq_s32(a.v[i], b.v[i]));
}
inline I32x16 shift_left_23(I32x16 a) {
    I32x16 r;
    FLASHLET_EACH(vshlq_n_s32(a.v[i], 23));
}
inline I32x16 shift_right_23(I32x16 a) {
    I32x16 r;
    FLASHLET_EACH(vshrq_n_s32(a.v[i], 23));
}
inline I32x16 bit_xor(I32x16 a, I32x16 b) {
    I32x16 r;
    FLASHLET_EACH(veorq_s32(a.v[i], b.v[i]));
}
inline I32x16 shift_out_9(I32x16 a) {
    I32x16 r;
    FLASHLET_EACH(vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[i]), 9)));
}
inline void multiply_wide(I32x16 a, uint32_t b, I32x16& high, I32x16& low) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t x = vreinterpretq_u32_s32(a.v[i]);
        const uint64x2_t first = vmull_n_u32(vget_low_u32(x), b), second = vmull_n_u32(vget_high_u32(x), b);
        low.v[i] = vreinterpretq_s32_u32(vcombine_u32(vmovn_u64(first), vmovn_u64(second)));
        high.v[i] = vreinterpretq_s32_u32(vcombine_u32(vshrn_n_u64(first, 32), vshrn_n_u64(second, 32)));
    }
}
inline I32x16 bits(F32x16 a) {
    I32x16 r;
    FLASHLET_EACH(vreinterpretq_s32_f32(a.v[i]));
}
inline F32x16 from_bits(I32x16 a) {
    F32x16 r;
    FLASHLET_EACH(vreinterpretq_f32_s32(a.v[i]));
}
inline uint32x4_t range_mask(int first_lane, int begin, int end) {
    constexpr int32_t kFirstLanes[4] = {0, 1, 2, 3};
    const int32x4_t lane = vaddq_s32(vld1q_s32(kFirstLanes), vdupq_n_s32(first_lane));
    return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
}
inline F32x16 select_range(F32x16 a, F32x16 b, int begin, int end) {
    F32x16 r;
    FLASHLET_EACH(vbslq_f32(range_mask(4 * i, begin, end), a.v[i], b.v[i]));
}
inline F32x16 select_less(F32x16 x, F32x16 y, F32x16 a, F32x16 b) {
    F32x16 r;
    FLASHLET_EACH(vbslq_f32(vcltq_f32(x.v[i], y.v[i]), a.v[i], b.v[i]));
}
inline bool any_greater(F32x16 a, F32x16 b) {
    uint32x4_t any = vcgtq_f32(a.v[0], b.v[0]);
    for (int i = 1; i < 4; ++i) any = vorrq_u32(any, vcgtq_f32(a.v[i], b.v[i]));
    return vmaxvq_u32(any) != 0;
}
inline float fold_add(F32x16 a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float fold_max(F32x16 a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}
inline I32x16 max(I32x16 a, I32x16 b) {
    I32x16 r;
    FLASHLET_EACH(vmaxq_s32(a.v[i], b.v[i]));
}
inline int32_t fold_max(I32x16 a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}
template <int Rows>
inline I32x16 fold_rows_max(const I32x16* a) {
    int32_t each[16] = {};
    for (int i = 0; i < Rows; ++i) each[i] = fold_max(a[i]);
    I32x16 r;
    FLASHLET_EACH(vld1q_s32(each + 4 * i));
}
inline int16x8_t pack_int16(int32x4_t lo, int32x4_t hi) { return vcombine_s16(vmovn_s32(lo), vmovn_s32(hi)); }
inline void store_int16(int16_t* p, I32x16 a) {
    vst1q_s16(p, pack_int16(a.v[0], a.v[1]));
    vst1q_s16(p + 8, pack_int16(a.v[2], a.v[3]));
}
inline void store_int8(int8_t* p, I32x16 a) {
    vst1_s8(p, vmovn_s16(pack_int16(a.v[0], a.v[1])));
    vst1_s8(p + 8, vmovn_s16(pack_int16(a.v[2], a.v[3])));
}
inline F32x16 load_half(const uint16_t* p) {
    F32x16 r;
    FLASHLET_EACH(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
inline void store_half(uint16_t* p, F32x16 a) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}

// SDOT multiplies bytes, so that the 13 bits of an activation are split: q = 128 hi + lo with lo in 0 .. 127
// and hi in -32 .. 31.
inline constexpr int kProductRows = 6, kAttentionRows = 6;  // of a tile
inline constexpr int kFewRows = 1;
inline constexpr int kInputs = 4;
struct Weights {
    int8x16_t v[4];  // [4 outputs][4 inputs] each
};
inline Weights load_weights(const int8_t* p) {
    Weights w;
    for (int half = 0; half < 2; ++half) {  // 8 outputs; their inputs 0, 1 lie 32 bytes before 2, 3
        const int16x8_t first = vreinterpretq_s16_s8(vld1q_s8(p + 16 * half));
        const int16x8_t second = vreinterpretq_s16_s8(vld1q_s8(p + 32 + 16 * half));
        w.v[2 * half] = vreinterpretq_s8_s16(vzip1q_s16(first, second));
        w.v[2 * half + 1] = vreinterpretq_s8_s16(vzip2q_s16(first, second));
    }
    return w;
}
inline void accumulate_dot(I32x16& acc, Weights w, const int16_t* x) {
    const int8x8_t parts = vreinterpret_s8_s16(vld1_s16(x));  // lo of four inputs, then hi
    for (int i = 0; i < 4; ++i) {
        const int32x4_t hi = vdotq_lane_s32(vdupq_n_s32(0), w.v[i], parts, 1);
        acc.v[i] = vmlaq_n_s32(vdotq_lane_s32(acc.v[i], w.v[i], parts, 0), hi, 128);
    }
}
// Of every four integers: their lo bytes, then their hi bytes.
inline void arrange(int16_t* q, int n) {
    for (int i = 0; i < n; i += 8) {
        const int16x8_t x = vld1q_s16(q + i);
        const int32x4_t lo =
            vreinterpretq_s32_s8(vcombine_s8(vmovn_s16(vandq_s16(x, vdupq_n_s16(127))), vdup_n_s8(0)));
        const int32x4_t hi = vreinterpretq_s32_s8(vcombine_s8(vshrn_n_s16(x, 7), vdup_n_s8(0)));
        vst1q_s16(q + i, vreinterpretq_s16_s32(vzip1q_s32(lo, hi)));
    }
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }

#undef FLASHLET_EACH

}  // namespace flashlet::FLASHLET_ISA
