// Rows of integers times panels of int8 or 4-bit weights.
#pragma once

#include "coarse_impl.h"

namespace flashlet::FLASHLET_ISA {

// The out-of-order window holds only some 4 KiB of cells, too little to cover the latency of memory: asking
// for the lines this far ahead doubled the speed of a single row.
inline constexpr int kPrefetchDistance = 16384;

inline constexpr int kPage = 4096;      // where the processor's own reading ahead ends
inline constexpr int kPageStart = 128;  // bytes of a page that make it begin again

// What to ask memory for: the bytes from `at` to `stop`, then, if it is given, those from `next` on.
struct Ahead {
    const uint8_t *at, *stop, *next;
    bool pages;  // up to `stop`: only where they begin
    void ask(int bytes) {
        const auto over = static_cast<int>(reinterpret_cast<uintptr_t>(at + bytes) % kPage);
        if (!pages) {
            prefetch_bytes(at, bytes);
        } else if (over < bytes) {
            prefetch_bytes(at + bytes - over, kPageStart);
        }
        at += bytes;
        if (at < stop || next == nullptr) return;
        at = next;
        next = nullptr;
        pages = false;
    }
};

// out[r] = (rows of x) . (one panel), scaled and biased.
template <class Format, int Rows>
inline void multiply_panel(const PackedMatrix& w, int panel, const QuantizedRows& x, int row, Ahead& ahead,
                           F32x16* out) {
    const uint8_t* cell = w.cells + static_cast<size_t>(panel) * w.panel_bytes();
    const int16_t* tile = x.values + static_cast<size_t>(row) * x.stride;
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) out[r] = splat(0.0f);
    for (int g = 0; g < w.groups; ++g, cell += Format::kBytes, tile += Format::kRowUnits * Rows) {
        ahead.ask(Format::kBytes);
        Format::template multiply<Rows>(cell, g, tile, out);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) out[r] = mul(out[r], splat(x.scales[row + r]));
    if (w.bias != nullptr) {
        const F32x16 bias = load(w.bias + panel * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) out[r] = add(out[r], bias);
    }
}

struct MatmulTask {
    const PackedMatrix& w;
    const QuantizedRows& x;
    int begin, end;
    Epilogue epilogue;
    float* out;
    int out_stride;
    ReadAhead read_ahead;

    const uint8_t* panel(int index) const { return w.cells + static_cast<size_t>(index) * w.panel_bytes(); }
    Ahead ahead() const {
        if (read_ahead.elsewhere) return {read_ahead.next, read_ahead.next, nullptr, false};
        const uint8_t *at = panel(begin) + kPrefetchDistance, *stop = panel(end);
        if (at < stop || read_ahead.next == nullptr) return {at, stop, read_ahead.next, read_ahead.pages};
        return {read_ahead.next + (at - stop), stop, nullptr, false};
    }
};

template <class Format, int Rows>
void multiply_tile(const MatmulTask& task, int row) {
    F32x16 product[Rows];
    F32x16 up[Rows];
    const bool gated = task.epilogue == Epilogue::kGatedSilu;
    Ahead ahead = task.ahead();
    for (int panel = task.begin; panel < task.end; panel += gated ? 2 : 1) {
        multiply_panel<Format, Rows>(task.w, panel, task.x, row, ahead, product);
        if (gated) multiply_panel<Format, Rows>(task.w, panel + 1, task.x, row, ahead, up);
        float* out =
            task.out + static_cast<size_t>(row) * task.out_stride + (gated ? panel / 2 : panel) * kLanes;
        for (int r = 0; r < Rows; ++r, out += task.out_stride) {
            if (gated) {
                store(out, mul(silu16(product[r]), up[r]));
            } else if (task.epilogue == Epilogue::kAdd) {
                store(out, add(load(out), product[r]));
            } else {
                store(out, product[r]);
            }
        }
    }
}

template <template <int> class Body, int Rows, class... Args>
inline void dispatch_rows(int rows, const Args&... args) {
    if (rows == Rows) return Body<Rows>::run(args...);
    if constexpr (Rows > 1) dispatch_rows<Body, Rows - 1>(rows, args...);
}

template <int Rows>
struct Tile {
    static void run(const MatmulTask& task, int row) {
        if (task.x.coarse) {
            multiply_tile<CoarseGroups, Rows>(task, row);
        } else if (task.w.format == WeightFormat::kInt8) {
            multiply_tile<Groups, Rows>(task, row);
        } else {
            multiply_tile<HalfByteGroups<Groups>, Rows>(task, row);
        }
    }
};

void arrange_matrix(const PackedMatrix& w, uint8_t* out) {
    const uint8_t* cell = w.cells;
    for (int panel = 0; panel < w.panels; ++panel) {
        for (int g = 0; g < w.groups; ++g, cell += w.cell_bytes(), out += w.cell_bytes()) {
            if (w.format == WeightFormat::kInt8) {
                Groups::arrange(cell, g, out);
            } else {
                HalfByteGroups<Groups>::arrange(cell, g, out);
            }
        }
    }
}

void matmul(const PackedMatrix& w, const QuantizedRows& x, int rows, int begin, int end, Epilogue epilogue,
            float* out, int out_stride, ReadAhead read_ahead) {
    const MatmulTask task{w, x, begin, end, epilogue, out, out_stride, read_ahead};
    for (int row = 0; row < rows;) {
        const RowTile tile = tile_of(row, rows, kProductRows);
        dispatch_rows<Tile, kProductRows>(tile.rows, task, row);
        row += tile.rows;
    }
}

}  // namespace flashlet::FLASHLET_ISA
