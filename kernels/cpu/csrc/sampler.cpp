#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flashlet {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kStep = 8.0f;        // width of the first window below the maximum: e^-8 of its probability
constexpr size_t kFewTokens = 256;   // whose noise is made one by one
constexpr float kLeadWeight = 0.5f;  // of a difference between values with their noise, in a confidence
constexpr float kWhole = 1e6f * kStep;  // windows wider than this hold everything

bool before(const ScoredToken& a, const ScoredToken& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
}

}  // namespace

Sampler::Sampler(const KernelTable& kernels, int vocab_size, const int32_t* ids)
    : kernels_(kernels),
      ids_(ids),
      vocab_size_(vocab_size),
      padded_(round_up(vocab_size, kLanes)),
      row_(static_cast<size_t>(padded_)),
      counts_(static_cast<size_t>(vocab_size)),
      found_(static_cast<size_t>(padded_)) {
    candidates_.reserve(static_cast<size_t>(vocab_size));
    drawn_.reserve(kFewTokens);
}

int32_t Sampler::best(const float* logits) const {
    return std::isnan(kernels_.peak(logits, padded_)) ? -1 : kernels_.argmax(logits, padded_);
}

int32_t Sampler::sample(const float* logits, const SampleParams& params, int32_t best) {
    drawn_.clear();
    if (best < 0) return -1;
    const bool adjusted = params.adjusts();
    const bool filtered = !params.greedy() && (params.top_k > 0 || params.top_p < 1.0 || params.min_p > 0.0);
    if (adjusted || filtered) {
        std::copy(logits, logits + padded_, row_.begin());
        logits = row_.data();
    }
    if (adjusted) {
        adjust(params);
        best = kernels_.argmax(logits, padded_);
    }
    if (best < 0 || params.greedy()) return best;
    const auto position = static_cast<uint64_t>(params.position);
    if (!filtered)
        return kernels_.gumbel_argmax(logits, ids_, padded_, best, params.temperature, params.seed, position);
    for (float& x : row_) x /= params.temperature;
    const std::vector<ScoredToken>& kept = filter(params);
    if (kept.size() <= kFewTokens) {
        float noise[kFewTokens];
        const auto count = static_cast<int>(kept.size());
        for (size_t i = 0; i < kept.size(); ++i)
            found_[i] = ids_ != nullptr ? ids_[kept[i].second] : kept[i].second;
        kernels_.gumbel(params.seed, position, found_.data(), count, noise);
        ScoredToken drawn{kNever, 0};
        for (size_t i = 0; i < kept.size(); ++i) {
            const ScoredToken candidate{kept[i].first + noise[i], kept[i].second};
            drawn_.push_back(candidate.first);
            if (before(candidate, drawn)) drawn = candidate;
        }
        return drawn.second;
    }
    std::fill(row_.begin(), row_.end(), kNever);
    for (const auto& [x, token] : kept) row_[static_cast<size_t>(token)] = x;
    const int largest = kernels_.argmax(row_.data(), padded_);
    return kernels_.gumbel_argmax(row_.data(), ids_, padded_, largest, 1.0f, params.seed, position);
}

// Where noise decides, the lead of the chosen token over the others says more than its probability does.
Sampler::Guess Sampler::guess(const float* logits, const SampleParams& params) {
    const int32_t likeliest = best(logits), token = sample(logits, params, likeliest);
    if (token < 0) return {token, 0.0f};
    if (drawn_.empty()) return {token, probability(logits, token, logits[likeliest], params.temperature)};
    const float top = *std::max_element(drawn_.begin(), drawn_.end());
    float sum = 0.0f;
    for (const float value : drawn_) sum += std::exp((value - top) * kLeadWeight);
    return {token, 1.0f / sum};
}

// At this temperature, at 1 if nothing is drawn; `top` is the largest logit.
float Sampler::probability(const float* logits, int32_t token, float top, float temperature) const {
    if (temperature < kGreedyBelow) temperature = 1.0f;
    return std::exp((logits[token] - top) / temperature) /
           kernels_.exp_sum(logits, padded_, top, temperature);
}

void Sampler::adjust(const SampleParams& params) {
    for (const int32_t token : params.output) ++counts_[static_cast<size_t>(token)];
    // Each token of the history once: its count is cleared when it has been served.
    for (const int32_t token : params.output) {
        int32_t& count = counts_[static_cast<size_t>(token)];
        if (count == 0) continue;
        float& x = row_[static_cast<size_t>(token)];
        if (params.repetition_penalty != 1.0f) {
            x = x > 0.0f ? x / params.repetition_penalty : x * params.repetition_penalty;
        }
        x = x - params.frequency_penalty * static_cast<float>(count) - params.presence_penalty;
        count = 0;
    }
    if (params.repetition_penalty != 1.0f) {
        for (const int32_t token : params.output) counts_[static_cast<size_t>(token)] = 1;
        for (const int32_t token : params.prompt) {
            int32_t& seen = counts_[static_cast<size_t>(token)];
            if (seen != 0) continue;
            float& x = row_[static_cast<size_t>(token)];
            x = x > 0.0f ? x / params.repetition_penalty : x * params.repetition_penalty;
            seen = 1;
        }
        for (const int32_t token : params.output) counts_[static_cast<size_t>(token)] = 0;
        for (const int32_t token : params.prompt) counts_[static_cast<size_t>(token)] = 0;
    }
    for (const auto& [token, bias] : params.logit_bias) row_[static_cast<size_t>(token)] += bias;
    for (const int32_t token : params.suppressed) row_[static_cast<size_t>(token)] = kNever;
    if (!params.allowed.empty()) {
        for (int i = 0; i < vocab_size_; ++i) {
            if ((params.allowed[static_cast<size_t>(i / 32)] >> (i % 32) & 1u) == 0)
                row_[static_cast<size_t>(i)] = kNever;
        }
    }
}

std::vector<ScoredToken>& Sampler::candidates_above(const float* x, float threshold) {
    candidates_.clear();
    const int count = kernels_.collect(x, padded_, std::nextafter(threshold, kNever), found_.data());
    for (int i = 0; i < count; ++i) {
        const int32_t token = found_[static_cast<size_t>(i)];
        candidates_.emplace_back(x[token], token);
    }
    return candidates_;
}

// The `count` first tokens in order. Widens a window below the maximum until it holds enough of them.
std::vector<ScoredToken>& Sampler::largest(const float* x, int count) {
    const float top = x[std::max(0, kernels_.argmax(x, padded_))];
    for (float width = kStep;; width *= 2.0f) {
        const bool whole = width > kWhole;
        candidates_above(x, whole ? kNever : top - width);
        if (whole || candidates_.size() >= static_cast<size_t>(count)) break;
    }
    const size_t kept = std::min(candidates_.size(), static_cast<size_t>(count));
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(kept),
                      candidates_.end(), before);
    candidates_.resize(kept);
    return candidates_;
}

// Keeps the shortest prefix, in order, whose weights exp(x - top) reach `mass`; at least one token. Selects
// by halves instead of sorting, because flat distributions have thousands of tokens.
void Sampler::keep_mass(std::vector<ScoredToken>& tokens, float top, double mass) {
    size_t begin = 0,
           end = tokens.size();  // the prefix of `begin` is too light; that of `end` is not, or all
    while (end - begin > 1) {
        const size_t middle = begin + (end - begin) / 2;
        const auto at = [&](size_t i) { return tokens.begin() + static_cast<std::ptrdiff_t>(i); };
        std::nth_element(at(begin), at(middle), at(end), before);
        double half = 0.0;
        for (size_t i = begin; i < middle; ++i) half += std::exp(double{tokens[i].first} - double{top});
        if (half >= mass) {
            end = middle;
        } else {
            begin = middle;
            mass -= half;
        }
    }
    tokens.resize(end);
}

// What top_k, top_p and min_p leave of row_, whose values are divided by the temperature.
const std::vector<ScoredToken>& Sampler::filter(const SampleParams& params) {
    const float top = row_[static_cast<size_t>(kernels_.argmax(row_.data(), padded_))];
    const auto weight = [&](float x) { return std::exp(double{x} - double{top}); };
    std::vector<ScoredToken>* kept = nullptr;
    if (params.top_k > 0 && params.top_k < vocab_size_) kept = &largest(row_.data(), params.top_k);
    if (params.top_p < 1.0) {
        double total = 0.0;
        if (kept != nullptr) {
            for (const ScoredToken& c : *kept) total += weight(c.first);
        } else {
            total = double{kernels_.exp_sum(row_.data(), padded_, top, 1.0f)};
            for (float width = kStep;; width *= 2.0f) {
                const bool whole = width > kWhole;
                kept = &candidates_above(row_.data(), whole ? kNever : top - width);
                double mass = 0.0;
                for (const ScoredToken& c : *kept) mass += weight(c.first);
                if (whole || mass >= params.top_p * total) break;
            }
        }
        keep_mass(*kept, top, params.top_p * total);
    }
    if (kept == nullptr) {  // a little more than min_p keeps; the exact test follows
        const double threshold = double{top} + std::log(params.min_p) - 0.01;
        kept = &candidates_above(row_.data(), std::nextafter(static_cast<float>(threshold), kNever));
    }
    if (params.min_p > 0.0)
        std::erase_if(*kept, [&](const ScoredToken& c) { return weight(c.first) < params.min_p; });
    return *kept;
}

Logprobs Sampler::logprobs(const float* logits, int32_t token, int top) {
    Logprobs result;
    const float largest_logit = kernels_.peak(logits, padded_);
    if (std::isnan(largest_logit)) return result;
    const double normalizer =
        double{largest_logit} + std::log(double{kernels_.exp_sum(logits, padded_, largest_logit, 1.0f)});
    const auto logprob = [&](float x) { return static_cast<float>(double{x} - normalizer); };
    result.token = token;
    result.logprob = logprob(logits[token]);
    if (top > 0) {
        for (const ScoredToken& c : largest(logits, std::min(top, vocab_size_))) {
            result.top.emplace_back(logprob(c.first), c.second);
        }
    }
    return result;
}

}  // namespace flashlet
