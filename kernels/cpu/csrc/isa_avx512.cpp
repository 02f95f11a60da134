#define FLASHLET_ISA avx512
#include "lanes_avx512.h"
//
#include "kernels_impl.h"

namespace flashlet {

const KernelTable* avx512_kernels() {
    static constexpr KernelTable table = avx512::make_table("avx512");
    return &table;
}

}  // namespace flashlet
