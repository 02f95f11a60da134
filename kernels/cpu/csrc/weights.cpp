#include "weights.h"

#include <algorithm>

#include "lines.h"

namespace flashlet {
namespace {

constexpr int kPanels = 64;  // copied at once by a thread

size_t padded_bytes(const PackedMatrix& w) { return (w.bytes() + kLineBytes - 1) / kLineBytes * kLineBytes; }

struct Part {
    PackedMatrix panels;
    uint8_t* place;
};

}  // namespace

void WeightArena::copy(Team& team, const std::vector<PackedMatrix*>& matrices) {
    size_t total = 0;
    for (const PackedMatrix* w : matrices) total += padded_bytes(*w);
    pages_ = Pages(total, true);
    std::vector<Part> parts;
    uint8_t* place = pages_.data();
    for (PackedMatrix* w : matrices) {
        for (int panel = 0; panel < w->panels; panel += kPanels) {
            const size_t at = static_cast<size_t>(panel) * w->panel_bytes();
            parts.push_back({*w, place + at});
            parts.back().panels.cells += at;
            parts.back().panels.panels = std::min(kPanels, w->panels - panel);
        }
        w->cells = place;
        place += padded_bytes(*w);
    }
    team.run([&](Worker& worker) {
        team.each(worker, static_cast<int>(parts.size()), 1, [&](int begin, int end) {
            for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
                team.kernels().arrange(parts[i].panels, parts[i].place);
        });
    });
}

}  // namespace flashlet
