#include "step_costs.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>

namespace flashlet {
namespace {

constexpr double kLeastFirst = 0.02, kLeastFurther = 0.005;  // that drafted tokens cost, of a step of one row
constexpr double kLeast = 1e-3;                              // milliseconds that any step costs
constexpr double kRate = 0.05;                               // share of its error that one step corrects
// That counts of an error: a hiccup, or a change of everything, says little about rows.
constexpr double kLargestError = 0.2;
constexpr double kMeanRate = 0.02;  // at which the mean of the errors follows them
// Of a correction, each time that such a step is seen: contexts end, and the machine changes.
constexpr double kFading = 1e-3;

double median_with(std::vector<double>& ascending, double value) {
    ascending.insert(std::upper_bound(ascending.begin(), ascending.end(), value), value);
    return ascending[(ascending.size() - 1) / 2];
}

void check(const char* what, int count, int least) {
    if (count >= least) return;
    throw std::invalid_argument(std::string(what) + ": expected " + std::to_string(least) + " or more, got " +
                                std::to_string(count));
}

}  // namespace

void StepCosts::Samples::add(double value, int64_t number) {
    values[static_cast<size_t>(count % kRecent)] = value;
    if (++count == 2 * kRecent) count = kRecent;  // still full, and the oldest one is next
    std::array<double, kRecent> sorted = values;
    const int known = std::min(count, kRecent), middle = (known - 1) / 2;
    std::nth_element(sorted.begin(), sorted.begin() + middle, sorted.begin() + known);
    median = sorted[static_cast<size_t>(middle)];
    last = number;
}

void StepCosts::measured(int rows, double ms) {
    check("rows", rows, 1);
    rows_.clear();
    drafts_.clear();
    points_[rows] = median_with(measured_[{rows, 0}], ms);
}

void StepCosts::measured_draft(int num_tokens, double ms) {
    check("num_tokens", num_tokens, 1);
    drafts_.clear();
    draft_steps_[num_tokens] = median_with(measured_[{1, num_tokens}], ms);
}

double StepCosts::observe(int num_sequences, int rows, int num_drafted, double ms) {
    check("rows", rows, 1);
    ++number_;
    const double drafts = num_drafted > 0 ? drafts_upto(num_drafted)[static_cast<size_t>(num_drafted)] : 0.0;
    const double expected = rows_upto(rows)[static_cast<size_t>(rows)] + drafts;
    drift_.add(ms / expected, number_);
    if (rows == num_sequences && num_drafted == 0) plain_[rows].add(ms, number_);
    const double usual = expected * drift_.median;
    learn(rows, ms / usual - 1);
    return usual;
}

double StepCosts::plain_ms(int num_sequences) {
    const auto live = plain_.find(num_sequences);
    if (live != plain_.end() && number_ - live->second.last <= kStale) return live->second.median;
    return ms(num_sequences);
}

double StepCosts::ms(int rows) {
    check("rows", rows, 0);
    return rows_upto(rows)[static_cast<size_t>(rows)] * now();
}

std::vector<double> StepCosts::verifying(int rows, int most) {
    check("rows", rows, 0);
    check("most", most, 0);
    const auto first = rows_upto(rows + most).begin() + rows;
    std::vector<double> result(first, first + most + 1);
    for (double& ms : result) ms *= now();
    return result;
}

std::vector<double> StepCosts::drafting(int rows, int most) {
    std::vector<double> result = verifying(rows, most);
    const std::vector<double>& drafts = drafts_upto(most);
    for (size_t i = 0; i < result.size(); ++i) result[i] += drafts[i] * now();
    return result;
}

const std::vector<double>& StepCosts::rows_upto(int rows) {
    if (!known()) throw std::logic_error("step costs: expected two measured counts of rows or more");
    for (auto count = static_cast<int>(rows_.size()); count <= rows; ++count)
        rows_.push_back(corrected(count));
    return rows_;
}

// A step without drafts may by chance have taken longer: a drafted token still costs something.
const std::vector<double>& StepCosts::drafts_upto(int num_tokens) {
    if (!known() || !drafts_known()) throw std::logic_error("step costs: expected a measured draft or more");
    for (auto count = static_cast<int>(drafts_.size()); count <= num_tokens; ++count)
        drafts_.push_back(count == 0 ? 0.0 : draft_base_ms(count));
    return drafts_;
}

// What was measured, as corrected since.
double StepCosts::corrected(int rows) const {
    return base_ms(rows) * std::exp(learned_[static_cast<size_t>(std::min(rows, kLearnedRows))]);
}

// What was measured at the start, on straight lines between and beyond.
double StepCosts::base_ms(int rows) const {
    auto right = points_.lower_bound(rows);
    if (right == points_.begin()) ++right;
    if (right == points_.end()) --right;
    const auto left = std::prev(right);
    double high = right->second;  // more rows are never faster
    for (auto point = right; point != points_.end(); ++point) high = std::min(high, point->second);
    const double low = std::min(left->second, high);
    return std::max(low + (high - low) / (right->first - left->first) * (rows - left->first), kLeast);
}

// On a straight line through the fewest and the most tokens measured; the first one costs most.
double StepCosts::draft_base_ms(int num_tokens) const {
    const double plain = base_ms(1);
    const auto [fewest, fewest_ms] = *draft_steps_.begin();
    const auto [most, most_ms] = *draft_steps_.rbegin();
    const double first = std::max(fewest_ms - plain, kLeastFirst * plain) / fewest;
    if (most == fewest) return num_tokens * first;
    const double slope = (most_ms - plain - first) / (most - 1);
    return first + (num_tokens - 1) * std::max(slope, kLeastFurther * plain);
}

// A step of so many rows took (1 + error) times as long as usual.
void StepCosts::learn(int rows, double error) {
    error = std::clamp(error, -kLargestError, kLargestError);
    // Slow steps are further from the median than fast ones. Only what these rows have more of than others is
    // theirs, or else rows that are never compared with others would get dearer and dearer.
    const double surplus = error - mean_error_;
    mean_error_ += kMeanRate * surplus;
    if (rows >= kLearnedRows) return;
    rows_upto(rows + 1);
    for (int beside = -1; beside <= 1; ++beside) {
        const auto at = static_cast<size_t>(rows + beside);
        learned_[at] += (beside == 0 ? kRate : kRate / 2) * surplus - kFading * learned_[at];
        rows_[at] = corrected(rows + beside);
    }
    if (rows + 1 == kLearnedRows) rows_.resize(kLearnedRows);  // its correction holds for all beyond
}

}  // namespace flashlet
