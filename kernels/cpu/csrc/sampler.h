// Chooses a token from logits: penalties, bias, masks, filters, Gumbel noise; and reports log-probabilities.
// model/sampling.py states the order and the ranges.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

namespace flashlet {

inline constexpr float kGreedyBelow = 1e-5f;  // temperatures that would overflow binary32

using ScoredToken = std::pair<float, int32_t>;  // (value, token id)

struct SampleParams {
    float temperature = 1.0f;  // below kGreedyBelow: greedy
    int top_k = 0;             // 0: all
    double top_p = 1.0;
    double min_p = 0.0;
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    float repetition_penalty = 1.0f;
    uint64_t seed = 0;
    int64_t position = 0;
    std::vector<std::pair<int32_t, float>> logit_bias;
    std::vector<int32_t> prompt, output;  // history, only for penalties
    std::vector<int32_t> suppressed;
    std::vector<uint32_t> allowed;  // bitmap; empty: all tokens
    int logprobs = -1;              // -1: none

    bool greedy() const { return temperature < kGreedyBelow; }
    bool penalizes() const {
        return presence_penalty != 0.0f || frequency_penalty != 0.0f || repetition_penalty != 1.0f;
    }
    // Whether logits are changed before any is chosen.
    bool adjusts() const {
        return penalizes() || !logit_bias.empty() || !suppressed.empty() || !allowed.empty();
    }
};

struct Logprobs {
    int32_t token = -1;
    float logprob = 0.0f;
    std::vector<ScoredToken> top;  // (log-probability, id), best first, ties by lower id
};

// One per thread: holds the scratch row.
class Sampler {
  public:
    // `ids`: the noise of token i is that of ids[i]; null: its own.
    Sampler(const KernelTable& kernels, int vocab_size, const int32_t* ids = nullptr);

    // From now on logits are of so many tokens, at most as many as at first.
    void set_vocab_size(int vocab_size) {
        vocab_size_ = vocab_size;
        padded_ = round_up(vocab_size, kLanes);
    }

    // `logits` holds vocab_size values rounded up to 16, the padding -inf. Returns -1 where no token is
    // possible: everything is masked, or a logit is NaN or +inf.
    int32_t sample(const float* logits, const SampleParams& params) {
        return sample(logits, params, best(logits));
    }
    // The same where best(logits) is known.
    int32_t sample(const float* logits, const SampleParams& params, int32_t best);

    // First of the largest logits; -1 where no token is possible.
    int32_t best(const float* logits) const;

    // The same, and how sure a draft with these logits is that the target chooses so with the same noise.
    struct Guess {
        int32_t token;
        float confidence;
    };
    Guess guess(const float* logits, const SampleParams& params);

    // Token -1 where a logit is NaN or +inf.
    Logprobs logprobs(const float* logits, int32_t token, int top);

  private:
    void adjust(const SampleParams& params);
    const std::vector<ScoredToken>& filter(const SampleParams& params);
    static void keep_mass(std::vector<ScoredToken>& tokens, float top, double mass);
    float probability(const float* logits, int32_t token, float top, float temperature) const;
    std::vector<ScoredToken>& candidates_above(const float* x, float threshold);
    std::vector<ScoredToken>& largest(const float* x, int count);

    const KernelTable& kernels_;
    const int32_t* ids_;
    int vocab_size_, padded_;
    std::vector<float> row_;
    std::vector<int32_t> counts_;
    std::vector<ScoredToken> candidates_;
    std::vector<int32_t> found_;
    std::vector<float> drawn_;  // what the last choice was made of: values with their noise, if they were few
};

}  // namespace flashlet
