#define FLASHLET_ISA portable
#include "lanes_portable.h"
//
#include "kernels_impl.h"

namespace flashlet {

const KernelTable* portable_kernels() {
    static constexpr KernelTable table = portable::make_table("portable");
    return &table;
}

}  // namespace flashlet
