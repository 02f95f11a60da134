// Every kernel, written once over sixteen lanes; each instruction set compiles it in its own namespace.
// No standard-library templates in these files: an inline function compiled for AVX-512 must not be shared
// with other files by the linker.
#pragma once

#include "attention_impl.h"
#include "sampling_impl.h"

namespace flashlet::FLASHLET_ISA {

static_assert(kAttentionRows <= kMaxTile);

inline constexpr KernelTable make_table(const char* name) {
    return {name,
            kProductRows,
            kAttentionRows,
            kFewRows,
            rms_norm,
            quantize<kMaxQuantized>,
            {Groups::quantize, Groups::kRowUnits},
            {Groups::quantize_bytes, Groups::kByteRowUnits},
            kCoarseInputs,
            kCoarseError,
            arrange_matrix,
            matmul,
            rope,
            store_key,
            store_value,
            attend,
            combine,
            embed,
            argmax,
            peak,
            collect,
            exp_sum,
            gumbel_argmax,
            gumbel,
            exp,
            log,
            read};
}

}  // namespace flashlet::FLASHLET_ISA
