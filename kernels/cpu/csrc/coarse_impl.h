// Rows of 8 bits times the cells of 8-bit weights: nearly what the exact integers give, at half the cost.
#pragma once

#include "groups_impl.h"

namespace flashlet::FLASHLET_ISA {

#ifdef FLASHLET_BYTE_PRODUCTS

// Cells of QuadGroups times bytes only: where an exact integer of a row is about byte * ratio, sum w x is
// about ratio * (sum (w + 128) byte - 128 sum byte). Each group of a row: [32][that last part][ratio].
struct CoarseGroups {
    static constexpr int kBytes = QuadGroups::kBytes;
    static constexpr int kRowUnits = kGroup / 2 + 4;

    static float quantize(const float* x, int n, int16_t* tile, int index, int rows) {
        const float largest = abs_max(x, n), inverse = inverse_step(largest, kMaxQuantized);
        int16_t* group = tile + index * kRowUnits;
        for (int i = 0; i < n; i += kGroup, group += rows * kRowUnits) {
            const Rounded rounded = round_group(x + i, inverse);
            int8_t* bytes = reinterpret_cast<int8_t*>(group);
            store_int8(bytes, rounded.bytes[0]);
            store_int8(bytes + kLanes, rounded.bytes[1]);
            const I32x16 both = add(rounded.bytes[0], rounded.bytes[1]);
            const int32_t rest = -128 * static_cast<int32_t>(fold_add(to_float(both)));
            __builtin_memcpy(bytes + kGroup, &rest, sizeof rest);
            __builtin_memcpy(bytes + kGroup + sizeof rest, &rounded.ratio, sizeof rounded.ratio);
        }
        return step_of(largest, kMaxQuantized);
    }

    static float error(const float* x, int n) {
        const float largest = abs_max(x, n), inverse = inverse_step(largest, kMaxQuantized);
        F32x16 errors = splat(0.0f), squares = splat(0.0f);
        for (int i = 0; i < n; i += kGroup) {
            const Rounded rounded = round_group(x + i, inverse);
            for (int half = 0; half < 2; ++half) {
                const F32x16 whole = rounded.whole[half];
                const F32x16 off = sub(whole, mul(to_float(rounded.bytes[half]), splat(rounded.ratio)));
                errors = fma(off, off, errors);
                squares = fma(whole, whole, squares);
            }
        }
        // With G groups both products together are rounded by at most (2 G + 4) 2^-24 of |w| |x|; this is
        // twice that. The sums of squares are rounded, too: hence 1.001.
        const float rounding = static_cast<float>(n / kGroup + 8) * 0x1p-22f;
        const float norm =
            __builtin_sqrtf(fold_add(errors)) * 1.001f + __builtin_sqrtf(fold_add(squares)) * rounding;
        return norm * step_of(largest, kMaxQuantized);
    }

    template <int Rows>
    [[gnu::always_inline]] static void multiply(const uint8_t* cell, int group, const int16_t* x,
                                                F32x16* acc) {
        const uint8_t* weights = cell + QuadGroups::weights_at(group);
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(cell + QuadGroups::scales_at(group));
        if constexpr (Rows <= kFewRows) {  // ascending addresses, as there
            F32x16 sums[Rows];
            multiply_strip<Rows>(weights, x, sums);
            asm volatile("" ::: "memory");
            const F32x16 scale = load_half(scales);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) acc[r] = fma(sums[r], scale, acc[r]);
        } else {
            multiply_strips<Rows>(weights, load_half(scales), x, acc);
        }
    }

  private:
    struct Rounded {
        F32x16 whole[2];  // the exact integers
        I32x16 bytes[2];
        float ratio;
    };
    static Rounded round_group(const float* x, float inverse) {
        Rounded rounded;
        for (int half = 0; half < 2; ++half)
            rounded.whole[half] = to_float(to_int(mul(load(x + half * kLanes), splat(inverse))));
        const float largest = fold_max(max(abs(rounded.whole[0]), abs(rounded.whole[1])));
        rounded.ratio = step_of(largest, kMaxByte);
        const F32x16 to_bytes = splat(inverse_step(largest, kMaxByte));
        for (int half = 0; half < 2; ++half) rounded.bytes[half] = to_int(mul(rounded.whole[half], to_bytes));
        return rounded;
    }

    template <int Rows>
    [[gnu::always_inline]] static void multiply_strips(const uint8_t* weights, F32x16 scale, const int16_t* x,
                                                       F32x16* acc) {
        constexpr int kStrip = Rows < kStripRows ? Rows : kStripRows;
        F32x16 sums[kStrip];
        multiply_strip<kStrip>(weights, x, sums);
#pragma GCC unroll 16
        for (int r = 0; r < kStrip; ++r) acc[r] = fma(sums[r], scale, acc[r]);
        if constexpr (kStrip < Rows)
            multiply_strips<Rows - kStrip>(weights, scale, x + kStrip * kRowUnits, acc + kStrip);
    }

    // Two sums for each row: one would leave the multipliers waiting where rows are few.
    template <int Rows>
    [[gnu::always_inline]] static void multiply_strip(const uint8_t* weights, const int16_t* x, F32x16* out) {
        I32x16 sums[2][Rows];
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            int32_t rest;
            __builtin_memcpy(&rest, bytes_of(x, r) + kGroup, sizeof rest);
            sums[0][r] = splat_int(rest);
            sums[1][r] = splat_int(0);
        }
#pragma GCC unroll 8
        for (int k = 0; k < kGroup; k += 4) {
            const Quads quads = load_quads(weights + k * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) accumulate_quads(sums[k / 4 % 2][r], quads, bytes_of(x, r) + k);
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            float ratio;
            __builtin_memcpy(&ratio, bytes_of(x, r) + kGroup + sizeof(int32_t), sizeof ratio);
            out[r] = mul(to_float(add(sums[0][r], sums[1][r])), splat(ratio));
        }
    }
    static const int8_t* bytes_of(const int16_t* x, int row) {
        return reinterpret_cast<const int8_t*>(x + row * kRowUnits);
    }
};
inline constexpr InputFormat kCoarseInputs{CoarseGroups::quantize, CoarseGroups::kRowUnits};
inline constexpr auto kCoarseError = CoarseGroups::error;

#else
using CoarseGroups = Groups;  // would not be faster: nobody makes such rows
inline constexpr InputFormat kCoarseInputs{};
inline constexpr float (*kCoarseError)(const float*, int) = nullptr;
#endif

}  // namespace flashlet::FLASHLET_ISA
