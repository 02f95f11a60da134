// Sixteen lanes in two AVX2 registers; products by vpmaddwd, or by AVX-VNNI where the compiler is told of it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace flashlet::FLASHLET_ISA {

struct F32x16 {
    __m256 lo, hi;
};
struct I32x16 {
    __m256i lo, hi;
};

inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 add(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32x16 abs(F32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F32x16 round(F32x16 a) {
    return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline I32x16 to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I32x16 splat_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I32x16 bit_and(I32x16 a, I32x16 b) {
    return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
inline I32x16 shift_left_23(I32x16 a) { return {_mm256_slli_epi32(a.lo, 23), _mm256_slli_epi32(a.hi, 23)}; }
inline I32x16 shift_right_23(I32x16 a) { return {_mm256_srai_epi32(a.lo, 23), _mm256_srai_epi32(a.hi, 23)}; }
inline I32x16 bit_xor(I32x16 a, I32x16 b) {
    return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
inline I32x16 shift_out_9(I32x16 a) { return {_mm256_srli_epi32(a.lo, 9), _mm256_srli_epi32(a.hi, 9)}; }
inline void multiply_wide(__m256i a, __m256i b, __m256i& high, __m256i& low) {
    const __m256i even = _mm256_mul_epu32(a, b), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
inline void multiply_wide(I32x16 a, uint32_t b, I32x16& high, I32x16& low) {
    const __m256i factor = _mm256_set1_epi32(static_cast<int>(b));
    multiply_wide(a.lo, factor, high.lo, low.lo);
    multiply_wide(a.hi, factor, high.hi, low.hi);
}
inline I32x16 bits(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F32x16 from_bits(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline __m256 range_mask(__m256i lane, int begin, int end) {
    const __m256i from = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(begin - 1));
    return _mm256_castsi256_ps(_mm256_and_si256(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane)));
}
inline F32x16 select_range(F32x16 a, F32x16 b, int begin, int end) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_blendv_ps(b.lo, a.lo, range_mask(lanes, begin, end)),
            _mm256_blendv_ps(b.hi, a.hi, range_mask(lanes, begin - 8, end - 8))};
}
inline F32x16 select_less(F32x16 x, F32x16 y, F32x16 a, F32x16 b) {
    return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}
inline bool any_greater(F32x16 a, F32x16 b) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ),
                                           _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))) != 0;
}
inline float fold_add(F32x16 a) {
    const __m256 eight = _mm256_add_ps(a.lo, a.hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float fold_max(F32x16 a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline I32x16 max(I32x16 a, I32x16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
// Op over the lanes of each of four vectors: the four results, in every quarter.
template <class Op>
inline I32x16 fold_four(const I32x16* a, Op op) {
    const auto lower = [](I32x16 x, I32x16 y) {
        return I32x16{_mm256_unpacklo_epi32(x.lo, y.lo), _mm256_unpacklo_epi32(x.hi, y.hi)};
    };
    const auto upper = [](I32x16 x, I32x16 y) {
        return I32x16{_mm256_unpackhi_epi32(x.lo, y.lo), _mm256_unpackhi_epi32(x.hi, y.hi)};
    };
    const I32x16 ab = op(lower(a[0], a[1]), upper(a[0], a[1])), cd = op(lower(a[2], a[3]), upper(a[2], a[3]));
    I32x16 x = op(I32x16{_mm256_unpacklo_epi64(ab.lo, cd.lo), _mm256_unpacklo_epi64(ab.hi, cd.hi)},
                  I32x16{_mm256_unpackhi_epi64(ab.lo, cd.lo), _mm256_unpackhi_epi64(ab.hi, cd.hi)});
    x = op(x, I32x16{x.hi, x.lo});
    const __m256i other = _mm256_permute2x128_si256(x.lo, x.lo, 1);
    return op(x, I32x16{other, other});
}
// Lane i: the largest of a[i]. There are Rows vectors, rounded up to four.
template <int Rows>
inline I32x16 fold_rows_max(const I32x16* a) {
    const auto larger = [](I32x16 x, I32x16 y) { return max(x, y); };
    I32x16 r = fold_four(a, larger);
    if constexpr (Rows > 4) r.lo = _mm256_blend_epi32(r.lo, fold_four(a + 4, larger).lo, 0xf0);
    if constexpr (Rows > 8) r.hi = fold_four(a + 8, larger).hi;
    if constexpr (Rows > 12) r.hi = _mm256_blend_epi32(r.hi, fold_four(a + 12, larger).hi, 0xf0);
    return r;
}
inline int32_t fold_max(I32x16 a) {
    const __m256i eight = _mm256_max_epi32(a.lo, a.hi);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline __m256i pack_int16(I32x16 a) {  // saturation never bites: values are within 13 bits
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
}
inline void store_int16(int16_t* p, I32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), pack_int16(a));
}
inline void store_int8(int8_t* p, I32x16 a) {
    const __m256i words = pack_int16(a);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline F32x16 load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store_half(uint16_t* p, F32x16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}

inline constexpr int kAttentionRows = 8;  // of a tile
inline constexpr int kFewRows = 1;
inline constexpr int kInputs = 2;
struct Weights {
    __m256i lo, hi;  // [8 outputs][2 inputs] as int16
};
inline __m256i widen(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Weights load_weights(const int8_t* p) { return {widen(p), widen(p + 16)}; }
// In assembly because the compiler copies and spills the sums of a tall tile.
inline void accumulate_pairs(__m256i& acc, __m256i w, __m256i x) {
#ifdef __AVXVNNI__
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
#else
    __m256i product;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(w), "x"(x));
#endif
}
inline void accumulate_dot(I32x16& acc, Weights w, const int16_t* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    const __m256i both = _mm256_set1_epi32(pair);
    accumulate_pairs(acc.lo, w.lo, both);
    accumulate_pairs(acc.hi, w.hi, both);
}
inline void arrange(int16_t*, int) {}

#ifdef __AVXVNNI__
#define FLASHLET_BYTE_PRODUCTS
inline constexpr int kProductRows = 8;
inline constexpr int kStripRows = 3, kHalfStripRows = 2;
struct Quads {
    __m256i lo, hi;  // [8 outputs][4 inputs], unsigned
};
inline Quads load_quads(const uint8_t* p) {
    const auto* vectors = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(vectors), _mm256_loadu_si256(vectors + 1)};
}
inline Quads select_bits(Quads a, uint8_t mask) {
    const __m256i bits = _mm256_set1_epi8(static_cast<char>(mask));
    return {_mm256_and_si256(a.lo, bits), _mm256_and_si256(a.hi, bits)};
}
inline void accumulate_quads(I32x16& acc, Quads w, const int8_t* x) {
    int32_t quad;
    std::memcpy(&quad, x, sizeof quad);
    const __m256i both = _mm256_set1_epi32(quad);
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.lo) : "x"(w.lo), "x"(both));
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.hi) : "x"(w.hi), "x"(both));
}
inline void fold_four_add(const I32x16* a, int32_t* out) {
    const I32x16 sums = fold_four(a, [](I32x16 x, I32x16 y) { return add(x, y); });
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(sums.lo));
}
// 13-bit integers as 128 high + low: writes [32 high][32 low], returns what adds up to the sum of the
// integers.
inline I32x16 split_bytes(I32x16 first, I32x16 second, int8_t* out) {
    const __m256i halves[2] = {_mm256_packs_epi32(first.lo, first.hi),
                               _mm256_packs_epi32(second.lo, second.hi)};
    __m256i high[2], low[2], sum = _mm256_setzero_si256();
    for (int i = 0; i < 2; ++i) {
        const __m256i x = _mm256_permute4x64_epi64(halves[i], 0xd8);
        high[i] = _mm256_srai_epi16(_mm256_add_epi16(x, _mm256_set1_epi16(64)), 7);
        low[i] = _mm256_sub_epi16(x, _mm256_slli_epi16(high[i], 7));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, _mm256_set1_epi16(1)));
    }
    auto* vectors = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(vectors, _mm256_permute4x64_epi64(_mm256_packs_epi16(high[0], high[1]), 0xd8));
    _mm256_storeu_si256(vectors + 1, _mm256_permute4x64_epi64(_mm256_packs_epi16(low[0], low[1]), 0xd8));
    return {sum, _mm256_setzero_si256()};
}
inline I32x16 shift_right_4(I32x16 a) { return {_mm256_srai_epi32(a.lo, 4), _mm256_srai_epi32(a.hi, 4)}; }
inline I32x16 shift_left_7(I32x16 a) { return {_mm256_slli_epi32(a.lo, 7), _mm256_slli_epi32(a.hi, 7)}; }
#else
inline constexpr int kProductRows = 6;
#endif

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace flashlet::FLASHLET_ISA
