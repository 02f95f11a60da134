// Single kernels for Python, so that tests can hold each of them against the reference.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"

namespace nb = nanobind;

namespace flashlet {
namespace {

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Cells = nb::ndarray<const uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

template <class T>
auto to_numpy(const std::vector<T>& values) {
    auto* copy = new T[values.size()];
    std::memcpy(copy, values.data(), values.size() * sizeof(T));
    nb::capsule owner(copy, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(copy, {values.size()}, owner);
}

std::vector<float> padded(const Vector& x, int multiple) {
    std::vector<float> values(static_cast<size_t>(round_up(static_cast<int>(x.size()), multiple)));
    std::memcpy(values.data(), x.data(), x.size() * sizeof(float));
    return values;
}

class Kernels {
  public:
    explicit Kernels(const std::string& isa) : table_(kernels_named(isa)) {}

    auto rms_norm(const Vector& x, const Vector& weight, float eps) const {
        std::vector<float> values = padded(x, kLanes), weights = padded(weight, kLanes), y(values.size());
        table_.rms_norm(values.data(), weights.data(), static_cast<int>(x.size()), eps, y.data());
        y.resize(x.size());
        return to_numpy(y);
    }

    auto map(const Vector& x, void (*function)(const float*, int, float*)) const {
        std::vector<float> values = padded(x, kLanes), y(values.size());
        function(values.data(), static_cast<int>(values.size()), y.data());
        y.resize(x.size());
        return to_numpy(y);
    }
    auto exp(const Vector& x) const { return map(x, table_.exp); }
    auto log(const Vector& x) const { return map(x, table_.log); }

    auto rope(const Vector& head, const Vector& cos, const Vector& sin) const {
        std::vector<float> y(head.data(), head.data() + head.size());
        table_.rope(y.data(), cos.data(), sin.data(), static_cast<int>(y.size()));
        return to_numpy(y);
    }

    // Quantizes the rows of x and multiplies them by all panels; out: [rows * panels * 16].
    auto linear(const Cells& cells, const Matrix& x) const {
        const auto rows = x.shape(0), inputs = x.shape(1);
        PackedMatrix w{cells.data(), nullptr, static_cast<int>(cells.shape(0)),
                       static_cast<int>(cells.shape(1))};
        if (cells.shape(2) == kHalfCellBytes) w.format = WeightFormat::kInt4;
        const InputFormat& format = table_.inputs_of(w.format);
        const int width = w.groups * kGroup, stride = w.groups * format.group_units;
        if (static_cast<int>(inputs) > width) throw std::invalid_argument("linear: more inputs than weights");
        std::vector<uint8_t> arranged(w.bytes());
        table_.arrange(w, arranged.data());
        w.cells = arranged.data();
        std::vector<int16_t> q(rows * static_cast<size_t>(stride));
        std::vector<float> scales(rows), row(static_cast<size_t>(width));
        for (size_t r = 0; r < rows; ++r) {
            std::memcpy(row.data(), x.data() + r * inputs, inputs * sizeof(float));
            const RowTile tile = tile_of(static_cast<int>(r), static_cast<int>(rows), table_.product_rows);
            scales[r] = format.quantize(
                row.data(), width, q.data() + static_cast<size_t>(tile.first) * static_cast<size_t>(stride),
                static_cast<int>(r) - tile.first, tile.rows);
        }
        const int outputs = w.panels * kLanes;
        std::vector<float> out(rows * static_cast<size_t>(outputs));
        table_.matmul(w, {q.data(), scales.data(), stride}, static_cast<int>(rows), 0, w.panels,
                      Epilogue::kStore, out.data(), outputs, {});
        return to_numpy(out);
    }

    std::vector<float> gumbel(uint64_t seed, uint64_t position, const std::vector<int32_t>& tokens) const {
        std::vector<float> noise(tokens.size());
        table_.gumbel(seed, position, tokens.data(), static_cast<int>(tokens.size()), noise.data());
        return noise;
    }

  private:
    const KernelTable& table_;
};

}  // namespace

void bind_kernels(nb::module_& m) {
    nb::class_<Kernels>(m, "Kernels", "Single kernels of one instruction set, for tests.")
        .def(nb::init<const std::string&>(), nb::arg("isa") = "")
        .def("rms_norm", &Kernels::rms_norm)
        .def("exp", &Kernels::exp)
        .def("log", &Kernels::log)
        .def("rope", &Kernels::rope)
        .def("linear", &Kernels::linear)
        .def("gumbel", &Kernels::gumbel);
}

}  // namespace flashlet
