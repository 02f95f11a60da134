#include "pages.h"

#include <sys/mman.h>

#include <new>
#include <utility>

namespace flashlet {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

}  // namespace

Pages::Pages(size_t bytes, bool reserved) : mapped_(bytes + kHugePage), bytes_(bytes) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (reserved ? 0 : MAP_NORESERVE);
    mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(mapping_);
    data_ = static_cast<uint8_t*>(mapping_) + (kHugePage - address % kHugePage) % kHugePage;
    madvise(data_, bytes, MADV_HUGEPAGE);
}

Pages::Pages(Pages&& other) noexcept { *this = std::move(other); }

Pages& Pages::operator=(Pages&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_, other.mapped_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

Pages::~Pages() {
    if (mapped_ > 0) munmap(mapping_, mapped_);
}

}  // namespace flashlet
