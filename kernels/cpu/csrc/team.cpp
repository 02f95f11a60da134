#include "team.h"

#include <algorithm>
#include <limits>

#include "isa.h"

namespace flashlet {

using Clock = std::chrono::steady_clock;

constexpr size_t kHeadStart = size_t{1} << 17;      // bytes per thread: a part of its second-level cache
constexpr int kPrivateRows = 6, kPrivateWork = 32;  // rows at least; rows times threads
constexpr size_t kLargestChunk = 320 << 10;  // bytes: tiles of rows find them in the second-level cache

Team::Team(const KernelTable& kernels, const TeamLimits& limits)
    : kernels_(kernels),
      reads_pages_ahead_(reads_pages_ahead()),
      pool_(limits.threads),
      private_rows_(std::max(kPrivateRows, kPrivateWork / pool_.size())),
      counters_(limits.stages, pool_.size()),
      quantized_(static_cast<size_t>(limits.rows) * input_units(limits)),
      scales_(static_cast<size_t>(limits.rows)),
      workers_(static_cast<size_t>(pool_.size())) {
    for (size_t i = 0; i < workers_.size(); ++i) {
        Worker& worker = workers_[i];
        worker.index = static_cast<int>(i);
        // A padded row may start behind another one that is not padded.
        worker.normed.resize(static_cast<size_t>(limits.width + kGroup));
        worker.quantized.resize(static_cast<size_t>(private_rows_) * input_units(limits));
        worker.scales.resize(static_cast<size_t>(private_rows_));
        worker.partials.resize(static_cast<size_t>(limits.partials));
        worker.sampler = std::make_unique<Sampler>(kernels, limits.vocab_size);
    }
}

void Team::run(const std::function<void(Worker&)>& job) {
    counters_.reset();
    pool_.run([&](int index) {
        Worker& worker = workers_[static_cast<size_t>(index)];
        worker.stage = 0;
        worker.drafting = false;
        worker.mark = Clock::now();
        job(worker);
    });
}

void Team::finish(Worker& worker, Stage stage, const PackedMatrix* next) {
    ++worker.stage;
    const uint8_t *line = part_of(worker, next), *end = line;
    if (line != nullptr) end += std::min(kHeadStart, static_cast<size_t>(next->cells + next->bytes() - line));
    pool_.barrier([&] {
        for (int i = 0; i < 4 && line < end; ++i, line += kLineBytes) __builtin_prefetch(line, 0, 2);
        return line < end;
    });
    if (worker.index != 0) return;
    const Clock::time_point now = Clock::now();
    profile_[static_cast<size_t>(worker.drafting ? Stage::kDraft : stage)] +=
        std::chrono::duration<double>(now - worker.mark).count();
    worker.mark = now;
}

// Four or more chunks per thread, in whole units, as many for each thread, if that can be.
int Team::chunk_of(const PackedMatrix& w) const {
    const auto unit_bytes = static_cast<size_t>(w.unit) * w.panel_bytes();
    const int units = std::clamp(w.panels / (4 * w.unit * pool_.size()), 1,
                                 std::max(1, static_cast<int>(kLargestChunk / unit_bytes)));
    const int largest = units * w.unit;
    for (int chunk = largest; 2 * chunk >= largest; chunk -= w.unit) {
        if (w.panels % (chunk * pool_.size()) == 0) return chunk;
    }
    return largest;
}

const uint8_t* Team::part_of(const Worker& worker, const PackedMatrix* w) const {
    if (w == nullptr || w->cells == nullptr) return nullptr;
    const int panel = part_begin(w->panels, chunk_of(*w), worker.index, pool_.size());
    return w->cells + static_cast<size_t>(panel) * w->panel_bytes();
}

const float* Team::normed(Worker& worker, const float* x, const float* weight, int width, float eps,
                          int stride) {
    float* y = worker.normed.data();
    std::fill_n(y + width, stride - width, 0.0f);
    kernels_.rms_norm(x, weight, width, eps, y);
    return y;
}

Profile Team::take_profile() {
    const Profile result = profile_;
    profile_.fill(0.0);
    return result;
}

}  // namespace flashlet
