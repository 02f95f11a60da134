// Operations on single rows: elementary functions, norm, RoPE, and the vector work of sampling.
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "data.h"
#include "lines.h"

using namespace flashlet;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Function = void (*)(const float*, int, float*);

// Largest relative error of `function` on the portable kernels; the others must give the same bits.
template <class Exact>
double largest_error(const std::vector<float>& x, Function KernelTable::* member, Exact exact) {
    const int n = static_cast<int>(x.size());
    std::vector<float> expected(x.size());
    (portable_kernels()->*member)(x.data(), n, expected.data());
    for (const KernelTable* kernels : available_kernels()) {
        std::vector<float> found(x.size());
        (kernels->*member)(x.data(), n, found.data());
        CHECK(same_bits(found, expected), "(%s)", kernels->name);
    }
    double worst = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double truth = exact(double{x[i]});
        worst = std::max(worst, std::fabs(double{expected[i]} - truth) / std::max(std::fabs(truth), 1e-30));
    }
    return worst;
}

}  // namespace

TEST(exp_is_accurate) {
    Random random(1);
    std::vector<float> x = random.floats(1 << 16, -86.9f, 87.9f);
    for (int i = 0; i < 1 << 14; ++i) x.push_back(random.uniform(-1.0f, 1.0f));
    const double error = largest_error(x, &KernelTable::exp, [](double v) { return std::exp(v); });
    CHECK(error < 3e-7, "(%g)", error);
}

TEST(exp_is_clamped) {
    std::vector<float> x = {-kInfinity, -1e30f, -87.1f, -87.0f,  88.0f, 88.1f, 1e30f, kInfinity,
                            0.0f,       -0.0f,  1e-40f, -1e-40f, 1.0f,  -1.0f, 0.5f,  kNan};
    for (const KernelTable* kernels : available_kernels()) {
        std::vector<float> y(x.size());
        kernels->exp(x.data(), kLanes, y.data());
        CHECK(y[0] == y[3] && y[1] == y[3] && y[2] == y[3] && y[3] > 0.0f, "(%s)", kernels->name);
        CHECK(y[5] == y[4] && y[6] == y[4] && y[7] == y[4] && y[4] < kInfinity, "(%s)", kernels->name);
        CHECK(y[8] == 1.0f && y[9] == 1.0f && y[10] == 1.0f && y[11] == 1.0f, "(%s)", kernels->name);
        CHECK(std::isnan(y[15]), "(%s)", kernels->name);
    }
}

TEST(log_is_accurate) {
    Random random(2);
    std::vector<float> x;
    for (int i = 0; i < 1 << 14; ++i)
        x.push_back(std::ldexp(random.uniform(0.5f, 1.0f), random.integer(-125, 128)));
    for (int i = 0; i < 1 << 14; ++i)
        x.push_back(1.0f - std::ldexp(random.uniform(0.5f, 1.0f), random.integer(-22, -2)));
    for (int i = 0; i < 1 << 14; ++i)
        x.push_back(1.0f + std::ldexp(random.uniform(0.5f, 1.0f), random.integer(-22, -2)));
    const double error = largest_error(x, &KernelTable::log, [](double v) { return std::log(v); });
    CHECK(error < 3e-7, "(%g)", error);
}

TEST(rms_norm_of_every_width) {
    Random random(3);
    for (int n = 1; n <= 100; ++n) {
        const auto padded = static_cast<size_t>(round_up(n, kLanes));
        std::vector<float> x = random.floats(padded, -3.0f, 3.0f), weight = random.floats(padded);
        std::fill(x.begin() + n, x.end(), 0.0f);
        float lanes[kLanes] = {};
        for (size_t i = 0; i < padded; ++i) lanes[i % kLanes] = std::fma(x[i], x[i], lanes[i % kLanes]);
        LaneSum sum;
        for (int i = 0; i < kLanes; ++i) sum.add(i, lanes[i]);
        const float r = 1.0f / std::sqrt(sum.fold() / static_cast<float>(n) + 1e-5f);
        for (const KernelTable* kernels : available_kernels()) {
            std::vector<float> y(padded);
            kernels->rms_norm(x.data(), weight.data(), n, 1e-5f, y.data());
            for (size_t i = 0; i < padded; ++i) {
                CHECK(y[i] == x[i] * r * weight[i], "(%s, width %d)", kernels->name, n);
            }
        }
    }
}

TEST(rope_of_every_head_dim) {
    Random random(4);
    for (int dim = 2; dim <= 130; dim += 2) {
        const auto half = static_cast<size_t>(dim / 2);
        const std::vector<float> x = random.floats(2 * half), cos = random.floats(half),
                                 sin = random.floats(half);
        std::vector<float> expected = x;
        for (size_t i = 0; i < half; ++i) {
            expected[i] = std::fma(x[i], cos[i], -(x[half + i] * sin[i]));
            expected[half + i] = std::fma(x[half + i], cos[i], x[i] * sin[i]);
        }
        for (const KernelTable* kernels : available_kernels()) {
            std::vector<float> y = x;
            kernels->rope(y.data(), cos.data(), sin.data(), dim);
            CHECK(y == expected, "(%s, head_dim %d)", kernels->name, dim);
        }
    }
}

TEST(argmax_takes_the_first_of_equals) {
    Random random(5);
    for (int round = 0; round < 300; ++round) {
        std::vector<float> x = random.floats(static_cast<size_t>(random.integer(1, 6) * kLanes));
        for (float& value : x) {
            value = std::floor(value * 4.0f);
            const int special = random.integer(0, 40);
            if (special == 0) value = kNan;
            if (special == 1 || round % 50 == 49) value = -kInfinity;
            if (special == 2 && round % 10 == 0) value = kInfinity;  // after a division, say
        }
        int expected = -1;
        for (size_t i = 0; i < x.size(); ++i) {
            const float best = expected < 0 ? -kInfinity : x[static_cast<size_t>(expected)];
            if (x[i] > best) expected = static_cast<int>(i);
        }
        for (const KernelTable* kernels : available_kernels()) {
            const int found = kernels->argmax(x.data(), static_cast<int>(x.size()));
            CHECK(found == expected, "(%s, round %d: %d, not %d)", kernels->name, round, found, expected);
        }
    }
}

TEST(a_peak_is_the_largest_unless_nan_or_infinity_is_there) {
    Random random(6);
    for (int round = 0; round < 100; ++round) {
        std::vector<float> x = random.floats(static_cast<size_t>(random.integer(1, 9) * kLanes));
        for (float& value : x) value = random.integer(0, 9) == 0 ? -kInfinity : value * 1e38f;
        const float special = round % 3 == 0 ? kNan : kInfinity;
        const bool valid = round % 3 == 2;
        if (!valid) x[static_cast<size_t>(random.integer(0, static_cast<int>(x.size()) - 1))] = special;
        for (const KernelTable* kernels : available_kernels()) {
            const float found = kernels->peak(x.data(), static_cast<int>(x.size()));
            const bool right = valid ? found == *std::max_element(x.begin(), x.end()) : std::isnan(found);
            CHECK(right, "(%s, round %d: %f)", kernels->name, round, static_cast<double>(found));
        }
    }
}

TEST(collect_finds_all_above) {
    Random random(8);
    for (int round = 0; round < 100; ++round) {
        std::vector<float> x = random.floats(static_cast<size_t>(random.integer(1, 9) * kLanes));
        for (float& value : x) value = random.integer(0, 20) == 0 ? -kInfinity : std::floor(value * 8.0f);
        const float above = round % 10 == 0 ? -kInfinity : x[0];
        std::vector<int32_t> expected;
        for (size_t i = 0; i < x.size(); ++i) {
            if (x[i] > above) expected.push_back(static_cast<int32_t>(i));
        }
        for (const KernelTable* kernels : available_kernels()) {
            std::vector<int32_t> found(x.size());
            found.resize(static_cast<size_t>(
                kernels->collect(x.data(), static_cast<int>(x.size()), above, found.data())));
            CHECK(found == expected, "(%s, round %d)", kernels->name, round);
        }
    }
}

TEST(exp_sum_leaves_out_masked_entries) {
    Random random(6);
    for (const float temperature : {0.1f, 1.0f, 1.7f}) {
        std::vector<float> x = random.floats(160, -20.0f, 20.0f);
        for (size_t i = 0; i < x.size(); i += 7) x[i] = -kInfinity;
        const float largest = *std::max_element(x.begin(), x.end());
        const float expected = portable_kernels()->exp_sum(x.data(), 160, largest, temperature);
        double truth = 0.0;
        for (const float value : x)
            truth += std::exp((double{value} - double{largest}) / double{temperature});
        CHECK(std::fabs(double{expected} - truth) < 1e-5 * truth);
        for (const KernelTable* kernels : available_kernels()) {
            CHECK(kernels->exp_sum(x.data(), 160, largest, temperature) == expected, "(%s)", kernels->name);
        }
    }
}

TEST(gumbel_noise_skips_nothing) {
    Random random(7);
    constexpr int kCount = 528;  // whole vectors, but no whole runs of noise
    std::vector<int32_t> ids;
    for (int id = 0; ids.size() < kCount; ++id) {
        if (random.integer(0, 3) == 0) ids.push_back(id);
    }
    for (int round = 0; round < 100; ++round) {
        const float spread = random.uniform(0.1f, 30.0f), temperature = random.uniform(0.05f, 2.0f);
        const float middle = round % 3 == 0 ? random.uniform(-1e5f, 1e5f) : 0.0f;
        std::vector<float> x = random.floats(kCount, middle - spread, middle + spread);
        for (int i = 0; i < 100; ++i) x[static_cast<size_t>(random.integer(0, kCount - 1))] = -kInfinity;
        const uint64_t seed = random.next(), position = random.next() >> random.integer(0, 63);
        const int32_t* tokens = round % 2 == 0 ? nullptr : ids.data();
        int expected = -1;
        float best = -kInfinity;
        for (int i = 0; i < kCount; ++i) {
            const int token = tokens != nullptr ? tokens[i] : i;
            float noise;
            portable_kernels()->gumbel(seed, position, &token, 1, &noise);
            const float value = x[static_cast<size_t>(i)] / temperature + noise;
            if (value > best) best = value, expected = i;
        }
        for (const KernelTable* kernels : available_kernels()) {
            const int largest = kernels->argmax(x.data(), kCount);
            const int found =
                kernels->gumbel_argmax(x.data(), tokens, kCount, largest, temperature, seed, position);
            CHECK(found == expected, "(%s, round %d: %d, not %d)", kernels->name, round, found, expected);
        }
    }
}

TEST(gumbel_noise_has_its_distribution) {
    double mean = 0.0, largest = -100.0, smallest = 100.0;
    constexpr int kCount = 1 << 14;
    std::vector<int32_t> tokens(kCount);
    std::iota(tokens.begin(), tokens.end(), 0);
    std::vector<float> expected(kCount);
    portable_kernels()->gumbel(42, 7, tokens.data(), kCount, expected.data());
    Random random(8);
    for (const KernelTable* kernels : available_kernels()) {  // whatever else is asked for at once
        for (int count = 1; count < 50; ++count) {
            std::vector<int32_t> some(static_cast<size_t>(count));
            for (int32_t& token : some) token = random.integer(0, kCount - 1);
            std::vector<float> found(some.size());
            kernels->gumbel(42, 7, some.data(), count, found.data());
            for (size_t i = 0; i < some.size(); ++i)
                CHECK(found[i] == expected[static_cast<size_t>(some[i])], "(%s)", kernels->name);
        }
    }
    for (const float noise : expected) {
        mean += double{noise} / kCount;
        largest = std::max(largest, double{noise});
        smallest = std::min(smallest, double{noise});
    }
    CHECK(std::fabs(mean - 0.5772) < 0.02, "(%g)", mean);  // Euler's constant
    CHECK(largest < 16.7 && largest > 8.0 && smallest > -2.9, "(%g to %g)", smallest, largest);
}

TEST(read_touches_whole_vectors) {
    Random random(8);
    std::vector<uint8_t> data(4096);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random.next());
    const uint64_t expected = portable_kernels()->read(data.data(), data.size(), false);
    for (const KernelTable* kernels : available_kernels()) {
        for (const bool pages : {false, true})
            CHECK(kernels->read(data.data(), data.size(), pages) == expected, "(%s)", kernels->name);
    }
}

TEST(lines_begin_at_cache_lines) {
    std::vector<Lines<float>> floats;
    for (size_t size = 1; size < 3000; size = 2 * size + 1) floats.emplace_back(size);
    for (const Lines<float>& x : floats)
        CHECK(reinterpret_cast<uintptr_t>(x.data()) % kLineBytes == 0, "(%zu)", x.size());
}
