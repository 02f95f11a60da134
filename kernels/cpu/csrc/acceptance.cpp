#include "acceptance.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace flashlet {

Acceptance::Acceptance(std::vector<double> prior, double weight, double decay, double fading)
    : counts_(prior.size()), weight_(weight), decay_(decay), fading_(fading) {
    if (prior.empty()) throw std::invalid_argument("prior: expected one rate or more, got none");
    for (size_t i = 0; i < prior.size(); ++i) counts_[i].prior = prior[i];
}

Acceptance::Acceptance(std::shared_ptr<Acceptance> shared, double weight, double decay, double fading)
    : shared_(std::move(shared)), weight_(weight), decay_(decay), fading_(fading) {
    if (shared_ == nullptr) throw std::invalid_argument("shared: expected an Acceptance, got none");
    counts_.resize(shared_->counts_.size());
}

size_t Acceptance::place_of(int index) const {
    if (index < 0) throw std::invalid_argument("index: expected 0 or more, got " + std::to_string(index));
    return std::min(static_cast<size_t>(index), counts_.size() - 1);
}

double Acceptance::rate(int index) const {
    const Counts& counts = counts_[place_of(index)];
    const double prior = shared_ != nullptr ? shared_->rate(index) : counts.prior;
    return (counts.hits + weight_ * prior) / (counts.trials + weight_);
}

void Acceptance::record(int index, bool hit) {
    Counts& counts = counts_[place_of(index)];
    counts.trials = counts.trials * decay_ + 1;
    counts.hits = counts.hits * decay_ + (hit ? 1 : 0);
    if (shared_ != nullptr) shared_->record(index, hit);
}

int Acceptance::score(const std::vector<int>& indices, const std::vector<int32_t>& proposed,
                      const std::vector<int32_t>& actual) {
    const size_t known = std::min({indices.size(), proposed.size(), actual.size()});
    for (size_t i = 0; i < known; ++i) {
        const bool hit = proposed[i] == actual[i];
        record(indices[i], hit);
        if (!hit) return static_cast<int>(i);
    }
    return static_cast<int>(known);
}

void Acceptance::fade() {
    for (Counts& counts : counts_) {
        counts.trials *= fading_;
        counts.hits *= fading_;
    }
}

std::vector<double> Acceptance::survival(const std::vector<int>& indices) const {
    std::vector<double> survival;
    survival.reserve(indices.size());
    double alive = 1.0;
    for (const int index : indices) survival.push_back(alive *= rate(index));
    return survival;
}

std::vector<int> best_widths(const Curves& curves, int base_tokens, const std::vector<double>& cost_ms) {
    // The likeliest first: of each curve that takes a leading part. All counts are tried, because the cost of
    // rows has stairs that a greedy search would not climb.
    std::vector<std::pair<double, size_t>> ranked;
    for (size_t i = 0; i < curves.size(); ++i) {
        for (const double alive : curves[i]) ranked.emplace_back(alive, i);
    }
    std::sort(ranked.rbegin(), ranked.rend());
    ranked.resize(std::min(ranked.size(), cost_ms.size() - 1));
    size_t best = 0;
    double tokens = base_tokens, rate_to_beat = kWorthwhile * tokens / cost_ms[0];
    for (size_t i = 0; i < ranked.size(); ++i) {
        tokens += ranked[i].first;
        const double rate = tokens / cost_ms[i + 1];
        if (rate <= rate_to_beat) continue;
        best = i + 1;
        rate_to_beat = rate;
    }
    std::vector<int> widths(curves.size());
    for (size_t i = 0; i < best; ++i) ++widths[ranked[i].second];
    return widths;
}

double best_rate(const std::vector<double>& curve, int base_tokens, const std::vector<double>& cost_ms) {
    double tokens = base_tokens, best = tokens / cost_ms[0];
    for (size_t i = 0; i < curve.size() && i + 1 < cost_ms.size(); ++i)
        best = std::max(best, (tokens += curve[i]) / cost_ms[i + 1]);
    return best;
}

bool could_pay(int base_tokens, const std::vector<double>& cost_ms, double chance) {
    const double least = kWorthwhile * base_tokens / cost_ms[0];
    for (size_t count = 1; count < cost_ms.size(); ++count) {
        if ((base_tokens + chance * static_cast<double>(count)) / cost_ms[count] > least) return true;
    }
    return false;
}

}  // namespace flashlet
