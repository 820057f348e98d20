// What a thread does that waits for a moment.
#pragma once

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#define YIELD() sched_yield()
#else
#include <thread>
#define YIELD() std::this_thread::yield()
#endif

namespace octavo {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace octavo
