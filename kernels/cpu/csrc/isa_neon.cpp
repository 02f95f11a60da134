#define FLASHLET_ISA neon
#include "lanes_neon.h"
//
#include "kernels_impl.h"

namespace flashlet {

const KernelTable* neon_kernels() {
    static constexpr KernelTable table = neon::make_table("neon");
    return &table;
}

}  // namespace flashlet
