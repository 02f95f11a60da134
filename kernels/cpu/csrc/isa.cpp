#include "isa.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace flashlet {
namespace {

#if defined(__x86_64__)
// CPUID leaf 7, subleaf 1, EAX bit 4; compilers of 2022 have no name for it yet.
bool has_avxvnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1u) != 0;
}
#endif

}  // namespace

std::vector<const KernelTable*> available_kernels() {
    std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512) tables.push_back(avx512_kernels());
    if (avx2 && has_avxvnni()) tables.push_back(avxvnni_kernels());
    if (avx2) tables.push_back(avx2_kernels());
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) tables.push_back(neon_kernels());
#endif
    tables.push_back(portable_kernels());
    return tables;
}

const KernelTable& kernels_named(const std::string& name) {
    for (const KernelTable* table : available_kernels()) {
        if (name.empty() || name == table->name) return *table;
    }
    throw std::invalid_argument("instruction set: expected one that this machine can run, got " + name);
}

bool reads_pages_ahead() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

}  // namespace flashlet
