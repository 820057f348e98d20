// Which instruction sets this processor has. A library of its own, compiled for any processor, since the others cannot be
// asked where they do not run.
#include <cstdint>

#include "description.h"

#define API extern "C" __attribute__((visibility("default")))

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Whether the processor has products of tiles, and the system lets this process use them.
bool has_tiles() {
#if defined(OCTAVO_EMULATE_TILES)
    return true;
#elif defined(__linux__)
    constexpr unsigned OF_TILES = 3u << 24 | 1u << 22;  // tiles, products of bytes, products of bfloat16
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & OF_TILES) == OF_TILES &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

// What Clang has no names for: float16 in memory, and products of bytes in 256 bits without AVX-512.
bool has_float16() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & 1u << 29) != 0;
}
bool has_avx_vnni() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 4) != 0;
}

}  // namespace
#endif

namespace {

struct Sets {
    int64_t bits = 1;  // the plain set, which every processor of its kind has

    template <typename Set>
    void add(Set set, bool there) {
        bits |= static_cast<int64_t>(there) << static_cast<int>(set);
    }
};

}  // namespace

API const char* octavo_description() { return OCTAVO_DESCRIPTION; }

// A bit for each instruction set, by its number.
API int64_t octavo_instructions() {
    Sets sets;
#if defined(__x86_64__)
    using octavo::X86;
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_float16();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
    sets.add(X86::AVX2, avx2);
    sets.add(X86::AVX_VNNI, avx2 && has_avx_vnni());
    sets.add(X86::AVX512, avx512);
    sets.add(X86::AVX512_VNNI, vnni);
    sets.add(X86::AVX512_BF16, bf16);
    sets.add(X86::AMX, bf16 && has_tiles());
#elif defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long ASIMDDP = 1ul << 20;  // the kernel's HWCAP_ASIMDDP
    sets.add(octavo::Arm::DOTPROD, (getauxval(AT_HWCAP) & ASIMDDP) != 0);
#elif defined(__aarch64__) && defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    const bool known = sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0;
    sets.add(octavo::Arm::DOTPROD, known && has != 0);
#endif
    return sets.bits;
}
