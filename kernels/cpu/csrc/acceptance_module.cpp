// What the drafter plans with, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "acceptance.h"

namespace nb = nanobind;

namespace flashlet {
namespace {

const std::vector<double>& checked(const std::vector<double>& cost_ms) {
    if (cost_ms.empty()) throw std::invalid_argument("cost_ms: expected one cost or more, got none");
    return cost_ms;
}

}  // namespace

void bind_acceptance(nb::module_& m) {
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
}

}  // namespace flashlet
