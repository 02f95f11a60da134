#include "weights.h"

namespace flashlet {
namespace {

constexpr size_t kAlignment = 64;  // a cache line

size_t padded_bytes(const PackedMatrix& w) { return (w.bytes() + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void WeightArena::copy(Team& team, const std::vector<PackedMatrix*>& matrices) {
    size_t total = 0;
    for (const PackedMatrix* w : matrices) total += padded_bytes(*w);
    pages_ = Pages(total);
    std::vector<uint8_t*> places;
    uint8_t* place = pages_.data();
    for (const PackedMatrix* w : matrices) {
        places.push_back(place);
        place += padded_bytes(*w);
    }
    team.run([&](Worker& worker) {
        team.each(worker, static_cast<int>(matrices.size()), 1, [&](int begin, int end) {
            for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
                const PackedMatrix& w = *matrices[i];
                for (size_t at = 0; at < w.bytes(); at += w.panel_bytes())
                    team.kernels().arrange_panel(w.cells + at, w.groups, places[i] + at);
            }
        });
    });
    for (size_t i = 0; i < matrices.size(); ++i) matrices[i]->cells = places[i];
}

}  // namespace flashlet
