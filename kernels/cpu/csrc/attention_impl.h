// RoPE, the KV cells, and attention over block tables.
#pragma once

#include "product_impl.h"

namespace flashlet::FLASHLET_ISA {

// Rotates 16 pairs (x1[i], x2[i]).
inline void rotate(float* x1, float* x2, const float* cos, const float* sin) {
    const F32x16 a = load(x1), b = load(x2), cosine = load(cos), sine = load(sin);
    store(x1, fma(a, cosine, sub(splat(0.0f), mul(b, sine))));
    store(x2, fma(b, cosine, mul(a, sine)));
}

void rope(float* head, const float* cos, const float* sin, int head_dim) {
    const int half = head_dim / 2, whole = half / kLanes * kLanes;
    for (int i = 0; i < whole; i += kLanes) rotate(head + i, head + half + i, cos + i, sin + i);
    if (whole == half) return;
    float x1[kLanes] = {}, x2[kLanes] = {}, c[kLanes] = {}, s[kLanes] = {};
    const size_t bytes = static_cast<size_t>(half - whole) * sizeof(float);
    __builtin_memcpy(x1, head + whole, bytes);
    __builtin_memcpy(x2, head + half + whole, bytes);
    __builtin_memcpy(c, cos + whole, bytes);
    __builtin_memcpy(s, sin + whole, bytes);
    rotate(x1, x2, c, s);
    __builtin_memcpy(head + whole, x1, bytes);
    __builtin_memcpy(head + half + whole, x2, bytes);
}

inline constexpr int kMaxHeadDim = 512;

// A head vector padded with zeros to whole vectors: itself if that is nothing, else a copy in `buffer`.
inline const float* padded_head(const float* x, int head_dim, float* buffer) {
    if (head_dim % kLanes == 0) return x;
    for (int i = head_dim; i < round_up(head_dim, kLanes); ++i) buffer[i] = 0.0f;
    __builtin_memcpy(buffer, x, static_cast<size_t>(head_dim) * sizeof(float));
    return buffer;
}

// Quantizes one head vector to int8; returns its scale.
inline float quantize_head(const float* x, int head_dim, int8_t* q) {
    alignas(64) float buffer[kMaxHeadDim];
    x = padded_head(x, head_dim, buffer);
    const int n = round_up(head_dim, kLanes);
    const float largest = abs_max(x, n);
    const bool zero = largest < kTiny;  // not for NaN, which must show
    const F32x16 inverse = splat(zero ? 0.0f : 127.0f / largest);
    for (int i = 0; i < n; i += kLanes) store_int8(q + i, to_int(mul(load(x + i), inverse)));
    return zero ? 0.0f : largest / 127.0f;
}

void store_key(uint8_t* cell, KvFormat format, int slot, int head_dim, const float* key) {
    const int n = round_up(head_dim, kLanes), panel = slot / kLanes, lane = slot % kLanes;
    if (format == KvFormat::kInt8) {
        alignas(64) int8_t codes[kMaxHeadDim];
        float* scales = reinterpret_cast<float*>(cell + 2 * static_cast<size_t>(kBlock) * n);
        scales[slot] = quantize_head(key, head_dim, codes);
        uint8_t* k = cell + static_cast<size_t>(panel) * n * kLanes + 2 * lane;
        for (int d = 0; d < n; d += 2) __builtin_memcpy(k + d * kLanes, codes + d, 2);
        return;
    }
    alignas(64) float buffer[kMaxHeadDim];
    alignas(64) uint16_t halves[kLanes];
    uint16_t* k = reinterpret_cast<uint16_t*>(cell) + static_cast<size_t>(panel) * n * kLanes + lane;
    key = padded_head(key, head_dim, buffer);
    for (int d = 0; d < n; d += kLanes) {
        store_half(halves, load(key + d));
        for (int i = 0; i < kLanes; ++i) k[(d + i) * kLanes] = halves[i];
    }
}

void store_value(uint8_t* cell, KvFormat format, int slot, int head_dim, const float* value) {
    const int n = round_up(head_dim, kLanes);
    const size_t plane = static_cast<size_t>(kBlock) * n;
    if (format == KvFormat::kInt8) {
        alignas(64) int8_t codes[kMaxHeadDim];
        float* scales = reinterpret_cast<float*>(cell + 2 * plane);
        scales[kBlock + slot] = quantize_head(value, head_dim, codes);
        // Those of two tokens lie side by side.
        const int shift = slot % 2 * 8, kept = 0xff00 >> shift;
        for (int d = 0; d < n; d += kLanes) {
            uint8_t* v = cell + plane + static_cast<size_t>(d) * kBlock + slot / 2 * 2 * kLanes;
            uint16_t pairs[kLanes];
            __builtin_memcpy(pairs, v, sizeof pairs);
            for (int i = 0; i < kLanes; ++i) {
                const int code = static_cast<uint8_t>(codes[d + i]) << shift;
                pairs[i] = static_cast<uint16_t>((pairs[i] & kept) | code);
            }
            __builtin_memcpy(v, pairs, sizeof pairs);
        }
        return;
    }
    alignas(64) float buffer[kMaxHeadDim];
    uint16_t* v = reinterpret_cast<uint16_t*>(cell) + plane + slot * kLanes;
    value = padded_head(value, head_dim, buffer);
    for (int d = 0; d < n; d += kLanes) {
        store_half(v + static_cast<size_t>(d / kLanes) * kBlock * kLanes, load(value + d));
    }
}

// Makes one tile of rows that were quantized as tiles of their own.
template <int Rows>
inline void interleave(const int16_t* const* rows, int n, int16_t* tile) {
    for (int i = 0; i < n; i += kLanes) {
        for (int r = 0; r < Rows; ++r, tile += kLanes)
            __builtin_memcpy(tile, rows[r] + i, kLanes * sizeof(int16_t));
    }
}

// The keys or the values of one block.
struct HalfCell {
    const uint8_t *codes, *scales;
};

// How keys and values of one block are read, while the half cell `ahead` is asked for, as large as the one
// that is read. Which tokens are visible is the caller's business. Products are functions of their own,
// because in one large function compilers keep their sums in memory.
struct Int8Kv {
    static HalfCell half(const uint8_t* cell, int padded_dim, bool values) {
        const size_t plane = static_cast<size_t>(kBlock) * padded_dim;
        return {cell + (values ? plane : 0), cell + 2 * plane + (values ? kBlock * sizeof(float) : 0)};
    }
    template <int Rows>
    [[gnu::noinline]] static void scores(const AttentionTile& tile, const int16_t* queries,
                                         const uint8_t* cell, HalfCell ahead, int padded_dim,
                                         float* const* out) {
        const HalfCell keys = half(cell, padded_dim, false);
        const float* key_scales = reinterpret_cast<const float*>(keys.scales);
        prefetch_bytes(ahead.scales, kBlock * sizeof(float));
        for (int panel = 0; panel < kBlock / kLanes; ++panel) {
            const size_t at = static_cast<size_t>(panel) * padded_dim * kLanes;
            I32x16 sums[Rows];
            dot_panel<Rows>(reinterpret_cast<const int8_t*>(keys.codes + at), padded_dim, queries, sums,
                            ahead.codes + at);
            const F32x16 scale = load(key_scales + panel * kLanes);
            for (int r = 0; r < Rows; ++r) {
                store(out[r] + panel * kLanes,
                      mul(to_float(sums[r]), mul(splat(tile.query_scales[r]), scale)));
            }
        }
    }
    // Weights of one block times the scales of its values, as integers: those of all rows at once, since one
    // row's are done sooner than its maximum is known.
    template <int Rows>
    static void quantize_weights(float* const* weights, const float* value_scales, int16_t* codes,
                                 float* scales) {
        I32x16 tops[round_up(Rows, 4)];
        const F32x16 zero = splat(0.0f);
        for (int r = 0; r < Rows; ++r) {
            I32x16 top = splat_int(0);
            for (int i = 0; i < kBlock; i += kLanes) {
                // The slot of an invisible token may hold anything, NaN as well.
                const F32x16 e = load(weights[r] + i);
                const F32x16 w = select_less(zero, e, mul(e, load(value_scales + i)), zero);
                store(weights[r] + i, w);
                top = max(top, magnitude(w));
            }
            tops[r] = top;
        }
        for (int r = Rows; r < round_up(Rows, 4); ++r) tops[r] = splat_int(0);
        F32x16 top = from_bits(fold_rows_max<Rows>(tops));
        top = add(top, sub(top, top));  // NaN for infinity, too
        const F32x16 limit = splat(static_cast<float>(kMaxQuantized)), tiny = splat(kTiny);
        alignas(64) float inverse[kMaxTile];
        store(inverse, select_less(top, tiny, zero, div(limit, top)));
        store(scales, select_less(top, tiny, zero, div(top, limit)));
        for (int r = 0; r < Rows; ++r) {
            for (int i = 0; i < kBlock; i += kLanes) {
                int16_t* out = codes + i * Rows + r * kLanes;
                store_int16(out, to_int(mul(load(weights[r] + i), splat(inverse[r]))));
                FLASHLET_ISA::arrange(out, kLanes);
            }
        }
    }
    template <int Rows>
    [[gnu::noinline]] static void accumulate(const uint8_t* cell, HalfCell ahead, int padded_dim,
                                             float* const* weights, float* acc) {
        const HalfCell values = half(cell, padded_dim, true);
        const float* value_scales = reinterpret_cast<const float*>(values.scales);
        prefetch_bytes(ahead.scales, kBlock * sizeof(float));
        alignas(64) int16_t codes[Rows * kBlock];
        alignas(64) float scales[kMaxTile];
        quantize_weights<Rows>(weights, value_scales, codes, scales);
        for (int d = 0; d < padded_dim; d += kLanes) {
            I32x16 sums[Rows];
            dot_panel<Rows>(reinterpret_cast<const int8_t*>(values.codes + d * kBlock), kBlock, codes, sums,
                            ahead.codes + d * kBlock);
            for (int r = 0; r < Rows; ++r) {
                float* a = acc + r * padded_dim + d;
                store(a, fma(to_float(sums[r]), splat(scales[r]), load(a)));
            }
        }
    }
};

struct Fp16Kv {
    static HalfCell half(const uint8_t* cell, int padded_dim, bool values) {
        const size_t plane = static_cast<size_t>(kBlock) * padded_dim * sizeof(uint16_t);
        return {cell + (values ? plane : 0), nullptr};
    }
    template <int Rows>
    static void scores(const AttentionTile& tile, const int16_t*, const uint8_t* cell, HalfCell ahead,
                       int padded_dim, float* const* out) {
        prefetch_bytes(ahead.codes, kBlock * padded_dim * 2);
        const uint16_t* keys = reinterpret_cast<const uint16_t*>(cell);
        for (int panel = 0; panel < kBlock / kLanes;
             ++panel, keys += static_cast<size_t>(padded_dim) * kLanes) {
            F32x16 sums[Rows];
            for (int r = 0; r < Rows; ++r) sums[r] = splat(0.0f);
            for (int d = 0; d < tile.head_dim; ++d) {
                const F32x16 key = load_half(keys + d * kLanes);
#pragma GCC unroll 16
                for (int r = 0; r < Rows; ++r) sums[r] = fma(splat(tile.queries_f32[r][d]), key, sums[r]);
            }
            for (int r = 0; r < Rows; ++r) {
                store(out[r] + panel * kLanes, mul(sums[r], splat(tile.query_scales[r])));
            }
        }
    }
    template <int Rows>
    static void accumulate(const uint8_t* cell, HalfCell ahead, int padded_dim, float* const* weights,
                           float* acc) {
        prefetch_bytes(ahead.codes, kBlock * padded_dim * 2);
        const uint16_t* values =
            reinterpret_cast<const uint16_t*>(cell) + static_cast<size_t>(kBlock) * padded_dim;
        for (int d = 0; d < padded_dim; d += kLanes, values += kBlock * kLanes) {
            F32x16 sums[Rows];
            for (int r = 0; r < Rows; ++r) sums[r] = load(acc + r * padded_dim + d);
            for (int t = 0; t < kBlock; ++t) {
                const F32x16 value = load_half(values + t * kLanes);
#pragma GCC unroll 16
                for (int r = 0; r < Rows; ++r) {
                    if (weights[r][t] > 0.0f) sums[r] = fma(splat(weights[r][t]), value, sums[r]);
                }
            }
            for (int r = 0; r < Rows; ++r) store(acc + r * padded_dim + d, sums[r]);
        }
    }
};

struct SpanScores {
    alignas(64) float values[kMaxTile][kSpan * kBlock];
};

// Turns scores of the tokens from `base` to before `end` into exp(score - largest), with zeros outside
// lo .. position; stores the largest and the sum.
inline void softmax_row(float* scores, int base, int end, int lo, int position, float* summary) {
    const F32x16 hidden = splat(-__builtin_inff());
    const auto seen = [&](int t, F32x16 x, F32x16 otherwise) {  // most vectors are, as a whole
        if (lo <= t && t + kLanes <= position + 1) return x;
        return select_range(x, otherwise, lo - t, position + 1 - t);
    };
    F32x16 largest = hidden;
    for (int t = base; t < end; t += kLanes) largest = max(seen(t, load(scores + t - base), hidden), largest);
    const float top = fold_max(largest);
    F32x16 sum = splat(0.0f);
    for (int t = base; t < end; t += kLanes) {
        const F32x16 e = seen(t, exp16(sub(load(scores + t - base), splat(top))), splat(0.0f));
        store(scores + t - base, e);
        sum = add(sum, e);
    }
    summary[0] = top;
    summary[1] = fold_add(sum);
}

// Blocks lie far apart, so that the processor cannot guess the next one, and one block's work is shorter than
// the latency of memory: the keys or values read so many steps later are asked for.
inline constexpr int kHalvesAhead = 4;

template <class Kv, int Rows>
void attend(const AttentionTile& tile, int span, float* partial) {
    const int padded_dim = round_up(tile.head_dim, kLanes), stride = partial_stride(padded_dim);
    const VisibleRange seen = visible_range(tile);
    const int begin = span * kSpan, end = begin + kSpan - 1;
    const int low = seen.first_block > begin ? seen.first_block : begin;
    const int high = seen.last_block < end ? seen.last_block : end;
    const auto cell = [&](int block) {
        return tile.kv.base + tile.block_table[block] * tile.kv.block_stride;
    };
    // In the order in which they are read: the keys of a span, its values, the keys of the next span.
    const int count = high - low + 1;
    const auto later = [&](int step) {
        step += kHalvesAhead;
        if (step >= count && step < 2 * count) return Kv::half(cell(low + step - count), padded_dim, true);
        const int block = step < count ? low + step : high + 1 + step - 2 * count;
        return Kv::half(cell(block <= seen.last_block ? block : high), padded_dim, false);
    };
    SpanScores scores;
    alignas(64) int16_t queries[Rows * kMaxHeadDim];
    if (tile.kv.format == KvFormat::kInt8) interleave<Rows>(tile.queries, padded_dim, queries);
    float* rows[Rows];
    for (int block = low; block <= high; ++block) {
        for (int r = 0; r < Rows; ++r) rows[r] = scores.values[r] + (block - low) * kBlock;
        Kv::template scores<Rows>(tile, queries, cell(block), later(block - low), padded_dim, rows);
    }
    alignas(64) float acc[Rows * kMaxHeadDim];
    for (int r = 0; r < Rows; ++r) {
        softmax_row(scores.values[r], low * kBlock, (high + 1) * kBlock, first_visible(tile, r),
                    tile.positions[r], partial + r * stride + padded_dim);
    }
    for (int i = 0; i < Rows * padded_dim; i += kLanes) store(acc + i, splat(0.0f));
    for (int block = low; block <= high; ++block) {
        float* weights[Rows];
        for (int r = 0; r < Rows; ++r) weights[r] = scores.values[r] + (block - low) * kBlock;
        Kv::template accumulate<Rows>(cell(block), later(count + block - low), padded_dim, weights, acc);
    }
    for (int r = 0; r < Rows; ++r) {
        __builtin_memcpy(partial + r * stride, acc + r * padded_dim,
                         static_cast<size_t>(padded_dim) * sizeof(float));
    }
}

void combine(const AttentionTile& tile, int spans, const float* partials) {
    const int padded_dim = round_up(tile.head_dim, kLanes), stride = partial_stride(padded_dim);
    const size_t span_stride = static_cast<size_t>(tile.rows) * stride;
    for (int r = 0; r < tile.rows; ++r) {
        const float* first = partials + r * stride;
        float largest = -__builtin_inff();
        for (int s = 0; s < spans; ++s) {
            const float top = first[s * span_stride + padded_dim];
            largest = largest < top ? top : largest;
        }
        F32x16 denominator = splat(0.0f);
        alignas(64) float acc[kMaxHeadDim];
        for (int d = 0; d < padded_dim; d += kLanes) store(acc + d, splat(0.0f));
        for (int s = 0; s < spans; ++s) {
            const float* part = first + s * span_stride;
            const F32x16 factor = exp16(splat(part[padded_dim] - largest));
            denominator = fma(splat(part[padded_dim + 1]), factor, denominator);
            for (int d = 0; d < padded_dim; d += kLanes)
                store(acc + d, fma(load(part + d), factor, load(acc + d)));
        }
        for (int d = 0; d < padded_dim; d += kLanes) store(acc + d, div(load(acc + d), denominator));
        __builtin_memcpy(tile.outputs[r], acc, static_cast<size_t>(tile.head_dim) * sizeof(float));
    }
}

template <int Rows>
struct AttendTile {
    static void run(const AttentionTile& tile, int span, float* partial) {
        if (tile.kv.format == KvFormat::kInt8) {
            attend<Int8Kv, Rows>(tile, span, partial);
        } else {
            attend<Fp16Kv, Rows>(tile, span, partial);
        }
    }
};

void attend(const AttentionTile& tile, int span, float* partial) {
    dispatch_rows<AttendTile, kAttentionRows>(tile.rows, tile, span, partial);
}

}  // namespace flashlet::FLASHLET_ISA
