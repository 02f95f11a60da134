// The KV cells and attention: every instruction set against the literal definition, bit for bit.
#include <algorithm>
#include <limits>
#include <numeric>

#include "check.h"
#include "data.h"

using namespace flashlet;

namespace {

// A sequence whose keys and values lie in shuffled blocks of a pool, as the model keeps them.
struct Context {
    int head_dim, padded_dim, length;
    KvFormat format;
    std::vector<float> keys, values;  // [length][head_dim]
    std::vector<int32_t> block_table;
    std::vector<uint8_t> pool;

    Context(Random& random, int dim, int tokens, KvFormat kv_format)
        : head_dim(dim), padded_dim(round_up(dim, kLanes)), length(tokens), format(kv_format) {
        const auto size = static_cast<size_t>(dim * tokens);
        keys = random.floats(size, -2.0f, 2.0f);
        values = random.floats(size, -2.0f, 2.0f);
        block_table.resize(static_cast<size_t>(round_up(tokens, kBlock) / kBlock));
        std::iota(block_table.begin(), block_table.end(), 1);
        for (size_t i = block_table.size(); i-- > 1;) {
            std::swap(block_table[i],
                      block_table[static_cast<size_t>(random.integer(0, static_cast<int>(i)))]);
        }
    }
    size_t cell_bytes() const { return kv_cell_bytes(format, padded_dim); }
    const float* key(int t) const { return keys.data() + t * head_dim; }
    const float* value(int t) const { return values.data() + t * head_dim; }
    uint8_t* cell(int t) {
        return pool.data() + static_cast<size_t>(block_table[static_cast<size_t>(t / kBlock)]) * cell_bytes();
    }

    void fill(const KernelTable& kernels) {
        pool.assign((block_table.size() + 1) * cell_bytes(), 0xff);  // NaN where nothing is stored
        for (int t = 0; t < length; ++t) {
            kernels.store_key(cell(t), format, t % kBlock, head_dim, key(t));
            kernels.store_value(cell(t), format, t % kBlock, head_dim, value(t));
        }
    }
};

struct Queries {
    std::vector<float> heads;  // [rows][padded_dim]
    std::vector<int> positions;
    int window;
};

std::vector<float> attend(const KernelTable& kernels, Context& context, const Queries& queries) {
    const int rows = static_cast<int>(queries.positions.size()), padded = context.padded_dim;
    std::vector<int16_t> codes(static_cast<size_t>(rows * padded));
    std::vector<float> out(static_cast<size_t>(rows * context.head_dim), -1.0f);
    const size_t span_size = static_cast<size_t>(kMaxTile * partial_stride(padded));
    std::vector<float> partials((context.block_table.size() / kSpan + 1) * span_size, -7.0f);
    const float softmax_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(context.head_dim)));
    AttentionTile tile{};
    tile.window = queries.window;
    tile.block_table = context.block_table.data();
    tile.head_dim = context.head_dim;
    tile.kv = {context.pool.data(), context.cell_bytes(), context.format};
    for (int r = 0; r < rows; ++r) {
        const float* head = queries.heads.data() + r * padded;
        int16_t* q = codes.data() + r * padded;
        const float scale = kernels.quantize(head, padded, q, 0, 1) * softmax_scale;
        tile.queries[tile.rows] = q;
        tile.queries_f32[tile.rows] = head;
        tile.query_scales[tile.rows] = context.format == KvFormat::kInt8 ? scale : softmax_scale;
        tile.positions[tile.rows] = queries.positions[static_cast<size_t>(r)];
        tile.outputs[tile.rows] = out.data() + r * context.head_dim;
        ++tile.rows;
        if (tile.rows < kernels.attention_rows && r + 1 < rows) continue;
        const VisibleRange seen = visible_range(tile);
        const int stride = tile.rows * partial_stride(padded);
        for (int i = 0; i < seen.spans; ++i)
            kernels.attend(tile, seen.first_span + i, partials.data() + i * stride);
        kernels.combine(tile, seen.spans, partials.data());
        tile.rows = 0;
    }
    return out;
}

// A float as fp16 stores it: a multiple of its last bit's unit, to nearest even.
float as_half(float x) {
    const float magnitude = std::fabs(x);
    int exponent;
    std::frexp(magnitude, &exponent);
    const float unit = std::ldexp(1.0f, std::max(exponent - 11, -24));
    return std::copysign(std::nearbyint(magnitude / unit) * unit, x);
}

// One query by docs/numerics.md.
class NaiveAttention {
  public:
    NaiveAttention(const Context& context, const float* query, int position, int window)
        : context_(context),
          query_(query),
          position_(position),
          low_(window > 0 ? std::max(0, position - window + 1) : 0) {}

    std::vector<float> run() const {
        constexpr int kTokens = kSpan * kBlock;
        std::vector<Part> parts;
        float largest = -std::numeric_limits<float>::infinity();
        for (int span = low_ / kTokens; span <= position_ / kTokens; ++span) {
            parts.push_back(
                part(std::max(low_, span * kTokens), std::min(position_, (span + 1) * kTokens - 1)));
            largest = std::max(largest, parts.back().largest);
        }
        std::vector<float> out(static_cast<size_t>(context_.head_dim), 0.0f);
        float denominator = 0.0f;
        for (const Part& item : parts) {
            const float factor = kernel_exp(*portable_kernels(), item.largest - largest);
            denominator = std::fma(item.sum, factor, denominator);
            for (size_t d = 0; d < out.size(); ++d) out[d] = std::fma(item.values[d], factor, out[d]);
        }
        for (float& value : out) value /= denominator;
        return out;
    }

  private:
    struct Part {
        std::vector<float> values;
        float largest, sum;
    };

    // What positions low .. high, all in one span, add up to.
    Part part(int low, int high) const {
        Part result{std::vector<float>(static_cast<size_t>(context_.head_dim), 0.0f),
                    -std::numeric_limits<float>::infinity(), 0.0f};
        std::vector<float> weights(static_cast<size_t>(high + 1), 0.0f);
        for (int t = low; t <= high; ++t) {
            weights[static_cast<size_t>(t)] = score(t);
            result.largest = std::max(result.largest, weights[static_cast<size_t>(t)]);
        }
        LaneSum sum;
        for (int t = low / kBlock * kBlock; t <= high; ++t) {
            float& weight = weights[static_cast<size_t>(t)];
            weight = t < low ? 0.0f : kernel_exp(*portable_kernels(), weight - result.largest);
            sum.add(t, weight);
        }
        result.sum = sum.fold();
        for (int block = low / kBlock; block <= high / kBlock; ++block)
            accumulate(block, weights, result.values);
        return result;
    }

    float score(int t) const {
        const int dim = context_.head_dim;
        const float softmax_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
        if (context_.format == KvFormat::kFp16) {
            float sum = 0.0f;
            for (int d = 0; d < dim; ++d) sum = std::fma(query_[d], as_half(context_.key(t)[d]), sum);
            return sum * softmax_scale;
        }
        const Quantized query = naive_quantize(query_, dim, kMaxQuantized);
        const Quantized key = naive_quantize(context_.key(t), dim, 127);
        int sum = 0;
        for (size_t d = 0; d < query.q.size(); ++d) sum += query.q[d] * key.q[d];
        return static_cast<float>(sum) * (query.scale * softmax_scale * key.scale);
    }

    void accumulate(int block, const std::vector<float>& weights, std::vector<float>& out) const {
        const int begin = block * kBlock, end = std::min(begin + kBlock, static_cast<int>(weights.size()));
        if (context_.format == KvFormat::kFp16) {
            for (int t = std::max(begin, low_); t < end; ++t) {
                for (size_t d = 0; d < out.size(); ++d)
                    out[d] = std::fma(weights[static_cast<size_t>(t)], as_half(context_.value(t)[d]), out[d]);
            }
            return;
        }
        std::vector<Quantized> stored;
        std::vector<float> scaled;
        for (int t = begin; t < end; ++t) {
            stored.push_back(naive_quantize(context_.value(t), context_.head_dim, 127));
            scaled.push_back(weights[static_cast<size_t>(t)] * stored.back().scale);
        }
        const Quantized w = naive_quantize(scaled.data(), end - begin, kMaxQuantized);
        for (size_t d = 0; d < out.size(); ++d) {
            int sum = 0;
            for (size_t t = 0; t < stored.size(); ++t) sum += w.q[t] * stored[t].q[d];
            out[d] = std::fma(static_cast<float>(sum), w.scale, out[d]);
        }
    }

    const Context& context_;
    const float* query_;
    const int position_, low_;
};

void check_attention(Random& random, int head_dim, int rows, int length, int window, KvFormat format) {
    Context context(random, head_dim, length, format);
    Queries queries{{}, {}, window};
    std::vector<float> expected;
    for (int r = 0; r < rows; ++r) {
        std::vector<float> head = random.floats(static_cast<size_t>(head_dim), -3.0f, 3.0f);
        queries.positions.push_back(random.integer(0, length - 1));
        const std::vector<float> out =
            NaiveAttention(context, head.data(), queries.positions.back(), window).run();
        expected.insert(expected.end(), out.begin(), out.end());
        head.resize(static_cast<size_t>(context.padded_dim));
        queries.heads.insert(queries.heads.end(), head.begin(), head.end());
    }
    for (const KernelTable* kernels : available_kernels()) {
        context.fill(*kernels);
        CHECK(same_bits(attend(*kernels, context, queries), expected),
              "(%s, head_dim %d, %d rows, %d tokens, window %d, format %d)", kernels->name, head_dim, rows,
              length, window, static_cast<int>(format));
    }
}

}  // namespace

TEST(attention_of_every_shape) {
    Random random(1);
    for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
        for (int rows = 1; rows <= kMaxTile; ++rows) {
            for (const int head_dim : {2, 6, 16, 20, 64, 80, 128}) {
                const int length = random.integer(1, 130);
                check_attention(random, head_dim, rows, length, 0, format);
                check_attention(random, head_dim, rows, length, random.integer(1, 70), format);
            }
        }
    }
}

TEST(attention_over_several_spans) {
    Random random(5);
    for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
        for (const int length : {kSpan * kBlock, kSpan * kBlock + 1, 900}) {
            check_attention(random, 16, random.integer(1, 5), length, 0, format);
            check_attention(random, 16, random.integer(1, 5), length, random.integer(1, 600), format);
        }
    }
}

TEST(attention_of_every_head_dim) {
    Random random(2);
    for (int head_dim = 2; head_dim <= 128; head_dim += 2) {
        for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
            check_attention(random, head_dim, random.integer(1, 4), 40, random.integer(0, 50), format);
        }
    }
}

// Later tokens of the same block, or of whichever sequence had it before, must not matter, not even if
// infinite.
TEST(what_lies_in_invisible_slots_does_not_matter) {
    Random random(3);
    for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
        Context context(random, 32, 96, format);
        const Queries queries{random.floats(3 * 32), {37, 38, 70}, 20};
        Context other = context;
        for (int t = 0; t < 96; ++t) {
            if (t >= 18 && t <= 70) continue;
            for (int d = 0; d < 32; ++d) {
                const float bad[] = {std::numeric_limits<float>::infinity(),
                                     std::numeric_limits<float>::quiet_NaN(), 60000.0f, -60000.0f};
                other.keys[static_cast<size_t>(t * 32 + d)] = bad[random.integer(0, 3)];
                other.values[static_cast<size_t>(t * 32 + d)] = bad[random.integer(0, 3)];
            }
        }
        for (const KernelTable* kernels : available_kernels()) {
            context.fill(*kernels);
            other.fill(*kernels);
            CHECK(same_bits(attend(*kernels, other, queries), attend(*kernels, context, queries)),
                  "(%s, format %d)", kernels->name, static_cast<int>(format));
        }
    }
}

// A token that is not a number shows in the rows that see it, and in no other of their tile.
TEST(values_that_are_not_numbers_show_where_they_are_seen) {
    Random random(7);
    for (const float bad :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        for (int rows = 1; rows <= kMaxTile; ++rows) {
            Context context(random, 32, 96, KvFormat::kInt8);
            Queries queries{random.floats(static_cast<size_t>(rows * 32)), {}, 0};
            for (int r = 0; r < rows; ++r) queries.positions.push_back(random.integer(0, 95));
            constexpr int kBad = 50;
            for (const bool key : {false, true}) {
                Context other = context;
                (key ? other.keys : other.values)[kBad * 32 + 7] = bad;
                for (const KernelTable* kernels : available_kernels()) {
                    context.fill(*kernels);
                    other.fill(*kernels);
                    const std::vector<float> found = attend(*kernels, other, queries),
                                             expected = attend(*kernels, context, queries);
                    for (size_t i = 0; i < found.size(); ++i) {
                        const bool sees = queries.positions[i / 32] >= kBad;
                        CHECK(sees ? std::isnan(found[i]) : found[i] == expected[i],
                              "(%s, %d rows, value %zu of %g)", kernels->name, rows, i, double{bad});
                    }
                }
            }
        }
    }
}

TEST(cells_are_stored_alike) {
    Random random(4);
    for (const KvFormat format : {KvFormat::kInt8, KvFormat::kFp16}) {
        for (int round = 0; round < 60; ++round) {
            Context context(random, random.integer(1, 64) * 2, 33, format);
            for (float& key : context.keys)
                key = std::ldexp(key, random.integer(-30, 14));  // subnormal halves too
            if (round == 0) std::fill(context.values.begin(), context.values.end(), 0.0f);
            for (float& value : context.values)  // ties of both formats
                if (round % 2 == 1) value = static_cast<float>(random.integer(-254, 254)) * 0.5f + 2048.0f;
            context.fill(*portable_kernels());
            const std::vector<uint8_t> expected = context.pool;
            for (const KernelTable* kernels : available_kernels()) {
                context.fill(*kernels);
                CHECK(same_bits(context.pool, expected), "(%s, format %d, round %d)", kernels->name,
                      static_cast<int>(format), round);
            }
        }
    }
}
