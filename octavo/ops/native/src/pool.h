// The core's own threads, and how work is shared out among them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace octavo {

// body(context, first, last) for pieces of 0..count that are `grain` long, on all threads; returns when all are done.
// A second caller, while the threads are taken, computes its own work alone.
void share(int64_t count, int64_t grain, void (*body)(const void*, int64_t, int64_t), const void* context);

int thread_count();

template <typename Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    if (count <= grain || thread_count() == 1) {
        body(0, count);
        return;
    }
    share(count, std::max<int64_t>(1, grain),
          [](const void* context, int64_t first, int64_t last) { (*static_cast<const Body*>(context))(first, last); },
          &body);
}

// The grain that leaves each thread so many pieces: enough to even out, few enough to stay contiguous in memory.
inline int64_t even_grain(int64_t count, int64_t pieces) {
    return std::max<int64_t>(1, count / (pieces * thread_count()));
}

}  // namespace octavo
