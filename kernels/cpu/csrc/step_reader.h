// Reads a step out of Python objects, with every number checked, and makes Python objects of its results.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"
#include "attribute_names.h"
#include "model.h"

namespace flashlet {

using FloatRows = nb::ndarray<nb::numpy, float, nb::ndim<3>>;

// See model/step.py.
class StepReader {
  public:
    StepReader(const ModelShape& shape, const ModelLimits& limits, bool has_draft)
        : shape_(shape), limits_(limits), has_draft_(has_draft) {
        params_.reserve(static_cast<size_t>(limits.max_slices) + static_cast<size_t>(limits.max_rows));
    }

    // Fails with std::invalid_argument, and leaves a plan that must not run.
    StepPlan& read(const nb::sequence& slices) {
        plan_.tokens.clear();
        plan_.slices.clear();
        plan_.block_tables.clear();
        plan_.logit_rows.clear();
        plan_.features.clear();
        params_.clear();
        features_.clear();
        for (const nb::handle slice : slices) add_slice(slice);
        return plan_;
    }

    // One tuple per slice: (tokens, log-probabilities, log-probabilities of the targets, drafted tokens,
    // their confidences, features or None). Tokens end with the first that was not proposed; -1: none could
    // be chosen.
    nb::list outputs() {
        nb::list result;
        size_t next = 0;
        for (size_t i = 0; i < plan_.slices.size(); ++i) {
            const Slice& slice = plan_.slices[i];
            nb::list tokens, logprobs, targets, proposed, confidences;
            for (; next < plan_.logit_rows.size() && plan_.logit_rows[next].slice == static_cast<int>(i);
                 ++next) {
                if (!plan_.logit_rows[next].sampled)
                    targets.append(to_python(plan_.logit_rows[next].logprobs));
            }
            for (int k = 0; slice.sampled && k <= plan_.accepted(slice); ++k) {
                const LogitRow& row = plan_.sample(slice, k);
                tokens.append(row.target);
                if (row.top >= 0 && row.target >= 0) logprobs.append(to_python(row.logprobs));
            }
            for (size_t k = 0; k < static_cast<size_t>(slice.num_drafted); ++k) {
                proposed.append(slice.drafted[k]);
                confidences.append(slice.confidences[k]);
            }
            result.append(nb::make_tuple(nb::tuple(tokens), logprobs, targets, nb::tuple(proposed),
                                         nb::tuple(confidences), features_[i]));
        }
        features_.clear();
        return result;
    }

  private:
    struct KnownParams {
        nb::object source;
        SampleParams params;
        bool needs_history = false;
    };

    void add_slice(const nb::handle& item) {
        Slice slice;
        slice.first_row = plan_.rows();
        names_.start.read(item, slice.start);
        slice.table = static_cast<int>(plan_.block_tables.size());
        for (const nb::handle token : names_.token_ids.of(item)) plan_.tokens.push_back(checked_token(token));
        const int known = plan_.rows() - slice.first_row;
        for (const nb::handle token : names_.proposed.of(item)) plan_.tokens.push_back(checked_token(token));
        slice.rows = plan_.rows() - slice.first_row;
        slice.proposed = slice.rows - known;
        for (const nb::handle block : names_.block_table.of(item))
            plan_.block_tables.push_back(number<int32_t>(block, "block id"));
        const nb::object copied = names_.copied_block.of(item);
        if (!copied.is_none()) slice.copied = number<int32_t>(copied, "copied block");
        check_slice(slice);
        slice.draft = read_draft_order(item, slice);
        if (slice.draft.num_tokens >= 0)
            plan_.block_tables.push_back(limits_.num_blocks + static_cast<int32_t>(plan_.slices.size()));
        add_logit_rows(item, slice);
        plan_.slices.push_back(slice);
        add_features(item, slice);
    }

    DraftOrder read_draft_order(const nb::handle& item, const Slice& slice) const {
        DraftOrder order;
        const nb::object request = names_.draft.of(item);
        if (request.is_none()) return order;
        if (!has_draft_) throw std::invalid_argument("draft: this executor has no draft model");
        order.num_tokens = number<int>(names_.num_tokens.of(request), "draft num_tokens");
        order.start = number<int>(names_.start.of(request), "draft start");
        const bool sampled = nb::len(nb::object(names_.samples.of(item))) > 0;
        if (order.num_tokens < 0 || order.num_tokens > (sampled ? kMaxDraftTokens : 0)) {
            throw std::invalid_argument("draft: expected 0 .. " + std::to_string(kMaxDraftTokens) +
                                        " tokens, and none where nothing is sampled; got " +
                                        std::to_string(order.num_tokens));
        }
        if (order.start < 0 || order.start > slice.start) {
            throw std::invalid_argument("draft: expected a start from 0 to the slice's " +
                                        std::to_string(slice.start) + ", got " + std::to_string(order.start));
        }
        const nb::object next = names_.next_token.of(request);
        if (next.is_none() != sampled)
            throw std::invalid_argument("draft: expected a next token exactly where nothing is sampled");
        if (!sampled) order.next_token = checked_token(next);
        order.least_confidence = number<float>(names_.least_confidence.of(request), "draft least_confidence");
        const nb::object history = names_.history.of(request);
        if (!history.is_none()) order.history = nb::cast<const History*>(history);
        if (order.history != nullptr && order.history->largest() >= shape_.vocab_size) {
            throw std::invalid_argument("draft: expected a history of token ids up to " +
                                        std::to_string(shape_.vocab_size - 1) + ", got " +
                                        std::to_string(order.history->largest()));
        }
        return order;
    }

    void add_features(const nb::handle& item, const Slice& slice) {
        const nb::object wanted = names_.features.of(item);
        const size_t count = nb::len(wanted), hidden = static_cast<size_t>(shape_.hidden_size);
        features_.push_back(nb::none());
        if (count == 0) return;
        const int rows = slice.known();
        auto* values = new float[static_cast<size_t>(rows) * count * hidden];
        nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        const FloatRows array(values, {static_cast<size_t>(rows), count, hidden}, owner);
        features_.back() = nb::cast(array);
        for (const nb::handle feature : wanted) {
            const int layers = number<int>(feature, "feature");
            if (layers < 0 || layers > shape_.num_layers + 1) {
                throw std::invalid_argument("feature: expected 0 .. " +
                                            std::to_string(shape_.num_layers + 1) + ", got " +
                                            std::to_string(layers));
            }
            plan_.features.push_back({slice.first_row, rows, layers, values, count * hidden});
            values += hidden;
        }
    }

    void check_block(int32_t block) const {
        if (block < 0 || block >= limits_.num_blocks) {
            throw std::invalid_argument("block id: expected 0 .. " + std::to_string(limits_.num_blocks - 1) +
                                        ", got " + std::to_string(block));
        }
    }

    void check_slice(const Slice& slice) const {
        if (slice.known() < 1 || slice.start < 0 || plan_.rows() > limits_.max_rows ||
            static_cast<int>(plan_.slices.size()) >= limits_.max_slices) {
            throw std::invalid_argument(
                "step: expected slices of 1 token or more from position 0 on, at most " +
                std::to_string(limits_.max_rows) + " tokens and " + std::to_string(limits_.max_slices) +
                " slices; got " + std::to_string(slice.rows) + " tokens from position " +
                std::to_string(slice.start) + " after " + std::to_string(slice.first_row) + " tokens in " +
                std::to_string(plan_.slices.size()) + " slices");
        }
        const auto table = plan_.block_tables.begin() + slice.table;
        const auto slots = (plan_.block_tables.end() - table) * kBlock;
        const auto room = std::min<std::ptrdiff_t>(slots, shape_.context_length);
        if (slice.rows > room - slice.start) {  // unlike start + rows, this cannot overflow
            throw std::invalid_argument("step: expected a slice that ends within " + std::to_string(room) +
                                        " slots of its block table and the context, got " +
                                        std::to_string(slice.rows) + " tokens from position " +
                                        std::to_string(slice.start));
        }
        std::for_each(table, plan_.block_tables.end(), [&](int32_t block) { check_block(block); });
        if (slice.copied != -1) check_block(slice.copied);
    }

    void add_logit_rows(const nb::handle& item, Slice& slice) {
        const int index = static_cast<int>(plan_.slices.size());
        int top = -1;
        names_.num_top_logprobs.read(item, top);
        int row = slice.first_row;
        for (const nb::handle target : names_.logprob_targets.of(item)) {
            if (row >= slice.first_row + slice.known())
                throw std::invalid_argument("step: more targets than tokens");
            plan_.logit_rows.push_back({row++, index, false, checked_token(target), top, {}, nullptr});
        }
        const nb::object samples = names_.samples.of(item);
        const auto count = static_cast<int>(nb::len(samples));
        if (count != 1 + slice.proposed && (count != 0 || slice.proposed != 0)) {
            throw std::invalid_argument("step: expected 1 + " + std::to_string(slice.proposed) +
                                        " samples for so many proposed tokens, got " + std::to_string(count));
        }
        row = slice.first_row + slice.known() - 1;
        slice.sampled = count > 0;
        slice.first_sample = static_cast<int>(plan_.logit_rows.size());
        for (const nb::handle sample : samples) {
            params_.push_back(read_sample(sample));
            const SampleParams& params = params_.back();
            plan_.logit_rows.push_back({row++, index, true, -1, params.logprobs, {}, &params});
        }
    }

    int32_t checked_token(const nb::handle& token) const {
        const auto id = number<int32_t>(token, "token id");
        if (id < 0 || id >= shape_.vocab_size) {
            throw std::invalid_argument("token id: expected 0 .. " + std::to_string(shape_.vocab_size - 1) +
                                        ", got " + std::to_string(id));
        }
        return id;
    }

    // Parameters are immutable, and mostly those of the step before.
    const KnownParams& known_params(const nb::object& source) {
        if (params_.size() >= known_.size()) known_.emplace_back();
        KnownParams& known = known_[params_.size()];
        if (!known.source.is(source)) known = read_params(source);
        return known;
    }

    KnownParams read_params(const nb::object& source) const {
        KnownParams known{source, {}, nb::cast<bool>(names_.needs_history.of(source))};
        SampleParams& params = known.params;
        names_.temperature.read(source, params.temperature);
        names_.top_k.read(source, params.top_k);
        names_.top_p.read(source, params.top_p);
        names_.min_p.read(source, params.min_p);
        names_.presence_penalty.read(source, params.presence_penalty);
        names_.frequency_penalty.read(source, params.frequency_penalty);
        names_.repetition_penalty.read(source, params.repetition_penalty);
        names_.seed.read(source, params.seed);
        const nb::object logprobs = names_.logprobs.of(source);
        if (!logprobs.is_none()) params.logprobs = number<int>(logprobs, "logprobs");
        for (const nb::handle pair : names_.logit_bias.of(source)) {
            params.logit_bias.emplace_back(checked_token(pair[0]), number<float>(pair[1], "logit_bias"));
        }
        return known;
    }

    SampleParams read_sample(const nb::handle& request) {
        const KnownParams& known = known_params(names_.params.of(request));
        SampleParams result = known.params;
        names_.position.read(request, result.position);
        if (known.needs_history) {
            for (const nb::handle token : names_.prompt.of(request))
                result.prompt.push_back(checked_token(token));
            for (const nb::handle token : names_.output.of(request))
                result.output.push_back(checked_token(token));
        }
        for (const nb::handle token : names_.suppressed.of(request))
            result.suppressed.push_back(checked_token(token));
        const nb::object allowed = names_.allowed.of(request);
        if (!allowed.is_none()) {
            nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> mask;
            const auto words = static_cast<size_t>((shape_.vocab_size + 31) / 32);
            if (!nb::try_cast(allowed, mask, false) || mask.size() != words) {
                throw std::invalid_argument("allowed: expected " + std::to_string(words) +
                                            " words of uint32, one bit per token");
            }
            result.allowed.assign(mask.data(), mask.data() + mask.size());
        }
        return result;
    }

    static nb::object to_python(const Logprobs& item) {
        nb::list top;
        for (const auto& [logprob, token] : item.top) top.append(nb::make_tuple(token, logprob));
        return nb::make_tuple(item.token, item.logprob, nb::tuple(top));
    }

    const ModelShape& shape_;
    const ModelLimits& limits_;
    const bool has_draft_;
    const Names names_;
    StepPlan plan_;
    std::vector<SampleParams> params_;
    std::vector<KnownParams> known_;  // of the same entry of params_ in the steps before
    std::vector<nb::object> features_;
};

}  // namespace flashlet
