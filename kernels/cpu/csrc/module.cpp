// The Python face of the native core. Everything here runs with the GIL held except the step itself.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "isa.h"
#include "step_reader.h"

namespace nb = nanobind;

namespace flashlet {

void bind_kernels(nb::module_& m);  // kernels_module.cpp
void bind_drafter(nb::module_& m);  // drafter_module.cpp

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

void extend(History& history, const nb::sequence& tokens) {
    const auto count = static_cast<Py_ssize_t>(nb::len(tokens));
    for (Py_ssize_t i = history.size(); i < count; ++i) {
        const auto token = number<int32_t>(tokens[i], "token id");
        if (token < 0) {
            throw std::invalid_argument("token id: expected 0 or more, got " + std::to_string(token));
        }
        history.append(token);
    }
}

Tail tail_behind(const History& history, const std::vector<int32_t>& tokens) {
    Tail tail = history.tail();
    for (const int32_t token : tokens) tail.push(token);
    return tail;
}

nb::list successors(const History& history, const std::vector<int32_t>& behind) {
    History::Successors found;
    const int count = history.successors(tail_behind(history, behind), found);
    nb::list result;
    for (int i = 0; i < count; ++i) {
        const Successor& item = found[static_cast<size_t>(i)];
        result.append(nb::make_tuple(item.token, item.weight));
    }
    return result;
}

nb::object match(const History& history, int count) {
    const Match found = history.match();
    if (found.length == 0) return nb::none();
    return nb::make_tuple(found.length, history.following(found.end, count));
}

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
          reader_(shape_, limits_, !draft_config.is_none()) {
        DraftModel draft;
        if (!draft_config.is_none()) draft = read_draft(draft_config, shape_, draft_arrays_);
        model_ = std::make_unique<Model>(kernels_, shape_, read_weights(shape_, arrays_), limits_,
                                         draft_config.is_none() ? nullptr : &draft);
    }

    // See StepReader::outputs.
    nb::list step(const nb::sequence& slices) {
        run(reader_.read(slices), nullptr);
        return reader_.outputs();
    }

    // The same step, but returns the logits of its logit rows, [rows, vocab_size].
    nb::ndarray<nb::numpy, float, nb::ndim<2>> logits(const nb::sequence& slices) {
        StepPlan& plan = reader_.read(slices);
        const size_t rows = plan.logit_rows.size(), vocab = static_cast<size_t>(shape_.vocab_size);
        auto* values = new float[rows * vocab];
        nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<float*>(p); });
        run(plan, values);
        return {values, {rows, vocab}, owner};
    }

    nb::dict take_profile() {
        static constexpr const char* kNames[] = {"embed",   "norm", "qkv",  "attention", "output",
                                                 "gate_up", "down", "head", "sample",    "draft"};
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

    void run(StepPlan& plan, float* logits) {
        Model& model = open();
        if (plan.slices.empty()) return;
        nb::gil_scoped_release release;
        model.step(plan, logits);
    }

    Arrays arrays_, draft_arrays_;
    ModelShape shape_;
    const KernelTable& kernels_;
    ModelLimits limits_;
    StepReader reader_;
    std::unique_ptr<Model> model_;
};

}  // namespace
}  // namespace flashlet

NB_MODULE(_native, m) {
    using namespace flashlet;
    bind_kernels(m);
    bind_drafter(m);
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
    nb::class_<History>(m, "TokenHistory", "The tokens of one sequence, to look up what followed before.")
        .def(nb::init<>())
        .def("extend", &extend, nb::arg("tokens"), "Take in what is new at the end of the whole text.")
        .def("__len__", &History::size)
        .def("successors", &successors, nb::arg("behind"),
             "What followed the last token before, once the tokens `behind` are put behind the text: "
             "(token id, how much speaks for it).")
        .def("match", &match, nb::arg("count"),
             "The longest earlier place that ends as the text does, 2 to MAX_MATCH tokens, as its length and "
             "`count` tokens that followed there; None if there is none.")
        .attr("MAX_MATCH") = History::kMostMatch;
    m.attr("TokenHistory").attr("MAX_SUCCESSORS") = History::kMost;
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
