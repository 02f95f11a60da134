// Every kernel, written once over sixteen lanes; each instruction set compiles it in its own namespace.
// No standard-library templates here: an inline function compiled for AVX-512 must not be shared with other files.
#pragma once

#include "kernels.h"

namespace flashlet::FLASHLET_ISA {

// ---- elementary functions -------------------------------------------------------------------------------------

inline F32x16 exp16(F32x16 x) {
    x = min(max(x, splat(-87.0f)), splat(88.0f));
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

// ---- rows -----------------------------------------------------------------------------------------------------

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

inline float abs_max(const float* x, int n) {
    F32x16 m = splat(0.0f);
    for (int i = 0; i < n; i += kLanes) m = max(abs(load(x + i)), m);
    return fold_max(m);
}

inline constexpr float kTiny = 0x1p-100f;  // below this a row counts as zero, so that 1 / scale stays finite

float quantize(const float* x, int n, int16_t* q) {
    const float largest = abs_max(x, n);
    const bool zero = !(largest >= kTiny);
    const F32x16 inverse = splat(zero ? 0.0f : static_cast<float>(kMaxQuantized) / largest);
    for (int i = 0; i < n; i += kLanes) store_int16(q + i, to_int(mul(load(x + i), inverse)));
    arrange(q, n);
    return zero ? 0.0f : largest / static_cast<float>(kMaxQuantized);
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

// ---- products -------------------------------------------------------------------------------------------------

// Integer product of one int8 panel [inputs / 2][16 outputs][2] with `Rows` rows: exact, so partial sums may be
// kept in several accumulators where few rows would leave the multipliers waiting.
template <int Rows>
inline void dot_panel(const int8_t* w, int inputs, const int16_t* const* x, I32x16* out) {
    constexpr int kSplit = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
    I32x16 acc[Rows][kSplit];
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int s = 0; s < kSplit; ++s) acc[r][s] = splat_int(0);
    }
    for (int k = 0; k < inputs; k += kInputs * kSplit) {
#pragma GCC unroll 4
        for (int s = 0; s < kSplit; ++s) {
            const Weights weights = load_weights(w + (k + s * kInputs) * kLanes);
#pragma GCC unroll 12
            for (int r = 0; r < Rows; ++r) acc[r][s] = dot(acc[r][s], weights, x[r] + k + s * kInputs);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
        if constexpr (kSplit == 4) acc[r][0] = add(add(acc[r][0], acc[r][1]), add(acc[r][2], acc[r][3]));
        if constexpr (kSplit == 2) acc[r][0] = add(acc[r][0], acc[r][1]);
        out[r] = acc[r][0];
    }
}

// Weight formats are policies: what a cell of one group and one panel holds, and how a group is multiplied.
struct Int8Groups {
    static constexpr int kBytes = kCellBytes;
    template <int Rows>
    static void multiply(const uint8_t* cell, const int16_t* const* x, F32x16* acc) {
        I32x16 sums[Rows];
        dot_panel<Rows>(reinterpret_cast<const int8_t*>(cell + kScaleBytes), kGroup, x, sums);
        const F32x16 scale = load_half(reinterpret_cast<const uint16_t*>(cell));
#pragma GCC unroll 12
        for (int r = 0; r < Rows; ++r) acc[r] = fma(to_float(sums[r]), scale, acc[r]);
    }
};

// out[r] = (rows of x) . (one panel), scaled and biased.
template <class Format, int Rows>
inline void multiply_panel(const PackedMatrix& w, int panel, const QuantizedRows& x, int row, F32x16* out) {
    const uint8_t* cell = w.cells + static_cast<size_t>(panel) * w.groups * Format::kBytes;
    const int16_t* rows[Rows];
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
        rows[r] = x.values + static_cast<size_t>(row + r) * x.stride;
        out[r] = splat(0.0f);
    }
    for (int g = 0; g < w.groups; ++g, cell += Format::kBytes) {
        Format::template multiply<Rows>(cell, rows, out);
#pragma GCC unroll 12
        for (int r = 0; r < Rows; ++r) rows[r] += kGroup;
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) out[r] = mul(out[r], splat(x.scales[row + r]));
    if (w.bias != nullptr) {
        const F32x16 bias = load(w.bias + panel * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < Rows; ++r) out[r] = add(out[r], bias);
    }
}

struct MatmulTask {
    const PackedMatrix& w;
    const QuantizedRows& x;
    int begin, end;
    Epilogue epilogue;
    float* out;
    int out_stride;
};

template <class Format, int Rows>
void multiply_tile(const MatmulTask& task, int row) {
    F32x16 product[Rows];
    F32x16 up[Rows];
    const bool gated = task.epilogue == Epilogue::kGatedSilu;
    for (int panel = task.begin; panel < task.end; panel += gated ? 2 : 1) {
        multiply_panel<Format, Rows>(task.w, panel, task.x, row, product);
        if (gated) multiply_panel<Format, Rows>(task.w, panel + 1, task.x, row, up);
        float* out = task.out + static_cast<size_t>(row) * task.out_stride + (gated ? panel / 2 : panel) * kLanes;
        for (int r = 0; r < Rows; ++r, out += task.out_stride) {
            if (gated) {
                store(out, mul(silu16(product[r]), up[r]));
            } else if (task.epilogue == Epilogue::kAdd) {
                store(out, add(load(out), product[r]));
            } else {
                store(out, product[r]);
            }
        }
    }
}

template <template <int> class Body, class... Args>
inline void dispatch_rows(int rows, Args&&... args) {
    switch (rows) {
        case 1: return Body<1>::run(args...);
        case 2: return Body<2>::run(args...);
        case 3: return Body<3>::run(args...);
        case 4: return Body<4>::run(args...);
        case 5: return Body<5>::run(args...);
        case 6: return Body<6>::run(args...);
        case 7: return Body<7>::run(args...);
        case 8: return Body<8>::run(args...);
        case 9: return Body<9>::run(args...);
        case 10: return Body<10>::run(args...);
        case 11: return Body<11>::run(args...);
        default: return Body<12>::run(args...);
    }
}

template <int Rows>
struct Int8Tile {
    static void run(const MatmulTask& task, int row) { multiply_tile<Int8Groups, Rows>(task, row); }
};

void matmul(const PackedMatrix& w, const QuantizedRows& x, int rows, int begin, int end, Epilogue epilogue, float* out,
            int out_stride) {
    const MatmulTask task{w, x, begin, end, epilogue, out, out_stride};
    const int tiles = (rows + kMaxTile - 1) / kMaxTile;
    for (int tile = 0; tile < tiles; ++tile) {  // tiles of nearly equal height
        const int first = rows * tile / tiles;
        dispatch_rows<Int8Tile>(rows * (tile + 1) / tiles - first, task, first);
    }
}

// ---- attention ------------------------------------------------------------------------------------------------

void rope(float* head, const float* cos, const float* sin, int head_dim) {
    const int half = head_dim / 2;
    for (int i = 0; i < half; i += kLanes) {
        float x1[kLanes] = {}, x2[kLanes] = {}, c[kLanes] = {}, s[kLanes] = {};
        const int n = half - i < kLanes ? half - i : kLanes;
        const size_t bytes = static_cast<size_t>(n) * sizeof(float);
        __builtin_memcpy(x1, head + i, bytes);
        __builtin_memcpy(x2, head + half + i, bytes);
        __builtin_memcpy(c, cos + i, bytes);
        __builtin_memcpy(s, sin + i, bytes);
        const F32x16 a = load(x1), b = load(x2), cosine = load(c), sine = load(s);
        store(x1, fma(a, cosine, sub(splat(0.0f), mul(b, sine))));
        store(x2, fma(b, cosine, mul(a, sine)));
        __builtin_memcpy(head + i, x1, bytes);
        __builtin_memcpy(head + half + i, x2, bytes);
    }
}

inline constexpr int kMaxHeadDim = 512;

// Quantizes one head vector to int8; returns its scale.
inline float quantize_head(const float* x, int head_dim, int8_t* q) {
    alignas(64) float padded[kMaxHeadDim] = {};
    __builtin_memcpy(padded, x, static_cast<size_t>(head_dim) * sizeof(float));
    const int n = round_up(head_dim, kLanes);
    const float largest = abs_max(padded, n);
    const bool zero = !(largest >= kTiny);
    const F32x16 inverse = splat(zero ? 0.0f : 127.0f / largest);
    for (int i = 0; i < n; i += kLanes) store_int8(q + i, to_int(mul(load(padded + i), inverse)));
    return zero ? 0.0f : largest / 127.0f;
}

void store_kv(uint8_t* cell, KvFormat format, int slot, int head_dim, const float* key, const float* value) {
    const int n = round_up(head_dim, kLanes);
    const size_t plane = static_cast<size_t>(kBlock) * n;
    const int panel = slot / kLanes, lane = slot % kLanes;
    if (format == KvFormat::kInt8) {
        alignas(64) int8_t codes[kMaxHeadDim];
        float* scales = reinterpret_cast<float*>(cell + 2 * plane);
        scales[slot] = quantize_head(key, head_dim, codes);
        uint8_t* k = cell + static_cast<size_t>(panel) * n * kLanes + 2 * lane;
        for (int d = 0; d < n; ++d) k[d / 2 * 2 * kLanes + d % 2] = static_cast<uint8_t>(codes[d]);
        scales[kBlock + slot] = quantize_head(value, head_dim, codes);
        uint8_t* v = cell + plane + slot / 2 * 2 * kLanes + slot % 2;
        for (int d = 0; d < n; ++d) {
            v[static_cast<size_t>(d / kLanes) * kBlock * kLanes + d % kLanes * 2] = static_cast<uint8_t>(codes[d]);
        }
        return;
    }
    alignas(64) float padded[kMaxHeadDim] = {};
    alignas(64) uint16_t halves[kLanes];
    uint16_t* k = reinterpret_cast<uint16_t*>(cell) + static_cast<size_t>(panel) * n * kLanes + lane;
    uint16_t* v = reinterpret_cast<uint16_t*>(cell) + plane + slot * kLanes;
    __builtin_memcpy(padded, key, static_cast<size_t>(head_dim) * sizeof(float));
    for (int d = 0; d < n; d += kLanes) {
        store_half(halves, load(padded + d));
        for (int i = 0; i < kLanes; ++i) k[(d + i) * kLanes] = halves[i];
    }
    __builtin_memcpy(padded, value, static_cast<size_t>(head_dim) * sizeof(float));
    for (int d = 0; d < n; d += kLanes) {
        store_half(v + static_cast<size_t>(d / kLanes) * kBlock * kLanes, load(padded + d));
    }
}

// How keys and values of one block are read; `first` and `count` of visible tokens are the caller's business.
struct Int8Kv {
    template <int Rows>
    static void scores(const AttentionTile& tile, const uint8_t* cell, int padded_dim, float* const* out) {
        const size_t plane = static_cast<size_t>(kBlock) * padded_dim;
        const float* key_scales = reinterpret_cast<const float*>(cell + 2 * plane);
        for (int panel = 0; panel < kBlock / kLanes; ++panel) {
            I32x16 sums[Rows];
            dot_panel<Rows>(reinterpret_cast<const int8_t*>(cell) + static_cast<size_t>(panel) * padded_dim * kLanes,
                            padded_dim, tile.queries, sums);
            const F32x16 scale = load(key_scales + panel * kLanes);
            for (int r = 0; r < Rows; ++r) {
                store(out[r] + panel * kLanes, mul(to_float(sums[r]), mul(splat(tile.query_scales[r]), scale)));
            }
        }
    }
    template <int Rows>
    static void accumulate(const uint8_t* cell, int padded_dim, const float* const* weights, float* acc) {
        const size_t plane = static_cast<size_t>(kBlock) * padded_dim;
        const float* value_scales = reinterpret_cast<const float*>(cell + 2 * plane) + kBlock;
        alignas(64) int16_t codes[Rows][kBlock];
        const int16_t* rows[Rows];
        float scales[Rows];
        for (int r = 0; r < Rows; ++r) {
            alignas(64) float w[kBlock];
            for (int i = 0; i < kBlock; i += kLanes) store(w + i, mul(load(weights[r] + i), load(value_scales + i)));
            scales[r] = quantize(w, kBlock, codes[r]);
            rows[r] = codes[r];
        }
        const int8_t* values = reinterpret_cast<const int8_t*>(cell + plane);
        for (int d = 0; d < padded_dim; d += kLanes, values += kBlock * kLanes) {
            I32x16 sums[Rows];
            dot_panel<Rows>(values, kBlock, rows, sums);
            for (int r = 0; r < Rows; ++r) {
                float* a = acc + r * padded_dim + d;
                store(a, fma(to_float(sums[r]), splat(scales[r]), load(a)));
            }
        }
    }
};

struct Fp16Kv {
    template <int Rows>
    static void scores(const AttentionTile& tile, const uint8_t* cell, int padded_dim, float* const* out) {
        const uint16_t* keys = reinterpret_cast<const uint16_t*>(cell);
        for (int panel = 0; panel < kBlock / kLanes; ++panel, keys += static_cast<size_t>(padded_dim) * kLanes) {
            F32x16 sums[Rows];
            for (int r = 0; r < Rows; ++r) sums[r] = splat(0.0f);
            for (int d = 0; d < tile.head_dim; ++d) {
                const F32x16 key = load_half(keys + d * kLanes);
#pragma GCC unroll 12
                for (int r = 0; r < Rows; ++r) sums[r] = fma(splat(tile.queries_f32[r][d]), key, sums[r]);
            }
            for (int r = 0; r < Rows; ++r) {
                store(out[r] + panel * kLanes, mul(sums[r], splat(tile.query_scales[r])));
            }
        }
    }
    template <int Rows>
    static void accumulate(const uint8_t* cell, int padded_dim, const float* const* weights, float* acc) {
        const uint16_t* values = reinterpret_cast<const uint16_t*>(cell) + static_cast<size_t>(kBlock) * padded_dim;
        for (int d = 0; d < padded_dim; d += kLanes, values += kBlock * kLanes) {
            F32x16 sums[Rows];
            for (int r = 0; r < Rows; ++r) sums[r] = load(acc + r * padded_dim + d);
            for (int t = 0; t < kBlock; ++t) {
                const F32x16 value = load_half(values + t * kLanes);
#pragma GCC unroll 12
                for (int r = 0; r < Rows; ++r) sums[r] = fma(splat(weights[r][t]), value, sums[r]);
            }
            for (int r = 0; r < Rows; ++r) store(acc + r * padded_dim + d, sums[r]);
        }
    }
};

inline int first_visible(const AttentionTile& tile, int row) {
    const int start = tile.positions[row] - tile.window + 1;
    return tile.window > 0 && start > 0 ? start : 0;
}

// Turns the scores of blocks [first, last] into exp(score - largest) with zeros outside lo .. position, returns their sum.
inline float softmax_row(float* scores, int first, int last, int lo, int position) {
    const F32x16 hidden = splat(-__builtin_inff());
    F32x16 largest = hidden;
    for (int t = first * kBlock; t < (last + 1) * kBlock; t += kLanes) {
        const F32x16 s = select_range(load(scores + t), hidden, lo - t, position + 1 - t);
        largest = max(s, largest);
    }
    const F32x16 top = splat(fold_max(largest));
    F32x16 sum = splat(0.0f);
    for (int t = first * kBlock; t < (last + 1) * kBlock; t += kLanes) {
        const F32x16 e = exp16(sub(load(scores + t), top));
        const F32x16 visible = select_range(e, splat(0.0f), lo - t, position + 1 - t);
        store(scores + t, visible);
        sum = add(sum, visible);
    }
    return fold_add(sum);
}

template <class Kv, int Rows>
void attend(const AttentionTile& tile, const AttentionScratch& scratch) {
    const int padded_dim = round_up(tile.head_dim, kLanes);
    int first[Rows], last[Rows];
    int low = tile.positions[0] / kBlock, high = 0;
    for (int r = 0; r < Rows; ++r) {
        first[r] = first_visible(tile, r) / kBlock;
        last[r] = tile.positions[r] / kBlock;
        low = first[r] < low ? first[r] : low;
        high = last[r] > high ? last[r] : high;
    }
    const auto cell = [&](int block) { return tile.kv.base + tile.block_table[block] * tile.kv.block_stride; };
    const auto row_scores = [&](int r) { return scratch.scores + static_cast<size_t>(r) * scratch.score_stride; };
    for (int block = low; block <= high; ++block) {
        float* out[Rows];
        for (int r = 0; r < Rows; ++r) out[r] = row_scores(r) + block * kBlock;
        Kv::template scores<Rows>(tile, cell(block), padded_dim, out);
    }
    float denominators[Rows];
    for (int r = 0; r < Rows; ++r) {
        float* scores = row_scores(r);
        denominators[r] = softmax_row(scores, first[r], last[r], first_visible(tile, r), tile.positions[r]);
        // Rows of one tile may see different blocks; a block full of zeros adds exactly nothing.
        for (int t = low * kBlock; t < first[r] * kBlock; t += kLanes) store(scores + t, splat(0.0f));
        for (int t = (last[r] + 1) * kBlock; t < (high + 1) * kBlock; t += kLanes) store(scores + t, splat(0.0f));
    }
    for (int i = 0; i < Rows * padded_dim; i += kLanes) store(scratch.acc + i, splat(0.0f));
    for (int block = low; block <= high; ++block) {
        const float* weights[Rows];
        for (int r = 0; r < Rows; ++r) weights[r] = row_scores(r) + block * kBlock;
        Kv::template accumulate<Rows>(cell(block), padded_dim, weights, scratch.acc);
    }
    for (int r = 0; r < Rows; ++r) {
        float* acc = scratch.acc + r * padded_dim;
        for (int d = 0; d < padded_dim; d += kLanes) store(acc + d, div(load(acc + d), splat(denominators[r])));
        __builtin_memcpy(tile.outputs[r], acc, static_cast<size_t>(tile.head_dim) * sizeof(float));
    }
}

template <int Rows>
struct AttendTile {
    static void run(const AttentionTile& tile, const AttentionScratch& scratch) {
        if (tile.kv.format == KvFormat::kInt8) {
            attend<Int8Kv, Rows>(tile, scratch);
        } else {
            attend<Fp16Kv, Rows>(tile, scratch);
        }
    }
};

void attention(const AttentionTile& tile, const AttentionScratch& scratch) {
    dispatch_rows<AttendTile>(tile.rows, tile, scratch);
}

// ---- sampling -------------------------------------------------------------------------------------------------

// Philox-4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
struct Philox {
    uint32_t word[4];
};

inline Philox philox(uint64_t seed, uint64_t position, uint32_t index) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    uint32_t c0 = index, c1 = static_cast<uint32_t>(position), c2 = static_cast<uint32_t>(position >> 32), c3 = 0;
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
        if (!any_greater(add(scaled, splat(kMaxNoise)), splat(best_value))) continue;  // no noise can lift these
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
        sum = add(sum, select_less(floor, v, exp16(div(sub(v, splat(largest)), splat(temperature))), splat(0.0f)));
    }
    return fold_add(sum);
}

void exp(const float* x, int n, float* y) {
    for (int i = 0; i < n; i += kLanes) store(y + i, exp16(load(x + i)));
}

void log(const float* x, int n, float* y) {
    for (int i = 0; i < n; i += kLanes) store(y + i, log16(load(x + i)));
}

uint64_t read(const uint8_t* data, size_t bytes) {
    I32x16 sums[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    const float* words = reinterpret_cast<const float*>(data);
    for (size_t i = 0; i + 64 <= bytes / sizeof(float); i += 64) {
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

inline constexpr KernelTable make_table(const char* name) {
    return {name,  rms_norm, quantize, matmul,  rope, store_kv, attention, embed,
            argmax, exp_sum, gumbel_argmax, gumbel, exp, log, read};
}

}  // namespace flashlet::FLASHLET_ISA
