// What the drafter plans with, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "acceptance.h"
#include "step_costs.h"

namespace nb = nanobind;

namespace flashlet {
namespace {

const std::vector<double>& checked(const std::vector<double>& cost_ms) {
    if (cost_ms.empty()) throw std::invalid_argument("cost_ms: expected one cost or more, got none");
    return cost_ms;
}

}  // namespace

void bind_drafter(nb::module_& m) {
    nb::class_<Acceptance>(m, "Acceptance", "How often proposed tokens turn out right, by index.")
        .def(nb::init<std::vector<double>, double, double, double>(), nb::arg("prior"), nb::arg("weight"),
             nb::arg("decay"), nb::arg("fading"))
        .def(nb::init<std::shared_ptr<Acceptance>, double, double, double>(), nb::arg("shared"),
             nb::arg("weight"), nb::arg("decay"), nb::arg("fading"),
             "With the rates of `shared` as prior, to which all trials are passed on.")
        .def("rate", &Acceptance::rate, nb::arg("index"), "Probability of success.")
        .def("record", &Acceptance::record, nb::arg("index"), nb::kw_only(), nb::arg("hit"),
             "Count one trial.")
        .def("score", &Acceptance::score, nb::arg("indices"), nb::arg("proposed"), nb::arg("actual"),
             "Count proposals up to the first wrong one; returns how many were right.")
        .def("fade", &Acceptance::fade, "Trust the counts a little less.")
        .def("survival", &Acceptance::survival, nb::arg("indices"),
             "Probabilities that the first, the first two, ... of some proposals are right.");
    m.def(
        "best_widths",
        [](const Curves& curves, int base_tokens, const std::vector<double>& cost_ms) {
            return best_widths(curves, base_tokens, checked(cost_ms));
        },
        nb::arg("curves"), nb::arg("base_tokens"), nb::arg("cost_ms"),
        "Proposals per sequence that give the most expected tokens per millisecond of the step.");
    m.def(
        "best_rate",
        [](const std::vector<double>& curve, int base_tokens, const std::vector<double>& cost_ms) {
            return best_rate(curve, base_tokens, checked(cost_ms));
        },
        nb::arg("curve"), nb::arg("base_tokens"), nb::arg("cost_ms"),
        "Most tokens per millisecond that a curve promises.");
    m.def(
        "could_pay",
        [](int base_tokens, const std::vector<double>& cost_ms, double chance) {
            return could_pay(base_tokens, checked(cost_ms), chance);
        },
        nb::arg("base_tokens"), nb::arg("cost_ms"), nb::arg("chance"),
        "Whether there is any use in proposals, even if each is right with probability `chance`.");
    nb::class_<StepCosts>(m, "StepCosts", "Milliseconds of decode steps, by rows and by tokens drafted.")
        .def(nb::init<>())
        .def_prop_ro("known", &StepCosts::known, "Whether anything was measured.")
        .def_prop_ro("drafts_known", &StepCosts::drafts_known, "Whether it was measured what drafting costs.")
        .def("measured", &StepCosts::measured, nb::arg("rows"), nb::arg("ms"),
             "Take a measurement of the start; of several the median counts.")
        .def("measured_draft", &StepCosts::measured_draft, nb::arg("num_tokens"), nb::arg("ms"),
             "Take a measurement of the start: a step of one row that drafted so many tokens.")
        .def("observe", &StepCosts::observe, nb::arg("num_sequences"), nb::arg("rows"),
             nb::arg("num_drafted"), nb::arg("ms"),
             "Learn from a decode step; returns what such a step usually takes by now.")
        .def("plain_ms", &StepCosts::plain_ms, nb::arg("num_sequences"),
             "Milliseconds of a decode step without proposals and drafts.")
        .def("ms", &StepCosts::ms, nb::arg("rows"), "Milliseconds of a decode step, proposals included.")
        .def("verifying", &StepCosts::verifying, nb::arg("rows"), nb::arg("most"),
             "Milliseconds of decode steps of `rows` rows and 0, 1, ... `most` proposals.")
        .def("drafting", &StepCosts::drafting, nb::arg("rows"), nb::arg("most"),
             "The same, if the proposals are drafted in the step before.")
        .attr("STALE") = StepCosts::kStale;
}

}  // namespace flashlet
