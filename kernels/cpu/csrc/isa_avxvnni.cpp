#define FLASHLET_ISA avxvnni
#include "lanes_avx2.h"
//
#include "kernels_impl.h"

namespace flashlet {

const KernelTable* avxvnni_kernels() {
    static constexpr KernelTable table = avxvnni::make_table("avxvnni");
    return &table;
}

}  // namespace flashlet
