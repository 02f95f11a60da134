// The table of kernels that each instruction set provides, and the layouts they share.
// docs/numerics.md defines every result to the bit; no kernel may differ from it or from another.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flashlet {

// Functions are static here: the linker must not take one from a file compiled for a newer processor.

inline constexpr int kLanes = 16;           // floats per vector, outputs per panel
inline constexpr int kGroup = 32;           // inputs that share a weight scale
inline constexpr int kBlock = 32;           // tokens per KV block
inline constexpr int kSpan = 8;             // KV blocks whose attention is summed up on its own
inline constexpr int kMaxTile = 16;         // most rows of an attention tile, on any instruction set
inline constexpr int kMaxQuantized = 4095;  // 32 * 127 * 4095 < 2^24: group sums are exact in int32 and float
inline constexpr int kMaxByte = 127;        // of activations beside weights of 4 bits

// In the weight file, one group of one panel: 16 binary16 scales, then int8 weights [16 input pairs][16
// outputs][2 inputs]. Of 4 bits: weight + 8, those of even pairs in the low halves of bytes [8][16][2], of
// odd ones in the high halves.
enum class WeightFormat { kInt8, kInt4 };
inline constexpr int kScaleBytes = kLanes * 2;
inline constexpr int kCellBytes = kScaleBytes + kGroup * kLanes;
inline constexpr int kHalfCellBytes = kScaleBytes + kGroup * kLanes / 2;

static constexpr int round_up(int value, int multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// A weight matrix of groups in panels of 16 outputs; the weight file or a WeightArena owns the bytes.
struct PackedMatrix {
    const uint8_t* cells = nullptr;  // [panels][groups][cell_bytes]
    const float* bias = nullptr;     // [panels * 16] or null
    int panels = 0;
    int groups = 0;
    WeightFormat format = WeightFormat::kInt8;
    int unit = 2;  // panels that one thread multiplies together: gate and up, or whole heads

    int cell_bytes() const { return format == WeightFormat::kInt8 ? kCellBytes : kHalfCellBytes; }
    size_t panel_bytes() const { return static_cast<size_t>(groups * cell_bytes()); }
    size_t bytes() const { return static_cast<size_t>(panels) * panel_bytes(); }
};

// Rows are multiplied in tiles of at most product_rows, of nearly equal height.
struct RowTile {
    int first, rows;
};
static constexpr RowTile tile_of(int row, int total, int max_rows) {
    const int tiles = (total + max_rows - 1) / max_rows;
    int tile = row * tiles / total;
    while (total * (tile + 1) / tiles <= row) ++tile;
    const int first = total * tile / tiles;
    return {first, total * (tile + 1) / tiles - first};
}

// Rows of activations as integers of 13 or 8 bits, in an order that is the kernels' own: the rows of a tile
// are interleaved, so that a product walks one pointer. The tile that starts at row r starts at values + r *
// stride.
struct QuantizedRows {
    const int16_t* values;
    const float* scales;  // [rows]
    int stride;           // a multiple of InputFormat::group_units
    bool coarse = false;  // by KernelTable::coarse_inputs

    // One row, where each is a tile of its own.
    QuantizedRows alone(int row) const {
        return {values + static_cast<size_t>(row) * static_cast<size_t>(stride), scales + row, stride,
                coarse};
    }
};

// How the rows of a product are quantized.
struct InputFormat {
    // Quantizes n floats, a multiple of kGroup, as row `index` of a tile of `rows` rows whose integers start
    // at `tile`; returns the scale.
    float (*quantize)(const float* x, int n, int16_t* tile, int index, int rows);
    int group_units;  // of the tile, that each group of a row takes
};

// How a product asks memory for panels in good time.
struct ReadAhead {
    const uint8_t* next = nullptr;  // where the caller will go on reading, if not in the panels that follow
    bool pages = false;             // only for the beginnings of pages: the processor reads on by itself
    bool elsewhere = false;         // asks for `next` from the start: these panels have been asked for
};

enum class Epilogue {
    kStore,     // out = product + bias
    kAdd,       // out += product + bias (the residual stream)
    kGatedSilu  // panels alternate gate and up: out[panel / 2] = silu(gate) * up
};

// One key-value head of one block. int8: K codes [2][head_dim / 2][16 tokens][2], V codes
// [head_dim / 16][16 token pairs][16][2], K scales [32], V scales [32]. fp16: K [2][head_dim][16 tokens],
// V [head_dim / 16][32 tokens][16]. head_dim is padded to a multiple of 16.
enum class KvFormat { kInt8, kFp16 };

static constexpr size_t kv_cell_bytes(KvFormat format, int padded_head_dim) {
    const size_t values = 2 * size_t{kBlock} * static_cast<size_t>(padded_head_dim);
    return format == KvFormat::kInt8 ? values + 2 * kBlock * sizeof(float) : values * 2;
}

// Where the KV cells of one layer and head lie.
struct KvView {
    uint8_t* base;        // cell of block 0
    size_t block_stride;  // bytes from one block's cell to the next block's
    KvFormat format;
};

// Up to kMaxTile query rows that read the same key-value head of one sequence.
struct AttentionTile {
    const int16_t* queries[kMaxTile];    // int8 KV: query heads, each quantized as a tile of its own
    const float* queries_f32[kMaxTile];  // fp16 KV: the query heads themselves
    float query_scales[kMaxTile];        // int8 KV: scale times softmax scale; fp16 KV: softmax scale
    int positions[kMaxTile];             // of each row: it sees nothing after its own
    float* outputs[kMaxTile];            // [head_dim]
    int rows;
    int first_visible;  // no row sees positions before this one
    int window;         // 0: full attention
    const int32_t* block_table;
    int head_dim;
    KvView kv;
};

// Threads share a long context in spans of kSpan blocks. What the rows of a tile read in one of them: for
// each row the weighted values [padded head_dim], then the largest score and the sum of exponentials.
static constexpr int partial_stride(int padded_head_dim) { return padded_head_dim + kLanes; }

// First position that a row sees.
static inline int first_visible(const AttentionTile& tile, int row) {
    const int start = tile.positions[row] - tile.window + 1;
    return tile.window > 0 && start > tile.first_visible ? start : tile.first_visible;
}

// Blocks, and spans of blocks, that any row of a tile sees.
struct VisibleRange {
    int first_block, last_block, first_span, spans;
};
static inline VisibleRange visible_range(const AttentionTile& tile) {
    int low = first_visible(tile, 0), high = 0;
    for (int r = 0; r < tile.rows; ++r) {
        const int first = first_visible(tile, r);
        low = first < low ? first : low;
        high = tile.positions[r] > high ? tile.positions[r] : high;
    }
    const int first_span = low / (kBlock * kSpan), last_span = high / (kBlock * kSpan);
    return {low / kBlock, high / kBlock, first_span, last_span - first_span + 1};
}

struct KernelTable {
    const char* name;
    int product_rows, attention_rows;  // of a tile
    int few_rows;                      // so many leave a processor time to ask for memory by itself

    // y[i] = x[i] / rms(x) * weight[i]; n real values, buffers padded to a multiple of 16 with zeros.
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);

    // Quantizes n floats (padded with zeros to a multiple of 16) as row `index` of a tile of `rows` rows
    // whose integers start at `tile`; returns the scale.
    float (*quantize)(const float* x, int n, int16_t* tile, int index, int rows);

    // For rows that are multiplied with weights of 8 bits, and of 4.
    InputFormat inputs, half_byte_inputs;
    const InputFormat& inputs_of(WeightFormat format) const {
        return format == WeightFormat::kInt8 ? inputs : half_byte_inputs;
    }

    // Beside weights of 8 bits at half the cost: the integers of `inputs`, rounded to 8 bits with a scale for
    // each group. quantize is null where that would not be faster. What such products give is an estimate
    // that no definition binds.
    InputFormat coarse_inputs;

    // So much at most, times the norm of an output's weights, lies between that output of a row of n floats
    // by coarse inputs and by exact ones, rounding included (Cauchy and Schwarz).
    float (*coarse_error)(const float* x, int n);

    // Copies a matrix into the layout that `matmul` reads, of the same size.
    void (*arrange)(const PackedMatrix& w, uint8_t* out);

    // Multiplies rows by arranged panels [begin, end). Gated: begin and end are even. out:
    // [rows][out_stride].
    void (*matmul)(const PackedMatrix& w, const QuantizedRows& x, int rows, int begin, int end,
                   Epilogue epilogue, float* out, int out_stride, ReadAhead ahead);

    // Rotates one head in place; cos and sin: [head_dim / 2].
    void (*rope)(float* head, const float* cos, const float* sin, int head_dim);

    // Writes one token's key or value head into its slot of a KV cell.
    void (*store_key)(uint8_t* cell, KvFormat format, int slot, int head_dim, const float* key);
    void (*store_value)(uint8_t* cell, KvFormat format, int slot, int head_dim, const float* value);

    // Attention within one span: partial[tile.rows][partial_stride].
    void (*attend)(const AttentionTile& tile, int span, float* partial);

    // Puts the spans of a tile together, in their order: partials[spans][tile.rows][partial_stride].
    void (*combine)(const AttentionTile& tile, int spans, const float* partials);

    // Dequantizes row `row` of a packed matrix that is not arranged.
    void (*embed)(const PackedMatrix& w, int row, float* out);

    // First index of the largest value, -1 if nothing is above -inf; NaN never wins. n is a multiple of 16.
    int (*argmax)(const float* x, int n);

    // The largest value; NaN if one is NaN or +inf. n is a multiple of 16.
    float (*peak)(const float* x, int n);

    // Ascending indices of values greater than `above`; returns how many. n is a multiple of 16.
    int (*collect)(const float* x, int n, float above, int32_t* found);

    // Sum of exp((x[i] - max) / temperature) in lane order; n is a multiple of 16, padding is -inf.
    float (*exp_sum)(const float* x, int n, float max, float temperature);

    // argmax(x[i] / temperature + noise(seed, position, token of i)); -inf is never chosen unless all are.
    // Tokens are ids[i], or i where there are no ids; of equal ones the first wins. best: argmax(x).
    int (*gumbel_argmax)(const float* x, const int32_t* ids, int n, int best, float temperature,
                         uint64_t seed, uint64_t position);

    // Noise of n tokens, in any order.
    void (*gumbel)(uint64_t seed, uint64_t position, const int32_t* tokens, int n, float* noise);

    // exp and log over n values (a multiple of 16), for tests and for sampling.
    void (*exp)(const float* x, int n, float* y);
    void (*log)(const float* x, int n, float* y);

    // Sum of all bytes read as 64-bit words, for bandwidth measurements. pages: does not ask memory for them
    // in good time, which is faster where the processor does.
    uint64_t (*read)(const uint8_t* data, size_t bytes, bool pages);
};

const KernelTable* portable_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avxvnni_kernels();
const KernelTable* avx512_kernels();
const KernelTable* neon_kernels();

}  // namespace flashlet
