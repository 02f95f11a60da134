// Sixteen lanes in one AVX-512 register; products by VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace flashlet::FLASHLET_ISA {

struct F32x16 {
    __m512 v;
};
struct I32x16 {
    __m512i v;
};

inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline F32x16 round(F32x16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline I32x16 to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32x16 splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 bit_and(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32x16 shift_left_23(I32x16 a) { return {_mm512_slli_epi32(a.v, 23)}; }
inline I32x16 shift_right_23(I32x16 a) { return {_mm512_srai_epi32(a.v, 23)}; }
inline I32x16 bit_xor(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline I32x16 shift_out_9(I32x16 a) { return {_mm512_srli_epi32(a.v, 9)}; }
inline void multiply_wide(I32x16 a, uint32_t b, I32x16& high, I32x16& low) {
    const __m512i factor = _mm512_set1_epi32(static_cast<int>(b));
    const __m512i even = _mm512_mul_epu32(a.v, factor);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), factor);
    high = {_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd)};
    low = {_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32))};
}
inline I32x16 bits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
inline F32x16 from_bits(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline F32x16 select_range(F32x16 a, F32x16 b, int begin, int end) {
    const auto below = [](int n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1u; };
    return {_mm512_mask_blend_ps(static_cast<__mmask16>(below(end) & ~below(begin)), b.v, a.v)};
}
inline F32x16 select_less(F32x16 x, F32x16 y, F32x16 a, F32x16 b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), b.v, a.v)};
}
inline bool any_greater(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }
inline float fold_add(F32x16 a) {
    const __m256 lo = _mm512_castps512_ps256(a.v);
    const __m256 hi = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
    const __m256 eight = _mm256_add_ps(lo, hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float fold_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
inline int32_t fold_max(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }
inline I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
// Op over the lanes of each of four vectors: the four results, in every quarter.
template <class Op>
inline I32x16 fold_four(const I32x16* a, Op op) {
    const auto halves = [&](__m512i x, __m512i y) {
        return op(I32x16{_mm512_unpacklo_epi32(x, y)}, I32x16{_mm512_unpackhi_epi32(x, y)}).v;
    };
    const __m512i ab = halves(a[0].v, a[1].v), cd = halves(a[2].v, a[3].v);
    I32x16 x = op(I32x16{_mm512_unpacklo_epi64(ab, cd)}, I32x16{_mm512_unpackhi_epi64(ab, cd)});
    x = op(x, I32x16{_mm512_shuffle_i64x2(x.v, x.v, 0x4e)});
    return op(x, I32x16{_mm512_shuffle_i64x2(x.v, x.v, 0xb1)});
}
// Lane i: the largest of a[i]. There are Rows vectors, rounded up to four.
template <int Rows>
inline I32x16 fold_rows_max(const I32x16* a) {
    const auto larger = [](I32x16 x, I32x16 y) { return max(x, y); };
    __m512i r = fold_four(a, larger).v;
    if constexpr (Rows > 4) r = _mm512_mask_blend_epi32(0x00f0, r, fold_four(a + 4, larger).v);
    if constexpr (Rows > 8) r = _mm512_mask_blend_epi32(0x0f00, r, fold_four(a + 8, larger).v);
    if constexpr (Rows > 12) r = _mm512_mask_blend_epi32(0xf000, r, fold_four(a + 12, larger).v);
    return {r};
}
inline void fold_four_add(const I32x16* a, int32_t* out) {
    const I32x16 sums = fold_four(a, [](I32x16 x, I32x16 y) { return add(x, y); });
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(sums.v));
}
inline void store_int16(int16_t* p, I32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
inline void store_int8(int8_t* p, I32x16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
inline F32x16 load_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_half(uint16_t* p, F32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

inline constexpr int kProductRows = 8, kAttentionRows = 16;  // of a tile
inline constexpr int kFewRows = 4;
inline constexpr int kInputs = 2;
struct Weights {
    __m512i v;  // [16 outputs][2 inputs] as int16
};
inline Weights load_weights(const int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void accumulate_dot(I32x16& acc, Weights w, const int16_t* x) {
    // In assembly because the compiler neither folds the broadcast nor keeps the sum in its register.
    asm("vpdpwssd %2%{1to16%}, %1, %0"
        : "+v"(acc.v)
        : "v"(w.v), "m"(*reinterpret_cast<const int16_t (*)[2]>(x)));
}
inline void arrange(int16_t*, int) {}

#define FLASHLET_BYTE_PRODUCTS
inline constexpr int kStripRows = 4, kHalfStripRows = 6;
struct Quads {
    __m512i v;  // [16 outputs][4 inputs], unsigned
};
inline Quads load_quads(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Quads select_bits(Quads a, uint8_t mask) {
    return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(mask)))};
}
inline void accumulate_quads(I32x16& acc, Quads w, const int8_t* x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(acc.v)
        : "v"(w.v), "m"(*reinterpret_cast<const int8_t (*)[4]>(x)));
}
// 13-bit integers as 128 high + low: writes [32 high][32 low], returns what adds up to the sum of the
// integers.
inline I32x16 split_bytes(I32x16 first, I32x16 second, int8_t* out) {
    const __m512i x = _mm512_packs_epi32(first.v, second.v);  // 4 of the one, 4 of the other, in each quarter
    const __m512i high = _mm512_srai_epi16(_mm512_add_epi16(x, _mm512_set1_epi16(64)), 7);
    const __m512i low = _mm512_sub_epi16(x, _mm512_slli_epi16(high, 7));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high, low)));
    return {_mm512_madd_epi16(x, _mm512_set1_epi16(1))};
}
inline I32x16 shift_right_4(I32x16 a) { return {_mm512_srai_epi32(a.v, 4)}; }
inline I32x16 shift_left_7(I32x16 a) { return {_mm512_slli_epi32(a.v, 7)}; }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace flashlet::FLASHLET_ISA
