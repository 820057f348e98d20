// Which of the libraries this processor can run. Only the one that is compiled for any processor is asked.
#include <cstdint>

#include "call.h"

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
    constexpr unsigned TILES_AND_INT8 = 3u << 24;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & TILES_AND_INT8) == TILES_AND_INT8 &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

}  // namespace
#endif

// How many of the instruction sets beyond the plain one: of AVX2, AVX-512, its VNNI, its BF16 and AMX, each of which has
// those before it; of Arm's, products of bytes.
API int64_t octavo_instructions() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
        return 1;
    }
    if (!__builtin_cpu_supports("avx512vnni")) return 2;
    if (!__builtin_cpu_supports("avx512bf16")) return 3;
    return has_tiles() ? 5 : 4;
#elif defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long ASIMDDP = 1ul << 20;  // the kernel's HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & ASIMDDP) != 0 ? 1 : 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0 ? 1 : 0;
#else
    return 0;
#endif
}
