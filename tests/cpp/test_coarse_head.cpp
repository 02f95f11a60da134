// Products of half the cost: how far off they are, and the largest logit that they help to find.
#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "coarse_head.h"
#include "data.h"
#include "tiny_model.h"

using namespace flashlet;

namespace {

// Like streams of a model: some values are much larger than the others.
std::vector<float> uneven_rows(Random& random, int rows, int width) {
    std::vector<float> x = random.floats(static_cast<size_t>(rows * width));
    for (float& value : x) value *= random.integer(0, 19) == 0 ? 12.0f : 1.0f;
    return x;
}

// By every instruction set's own kernels: rows times an arranged matrix, coarse or exact.
std::vector<float> product(const KernelTable& kernels, const PackedMatrix& w, const std::vector<float>& x,
                           int rows, bool coarse) {
    const InputFormat& inputs = coarse ? kernels.coarse_inputs : kernels.inputs;
    const int width = w.groups * kGroup, stride = w.groups * inputs.group_units, outputs = w.panels * kLanes;
    std::vector<int16_t> values(static_cast<size_t>(rows * stride));
    std::vector<float> scales(static_cast<size_t>(rows)), out(static_cast<size_t>(rows * outputs));
    for (int row = 0; row < rows; ++row) {
        const RowTile tile = tile_of(row, rows, kernels.product_rows);
        scales[static_cast<size_t>(row)] = inputs.quantize(
            x.data() + row * width, width, values.data() + tile.first * stride, row - tile.first, tile.rows);
    }
    kernels.matmul(w, {values.data(), scales.data(), stride, coarse}, rows, 0, w.panels, Epilogue::kStore,
                   out.data(), outputs, {});
    return out;
}

std::vector<const KernelTable*> coarse_kernels() {
    std::vector<const KernelTable*> found = available_kernels();
    std::erase_if(found, [](const KernelTable* table) { return table->coarse_inputs.quantize == nullptr; });
    return found;
}

Matrix arranged(const KernelTable& kernels, const Matrix& w) {
    Matrix result = w;
    kernels.arrange(w.view(), result.cells.data());
    return result;
}

double norm(Matrix& w, int output) {
    double squares = 0.0;
    for (int i = 0; i < w.groups * kGroup; ++i) {
        const double weight = w.code(output, i) * double{half_value(w.scale(output, i))};
        squares += weight * weight;
    }
    return std::sqrt(squares);
}

// A head with its team, of vocab_size outputs.
struct Head {
    Matrix file, own;
    int vocab_size;
    Team team;
    CoarseHead coarse;

    Head(const KernelTable& kernels, const Matrix& w, int vocab)
        : file(w),
          own(arranged(kernels, w)),
          vocab_size(vocab),
          team(kernels, {2, 8, 24, w.groups * kGroup, 1, vocab}),
          coarse(team, file.view(), own.view(), vocab) {}

    // Of each row: what Sampler::best says of its exact logits, and what the coarse head does.
    std::pair<std::vector<int32_t>, std::vector<int32_t>> best(const std::vector<float>& x, int rows) {
        const KernelTable& kernels = team.kernels();
        const int outputs = own.panels * kLanes, width = own.groups * kGroup;
        const int chunk = team.chunk_of(own.view()) * kLanes;
        std::vector<float> exact = product(kernels, own.view(), x, rows, false),
                           coarsely = product(kernels, own.view(), x, rows, true);
        std::vector<int32_t> expected, found;
        Worker& worker = team.workers()[0];
        for (int row = 0; row < rows; ++row) {
            float* logits[] = {exact.data() + row * outputs, coarsely.data() + row * outputs};
            for (float* some : logits)
                std::fill(some + vocab_size, some + outputs, -std::numeric_limits<float>::infinity());
            expected.push_back(worker.sampler->best(logits[0]));
            std::vector<float> peaks;
            for (int at = 0; at < outputs; at += chunk)
                peaks.push_back(kernels.peak(logits[1] + at, std::min(chunk, outputs - at)));
            found.push_back(coarse.best(worker, x.data() + row * width, logits[1], peaks.data(),
                                        worker.sampler->best(logits[1])));
        }
        return {expected, found};
    }
};

}  // namespace

TEST(coarse_products_are_as_near_as_they_say) {
    Random random(1);
    for (const KernelTable* kernels : coarse_kernels()) {
        double nearest = 1.0;
        for (int rows = 1; rows <= 25; ++rows) {
            const int groups = random.integer(1, 40), width = groups * kGroup;
            Matrix w = random_matrix(random, 5 * kLanes, width);
            const std::vector<float> x = uneven_rows(random, rows, width);
            const Matrix own = arranged(*kernels, w);
            const std::vector<float> exact = product(*kernels, own.view(), x, rows, false),
                                     coarse = product(*kernels, own.view(), x, rows, true);
            for (int row = 0; row < rows; ++row) {
                const double error = double{kernels->coarse_error(x.data() + row * width, width)};
                double squares = 0.0;
                for (int i = 0; i < width; ++i) squares += std::pow(double{x[row * width + i]}, 2);
                CHECK(error < 0.02 * std::sqrt(squares), "(%s: %f)", kernels->name, error);
                for (int o = 0; o < 5 * kLanes; ++o) {
                    const auto at = static_cast<size_t>(row * 5 * kLanes + o);
                    const double off = std::fabs(double{exact[at]} - double{coarse[at]});
                    const double limit = error * norm(w, o);
                    CHECK(off <= limit, "(%s, %d rows, %d groups: %f, %f)", kernels->name, rows, groups, off,
                          limit);
                    nearest = std::min(nearest, 1.0 - off / limit);
                }
            }
        }
        CHECK(nearest < 0.7, "(%s: never off by much)", kernels->name);
    }
}

TEST(coarse_head_finds_the_largest_logit) {
    Random random(2);
    for (const KernelTable* kernels : coarse_kernels()) {
        for (int round = 0; round < 30; ++round) {
            const int vocab = random.integer(1, 1500), width = random.integer(1, 6) * kGroup;
            Matrix w = random_matrix(random, vocab, width);
            for (int i = 0; i < vocab / 2; ++i) {  // every logit is there more than once, or nearly
                const int from = random.integer(0, vocab - 1), to = random.integer(0, vocab - 1);
                for (int k = 0; k < width; ++k) {
                    w.code(to, k) = w.code(from, k);
                    w.scale(to, k) = w.scale(from, k);
                }
                if (round % 2 == 0) w.code(to, random.integer(0, width - 1)) += i % 2 == 0 ? 1 : -1;
            }
            Head head(*kernels, w, vocab);
            CHECK(head.coarse.pays(4) && !head.coarse.pays(1));
            const int rows = random.integer(1, 20);
            const auto [expected, found] = head.best(uneven_rows(random, rows, width), rows);
            CHECK(found == expected, "(%s, round %d)", kernels->name, round);
        }
    }
}

TEST(coarse_head_of_rows_that_are_not_numbers_or_zero) {
    Random random(3);
    for (const KernelTable* kernels : coarse_kernels()) {
        Matrix w = random_matrix(random, 200, 2 * kGroup);
        Head head(*kernels, w, 200);
        for (const float value : {std::numeric_limits<float>::quiet_NaN(),
                                  std::numeric_limits<float>::infinity(), 3e38f, 1e-42f, 0.0f}) {
            std::vector<float> x(2 * kGroup, 0.0f);
            x[40] = value;
            const auto [expected, found] = head.best(x, 1);
            CHECK(found == expected, "(%s, %f)", kernels->name, static_cast<double>(value));
            CHECK(found[0] == (std::fabs(value) <= 1e-30f ? 0 : std::isfinite(value) ? found[0] : -1));
        }
    }
}

TEST(rows_that_ask_only_for_the_largest_logit_get_it) {
    const ModelShape shape = tiny_shape(2, 6, 2, 10);
    const TinyWeights weights(shape);
    const std::vector<int32_t> tokens{3, 1, 36, 20, 9, 9, 14, 30, 2, 5};
    for (const KernelTable* kernels : available_kernels()) {
        Model model(*kernels, shape, weights.model, {2, 4, 32, 4, KvFormat::kInt8});
        SampleParams params;
        params.temperature = 0.0f;
        const auto step = [&](float* logits) {
            StepPlan plan;
            plan.tokens = tokens;
            plan.block_tables = {1};
            Slice slice;
            slice.rows = plan.rows();
            plan.slices.push_back(slice);
            for (int row = 0; row < slice.rows; ++row)
                plan.logit_rows.push_back({row, 0, true, 0, -1, Logprobs{}, &params});
            model.step(plan, logits);
            std::vector<int32_t> found;
            for (const LogitRow& row : plan.logit_rows) found.push_back(row.target);
            return found;
        };
        std::vector<float> logits(tokens.size() * 37);
        CHECK(step(nullptr) == step(logits.data()), "(%s)", kernels->name);
    }
}
