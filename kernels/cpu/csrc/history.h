// What a text says about its own next token: what followed where its end, or a part of it, stood before.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace flashlet {

// The last tokens of a text, the newest last.
struct Tail {
    static constexpr int kMost = 4;
    std::array<int32_t, kMost> tokens{};
    int length = 0;
    void push(int32_t token);
};

struct Successor {
    int32_t token;
    float bonus;  // to its logit
};

// A text that only grows, with the positions of each token chained, latest first.
class History {
  public:
    static constexpr int kMost = 16;  // earlier occurrences that are looked at
    using Successors = std::array<Successor, kMost>;

    void append(int32_t token);
    int size() const { return static_cast<int>(tokens_.size()); }
    int32_t largest() const { return largest_; }  // token id; -1: none
    Tail tail() const;

    // Tokens that followed the last one of `tail`, each once, and how many they are. `tail` may go on behind
    // the text. The bonus grows with the length of the context that was the same and with the number of
    // times, and shrinks with the number of different successors.
    int successors(const Tail& tail, Successors& found) const;

  private:
    std::vector<int32_t> tokens_;
    std::vector<int32_t> earlier_;                 // [position]: of the same token before, -1: none
    std::unordered_map<int32_t, int32_t> latest_;  // token -> position
    int32_t largest_ = -1;
};

}  // namespace flashlet
