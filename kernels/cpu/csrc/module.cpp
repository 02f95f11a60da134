// The Python face of the native core. Everything here runs with the GIL held except the step itself.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "model.h"

namespace nb = nanobind;

namespace flashlet {

void bind_kernels(nb::module_& m);  // kernels_module.cpp

namespace {

using FloatArray = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using ByteArray = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;

// The arrays of a weight cache, checked against the shape and kept alive.
class Arrays {
  public:
    explicit Arrays(const nb::dict& arrays) : arrays_(arrays) {}

    bool has(const std::string& name) const { return arrays_.contains(name.c_str()); }

    PackedMatrix packed(const std::string& name, int rows, int inputs) const {
        const auto cells = nb::cast<ByteArray>(at(name));
        const auto panels = static_cast<size_t>(round_up(rows, kLanes) / kLanes);
        const auto groups = static_cast<size_t>(round_up(inputs, kGroup) / kGroup);
        if (cells.ndim() != 3 || cells.shape(0) != panels || cells.shape(1) != groups ||
            cells.shape(2) != kCellBytes) {
            throw std::invalid_argument(name + ": expected packed shape (" + std::to_string(panels) + ", " +
                                        std::to_string(groups) + ", " + std::to_string(kCellBytes) + ")");
        }
        PackedMatrix matrix;
        matrix.cells = cells.data();
        matrix.panels = static_cast<int>(panels);
        matrix.groups = static_cast<int>(groups);
        if (has(name + "_bias")) matrix.bias = floats(name + "_bias", panels * kLanes);
        return matrix;
    }

    const float* floats(const std::string& name, size_t size) const {
        const auto array = nb::cast<FloatArray>(at(name));
        if (array.size() != size) {
            throw std::invalid_argument(name + ": expected " + std::to_string(size) + " floats, got " +
                                        std::to_string(array.size()));
        }
        return array.data();
    }

    // A copy padded with zeros, for kernels that read whole vectors.
    const float* padded(const std::string& name, size_t size) {
        const float* values = floats(name, size);
        std::vector<float>& copy = copies_[name];
        copy.assign(static_cast<size_t>(round_up(static_cast<int>(size), kLanes)), 0.0f);
        std::copy(values, values + size, copy.begin());
        return copy.data();
    }

  private:
    nb::object at(const std::string& name) const {
        if (!has(name)) throw std::invalid_argument(name + ": missing among the weights");
        return arrays_[name.c_str()];
    }

    nb::dict arrays_;
    std::map<std::string, std::vector<float>> copies_;
};

ModelShape read_shape(const nb::handle& config) {
    const auto number = [&](const char* name) { return nb::cast<int>(config.attr(name)); };
    ModelShape shape{number("vocab_size"),
                     number("hidden_size"),
                     number("intermediate_size"),
                     number("num_layers"),
                     number("num_heads"),
                     number("num_kv_heads"),
                     number("head_dim"),
                     number("context_length"),
                     nb::cast<float>(config.attr("rms_norm_eps")),
                     {}};
    shape.windows = nb::cast<std::vector<int>>(config.attr("sliding_windows"));
    if (shape.head_dim > 512) throw std::invalid_argument("head_dim: expected at most 512");
    return shape;
}

ModelWeights read_weights(const ModelShape& shape, Arrays& arrays) {
    ModelWeights weights;
    const auto hidden = static_cast<size_t>(shape.hidden_size), dim = static_cast<size_t>(shape.head_dim);
    const int queries = shape.num_heads * shape.head_dim, kv = shape.num_kv_heads * shape.head_dim;
    for (int i = 0; i < shape.num_layers; ++i) {
        const std::string prefix = "layers." + std::to_string(i) + ".";
        const bool normed = arrays.has(prefix + "q_norm");
        weights.layers.push_back(
            {arrays.padded(prefix + "attn_norm", hidden),
             arrays.packed(prefix + "qkv", queries + 2 * kv, shape.hidden_size),
             normed ? arrays.padded(prefix + "q_norm", dim) : nullptr,
             normed ? arrays.padded(prefix + "k_norm", dim) : nullptr,
             arrays.packed(prefix + "o", shape.hidden_size, queries),
             arrays.padded(prefix + "ffn_norm", hidden),
             arrays.packed(prefix + "gate_up", 2 * round_up(shape.intermediate_size, kLanes),
                           shape.hidden_size),
             arrays.packed(prefix + "down", shape.hidden_size, shape.intermediate_size)});
    }
    weights.embed = arrays.packed("embed", shape.vocab_size, shape.hidden_size);
    weights.head =
        arrays.has("head") ? arrays.packed("head", shape.vocab_size, shape.hidden_size) : weights.embed;
    weights.final_norm = arrays.padded("final_norm", hidden);
    const size_t table = static_cast<size_t>(shape.context_length) * dim / 2;
    weights.rope_cos = arrays.floats("rope_cos", table);
    weights.rope_sin = arrays.floats("rope_sin", table);
    return weights;
}

KvFormat read_kv_format(const std::string& name) {
    if (name == "int8") return KvFormat::kInt8;
    if (name == "fp16") return KvFormat::kFp16;
    throw std::invalid_argument("kv_dtype: expected int8 or fp16, got " + name);
}

class NativeModel {
  public:
    NativeModel(const nb::object& config, const nb::dict& arrays, const std::string& kv_dtype, int num_blocks,
                int max_rows, int max_slices, int threads, const std::string& isa)
        : arrays_(arrays),
          shape_(read_shape(config)),
          kernels_(kernels_named(isa)),
          limits_{threads, num_blocks, max_rows, max_slices, read_kv_format(kv_dtype)},
          model_(std::make_unique<Model>(kernels_, shape_, read_weights(shape_, arrays_), limits_)) {
        params_.reserve(static_cast<size_t>(max_slices));
    }

    // One tuple per slice: (token or None, log-probabilities or None, log-probabilities of the targets).
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
        static constexpr const char* kNames[] = {"embed",  "norm",    "qkv",  "rope", "attention",
                                                 "output", "gate_up", "down", "head", "sample"};
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
        nb::gil_scoped_release release;
        model.step(plan_, logits);
    }

    void plan(const nb::sequence& slices) {
        plan_.tokens.clear();
        plan_.slices.clear();
        plan_.block_tables.clear();
        plan_.logit_rows.clear();
        params_.clear();
        for (const nb::handle slice : slices) add_slice(slice);
        if (plan_.slices.empty()) throw std::invalid_argument("step: expected at least one slice");
    }

    void add_slice(const nb::handle& item) {
        Slice slice;
        slice.first_row = plan_.rows();
        slice.start = nb::cast<int>(item.attr("start"));
        slice.table = static_cast<int>(plan_.block_tables.size());
        for (const nb::handle token : item.attr("token_ids")) plan_.tokens.push_back(checked_token(token));
        slice.rows = plan_.rows() - slice.first_row;
        for (const nb::handle block : item.attr("block_table"))
            plan_.block_tables.push_back(nb::cast<int32_t>(block));
        const int blocks = static_cast<int>(plan_.block_tables.size()) - slice.table;
        if (slice.rows < 1 || slice.start < 0 || plan_.rows() > limits_.max_rows ||
            static_cast<int>(plan_.slices.size()) >= limits_.max_slices) {
            throw std::invalid_argument("step: a slice is empty, or the step exceeds " +
                                        std::to_string(limits_.max_rows) + " rows or " +
                                        std::to_string(limits_.max_slices) + " slices");
        }
        if (slice.start + slice.rows > std::min(blocks * kBlock, shape_.context_length)) {
            throw std::invalid_argument("step: a slice ends beyond its block table or the context length");
        }
        for (int i = slice.table; i < static_cast<int>(plan_.block_tables.size()); ++i) {
            const int32_t block = plan_.block_tables[static_cast<size_t>(i)];
            if (block < 0 || block >= limits_.num_blocks)
                throw std::invalid_argument("step: block id out of range");
        }
        plan_.slices.push_back(slice);
        add_logit_rows(item, slice);
    }

    void add_logit_rows(const nb::handle& item, const Slice& slice) {
        const int index = static_cast<int>(plan_.slices.size()) - 1;
        const int top = nb::cast<int>(item.attr("num_top_logprobs"));
        int row = slice.first_row;
        for (const nb::handle target : item.attr("logprob_targets")) {
            if (row >= slice.first_row + slice.rows)
                throw std::invalid_argument("step: more targets than tokens");
            plan_.logit_rows.push_back({row++, index, false, checked_token(target), top, {}, nullptr});
        }
        const nb::object sample = item.attr("sample");
        if (sample.is_none()) return;
        params_.push_back(read_sample(sample));
        const SampleParams& params = params_.back();
        plan_.logit_rows.push_back(
            {slice.first_row + slice.rows - 1, index, true, -1, params.logprobs, {}, &params});
    }

    int32_t checked_token(const nb::handle& token) const {
        const auto id = nb::cast<int32_t>(token);
        if (id < 0 || id >= shape_.vocab_size) {
            throw std::invalid_argument("token id: expected 0 .. " + std::to_string(shape_.vocab_size - 1) +
                                        ", got " + std::to_string(id));
        }
        return id;
    }

    SampleParams read_sample(const nb::handle& request) const {
        SampleParams result;
        const nb::object params = request.attr("params");
        result.temperature = nb::cast<float>(params.attr("temperature"));
        result.top_k = nb::cast<int>(params.attr("top_k"));
        result.top_p = nb::cast<float>(params.attr("top_p"));
        result.min_p = nb::cast<float>(params.attr("min_p"));
        result.presence_penalty = nb::cast<float>(params.attr("presence_penalty"));
        result.frequency_penalty = nb::cast<float>(params.attr("frequency_penalty"));
        result.repetition_penalty = nb::cast<float>(params.attr("repetition_penalty"));
        result.seed = nb::cast<uint64_t>(params.attr("seed"));
        result.position = nb::cast<int64_t>(request.attr("position"));
        const nb::object logprobs = params.attr("logprobs");
        if (!logprobs.is_none()) result.logprobs = nb::cast<int>(logprobs);
        for (const nb::handle pair : params.attr("logit_bias")) {
            result.logit_bias.emplace_back(checked_token(pair[0]), nb::cast<float>(pair[1]));
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
            const auto mask =
                nb::cast<nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(allowed);
            if (mask.size() != static_cast<size_t>((shape_.vocab_size + 31) / 32)) {
                throw std::invalid_argument("allowed: expected one bit per token of the vocabulary");
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

    nb::list outputs() const {
        nb::list result;
        size_t next = 0;
        for (size_t i = 0; i < plan_.slices.size(); ++i) {
            nb::object token = nb::none(), logprobs = nb::none();
            nb::list targets;
            for (; next < plan_.logit_rows.size() && plan_.logit_rows[next].slice == static_cast<int>(i);
                 ++next) {
                const LogitRow& row = plan_.logit_rows[next];
                if (!row.sampled) {
                    targets.append(to_python(row.logprobs));
                    continue;
                }
                token = nb::int_(row.target);
                if (row.top >= 0 && row.target >= 0) logprobs = to_python(row.logprobs);
            }
            result.append(nb::make_tuple(token, logprobs, targets));
        }
        return result;
    }

    Arrays arrays_;
    ModelShape shape_;
    const KernelTable& kernels_;
    ModelLimits limits_;
    StepPlan plan_;
    std::vector<SampleParams> params_;
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
            return Model::block_bytes(read_shape(config), read_kv_format(kv_dtype));
        },
        nb::arg("config"), nb::arg("kv_dtype"), "Bytes of one KV block over all layers.");
    m.attr("BLOCK_SIZE") = kBlock;
    nb::class_<NativeModel>(m, "NativeModel", "A model with its KV pool and threads; see executor_native.py.")
        .def(nb::init<const nb::object&, const nb::dict&, const std::string&, int, int, int, int,
                      const std::string&>(),
             nb::arg("config"), nb::arg("arrays"), nb::arg("kv_dtype"), nb::arg("num_blocks"),
             nb::arg("max_rows"), nb::arg("max_slices"), nb::arg("threads"), nb::arg("isa") = "")
        .def("step", &NativeModel::step, nb::arg("slices"))
        .def("logits", &NativeModel::logits, nb::arg("slices"))
        .def("take_profile", &NativeModel::take_profile)
        .def("measure_read", &NativeModel::measure_read)
        .def("close", &NativeModel::close)
        .def_prop_ro("isa", &NativeModel::isa)
        .def_prop_ro("threads", &NativeModel::threads);
}
