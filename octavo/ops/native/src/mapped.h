// Weights in files that are mapped: pages that are not in memory yet.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace octavo {

// Bytes that are asked for and not computed with yet, at most: a layer's experts may be larger than memory.
constexpr int64_t ASKED_MOST = int64_t(256) << 20;

// Have the system begin to read what is mapped there. In pieces, since it begins no more than its read-ahead at a call.
inline void will_need(const void* address, int64_t bytes) {
#if defined(__unix__) || defined(__APPLE__)
    constexpr uintptr_t PIECE = 128 << 10;
    static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(address) / page * page;
    const uintptr_t end = reinterpret_cast<uintptr_t>(address) + static_cast<uintptr_t>(bytes);
    for (uintptr_t at = begin; at < end; at += PIECE) {
        madvise(reinterpret_cast<void*>(at), std::min(PIECE, end - at), MADV_WILLNEED);
    }
#else
    (void)address, (void)bytes;
#endif
}

}  // namespace octavo
