// Lookups in a growing text stay inside it and find what a search through everything finds.
#include <algorithm>

#include "check.h"
#include "data.h"
#include "history.h"

using namespace flashlet;

namespace {

int agreeing(const std::vector<int32_t>& text, int end) {
    const auto rbegin = text.rbegin() + (static_cast<int>(text.size()) - end);
    const auto stop = std::mismatch(rbegin, text.rend(), text.rbegin()).first;
    return static_cast<int>(std::min<ptrdiff_t>(History::kMostMatch, stop - rbegin));
}

Match searched(const std::vector<int32_t>& text) {
    Match best{0, 0};
    int left = History::kMostMatches;
    for (int end = static_cast<int>(text.size()) - 1; end > 0 && left > 0; --end) {
        const int length = agreeing(text, end);
        if (length < History::kLeastMatch) continue;
        --left;
        if (length > best.length) best = {length, end};
    }
    return best;
}

}  // namespace

TEST(history_finds_what_a_search_finds) {
    Random random(5);
    for (const int kinds : {1, 2, 3, 9}) {
        History history;
        std::vector<int32_t> text;
        for (int step = 0; step < 200; ++step) {
            const Match found = history.match(), expected = searched(text);
            CHECK(found.length == expected.length && found.end == expected.end, "(%d kinds, %d tokens)",
                  kinds, step);
            if (found.length > 0) {
                std::vector<int32_t> grown = text;
                for (const int32_t token : history.following(found.end, 5)) {
                    CHECK(token == grown[static_cast<size_t>(found.end) + grown.size() - text.size()]);
                    grown.push_back(token);
                }
            }
            text.push_back(random.integer(0, kinds - 1));
            history.append(text.back());
        }
    }
}
