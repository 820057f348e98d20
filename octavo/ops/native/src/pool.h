// The core's own threads, and how work is shared out among them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace octavo {

// body(context, first, last) for pieces of 0..count that are `grain` long, on `wanted` threads; returns when all are
// done. A second caller, while the threads are taken, computes its own work alone.
void share(int64_t count, int64_t grain, int wanted, void (*body)(const void*, int64_t, int64_t), const void* context);

int thread_count();

// How many threads make the shortest of work that takes one so long.
int threads_worth(double nanoseconds);

// Pieces of 0..count that are `grain` long, on as many threads as `nanoseconds` of work are worth, all if that is not
// known; no more than make it shorter, where pieces are few.
template <typename Body>
void parallel(int64_t count, int64_t grain, double nanoseconds, const Body& body) {
    if (count <= 0) return;
    grain = std::max<int64_t>(1, grain);
    const int64_t pieces = (count + grain - 1) / grain, most = std::min<int64_t>(pieces, threads_worth(nanoseconds));
    if (most <= 1) {
        body(0, count);
        return;
    }
    const int64_t each = (pieces + most - 1) / most;
    share(count, grain, static_cast<int>((pieces + each - 1) / each),
          [](const void* context, int64_t first, int64_t last) { (*static_cast<const Body*>(context))(first, last); },
          &body);
}

constexpr double NOT_KNOWN = 1e18;

template <typename Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
    parallel(count, grain, NOT_KNOWN, body);
}

// What the thread with most of `count` does, in pieces of a grain that all threads take in turn.
inline int64_t most_of_a_thread(int64_t count, int64_t grain) {
    const int64_t pieces = (count + grain - 1) / grain, threads = thread_count();
    return (pieces + threads - 1) / threads * grain;
}

// The grain that leaves each thread about so many pieces: enough to even out, few enough to stay contiguous in memory;
// up to twice as many where all threads have the same to do then.
inline int64_t even_grain(int64_t count, int64_t pieces) {
    const int64_t largest = std::max<int64_t>(1, count / (pieces * thread_count()));
    int64_t best = largest;
    for (int64_t grain = largest - 1; 2 * grain >= largest && grain > 0; --grain) {
        if (most_of_a_thread(count, grain) * 8 <= most_of_a_thread(count, best) * 7) best = grain;
    }
    return best;
}

}  // namespace octavo
