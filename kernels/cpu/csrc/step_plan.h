// What one ragged step is to compute, and where its results go.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "history.h"
#include "sampler.h"

namespace flashlet {

inline constexpr int kMaxDraftTokens = 8;

// What the draft model does for a slice.
struct DraftOrder {
    int num_tokens = -1;            // most tokens to propose; -1: the draft does not follow this slice
    int start = 0;                  // first position that the draft has followed
    int32_t next_token = -1;        // the known token after the slice where nothing is sampled
    float least_confidence = 0.0f;  // product of the confidences below which nothing more is drafted
    const History* history =
        nullptr;  // the text up to the known tokens of the slice, if it is to be looked at
};

// One sequence's part of a step: rows first_row .. first_row + rows - 1 at positions start ...
struct Slice {
    int first_row = 0, rows = 0, start = 0;
    int table = 0;         // offset of its block table in StepPlan::block_tables
    int32_t copied = -1;   // block that the block of position start first becomes a copy of
    int proposed = 0;      // the last so many rows are tokens to verify
    int first_sample = 0;  // of its 1 + proposed entries of StepPlan::logit_rows
    bool sampled = false;
    DraftOrder draft;
    std::array<int32_t, kMaxDraftTokens> drafted{};    // out
    std::array<float, kMaxDraftTokens> confidences{};  // out: how sure the draft is of them
    int num_drafted = 0;                               // out

    int known() const { return rows - proposed; }
};

// A row whose logits are needed, and what for.
struct LogitRow {
    int row;
    int slice;
    bool sampled;       // else: score `target`
    int32_t target;     // in: token to score; out: token sampled, -1 if none was possible
    int top;            // log-probabilities to list; -1: none wanted
    Logprobs logprobs;  // out
    const SampleParams* params;
};

// The residual stream of some rows is wanted after `layers` layers; layers + 1: after the final norm.
struct FeatureCopy {
    int first_row, rows, layers;
    float* out;  // of the first row; the next one's lies `stride` floats on
    size_t stride;
};

struct StepPlan {
    std::vector<int32_t> tokens;  // [rows]
    std::vector<Slice> slices;
    std::vector<int32_t> block_tables;
    std::vector<LogitRow> logit_rows;
    std::vector<FeatureCopy> features;

    int rows() const { return static_cast<int>(tokens.size()); }
    const LogitRow& sample(const Slice& slice, int index) const {
        return logit_rows[static_cast<size_t>(slice.first_sample + index)];
    }
    int32_t token(const Slice& slice, int index) const {
        return tokens[static_cast<size_t>(slice.first_row + index)];
    }
    // After sampling: how many proposals are the tokens that were chosen, up to the first that is not.
    int accepted(const Slice& slice) const {
        int count = 0;
        while (count < slice.proposed && sample(slice, count).target == token(slice, slice.known() + count))
            ++count;
        return count;
    }
};

}  // namespace flashlet
