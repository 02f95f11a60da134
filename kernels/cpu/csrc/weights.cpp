#include "weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace flashlet {

void ModelWeights::map_pages() const {
#ifdef MADV_POPULATE_READ
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    each_matrix([&](const uint8_t* data, size_t bytes) {
        const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
        const uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
        madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
    });
#endif
}

}  // namespace flashlet
