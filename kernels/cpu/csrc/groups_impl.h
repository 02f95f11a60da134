// One group of inputs of one panel times a tile of rows, by what the processor multiplies best.
#pragma once

#include "rows_impl.h"

namespace flashlet::FLASHLET_ISA {

inline void prefetch_bytes(const uint8_t* data, int bytes) {
    for (int line = 0; line < bytes; line += 64) prefetch(data + line);
}

// Integer product of one int8 panel [inputs / 2][16 outputs][2] with a tile of rows: exact, so partial sums
// may be kept in several accumulators where few rows would leave the multipliers waiting. Asks for as many
// bytes from `ahead` on as it reads, if that is given.
template <int Rows>
inline void dot_panel(const int8_t* w, int inputs, const int16_t* x, I32x16* out,
                      const uint8_t* ahead = nullptr) {
    constexpr int kSplit = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
    I32x16 acc[kSplit][Rows];
#pragma GCC unroll 4
    for (int s = 0; s < kSplit; ++s) {
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) acc[s][r] = splat_int(0);
    }
    for (int k = 0; k < inputs; k += kLanes, w += kLanes * kLanes, x += kLanes * Rows) {
        if (ahead != nullptr) prefetch_bytes(ahead + k * kLanes, kLanes * kLanes);
#pragma GCC unroll 8
        for (int j = 0; j < kLanes; j += kInputs) {
            const Weights weights = load_weights(w + j * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                accumulate_dot(acc[j / kInputs % kSplit][r], weights, x + r * kLanes + j);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
        if constexpr (kSplit == 4) acc[0][r] = add(add(acc[0][r], acc[1][r]), add(acc[2][r], acc[3][r]));
        if constexpr (kSplit == 2) acc[0][r] = add(acc[0][r], acc[1][r]);
        out[r] = acc[0][r];
    }
}

// Weight formats are policies: what a cell of one group and one panel holds, what the integers of a row look
// like to it, and how a group is multiplied. These are the cells of the weight file, whatever their number.
struct PairGroups {
    static constexpr int kBytes = kCellBytes;
    static constexpr int kVector = 2 * kLanes;   // bytes of weights that are multiplied at once
    static constexpr bool kTakesHalves = false;  // whether half bytes are multiplied as they are
    static constexpr int kZero = 0;              // what a weight of 0 is stored as
    static constexpr int weights_at(int) { return kScaleBytes; }
    static constexpr int kRowUnits = kGroup, kByteRowUnits = kGroup;
    static float quantize(const float* x, int n, int16_t* tile, int index, int rows) {
        return FLASHLET_ISA::quantize<kMaxQuantized>(x, n, tile, index, rows);
    }
    static float quantize_bytes(const float* x, int n, int16_t* tile, int index, int rows) {
        return FLASHLET_ISA::quantize<kMaxByte>(x, n, tile, index, rows);
    }
    static void arrange(const uint8_t* cell, int, uint8_t* out) { __builtin_memcpy(out, cell, kBytes); }
    template <int Rows>
    static void multiply(const uint8_t* cell, int, const int16_t* x, F32x16* acc) {
        I32x16 sums[Rows];
        dot_panel<Rows>(reinterpret_cast<const int8_t*>(cell + kScaleBytes), kGroup, x, sums);
        const F32x16 scale = load_half(reinterpret_cast<const uint16_t*>(cell));
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) acc[r] = fma(to_float(sums[r]), scale, acc[r]);
    }
};

#ifdef FLASHLET_BYTE_PRODUCTS

// For processors that sum four products of an unsigned and a signed byte at once: half as many weights to
// widen or load. An integer x of a row is 128 high + low, both of them bytes, and a weight w is stored as w +
// 128: sum w x = 128 sum (w + 128) high + sum (w + 128) low - 128 sum x, whose last part is known with the
// row. Each group of a row: [32 high][32 low][that last part]. Cells: [8 quads of inputs][16 outputs][4],
// scales behind them in even cells and before them in odd ones, so that no vector of weights crosses a cache
// line.
//
// Beside weights of 4 bits an integer of a row is one byte: sum w x = sum (w + 8) x - 8 sum x. Each group of
// a row: [32][that last part].
struct QuadGroups {
    static constexpr int kBytes = kCellBytes;
    static constexpr int kRowUnits = kGroup + 2, kByteRowUnits = kGroup / 2 + 2;
    static constexpr int kLow = kGroup, kRest = 2 * kGroup, kByteRest = kGroup;  // bytes

    static float quantize(const float* x, int n, int16_t* tile, int index, int rows) {
        return quantize_groups<kMaxQuantized, kRowUnits, kRest, -128>(
            x, n, tile, index, rows,
            [](I32x16 first, I32x16 second, int8_t* bytes) { return split_bytes(first, second, bytes); });
    }
    static float quantize_bytes(const float* x, int n, int16_t* tile, int index, int rows) {
        return quantize_groups<kMaxByte, kByteRowUnits, kByteRest, -8>(
            x, n, tile, index, rows, [](I32x16 first, I32x16 second, int8_t* bytes) {
                store_int8(bytes, first);
                store_int8(bytes + kLanes, second);
                return add(first, second);
            });
    }

    static void arrange(const uint8_t* cell, int group, uint8_t* out) {
        __builtin_memcpy(out + scales_at(group), cell, kScaleBytes);
        const uint8_t* pairs = cell + kScaleBytes;
        uint8_t* quads = out + weights_at(group);
        for (int k = 0; k < kGroup; k += 4) {
            for (int o = 0; o < kLanes; ++o) {
                for (int i = 0; i < 4; ++i)
                    *quads++ = pairs[(k + i) / 2 * 2 * kLanes + 2 * o + i % 2] ^ 0x80u;  // + 128
            }
        }
    }

    template <int Rows>
    [[gnu::always_inline]] static void multiply(const uint8_t* cell, int group, const int16_t* x,
                                                F32x16* acc) {
        const uint8_t* weights = cell + weights_at(group);
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(cell + scales_at(group));
        static_assert(kFewRows <= kStripRows, "sums of more rows would not fit the registers");
        if constexpr (Rows <= kFewRows) {
            // Memory is what they wait for, and prefetchers follow ascending addresses: weights, then scales.
            I32x16 sums[Rows];
            multiply_strip<Rows>(weights, x, sums);
            asm volatile("" ::: "memory");
            const F32x16 scale = load_half(scales);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) acc[r] = fma(to_float(sums[r]), scale, acc[r]);
        } else {
            multiply_strips<Rows>(weights, load_half(scales), x, acc);
        }
    }

    // Half bytes w + 8, and 16 times those in the upper halves, need not be spread.
    template <int Rows>
    [[gnu::always_inline]] static void multiply_halves(const uint8_t* halves, F32x16 scale, const int16_t* x,
                                                       F32x16* acc) {
        constexpr int kStrip = Rows < kHalfStripRows ? Rows : kHalfStripRows;
        I32x16 low[kStrip], high[kStrip];
#pragma GCC unroll 16
        for (int r = 0; r < kStrip; ++r) {
            low[r] = rest_of(bytes_of(x, r), kByteRest);
            high[r] = splat_int(0);
        }
#pragma GCC unroll 4
        for (int k = 0; k < kGroup; k += 8) {
            const Quads both = load_quads(halves + k / 8 * kVector);
            const Quads lower = select_bits(both, 0x0f), upper = select_bits(both, 0xf0);
#pragma GCC unroll 16
            for (int r = 0; r < kStrip; ++r) {
                accumulate_quads(low[r], lower, bytes_of(x, r) + k);
                accumulate_quads(high[r], upper, bytes_of(x, r) + k + 4);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < kStrip; ++r)
            acc[r] = fma(to_float(add(low[r], shift_right_4(high[r]))), scale, acc[r]);
        if constexpr (kStrip < Rows)
            multiply_halves<Rows - kStrip>(halves, scale, x + kStrip * kByteRowUnits, acc + kStrip);
    }

    static constexpr int kVector = 4 * kLanes, kZero = 128;
    static constexpr bool kTakesHalves = true;
    static constexpr int weights_at(int group) { return group % 2 == 0 ? 0 : kScaleBytes; }
    static constexpr int scales_at(int group) { return group % 2 == 0 ? kGroup * kLanes : 0; }

  private:
    // write(first, second, bytes) writes the 32 integers of a group and returns what adds up to their sum,
    // which times Factor is the last part.
    template <int Limit, int Units, int Rest, int Factor, class Write>
    static float quantize_groups(const float* x, int n, int16_t* tile, int index, int rows, Write&& write) {
        constexpr int kFolded = 4;  // groups
        const float largest = abs_max(x, n);
        const F32x16 inverse = splat(inverse_step(largest, Limit));
        int8_t* group = reinterpret_cast<int8_t*>(tile + index * Units);
        const int stride = rows * Units * 2;  // bytes
        for (int i = 0; i < n; i += kFolded * kGroup, group += kFolded * stride) {
            const int count = n - i < kFolded * kGroup ? (n - i) / kGroup : kFolded;
            I32x16 parts[kFolded];
            const auto write_one = [&](int k) {
                const float* from = x + i + k * kGroup;
                parts[k] = write(to_int(mul(load(from), inverse)), to_int(mul(load(from + kLanes), inverse)),
                                 group + k * stride);
            };
            int32_t sums[kFolded];
            if (count == kFolded) {
#pragma GCC unroll 4
                for (int k = 0; k < kFolded; ++k) write_one(k);
            } else {
                for (int k = 0; k < kFolded; ++k) parts[k] = splat_int(0);
                for (int k = 0; k < count; ++k) write_one(k);
            }
            fold_four_add(parts, sums);
            for (int k = 0; k < count; ++k) {
                // A row that has a NaN is INT_MIN throughout, whose sum is 0 or small enough.
                const int32_t rest = Factor * sums[k];
                __builtin_memcpy(group + k * stride + Rest, &rest, sizeof rest);
            }
        }
        return step_of(largest, Limit);
    }
    static const int8_t* row_of(const int16_t* x, int row) {
        return reinterpret_cast<const int8_t*>(x + row * kRowUnits);
    }
    static const int8_t* bytes_of(const int16_t* x, int row) {
        return reinterpret_cast<const int8_t*>(x + row * kByteRowUnits);
    }
    static I32x16 rest_of(const int8_t* row, int at) {
        int32_t rest;
        __builtin_memcpy(&rest, row + at, sizeof rest);
        return splat_int(rest);
    }

    // Strips of few rows: two integer sums for each keep the multipliers busy and fit the registers, beside
    // the sums of all rows.
    template <int Rows>
    [[gnu::always_inline]] static void multiply_strips(const uint8_t* weights, F32x16 scale, const int16_t* x,
                                                       F32x16* acc) {
        constexpr int kStrip = Rows < kStripRows ? Rows : kStripRows;
        I32x16 sums[kStrip];
        multiply_strip<kStrip>(weights, x, sums);
#pragma GCC unroll 16
        for (int r = 0; r < kStrip; ++r) acc[r] = fma(to_float(sums[r]), scale, acc[r]);
        if constexpr (kStrip < Rows)
            multiply_strips<Rows - kStrip>(weights, scale, x + kStrip * kRowUnits, acc + kStrip);
    }

    template <int Rows>
    [[gnu::always_inline]] static void multiply_strip(const uint8_t* weights, const int16_t* x,
                                                      I32x16* sums) {
        I32x16 high[Rows];
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            high[r] = splat_int(0);
            sums[r] = rest_of(row_of(x, r), kRest);
        }
#pragma GCC unroll 8
        for (int k = 0; k < kGroup; k += 4) {
            const Quads quads = load_quads(weights + k * kLanes);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                accumulate_quads(high[r], quads, row_of(x, r) + k);
                accumulate_quads(sums[r], quads, row_of(x, r) + kLow + k);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) sums[r] = add(shift_left_7(high[r]), sums[r]);
    }
};
using Groups = QuadGroups;

#else
using Groups = PairGroups;
#endif

// Half a byte for each weight, plus 8. Behind the scales, byte i of vector v holds byte i of the whole bytes'
// vectors 2 v, low, and 2 v + 1, high. Where Bytes does not take them as they are, a cell is spread out to
// one of whole bytes, in registers mostly: what counts is that half as much comes from memory.
template <class Bytes>
struct HalfByteGroups {
    static constexpr int kBytes = kHalfCellBytes;
    static constexpr int kRowUnits = Bytes::kByteRowUnits;

    static void arrange(const uint8_t* cell, int, uint8_t* out) {
        alignas(64) uint8_t pairs[kCellBytes], bytes[kCellBytes];
        __builtin_memcpy(pairs, cell, kScaleBytes);
        spread<PairGroups::kVector>(cell + kScaleBytes, pairs + kScaleBytes);
        Bytes::arrange(pairs, 0, bytes);
        __builtin_memcpy(out, cell, kScaleBytes);
        out += kScaleBytes;
        for (int at = 0; at < kGroup * kLanes; at += 2 * Bytes::kVector) {
            const uint8_t* weights = bytes + Bytes::weights_at(0) + at;
            for (int i = 0; i < Bytes::kVector; ++i)
                *out++ = nibble(weights[i]) | static_cast<uint8_t>(nibble(weights[Bytes::kVector + i]) << 4);
        }
    }

    template <int Rows>
    static void multiply(const uint8_t* cell, int, const int16_t* x, F32x16* acc) {
        if constexpr (Bytes::kTakesHalves) {
            const F32x16 scale = load_half(reinterpret_cast<const uint16_t*>(cell));
            Bytes::template multiply_halves<Rows>(cell + kScaleBytes, scale, x, acc);
        } else {
            alignas(64) uint8_t bytes[kCellBytes];
            __builtin_memcpy(bytes, cell, kScaleBytes);
            spread<Bytes::kVector>(cell + kScaleBytes, bytes + kScaleBytes);
            Bytes::template multiply<Rows>(bytes, 0, x, acc);
        }
    }

  private:
    static uint8_t nibble(uint8_t weight) { return (weight - Bytes::kZero + 8) & 15; }

    template <int Vector>
    static void spread(const uint8_t* __restrict halves, uint8_t* __restrict bytes) {
#pragma GCC unroll 8
        for (int at = 0; at < kGroup * kLanes / 2; at += Vector, halves += Vector, bytes += 2 * Vector) {
            for (int i = 0; i < Vector; ++i) bytes[i] = static_cast<uint8_t>((halves[i] & 15) - 8);
            for (int i = 0; i < Vector; ++i) bytes[Vector + i] = static_cast<uint8_t>((halves[i] >> 4) - 8);
        }
    }
};

}  // namespace flashlet::FLASHLET_ISA
