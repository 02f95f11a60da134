// The threads of a model, what each of them works in, and the stages that they go through together.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels.h"
#include "lines.h"
#include "sampler.h"
#include "thread_pool.h"

namespace flashlet {

enum class Stage { kEmbed, kNorm, kQkv, kAttention, kOutput, kGateUp, kDown, kHead, kSample, kDraft, kCount };
using Profile = std::array<double, static_cast<size_t>(Stage::kCount)>;  // seconds

// One thread's own.
struct Worker {
    int index = 0;
    int stage = 0;          // index of the next chunk counter; equal on all threads
    bool drafting = false;  // stages count as the draft's
    Lines<float> normed;
    Lines<int16_t> quantized;
    Lines<float> scales;
    Lines<float> partials;  // of attention
    std::unique_ptr<Sampler> sampler, draft_sampler;
    // Of the draft: logits that it looked at where it does not look at all, tokens of its logits, and for
    // each panel that it looked at its place among those.
    Lines<float> draft_logits;
    std::vector<int32_t> draft_ids;
    std::vector<int> draft_places;
    std::chrono::steady_clock::time_point mark;
};

struct TeamLimits {
    int threads;
    int stages;    // of one job
    int rows;      // of activations
    int width;     // of the widest row, a multiple of kGroup
    int partials;  // floats of attention over the longest context
    int vocab_size;
};

class Team {
  public:
    Team(const KernelTable& kernels, const TeamLimits& limits);

    int size() const { return pool_.size(); }
    const KernelTable& kernels() const { return kernels_; }
    std::vector<Worker>& workers() { return workers_; }

    // Runs job(worker) on every thread.
    void run(const std::function<void(Worker&)>& job);

    // Inside a job: hands out [0, total) in chunks. Work that others read is over after finish().
    template <class Body>
    void each(Worker& worker, int total, int chunk, Body&& body) {
        counters_.each(worker.stage, total, chunk, worker.index, body);
    }

    // `next`: the matrix whose product follows; a thread that waits asks for the first bytes of its part.
    // Those of a product begin to do so where they would read beyond their part.
    void finish(Worker& worker, Stage stage, const PackedMatrix* next = nullptr);

    // Rows as integers for a product with w: row_of(row) gives the floats, `stride` of them, a multiple of
    // kGroup. A few rows are quantized by each thread for itself, which costs less than a barrier.
    template <class RowOf>
    QuantizedRows quantized(Worker& worker, const PackedMatrix& w, int rows, int stride, RowOf&& row_of) {
        return quantized(worker, kernels_.inputs_of(w.format), rows, stride, row_of, kernels_.product_rows);
    }

    // The same, each row a tile of its own, so that result.alone(row) can be multiplied.
    template <class RowOf>
    QuantizedRows quantized_apart(Worker& worker, const PackedMatrix& w, int rows, int stride,
                                  RowOf&& row_of) {
        return quantized(worker, kernels_.inputs_of(w.format), rows, stride, row_of, 1);
    }

    // The same by coarse inputs, for a product with weights of 8 bits.
    template <class RowOf>
    QuantizedRows coarsely_quantized(Worker& worker, int rows, int stride, RowOf&& row_of) {
        QuantizedRows result =
            quantized(worker, kernels_.coarse_inputs, rows, stride, row_of, kernels_.product_rows);
        result.coarse = true;
        return result;
    }

    // each_part(begin, end): on the thread that multiplied them, as soon as panels [begin, end) are done.
    template <class Body>
    void product(Worker& worker, const PackedMatrix& w, const QuantizedRows& x, int rows, Epilogue epilogue,
                 float* out, int out_stride, Stage stage, const PackedMatrix* next, Body&& each_part) {
        const int chunk = chunk_of(w), own_end = part_begin(w.panels, chunk, worker.index + 1, size());
        const uint8_t* next_part = part_of(worker, next);
        const bool pages = pages_suffice(w, x, rows);
        each(worker, w.panels, chunk, [&](int begin, int end) {
            const bool last = end == own_end || end == w.panels;
            kernels_.matmul(w, x, rows, begin, end, epilogue, out, out_stride,
                            {last ? next_part : nullptr, pages});
            each_part(begin, end);
        });
        finish(worker, stage, next);
    }
    void product(Worker& worker, const PackedMatrix& w, const QuantizedRows& x, int rows, Epilogue epilogue,
                 float* out, int out_stride, Stage stage, const PackedMatrix* next) {
        product(worker, w, x, rows, epilogue, out, out_stride, stage, next, [](int, int) {});
    }

    // The row divided by its root mean square, times weight, in worker.normed; zeros up to `stride`.
    const float* normed(Worker& worker, const float* x, const float* weight, int width, float eps,
                        int stride);

    Profile take_profile();

    // Rows per claim where a stage works row by row: each thread has some.
    int row_chunk(int rows) const { return std::clamp(rows / size(), 1, 4); }

    // Up to so many rows each thread quantizes all for itself: that spares a barrier and an exchange. The
    // more threads could share the work, the fewer rows that pays for.
    int private_rows() const { return private_rows_; }

    static constexpr size_t kLargePart =
        3 << 17;  // bytes; a smaller one ends before a processor reads ahead well
    static constexpr int kFewRowsBytes = 10 << 10;  // of integers, which leave weights room in a first cache

    int chunk_of(const PackedMatrix& w) const;  // panels that a thread multiplies at once

  private:
    template <class RowOf>
    QuantizedRows quantized(Worker& worker, const InputFormat& inputs, int rows, int stride, RowOf&& row_of,
                            int tile_rows) {
        const bool alone = rows <= private_rows_;
        const int units = stride / kGroup * inputs.group_units;
        int16_t* values = alone ? worker.quantized.data() : quantized_.data();
        float* scales = alone ? worker.scales.data() : scales_.data();
        const auto quantize = [&](int begin, int end) {
            for (int row = begin; row < end; ++row) {
                const RowTile tile = tile_of(row, rows, tile_rows);
                scales[row] =
                    inputs.quantize(row_of(row), stride,
                                    values + static_cast<size_t>(tile.first) * static_cast<size_t>(units),
                                    row - tile.first, tile.rows);
            }
        };
        if (alone) {
            quantize(0, rows);
        } else {
            each(worker, rows, row_chunk(rows), quantize);
            finish(worker, Stage::kNorm);
        }
        return {values, scales, units};
    }

    const uint8_t* part_of(const Worker& worker, const PackedMatrix* w) const;  // null if there is none

    // Whether a product need ask memory only for the beginnings of pages.
    bool pages_suffice(const PackedMatrix& w, const QuantizedRows& x, int rows) const {
        const int row_bytes = x.stride * static_cast<int>(sizeof *x.values);
        // Weights of 4 bits come from a cache mostly, which gives every line sooner than a processor asks.
        return reads_pages_ahead_ && w.format == WeightFormat::kInt8 && rows <= kernels_.few_rows &&
               (rows <= 2 || rows * row_bytes <= kFewRowsBytes) &&
               w.bytes() / static_cast<size_t>(size()) >= kLargePart;
    }
    size_t input_units(const TeamLimits& limits) const {
        const int units = std::max({kernels_.inputs.group_units, kernels_.half_byte_inputs.group_units,
                                    kernels_.coarse_inputs.group_units});
        return static_cast<size_t>(limits.width / kGroup * units);
    }

    const KernelTable& kernels_;
    const bool reads_pages_ahead_;  // the processor, where a product leaves it the time
    ThreadPool pool_;
    const int private_rows_;
    ChunkCounters counters_;
    Lines<int16_t> quantized_;
    Lines<float> scales_;
    std::vector<Worker> workers_;
    Profile profile_{};
};

}  // namespace flashlet
