#define FLASHLET_ISA avx2
#include "lanes_avx2.h"
//
#include "kernels_impl.h"

namespace flashlet {

const KernelTable* avx2_kernels() {
    static constexpr KernelTable table = avx2::make_table("avx2");
    return &table;
}

}  // namespace flashlet
