// What a text says about its own next token: what followed where its end, or a part of it, stood before.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace flashlet {

// The last tokens of a text, the newest last.
struct Tail {
    static constexpr int kMost = 16;
    std::array<int32_t, kMost> tokens{};
    int length = 0;
    void push(int32_t token);
};

// An earlier place where the text went as it does at its end.
struct Match {
    int length;  // tokens that agree; 0: there is none
    int end;     // position behind them
};

struct Successor {
    int32_t token;
    float weight;  // how much speaks for it
};

// A text that only grows, with the positions of each token chained, latest first.
class History {
  public:
    static constexpr int kMost = 16;                        // earlier occurrences that `successors` looks at
    static constexpr int kContext = 8;                      // tokens before them that it compares one by one
    static constexpr int kLeastMatch = 2, kMostMatch = 16;  // tokens; longer ones are not told apart
    static constexpr int kMostMatches = 8, kMostVisits = 1024;  // that are compared; occurrences seen for it
    using Successors = std::array<Successor, kMost>;

    void append(int32_t token);
    int size() const { return static_cast<int>(tokens_.size()); }
    int32_t largest() const { return largest_; }  // token id; -1: none
    Tail tail() const;

    // Tokens that followed the last one of `tail`, each once, and how many they are. `tail` may go on behind
    // the text. The weight grows with the length of the context that was the same, with the tokens that were
    // the same in a context that was not, and with the number of times; it shrinks with the number of
    // different successors.
    int successors(const Tail& tail, Successors& found) const;

    // Prompt lookup: the longest match of the end of the text, the latest of equally long ones. A match
    // finder as in LZ77 compressors: bounded work, whatever the length of the text.
    Match match() const;
    // `count` tokens from position `end` on; the text goes on as if it repeated itself from there.
    std::vector<int32_t> following(int end, int count) const;

  private:
    int32_t token(int position) const { return tokens_[static_cast<size_t>(position)]; }

    std::vector<int32_t> tokens_;
    std::vector<int32_t> earlier_;                 // [position]: of the same token before, -1: none
    std::unordered_map<int32_t, int32_t> latest_;  // token -> position
    int32_t largest_ = -1;
};

}  // namespace flashlet
