#include "coarse_head.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace flashlet {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Of the outputs of one panel in the layout of the weight file.
double largest_norm(const KernelTable& kernels, const PackedMatrix& w, int panel, std::vector<float>& row) {
    double largest = 0.0;
    for (int output = panel * kLanes; output < (panel + 1) * kLanes; ++output) {
        kernels.embed(w, output, row.data());
        double squares = 0.0;
        for (const float weight : row) squares += double{weight} * double{weight};
        largest = std::max(largest, squares);
    }
    return std::sqrt(largest);
}

}  // namespace

CoarseHead::CoarseHead(Team& team, const PackedMatrix& file, const PackedMatrix& head, int vocab_size)
    : kernels_(team.kernels()), head_(head), vocab_size_(vocab_size), chunk_(team.chunk_of(head)) {
    if (kernels_.coarse_inputs.quantize == nullptr || head.bias != nullptr ||
        head.format != WeightFormat::kInt8)
        return;
    norms_.resize(static_cast<size_t>(head.panels));
    team.run([&](Worker& worker) {
        std::vector<float> row(static_cast<size_t>(file.groups * kGroup));
        team.each(worker, file.panels, chunk_, [&](int begin, int end) {
            for (int panel = begin; panel < end; ++panel)
                norms_[static_cast<size_t>(panel)] = largest_norm(kernels_, file, panel, row);
        });
    });
}

int32_t CoarseHead::best(Worker& worker, const float* x, float* logits, const float* peaks,
                         int32_t likeliest) const {
    const int width = head_.groups * kGroup;
    const double error = double{kernels_.coarse_error(x, width)};
    const float scale = kernels_.inputs.quantize(x, width, worker.quantized.data(), 0, 1);
    const QuantizedRows exact{worker.quantized.data(), &scale, head_.groups * kernels_.inputs.group_units};
    int32_t best = -1;
    float largest = kNever;
    bool valid = true;
    const auto multiply = [&](int panel) {
        kernels_.matmul(head_, exact, 1, panel, panel + 1, Epilogue::kStore, logits, 0, {nullptr, true});
        const int first = panel * kLanes;
        float* outputs = logits + first;
        std::fill(outputs + std::min(vocab_size_ - first, kLanes), outputs + kLanes, kNever);
        valid = valid && !std::isnan(kernels_.peak(outputs, kLanes));
        const int found = kernels_.argmax(outputs, kLanes);
        if (found < 0 || outputs[found] < largest || (outputs[found] == largest && first + found > best))
            return;
        best = first + found;
        largest = outputs[found];
    };
    // NaN is within reach.
    const auto reaches = [&](float peak, double norm) {
        return !(double{peak} + norm * error < double{largest});
    };
    const int first = likeliest < 0 ? -1 : likeliest / kLanes;
    if (first >= 0) multiply(first);  // leaves few others
    for (int begin = 0; begin < head_.panels; begin += chunk_) {
        const int end = std::min(begin + chunk_, head_.panels);
        if (!reaches(peaks[begin / chunk_], *std::max_element(&norms_[begin], &norms_[end]))) continue;
        for (int panel = begin; panel < end; ++panel) {
            const float* outputs = logits + panel * kLanes;
            if (panel != first && reaches(kernels_.peak(outputs, kLanes), norms_[static_cast<size_t>(panel)]))
                multiply(panel);
        }
    }
    return valid ? best : -1;
}

}  // namespace flashlet
