#include "history.h"

#include <algorithm>
#include <cmath>

namespace flashlet {
namespace {

// Fitted on answers of the default model to written requests: with these, and those of draft.cpp, the draft's
// distribution gives the tokens that came the highest likelihood.
constexpr float kAnyway = -0.27f;
constexpr float kByLength = 1.08f;   // times the logarithm of the number of tokens that agree in a row
constexpr float kByContext = 0.21f;  // for each that agrees of the kContext tokens before the last one
constexpr float kByCount = 0.83f;    // times the logarithm of the number of occurrences
constexpr float kByKinds = 0.68f;    // times that of the number of different successors, taken off

}  // namespace

void Tail::push(int32_t token) {
    if (length == kMost) {
        std::copy(tokens.begin() + 1, tokens.end(), tokens.begin());
    } else {
        ++length;
    }
    tokens[static_cast<size_t>(length - 1)] = token;
}

void History::append(int32_t token) {
    const auto [entry, is_new] = latest_.try_emplace(token, size());
    earlier_.push_back(is_new ? -1 : entry->second);
    entry->second = size();
    tokens_.push_back(token);
    largest_ = std::max(largest_, token);
}

Tail History::tail() const {
    Tail result;
    for (int i = std::max(0, size() - Tail::kMost); i < size(); ++i)
        result.push(tokens_[static_cast<size_t>(i)]);
    return result;
}

int History::successors(const Tail& tail, Successors& found) const {
    struct Seen {
        int length, context, times;
    };
    std::array<Seen, kMost> seen{};
    int count = 0, left = kMost;
    const auto recent = [&](int back) { return tail.tokens[static_cast<size_t>(tail.length - 1 - back)]; };
    const auto latest = tail.length > 0 ? latest_.find(recent(0)) : latest_.end();
    int at = latest == latest_.end() ? -1 : latest->second;
    for (; at >= 0 && left > 0; at = earlier_[static_cast<size_t>(at)]) {
        if (at + 1 == size()) continue;  // nothing has followed it yet
        --left;
        int length = 1;
        while (length < tail.length && at >= length && token(at - length) == recent(length)) ++length;
        int context = 0;
        for (int back = 1; back <= std::min({kContext, tail.length - 1, at}); ++back)
            context += token(at - back) == recent(back);
        const int32_t next = token(at + 1);
        const auto known = std::find_if(found.begin(), found.begin() + count,
                                        [&](const Successor& item) { return item.token == next; });
        const auto index = static_cast<size_t>(known - found.begin());
        if (index == static_cast<size_t>(count)) found[static_cast<size_t>(count++)] = {next, 0.0f};
        seen[index] = {std::max(seen[index].length, length), std::max(seen[index].context, context),
                       seen[index].times + 1};
    }
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
        found[i].weight = kAnyway + kByLength * std::log(static_cast<float>(seen[i].length)) +
                          kByContext * static_cast<float>(seen[i].context) +
                          kByCount * std::log(static_cast<float>(seen[i].times)) -
                          kByKinds * std::log(static_cast<float>(count));
    }
    return count;
}

Match History::match() const {
    Match best{0, 0};
    const int last = size() - 1;
    int at = last < 0 ? -1 : earlier_[static_cast<size_t>(last)], left = kMostMatches;
    for (int visits = 0; at > 0 && visits < kMostVisits; at = earlier_[static_cast<size_t>(at)], ++visits) {
        const int most = std::min(kMostMatch, at + 1);
        int length = 1;
        while (length < most && token(at - length) == token(last - length)) ++length;
        if (length < kLeastMatch) continue;
        if (length > best.length) best = {length, at + 1};
        if (best.length == kMostMatch || --left == 0) break;
    }
    return best;
}

std::vector<int32_t> History::following(int end, int count) const {
    std::vector<int32_t> result;
    for (int i = 0; i < count; ++i)
        result.push_back(end + i < size() ? token(end + i) : result[static_cast<size_t>(end + i - size())]);
    return result;
}

}  // namespace flashlet
