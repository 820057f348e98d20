// Operations on rows: vector by vector through a row, and rows shared among threads.
#pragma once

#include "numbers.h"
#include "pool.h"

namespace octavo {

constexpr int64_t SMALL = 16384;  // values that one thread is through with before another has woken up

// Vectors that the registers hold beside one that multiplies them: with R rows, R sums for each vector that is loaded.
constexpr int HELD = (REGISTERS - 1) / (64 / REGISTER);

// How many of `rest` rows are taken next: as few steps of at most `most` as can be, of much the same size.
INLINE int next_rows(int64_t rest, int most) {
    const int64_t steps = (rest + most - 1) / most;
    return static_cast<int>((rest + steps - 1) / steps);
}

// f(std::integral_constant) with a number of rows up to R.
template <int R, typename Body>
INLINE void with_rows(int rows, const Body& body) {
    if (R == 1 || rows == R) return body(std::integral_constant<int, R>());
    if constexpr (R > 1) with_rows<R - 1>(rows, body);
}

template <typename Step>
INLINE void for_vectors(int64_t width, const Step& step) {
    const int64_t whole = width / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) step(i, LANES);
    if (whole < width) step(whole, static_cast<int>(width - whole));
}

template <typename T>
INLINE vec take(const T* p, int count) {
    return count == LANES ? load(p) : load_some(p, count);
}

template <typename T>
INLINE void put(T* p, vec v, int count) {
    count == LANES ? store(p, v) : store_some(p, v, count);
}

constexpr double VALUES = 2.0;  // that a thread is through with in a nanosecond

template <typename Body>
void over_rows(int64_t rows, int64_t width, const Body& body) {
    const int64_t grain = std::max<int64_t>(1, SMALL / std::max<int64_t>(1, width));
    parallel(rows, grain, static_cast<double>(rows * width) / VALUES, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) body(r);
    });
}

}  // namespace octavo
