#include "weights.h"

#include <sys/mman.h>
#include <unistd.h>

namespace flashlet {

void map_pages([[maybe_unused]] const uint8_t* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_POPULATE_READ
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
    const uintptr_t end = reinterpret_cast<uintptr_t>(data) + bytes;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
#endif
}

}  // namespace flashlet
