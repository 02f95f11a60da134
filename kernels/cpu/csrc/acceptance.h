// How often proposed tokens turn out right, and how many of them are worth verifying. Planning, not a kernel:
// it is native because after each step nothing of Python is left in the processor's caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace flashlet {

// Success rates by index, say a position or a confidence, where the latest trials count most. A rate is that
// of the decayed counts and of `weight` imagined trials that went as the prior says.
class Acceptance {
  public:
    // `decay`: of the counts, per trial; `fading`: per step in which nothing is tried.
    Acceptance(std::vector<double> prior, double weight, double decay, double fading);

    // Its prior are the rates of `shared`, as they change, and what it records `shared` records, too.
    Acceptance(std::shared_ptr<Acceptance> shared, double weight, double decay, double fading);

    // Probability of success for `index`, 0 or more; the last one holds for all beyond.
    double rate(int index) const;

    // Counts one trial.
    void record(int index, bool hit);

    // Counts the proposals up to the first wrong one, as far as it is known what came; returns how many were
    // right. indices[i] is what proposal i counts for.
    int score(const std::vector<int>& indices, const std::vector<int32_t>& proposed,
              const std::vector<int32_t>& actual);

    // Trusts the counts a little less, so that what failed is tried again some time.
    void fade();

    // Probabilities that the first, the first two, ... of some proposals are right: each succeeds, given
    // those before it, as often as its index does.
    std::vector<double> survival(const std::vector<int>& indices) const;

  private:
    struct Counts {
        double trials = 0.0, hits = 0.0;
        double prior = 0.0;  // where nothing is shared
    };

    size_t place_of(int index) const;

    std::shared_ptr<Acceptance> shared_;
    std::vector<Counts> counts_;
    double weight_, decay_, fading_;
};

using Curves = std::vector<std::vector<double>>;

inline constexpr double kWorthwhile = 1.04;  // times the speed without proposals

// Proposals per sequence that give the most expected tokens per millisecond of the whole step. curves[i][j]
// is the probability that the first j + 1 proposals of sequence i are right, so it falls with j; the step
// yields `base_tokens` without any. cost_ms[n] is what the step costs with n proposals in all; more than it
// holds are not allowed, and it is never empty. None are worth it that promise less than kWorthwhile more:
// chances and costs are estimates, and the best of many is the one most overrated.
std::vector<int> best_widths(const Curves& curves, int base_tokens, const std::vector<double>& cost_ms);

// Most tokens per millisecond that the first 0, 1, 2, ... proposals of a curve promise.
double best_rate(const std::vector<double>& curve, int base_tokens, const std::vector<double>& cost_ms);

// Whether there is any use in proposals, even if each is right with probability `chance`: under load there is
// not.
bool could_pay(int base_tokens, const std::vector<double>& cost_ms, double chance);

}  // namespace flashlet
