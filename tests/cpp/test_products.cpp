// Matrix products: every instruction set against the literal definition, bit for bit.
#include <algorithm>
#include <limits>

#include "check.h"
#include "data.h"

using namespace flashlet;

namespace {

// Rows in the tiles that `matmul` wants, as integers for weights of one format.
struct Rows {
    std::vector<int16_t> values;
    std::vector<float> scales;
    int count, stride;

    Rows(const KernelTable& kernels, WeightFormat format, const std::vector<float>& x, int rows, int width)
        : scales(static_cast<size_t>(rows)),
          count(rows),
          stride(width / kGroup * kernels.inputs_of(format).group_units) {
        values.resize(static_cast<size_t>(rows * stride));
        for (int row = 0; row < rows; ++row) {
            const RowTile tile = tile_of(row, rows, kernels.product_rows);
            scales[static_cast<size_t>(row)] = kernels.inputs_of(format).quantize(
                x.data() + row * width, width, values.data() + tile.first * stride, row - tile.first,
                tile.rows);
        }
    }
    QuantizedRows view() const { return {values.data(), scales.data(), stride}; }
};

// The matrix as `matmul` wants it.
Matrix arranged(const KernelTable& kernels, const Matrix& w) {
    Matrix result = w;
    kernels.arrange(w.view(), result.cells.data());
    return result;
}

// The same weights, which are -8 to 7, in cells of half the size.
Matrix halved(const Matrix& w) {
    Matrix result = w;
    result.format = WeightFormat::kInt4;
    result.cells.clear();
    for (auto cell = w.cells.begin(); cell != w.cells.end(); cell += kCellBytes) {
        const auto weights = cell + kScaleBytes;
        result.cells.insert(result.cells.end(), cell, weights);
        for (int i = 0; i < kGroup * kLanes; i += i % (2 * kLanes) == 2 * kLanes - 1 ? 1 + 2 * kLanes : 1)
            result.cells.push_back(
                static_cast<uint8_t>((weights[i] + 8) % 16 | (weights[i + 2 * kLanes] + 8) % 16 << 4));
    }
    return result;
}

std::vector<float> product(const KernelTable& kernels, const Matrix& w, const std::vector<float>& x, int rows,
                           Epilogue epilogue, std::vector<float> out) {
    const Rows quantized(kernels, w.format, x, rows, w.groups * kGroup);
    const int stride = static_cast<int>(out.size()) / rows;
    const int middle = w.panels / 4 * 2;  // two calls: panels are independent
    const Matrix own = arranged(kernels, w);
    kernels.matmul(own.view(), quantized.view(), rows, 0, middle, epilogue, out.data(), stride, {});
    kernels.matmul(own.view(), quantized.view(), rows, middle, w.panels, epilogue, out.data(), stride,
                   {own.view().cells, true});
    return out;
}

// `limit`: the largest integer of a row.
std::vector<float> naive_linear(Matrix& w, const std::vector<float>& x, int rows, int limit) {
    const int width = w.groups * kGroup, outputs = w.panels * kLanes;
    std::vector<float> out;
    for (int row = 0; row < rows; ++row) {
        const Quantized quantized = naive_quantize(x.data() + row * width, width, limit);
        for (int o = 0; o < outputs; ++o) {
            float acc = 0.0f;
            for (int g = 0; g < width; g += kGroup) {
                int64_t sum = 0;
                for (int i = g; i < g + kGroup; ++i)
                    sum += w.code(o, i) * quantized.q[static_cast<size_t>(i)];
                acc = std::fma(static_cast<float>(sum), half_value(w.scale(o, g)), acc);
            }
            acc *= quantized.scale;
            out.push_back(w.bias.empty() ? acc : acc + w.bias[static_cast<size_t>(o)]);
        }
    }
    return out;
}

std::vector<float> naive_epilogue(Epilogue epilogue, const std::vector<float>& linear, int outputs,
                                  const std::vector<float>& before) {
    const KernelTable& portable = *portable_kernels();
    std::vector<float> out = before;
    for (size_t i = 0; i < out.size(); ++i) {
        if (epilogue == Epilogue::kStore) out[i] = linear[i];
        if (epilogue == Epilogue::kAdd) out[i] = before[i] + linear[i];
        if (epilogue == Epilogue::kGatedSilu) {
            const size_t row = i / static_cast<size_t>(outputs / 2), o = i % static_cast<size_t>(outputs / 2);
            const float* gate = linear.data() + row * static_cast<size_t>(outputs) + o / kLanes * 2 * kLanes;
            const float x = gate[o % kLanes];
            out[i] = x / (1.0f + kernel_exp(portable, 0.0f - x)) * gate[o % kLanes + kLanes];
        }
    }
    return out;
}

void check_product(Random& random, Matrix& w, const std::vector<float>& x, int rows, Epilogue epilogue,
                   WeightFormat format = WeightFormat::kInt8) {
    const int outputs = w.panels * kLanes;
    const auto size = static_cast<size_t>(rows * (epilogue == Epilogue::kGatedSilu ? outputs / 2 : outputs));
    const std::vector<float> before = random.floats(size);
    const bool halves = format == WeightFormat::kInt4;
    const std::vector<float> linear = naive_linear(w, x, rows, halves ? kMaxByte : kMaxQuantized);
    const std::vector<float> expected = naive_epilogue(epilogue, linear, outputs, before);
    const Matrix given = halves ? halved(w) : w;
    for (const KernelTable* kernels : available_kernels()) {
        const std::vector<float> found = product(*kernels, given, x, rows, epilogue, before);
        CHECK(same_bits(found, expected), "(%s, %d rows, %d panels, %d groups, epilogue %d)", kernels->name,
              rows, w.panels, w.groups, static_cast<int>(epilogue));
    }
}

}  // namespace

TEST(products_of_every_height) {
    Random random(1);
    for (int rows = 1; rows <= 25; ++rows) {
        for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd, Epilogue::kGatedSilu}) {
            const int groups = random.integer(1, 4);
            const int panels = epilogue == Epilogue::kGatedSilu ? 6 : 3;
            Matrix w = random_matrix(random, panels * kLanes, groups * kGroup, rows % 2 == 0);
            check_product(random, w, random.floats(static_cast<size_t>(rows * groups * kGroup)), rows,
                          epilogue);
        }
    }
}

TEST(products_of_every_depth) {
    Random random(2);
    for (int groups = 1; groups <= 50; ++groups) {
        const int rows = random.integer(1, 5);
        Matrix w = random_matrix(random, 20, groups * kGroup - random.integer(0, 31), groups % 2 == 0);
        check_product(random, w, random.floats(static_cast<size_t>(rows * groups * kGroup)), rows,
                      Epilogue::kStore);
    }
}

TEST(largest_integers_do_not_overflow) {
    Random random(3);
    for (const int rows : {1, 2, 3, 4, 5, 8, 13, 16}) {
        for (const bool mixed : {false, true}) {
            Matrix w(2, 50);
            std::vector<float> x(static_cast<size_t>(rows * 50 * kGroup), -1.0f);
            for (int o = 0; o < 2 * kLanes; ++o) {
                for (int i = 0; i < 50 * kGroup; ++i) {
                    w.code(o, i) = mixed && random.integer(0, 1) != 0 ? -127 : 127;
                    w.scale(o, i) = 0x7bff;  // 65504, the largest
                }
            }
            for (float& value : x) value = mixed && random.integer(0, 1) != 0 ? 1.0f : -1.0f;
            check_product(random, w, x, rows, Epilogue::kStore);
        }
    }
}

// Weights of one 1 per output give back the integers of a row, whatever their order inside.
TEST(rows_are_quantized_to_the_nearest_integer) {
    Random random(4);
    Matrix one_hot(2, 1);
    for (int i = 0; i < kGroup; ++i) {
        one_hot.code(i, i) = 1;
        for (int o = 0; o < kGroup; ++o) one_hot.scale(o, 0) = 0x3c00;  // 1
    }
    const Matrix halves = halved(one_hot);
    for (int round = 0; round < 400; ++round) {
        const Matrix& w = round % 2 == 0 ? one_hot : halves;
        const int limit = round % 2 == 0 ? kMaxQuantized : kMaxByte;
        std::vector<float> x = random.floats(kGroup, -4.0f, 4.0f);
        if (round % 3 == 1) {  // ties: limit / largest is exactly 1
            for (float& value : x) value = static_cast<float>(random.integer(-2 * limit, 2 * limit)) * 0.5f;
            x[5] = static_cast<float>(limit);
        }
        if (round % 3 == 2) {
            const float tiny = std::ldexp(1.0f, random.integer(-149, -90));
            for (float& value : x) value *= tiny;
        }
        const Quantized expected = naive_quantize(x.data(), kGroup, limit);
        for (const KernelTable* kernels : available_kernels()) {
            const Rows quantized(*kernels, w.format, x, 1, kGroup);
            CHECK(quantized.scales[0] == expected.scale, "(%s, round %d)", kernels->name, round);
            const float unit = 1.0f;
            std::vector<float> found(kGroup);
            kernels->matmul(arranged(*kernels, w).view(), {quantized.values.data(), &unit, quantized.stride},
                            1, 0, 2, Epilogue::kStore, found.data(), kGroup, {});
            for (size_t i = 0; i < kGroup; ++i) {
                CHECK(static_cast<int>(found[i]) == expected.q[i], "(%s, round %d, %zu: %f)", kernels->name,
                      round, i, static_cast<double>(found[i]));
            }
        }
    }
}

TEST(half_bytes_are_multiplied_with_bytes) {
    Random random(9);
    for (int rows = 1; rows <= 19; ++rows) {
        for (const int extreme : {0, -8, 7}) {  // of all weights; 0: random ones
            const int groups = random.integer(1, 5), panels = 2 * random.integer(1, 4);
            Matrix w(panels, groups);
            for (int o = 0; o < panels * kLanes; ++o) {
                for (int i = 0; i < groups * kGroup; ++i) {
                    w.code(o, i) = static_cast<int8_t>(extreme != 0 ? extreme : random.integer(-8, 7));
                    const int sign = random.integer(0, 1) << 15;
                    if (i % kGroup == 0)
                        w.scale(o, i) = static_cast<uint16_t>(random.integer(0x1800, 0x27ff) | sign);
                }
            }
            std::vector<float> x = random.floats(static_cast<size_t>(rows * groups * kGroup));
            if (extreme != 0) std::fill(x.begin(), x.end(), rows % 2 == 0 ? 1.0f : -1.0f);
            for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kGatedSilu})
                check_product(random, w, x, rows, epilogue, WeightFormat::kInt4);
        }
    }
}

// Not a number, or too large for one: the whole row says so, and no other.
TEST(rows_that_are_not_numbers_show) {
    Random random(6);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        for (const int groups : {3, 4, 5, 8}) {
            const Matrix bytes = random_matrix(random, 32, groups * kGroup);
            std::vector<float> x = random.floats(static_cast<size_t>(2 * groups * kGroup));
            x[static_cast<size_t>(groups * kGroup + 40)] = bad;
            for (const KernelTable* kernels : available_kernels()) {
                for (const Matrix& w : {bytes, halved(bytes)}) {
                    const std::vector<float> out =
                        product(*kernels, w, x, 2, Epilogue::kStore, std::vector<float>(64));
                    for (size_t i = 0; i < out.size(); ++i)
                        CHECK(std::isnan(out[i]) == (i >= 32), "(%s, %zu)", kernels->name, i);
                }
            }
        }
    }
}

TEST(embedding_reads_every_scale) {
    Random random(5);
    Matrix table = random_matrix(random, 33, 70);
    for (int half = 0; half < 0x7c00; half += 11) {  // finite binary16, subnormal ones too
        const int row = random.integer(0, 32);
        for (int g = 0; g < table.groups; ++g) table.scale(row, g * kGroup) = static_cast<uint16_t>(half);
        for (const KernelTable* kernels : available_kernels()) {
            std::vector<float> found(static_cast<size_t>(table.groups * kGroup));
            kernels->embed(table.view(), row, found.data());
            for (size_t i = 0; i < found.size(); ++i) {
                const float expected =
                    table.code(row, static_cast<int>(i)) * half_value(static_cast<uint16_t>(half));
                CHECK(found[i] == expected, "(%s, half %#x)", kernels->name, half);
            }
        }
    }
}
