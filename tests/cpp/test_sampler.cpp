// Sampling by the letter of docs/numerics.md.
#include <algorithm>
#include <limits>
#include <map>

#include "check.h"
#include "data.h"
#include "sampler.h"

using namespace flashlet;

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

std::vector<float> padded(const std::vector<float>& logits) {
    std::vector<float> row = logits;
    row.resize(static_cast<size_t>(round_up(static_cast<int>(logits.size()), kLanes)), kNever);
    return row;
}

int sample(const KernelTable& kernels, const std::vector<float>& logits, const SampleParams& params) {
    Sampler sampler(kernels, static_cast<int>(logits.size()));
    return sampler.sample(padded(logits).data(), params);
}

std::vector<float> naive_adjusted(std::vector<float> x, const SampleParams& p) {
    std::map<int, int> counts;
    for (const int token : p.prompt) counts[token];
    for (const int token : p.output) ++counts[token];
    for (const auto& [token, count] : counts) {
        float& l = x[static_cast<size_t>(token)];
        if (p.repetition_penalty != 1.0f) l = l > 0.0f ? l / p.repetition_penalty : l * p.repetition_penalty;
        if (count == 0) continue;
        l -= static_cast<float>(count) * p.frequency_penalty;
        l -= p.presence_penalty;
    }
    for (const auto& [token, bias] : p.logit_bias) x[static_cast<size_t>(token)] += bias;
    for (const int token : p.suppressed) x[static_cast<size_t>(token)] = kNever;
    for (size_t i = 0; i < x.size() && !p.allowed.empty(); ++i) {
        if ((p.allowed[i / 32] >> (i % 32) & 1u) == 0) x[i] = kNever;
    }
    return x;
}

int naive_sample(const std::vector<float>& logits, const SampleParams& p) {
    const std::vector<float> x = naive_adjusted(logits, p);
    std::vector<int> order;
    for (size_t i = 0; i < x.size(); ++i) {
        if (x[i] > kNever) order.push_back(static_cast<int>(i));
    }
    const auto value = [&](int i) { return x[static_cast<size_t>(i)]; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return value(a) > value(b); });
    if (order.empty()) return -1;
    if (p.temperature == 0.0f) return order[0];
    const float top = value(order[0]);
    const auto weight = [&](int i) {
        return std::exp((double{value(i)} - double{top}) / double{p.temperature});
    };
    if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order.size())
        order.resize(static_cast<size_t>(p.top_k));
    double total = 0.0, cumulative = 0.0;
    for (const int i : order) total += weight(i);
    size_t kept = 0;
    while (kept < order.size() && (p.top_p == 1.0f || kept == 0 || cumulative < double{p.top_p} * total))
        cumulative += weight(order[kept++]);
    int best = -1;
    float best_value = kNever;
    for (size_t i = 0; i < kept; ++i) {
        const int token = order[i];
        if (weight(token) < double{p.min_p}) continue;
        float noise;
        portable_kernels()->gumbel(p.seed, static_cast<uint64_t>(p.position), &token, 1, &noise);
        const float noisy = value(token) / p.temperature + noise;
        if (noisy > best_value || (noisy == best_value && token < best)) best = token, best_value = noisy;
    }
    return best;
}

SampleParams random_params(Random& random, int vocab) {
    const auto maybe = [&] { return random.integer(0, 2) == 0; };
    const auto tokens = [&](int count) {
        std::vector<int32_t> ids(static_cast<size_t>(count));
        for (int32_t& id : ids) id = random.integer(0, vocab - 1);
        return ids;
    };
    SampleParams p;
    p.temperature = maybe() ? 0.0f : random.uniform(0.05f, 2.0f);
    if (maybe()) p.top_k = random.integer(1, vocab + 3);
    if (maybe()) p.top_p = random.uniform(0.01f, 0.99f);
    if (maybe()) p.min_p = random.uniform(0.0f, 0.5f);
    if (maybe()) p.presence_penalty = random.uniform(-2.0f, 2.0f);
    if (maybe()) p.frequency_penalty = random.uniform(-2.0f, 2.0f);
    if (maybe()) p.repetition_penalty = random.uniform(0.5f, 2.0f);
    p.prompt = tokens(random.integer(0, 20));
    p.output = tokens(random.integer(0, 40));
    if (maybe()) p.suppressed = tokens(random.integer(1, 5));
    if (maybe()) {
        for (int token = random.integer(0, 5); token < vocab; token += random.integer(5, 30))
            p.logit_bias.emplace_back(token, random.uniform(-5.0f, 5.0f));
    }
    if (maybe()) {
        for (int i = 0; i < (vocab + 31) / 32; ++i) p.allowed.push_back(static_cast<uint32_t>(random.next()));
    }
    p.seed = random.next();
    p.position = static_cast<int64_t>(random.next() >> random.integer(2, 63));
    return p;
}

}  // namespace

TEST(sampler_follows_the_definition) {
    Random random(1);
    for (int round = 0; round < 2000; ++round) {
        const int vocab = random.integer(1, 200);
        const float spread = random.uniform(0.5f, 12.0f);
        const std::vector<float> logits = random.floats(static_cast<size_t>(vocab), -spread, spread);
        const SampleParams params = random_params(random, vocab);
        const int expected = naive_sample(logits, params);
        for (const KernelTable* kernels : available_kernels()) {
            const int found = sample(*kernels, logits, params);
            CHECK(found == expected, "(%s, round %d: %d, not %d)", kernels->name, round, found, expected);
        }
    }
}

TEST(sampler_keeps_no_history) {
    Random random(2);
    Sampler reused(*portable_kernels(), 100);
    for (int round = 0; round < 200; ++round) {
        const std::vector<float> logits = random.floats(100, -4.0f, 4.0f);
        const SampleParams params = random_params(random, 100);
        CHECK(reused.sample(padded(logits).data(), params) == sample(*portable_kernels(), logits, params));
    }
}

TEST(some_tokens_are_drawn_as_if_the_others_were_impossible) {
    Random random(3);
    std::vector<int32_t> ids;
    for (int id = 0; id < 2000; ++id) {
        if (random.integer(0, 2) == 0) ids.push_back(id);
    }
    for (int round = 0; round < 60; ++round) {
        SampleParams params;
        params.temperature = round % 5 == 0 ? 0.0f : random.uniform(0.3f, 2.0f);
        params.top_k = round % 3 == 0 ? random.integer(1, 400) : 0;
        params.min_p = round % 4 == 0 ? 0.01 : 0.0;
        params.seed = random.next();
        const std::vector<float> some = random.floats(ids.size(), -9.0f, 9.0f);
        std::vector<float> all(2000, kNever);
        for (size_t i = 0; i < ids.size(); ++i) all[static_cast<size_t>(ids[i])] = some[i];
        for (const KernelTable* kernels : available_kernels()) {
            Sampler sampler(*kernels, static_cast<int>(ids.size()), ids.data());
            const int32_t drawn = sampler.sample(padded(some).data(), params);
            CHECK(ids[static_cast<size_t>(drawn)] == sample(*kernels, all, params), "(%s)", kernels->name);
        }
    }
}

TEST(equal_logits_choose_the_lowest_token) {
    SampleParams greedy;
    greedy.temperature = 0.0f;
    CHECK(sample(*portable_kernels(), std::vector<float>(50, 1.5f), greedy) == 0);
    SampleParams first_of_three;
    first_of_three.top_k = 1;
    std::vector<float> logits(50, 0.0f);
    logits[7] = logits[20] = logits[49] = 3.0f;
    for (int position = 0; position < 50; ++position) {
        first_of_three.position = position;
        CHECK(sample(*portable_kernels(), logits, first_of_three) == 7);
    }
}

TEST(nothing_is_chosen_where_nothing_may_be) {
    SampleParams params;
    params.allowed = {0u, 0u};
    CHECK(sample(*portable_kernels(), std::vector<float>(40, 1.0f), params) == -1);
    params.temperature = 0.0f;
    CHECK(sample(*portable_kernels(), std::vector<float>(40, 1.0f), params) == -1);
    params.allowed = {0u, 1u << 3};
    CHECK(sample(*portable_kernels(), std::vector<float>(40, 1.0f), params) == 35);
}

// Divided by the temperature they are infinite.
TEST(huge_logits_are_sampled) {
    for (const KernelTable* kernels : available_kernels()) {
        Sampler sampler(*kernels, 20);
        std::vector<float> logits(32, kNever);
        for (size_t i = 0; i < 20; ++i) logits[i] = -1.0f;
        logits[7] = logits[11] = 4e34f;
        SampleParams params;
        params.temperature = 1e-5f;
        CHECK(sampler.sample(logits.data(), params) == 7, "(%s)", kernels->name);
        params.top_p = 0.9;
        const int32_t filtered = sampler.sample(logits.data(), params);
        CHECK(filtered == 7 || filtered == 11, "(%s: %d)", kernels->name, filtered);
    }
}

TEST(frequencies_follow_the_distribution) {
    const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f};
    double total = 0.0;
    for (const float l : logits) total += std::exp(double{l});
    std::vector<int> counts(4);
    SampleParams params;
    params.seed = 99;
    constexpr int kDraws = 20000;
    for (int position = 0; position < kDraws; ++position) {
        params.position = position;
        ++counts[static_cast<size_t>(sample(*available_kernels()[0], logits, params))];
    }
    for (size_t i = 0; i < 4; ++i) {
        const double expected = std::exp(double{logits[i]}) / total, found = counts[i] / double{kDraws};
        CHECK(std::fabs(found - expected) < 0.015, "(token %zu: %g, not %g)", i, found, expected);
    }
}

TEST(logprobs_are_sorted_and_normalized) {
    Random random(3);
    for (int round = 0; round < 100; ++round) {
        const int vocab = random.integer(1, 150);
        std::vector<float> logits = random.floats(static_cast<size_t>(vocab), -15.0f, 15.0f);
        for (float& l : logits) l = std::round(l);  // ties
        double total = 0.0;
        for (const float l : logits) total += std::exp(double{l});
        const auto exact = [&](int token) {
            return double{logits[static_cast<size_t>(token)]} - std::log(total);
        };
        const int token = random.integer(0, vocab - 1), top = random.integer(0, 20);
        std::vector<ScoredToken> expected;
        for (const KernelTable* kernels : available_kernels()) {
            Sampler sampler(*kernels, vocab);
            const Logprobs found = sampler.logprobs(padded(logits).data(), token, top);
            CHECK(found.token == token && std::fabs(double{found.logprob} - exact(token)) < 1e-5);
            CHECK(found.top.size() == static_cast<size_t>(std::min(top, vocab)));
            for (size_t i = 0; i < found.top.size(); ++i) {
                const auto [logprob, id] = found.top[i];
                CHECK(std::fabs(double{logprob} - exact(id)) < 1e-5);
                if (i == 0) continue;
                const auto [before, id_before] = found.top[i - 1];
                CHECK(before > logprob || (before == logprob && id_before < id), "(%s)", kernels->name);
            }
            if (kernels == available_kernels()[0]) expected = found.top;
            CHECK(found.top == expected, "(%s)", kernels->name);
        }
    }
}
