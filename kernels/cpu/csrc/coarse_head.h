// The largest logit of a row, exactly, from products of half the cost: rows of 8 bits tell which panels of
// the head could hold it, and only those are multiplied with all bits.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace flashlet {

class CoarseHead {
  public:
    // `file`: the head in the layout of the weight file; `head`: arranged. `chunk`: panels that share a peak.
    CoarseHead(Team& team, const PackedMatrix& file, const PackedMatrix& head, int vocab_size, int chunk);

    // Whether so many rows are worth it: fewer wait for memory, not for products.
    bool pays(int rows) const { return !norms_.empty() && rows >= kFewestRows; }

    // First of the largest logits of x, -1 where no token is possible. x: [groups * kGroup]. `logits`:
    // [panels * kLanes], those by coarse inputs, whose panels that count become exact. `peaks`: the largest
    // one of each chunk of panels; `likeliest`: where the largest of all is.
    int32_t best(Worker& worker, const float* x, float* logits, const float* peaks, int32_t likeliest) const;

  private:
    static constexpr int kFewestRows = 3;

    const KernelTable& kernels_;
    const PackedMatrix head_;
    const int vocab_size_, chunk_;
    std::vector<double> norms_;  // [panels]: the largest of their outputs' weights; empty: never pays
};

}  // namespace flashlet
