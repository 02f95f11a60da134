// The Python face of the native core. Everything here runs with the GIL held except the step itself.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "isa.h"
#include "model.h"

namespace nb = nanobind;

namespace flashlet {

void bind_kernels(nb::module_& m);  // kernels_module.cpp

namespace {

KvFormat read_kv_format(const std::string& name) {
    if (name == "int8") return KvFormat::kInt8;
    if (name == "fp16") return KvFormat::kFp16;
    throw std::invalid_argument("kv_dtype: expected int8 or fp16, got " + name);
}

ModelLimits checked_limits(int threads, int64_t num_blocks, int max_rows, int max_slices,
                           const std::string& kv_dtype) {
    if (threads < 1 || num_blocks < 1 || max_rows < 1 || max_slices < 1) {
        throw std::invalid_argument("threads, num_blocks, max_rows, max_slices: expected 1 or more, got " +
                                    std::to_string(threads) + ", " + std::to_string(num_blocks) + ", " +
                                    std::to_string(max_rows) + ", " + std::to_string(max_slices));
    }
    if (num_blocks > std::numeric_limits<int32_t>::max()) throw std::bad_alloc();
    return {threads, static_cast<int>(num_blocks), max_rows, max_slices, read_kv_format(kv_dtype)};
}

using FloatRows = nb::ndarray<nb::numpy, float, nb::ndim<3>>;

class NativeModel {
  public:
    NativeModel(const nb::object& config, const nb::dict& arrays, const std::string& kv_dtype,
                int64_t num_blocks, int max_rows, int max_slices, int threads, const std::string& isa,
                const nb::object& draft_config, const nb::dict& draft_arrays)
        : arrays_(arrays),
          draft_arrays_(draft_arrays),
          shape_(read_shape(config)),
          kernels_(kernels_named(isa)),
          limits_(checked_limits(threads, num_blocks, max_rows, max_slices, kv_dtype)),
          has_draft_(!draft_config.is_none()) {
        DraftModel draft;
        if (has_draft_) draft = read_draft(draft_config, shape_, draft_arrays_);
        model_ = std::make_unique<Model>(kernels_, shape_, read_weights(shape_, arrays_), limits_,
                                         has_draft_ ? &draft : nullptr);
        params_.reserve(static_cast<size_t>(max_slices) + static_cast<size_t>(max_rows));
    }

    // One tuple per slice: (tokens, log-probabilities, log-probabilities of the targets, drafted tokens,
    // features or None). Tokens end with the first that was not proposed; -1: none could be chosen.
    nb::list step(const nb::sequence& slices) {
        plan(slices);
        run(nullptr);
        return outputs();
    }

    // The same step, but returns the logits of its logit rows, [rows, vocab_size].
    nb::ndarray<nb::numpy, float, nb::ndim<2>> logits(const nb::sequence& slices) {
        plan(slices);
        const size_t rows = plan_.logit_rows.size(), vocab = static_cast<size_t>(shape_.vocab_size);
        auto* values = new float[rows * vocab];
        nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        run(values);
        return {values, {rows, vocab}, owner};
    }

    nb::dict take_profile() {
        static constexpr const char* kNames[] = {"embed",   "norm", "qkv",  "rope",   "attention", "output",
                                                 "gate_up", "down", "head", "sample", "draft"};
        const auto seconds = open().take_profile();
        nb::dict result;
        for (size_t i = 0; i < seconds.size(); ++i) result[kNames[i]] = seconds[i];
        return result;
    }

    double measure_read() {
        Model& model = open();
        nb::gil_scoped_release release;
        return model.measure_read();
    }

    void close() { model_.reset(); }
    const char* isa() const { return kernels_.name; }
    int threads() const { return limits_.threads; }

  private:
    Model& open() {
        if (model_ == nullptr) throw std::runtime_error("the model is closed");
        return *model_;
    }

    void run(float* logits) {
        Model& model = open();
        if (plan_.slices.empty()) return;
        nb::gil_scoped_release release;
        model.step(plan_, logits);
    }

    void plan(const nb::sequence& slices) {
        plan_.tokens.clear();
        plan_.slices.clear();
        plan_.block_tables.clear();
        plan_.logit_rows.clear();
        plan_.features.clear();
        params_.clear();
        features_.clear();
        for (const nb::handle slice : slices) add_slice(slice);
    }

    void add_slice(const nb::handle& item) {
        Slice slice;
        slice.first_row = plan_.rows();
        slice.start = number<int>(item.attr("start"), "start");
        slice.table = static_cast<int>(plan_.block_tables.size());
        for (const nb::handle token : item.attr("token_ids")) plan_.tokens.push_back(checked_token(token));
        const int known = plan_.rows() - slice.first_row;
        for (const nb::handle token : item.attr("proposed")) plan_.tokens.push_back(checked_token(token));
        slice.rows = plan_.rows() - slice.first_row;
        slice.proposed = slice.rows - known;
        for (const nb::handle block : item.attr("block_table"))
            plan_.block_tables.push_back(number<int32_t>(block, "block id"));
        const nb::object copied = item.attr("copied_block");
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
        const nb::object request = item.attr("draft");
        if (request.is_none()) return order;
        if (!has_draft_) throw std::invalid_argument("draft: this executor has no draft model");
        order.num_tokens = number<int>(request.attr("num_tokens"), "draft num_tokens");
        order.start = number<int>(request.attr("start"), "draft start");
        const bool sampled = nb::len(nb::object(item.attr("samples"))) > 0;
        if (order.num_tokens < 0 || order.num_tokens > (sampled ? kMaxDraftTokens : 0)) {
            throw std::invalid_argument("draft: expected 0 .. " + std::to_string(kMaxDraftTokens) +
                                        " tokens, and none where nothing is sampled; got " +
                                        std::to_string(order.num_tokens));
        }
        if (order.start < 0 || order.start > slice.start) {
            throw std::invalid_argument("draft: expected a start from 0 to the slice's " +
                                        std::to_string(slice.start) + ", got " + std::to_string(order.start));
        }
        const nb::object next = request.attr("next_token");
        if (next.is_none() != sampled)
            throw std::invalid_argument("draft: expected a next token exactly where nothing is sampled");
        if (!sampled) order.next_token = checked_token(next);
        return order;
    }

    void add_features(const nb::handle& item, const Slice& slice) {
        const nb::object wanted = item.attr("features");
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
        const int top = number<int>(item.attr("num_top_logprobs"), "num_top_logprobs");
        int row = slice.first_row;
        for (const nb::handle target : item.attr("logprob_targets")) {
            if (row >= slice.first_row + slice.known())
                throw std::invalid_argument("step: more targets than tokens");
            plan_.logit_rows.push_back({row++, index, false, checked_token(target), top, {}, nullptr});
        }
        const nb::object samples = item.attr("samples");
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

    SampleParams read_sample(const nb::handle& request) const {
        SampleParams result;
        const nb::object params = request.attr("params");
        const auto read = [&]<class T>(const char* name, T& field) {
            field = number<T>(params.attr(name), name);
        };
        read("temperature", result.temperature);
        read("top_k", result.top_k);
        read("top_p", result.top_p);
        read("min_p", result.min_p);
        read("presence_penalty", result.presence_penalty);
        read("frequency_penalty", result.frequency_penalty);
        read("repetition_penalty", result.repetition_penalty);
        read("seed", result.seed);
        result.position = number<int64_t>(request.attr("position"), "position");
        const nb::object logprobs = params.attr("logprobs");
        if (!logprobs.is_none()) result.logprobs = number<int>(logprobs, "logprobs");
        for (const nb::handle pair : params.attr("logit_bias")) {
            result.logit_bias.emplace_back(checked_token(pair[0]), number<float>(pair[1], "logit_bias"));
        }
        if (nb::cast<bool>(params.attr("needs_history"))) {
            for (const nb::handle token : request.attr("prompt"))
                result.prompt.push_back(checked_token(token));
            for (const nb::handle token : request.attr("output"))
                result.output.push_back(checked_token(token));
        }
        for (const nb::handle token : request.attr("suppressed"))
            result.suppressed.push_back(checked_token(token));
        const nb::object allowed = request.attr("allowed");
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

    nb::list outputs() {
        nb::list result;
        size_t next = 0;
        for (size_t i = 0; i < plan_.slices.size(); ++i) {
            const Slice& slice = plan_.slices[i];
            nb::list tokens, logprobs, targets, proposed;
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
            for (int k = 0; k < slice.num_drafted; ++k)
                proposed.append(slice.drafted[static_cast<size_t>(k)]);
            result.append(nb::make_tuple(tokens, logprobs, targets, proposed, features_[i]));
        }
        features_.clear();
        return result;
    }

    Arrays arrays_, draft_arrays_;
    ModelShape shape_;
    const KernelTable& kernels_;
    ModelLimits limits_;
    bool has_draft_;
    StepPlan plan_;
    std::vector<SampleParams> params_;
    std::vector<nb::object> features_;
    std::unique_ptr<Model> model_;
};

}  // namespace
}  // namespace flashlet

NB_MODULE(_native, m) {
    using namespace flashlet;
    bind_kernels(m);
    m.def("compiler", [] { return __VERSION__; }, "Version of the compiler that built this module.");
    m.def(
        "instruction_sets",
        [] {
            std::vector<std::string> names;
            for (const KernelTable* table : available_kernels()) names.emplace_back(table->name);
            return names;
        },
        "Instruction sets that this machine can run, best first.");
    m.def(
        "block_bytes",
        [](const nb::object& config, const std::string& kv_dtype) {
            return Decoder::block_bytes(read_shape(config), read_kv_format(kv_dtype));
        },
        nb::arg("config"), nb::arg("kv_dtype"), "Bytes of one KV block over all layers.");
    m.attr("BLOCK_SIZE") = kBlock;
    nb::class_<NativeModel>(m, "NativeModel", "A model with its KV pool and threads; see executor_native.py.")
        .def(nb::init<const nb::object&, const nb::dict&, const std::string&, int64_t, int, int, int,
                      const std::string&, const nb::object&, const nb::dict&>(),
             nb::arg("config"), nb::arg("arrays"), nb::arg("kv_dtype"), nb::arg("num_blocks"),
             nb::arg("max_rows"), nb::arg("max_slices"), nb::arg("threads"), nb::arg("isa") = "",
             nb::arg("draft_config") = nb::none(), nb::arg("draft_arrays") = nb::dict())
        .def("step", &NativeModel::step, nb::arg("slices"))
        .def("logits", &NativeModel::logits, nb::arg("slices"))
        .def("take_profile", &NativeModel::take_profile)
        .def("measure_read", &NativeModel::measure_read)
        .def("close", &NativeModel::close)
        .def_prop_ro("isa", &NativeModel::isa)
        .def_prop_ro("threads", &NativeModel::threads);
}
