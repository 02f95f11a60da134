// What a decode step costs by its rows and by the tokens drafted in it, in milliseconds. Planning, not a
// kernel; native for the reason that acceptance.h gives.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

namespace flashlet {

// Measured at the start (calibration.py); live steps say how much slower everything is by now, and, little by
// little, what so many rows cost in comparison: with longer contexts another row costs more, and while memory
// is slow it costs less.
//
// Tests and benchmarks replace it by classes of their own in Python: nothing here calls a method that they
// override, so that they must override every one that is asked.
//
// Not one with StepTimes (step_times.py), whose smooth curve over any kind of step would hide the stairs
// between one count of rows and the next.
class StepCosts {
  public:
    static constexpr int kStale = 512;  // observations after which plain steps of so many sequences say
                                        // nothing any more

    // Whether anything was measured, and whether what drafting costs.
    bool known() const { return points_.size() > 1; }
    bool drafts_known() const { return !draft_steps_.empty(); }

    // Take a measurement of the start: a step of so many rows, or one of one row that drafted so many tokens.
    // Of several the median counts: the best ones may be from different hours of the machine.
    void measured(int rows, double ms);
    void measured_draft(int num_tokens, double ms);

    // A decode step of so many rows, proposals included, in which so many tokens were drafted. Returns what
    // such a step usually takes by now.
    double observe(int num_sequences, int rows, int num_drafted, double ms);

    // Of a decode step without proposals and drafts.
    double plain_ms(int num_sequences);

    // Of a decode step, proposals included.
    double ms(int rows);

    // Of decode steps of `rows` rows and 0, 1, ... `most` proposals; and if those are drafted as well.
    std::vector<double> verifying(int rows, int most);
    std::vector<double> drafting(int rows, int most);

  private:
    // The latest observations of one thing: a few slow ones change no median.
    struct Samples {
        static constexpr int kRecent = 7;
        std::array<double, kRecent> values{};
        int count = 0;
        double median = 0.0;
        int64_t last = 0;  // number of the latest observation
        void add(double value, int64_t number);
    };

    static constexpr int kLearnedRows = 64;  // up to which live steps correct what was measured

    const std::vector<double>& rows_upto(int rows);
    const std::vector<double>& drafts_upto(int num_tokens);
    double base_ms(int rows) const;
    double draft_base_ms(int num_tokens) const;
    double corrected(int rows) const;
    void learn(int rows, double error);
    double now() const { return drift_.median == 0.0 ? 1.0 : drift_.median; }

    std::map<std::pair<int, int>, std::vector<double>> measured_;  // by rows and tokens drafted, ascending
    std::map<int, double> points_;                                 // of them the medians, by rows
    std::map<int, double> draft_steps_;       // of a step of one row by tokens drafted in it, likewise
    std::vector<double> rows_;                // by rows: on lines between the points, as corrected
    std::vector<double> drafts_;              // by tokens drafted
    std::unordered_map<int, Samples> plain_;  // of steps without proposals and drafts, by sequences
    std::array<double, kLearnedRows + 1> learned_{};  // by rows: ln(what they cost / what was measured)
    Samples drift_;                                   // of a step / what it was believed to cost
    double mean_error_ = 0.0;                         // of steps of any rows
    int64_t number_ = 0;
};

}  // namespace flashlet
