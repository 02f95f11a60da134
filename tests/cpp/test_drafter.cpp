// What the drafter plans with: rates, widths and costs. The Python tests say what they should be; these,
// which run with sanitizers, that nothing is read or written where it should not be.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "acceptance.h"
#include "check.h"
#include "data.h"
#include "step_costs.h"

using namespace flashlet;

namespace {

template <class Body>
bool throws(Body&& body) {
    try {
        body();
    } catch (const std::exception&) {
        return true;
    }
    return false;
}

int below(Random& random, int end) {
    return std::min(static_cast<int>(random.floats(1, 0.0f, static_cast<float>(end))[0]), end - 1);
}

}  // namespace

TEST(drafter_costs_ask_for_measurements_first) {
    StepCosts costs;
    costs.measured_draft(2, 5.0);
    for (int rows : {1, 4}) {
        CHECK(throws([&] { costs.ms(1); }));
        CHECK(throws([&] { costs.drafting(1, 4); }));
        CHECK(throws([&] { costs.observe(1, 1, 3, 5.0); }));
        costs.measured(rows, 4.0);
    }
    CHECK(costs.drafting(1, 4).size() == 5);
}

TEST(drafter_costs_stay_numbers_whatever_is_observed) {
    Random random(7);
    for (int round = 0; round < 20; ++round) {
        StepCosts costs;
        costs.measured(1 + below(random, 3), 4.0);
        costs.measured(4 + below(random, 90), 9.0);
        costs.measured_draft(1 + below(random, 8), 5.0);
        for (int i = 0; i < 400; ++i) {
            const int rows = 1 + below(random, 130), drafted = below(random, 20);
            costs.observe(below(random, 2) == 0 ? rows : 1, rows, drafted, std::exp(random.floats(1)[0]));
            if (i % 97 == 0) costs.measured(1 + below(random, 70), 1.0 + below(random, 9));
            const std::vector<double> table = costs.drafting(1 + below(random, 100), below(random, 100));
            for (const double ms : table) CHECK(std::isfinite(ms) && ms > 0.0, "(%g)", ms);
            CHECK(costs.plain_ms(rows) > 0.0);
        }
    }
}

TEST(drafter_rates_stay_within_bounds) {
    const auto shared = std::make_shared<Acceptance>(std::vector<double>{0.6, 0.4, 0.5}, 3.0, 0.9, 0.9);
    Acceptance own(shared, 2.0, 0.8, 0.9);
    Random random(8);
    for (int i = 0; i < 500; ++i) {
        const std::vector<int32_t> proposed{below(random, 2), below(random, 2), below(random, 2)};
        const std::vector<int32_t> actual(static_cast<size_t>(below(random, 5)), 1);
        const int right = own.score({below(random, 9), 1, 2, 3}, proposed, actual);
        CHECK(right <= static_cast<int>(std::min(actual.size(), proposed.size())));
        if (i % 10 == 0) shared->fade();
        for (const int index : {0, 1, 2, 50}) {
            CHECK(own.rate(index) > 0.0 && own.rate(index) < 1.0);
            CHECK(shared->rate(index) > 0.0 && shared->rate(index) < 1.0);
        }
    }
    CHECK(throws([&] { own.rate(-1); }));
    CHECK(throws([] { Acceptance(std::vector<double>{}, 1.0, 1.0, 1.0); }));
}

TEST(drafter_widths_fit_curves_and_limits) {
    Random random(9);
    for (int round = 0; round < 300; ++round) {
        Curves curves(static_cast<size_t>(below(random, 20)));
        for (auto& curve : curves) {
            curve.resize(static_cast<size_t>(below(random, 9)));
            double alive = 1.0;
            for (double& chance : curve) chance = alive *= random.floats(1, 0.0f, 1.0f)[0];
        }
        std::vector<double> cost_ms(static_cast<size_t>(1 + below(random, 40)));
        for (double& ms : cost_ms) ms = random.floats(1, 1.0f, 9.0f)[0];
        const std::vector<int> widths = best_widths(curves, 1 + below(random, 20), cost_ms);
        CHECK(widths.size() == curves.size());
        size_t total = 0;
        for (size_t i = 0; i < widths.size(); ++i) {
            CHECK(widths[i] >= 0 && static_cast<size_t>(widths[i]) <= curves[i].size());
            total += static_cast<size_t>(widths[i]);
        }
        CHECK(total < cost_ms.size());
    }
}
