// The Python face of the native core.
#include <nanobind/nanobind.h>

NB_MODULE(_native, m) {
    m.def("compiler", [] { return __VERSION__; }, "Version of the compiler that built this module.");
}
