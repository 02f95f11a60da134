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
        if (std::isnan(squares)) squares = std::numeric_limits<double>::infinity();
        largest = std::max(largest, squares);
    }
    return std::sqrt(largest);
}

}  // namespace

CoarseHead::CoarseHead(Team& team, const PackedMatrix& file, const PackedMatrix& head, int vocab_size,
                       int chunk)
    : kernels_(team.kernels()), head_(head), vocab_size_(vocab_size), chunk_(chunk) {
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
    int32_t token = -1;
    float largest = kNever;
    // False where an exact logit is NaN or +inf.
    const auto multiply = [&](int panel) {
        kernels_.matmul(head_, exact, 1, panel, panel + 1, Epilogue::kStore, logits, 0, {nullptr, true});
        const int first = panel * kLanes;
        float* outputs = logits + first;
        std::fill(outputs + std::min(vocab_size_ - first, kLanes), outputs + kLanes, kNever);
        const int found = kernels_.argmax(outputs, kLanes);
        if (found >= 0 &&
            (outputs[found] > largest || (outputs[found] == largest && first + found < token))) {
            token = first + found;
            largest = outputs[found];
        }
        return !std::isnan(kernels_.peak(outputs, kLanes));
    };
    // NaN is within reach, and -inf may have been a number before it was rounded.
    const auto reaches = [&](float peak, double norm) {
        const double reached = std::isinf(peak) ? -double{std::numeric_limits<float>::max()} : double{peak};
        return !(reached + norm * error < double{largest});
    };
    const int first_panel = likeliest < 0 ? -1 : likeliest / kLanes;
    if (first_panel >= 0 && !multiply(first_panel)) return -1;  // leaves few others
    for (int begin = 0; begin < head_.panels; begin += chunk_) {
        const int end = std::min(begin + chunk_, head_.panels);
        const double norm = *std::max_element(norms_.data() + begin, norms_.data() + end);
        if (!reaches(peaks[begin / chunk_], norm)) continue;
        for (int panel = begin; panel < end; ++panel) {
            const float peak = kernels_.peak(logits + panel * kLanes, kLanes);
            if (panel == first_panel || !reaches(peak, norms_[static_cast<size_t>(panel)])) continue;
            if (!multiply(panel)) return -1;
        }
    }
    return token;
}

}  // namespace flashlet
