// Products of half the cost: how far off they are, and the largest logit that they help to find.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

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
          coarse(team, file.view(), own.view(), vocab, team.chunk_of(own.view())) {}

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

TEST(coarse_logits_of_huge_rows_may_be_infinite) {
    Random random(4);
    for (const KernelTable* kernels : coarse_kernels()) {
        for (int round = 0; round < 50; ++round) {
            Matrix w = random_matrix(random, 160, kGroup);
            std::vector<float> x = random.floats(kGroup, 0.2f, 1.0f);
            const double sum = std::accumulate(x.begin(), x.end(), 0.0);
            for (int o = 0; o < 160; ++o) {  // all logits near the smallest number, each panel's alike
                for (int i = 0; i < kGroup; ++i)
                    w.code(o, i) =
                        o % kLanes == 0 ? static_cast<int8_t>(random.integer(-100, -98)) : w.code(o - 1, i);
                w.scale(o, 0) = 0x2800;  // 1 / 32
            }
            const double largest = double{std::numeric_limits<float>::max()} / (sum * 99.0 / 32.0);
            for (float& value : x) value *= static_cast<float>(largest) * random.uniform(0.998f, 1.002f);
            const auto [expected, found] = Head(*kernels, w, 160).best(x, 1);
            CHECK(found == expected, "(%s, round %d)", kernels->name, round);
        }
    }
}

namespace {

// Slices of one greedy step, some of whose tokens are proposals.
struct Verification {
    int slices;
    uint64_t seed;
    std::vector<int32_t> tokens;

    StepPlan plan(const SampleParams& params, int vocab_size) const {
        Random random(seed);
        StepPlan plan;
        for (int index = 0; index < slices; ++index) {
            Slice slice;
            slice.first_row = plan.rows();
            slice.rows = random.integer(1, 7);
            slice.proposed = random.integer(0, slice.rows - 1);
            slice.table = index;
            slice.sampled = true;
            slice.first_sample = static_cast<int>(plan.logit_rows.size());
            plan.block_tables.push_back(index);
            for (int row = 0; row < slice.rows; ++row) {
                const int32_t token = random.integer(0, vocab_size - 1);
                plan.tokens.push_back(tokens.empty() ? token : tokens[plan.tokens.size()]);
            }
            for (int row = slice.known() - 1; row < slice.rows; ++row)
                plan.logit_rows.push_back({slice.first_row + row, index, true, 0, -1, Logprobs{}, &params});
            plan.slices.push_back(slice);
        }
        return plan;
    }
};

// What a client sees of a step that has run: of each slice the accepted proposals and one token more.
std::vector<int32_t> chosen(const StepPlan& plan) {
    std::vector<int32_t> tokens;
    for (const Slice& slice : plan.slices) {
        for (int i = 0; i <= plan.accepted(slice); ++i) tokens.push_back(plan.sample(slice, i).target);
    }
    return tokens;
}

}  // namespace

// Whoever wants to see all logits gets exact ones.
TEST(model_gives_the_same_tokens_by_coarse_products) {
    Random random(5);
    SampleParams greedy;
    greedy.temperature = 0.0f;
    for (const KernelTable* kernels : available_kernels()) {
        size_t accepted = 0;
        for (int round = 0; round < 30; ++round) {
            ModelShape shape = tiny_shape(1, 2, 1, 16);
            shape.vocab_size = random.integer(1, 1000);
            const TinyWeights weights(shape);
            Model model(*kernels, shape, weights.model, {random.integer(1, 4), 12, 96, 12, KvFormat::kInt8});
            Verification step{random.integer(1, 12), random.next(), {}};
            step.tokens = step.plan(greedy, shape.vocab_size).tokens;
            for (int pass = 0; pass < 4; ++pass) {
                StepPlan exact = step.plan(greedy, shape.vocab_size), coarse = exact;
                std::vector<float> logits(exact.logit_rows.size() * static_cast<size_t>(shape.vocab_size));
                model.step(exact, logits.data());
                model.step(coarse, nullptr);
                CHECK(chosen(coarse) == chosen(exact), "(%s, round %d)", kernels->name, round);
                accepted += chosen(exact).size() - exact.slices.size();
                for (const Slice& slice : exact.slices) {  // the next pass finds one more proposal right
                    const int right = exact.accepted(slice);
                    if (right < slice.proposed)
                        step.tokens[static_cast<size_t>(slice.first_row + slice.known() + right)] =
                            exact.sample(slice, right).target;
                }
            }
        }
        CHECK(accepted > 0);
    }
}
