// What is attended: how its numbers lie, which keys a query sees, and what threads take of it.
#pragma once

#include <algorithm>

#include "call.h"
#include "vector.h"

namespace octavo {

constexpr int KEYS = 64;  // in a tile
constexpr int64_t SPAN = 512;   // keys that are summed by themselves
constexpr int MAX_ROWS = 128;   // queries, of all heads of a group, in one task
constexpr float LOG2_E = 1.44269504f;

// What is attended, and how its numbers lie.
struct Attention : arguments::attention {
    explicit Attention(const arguments::attention& a)
        : arguments::attention(a), query_stride(static_cast<int64_t>(a.num_heads) * a.key_dim) {}

    DType query_dtype = DType::F32;
    int64_t query_stride;                    // numbers from a row to the next, as of keys and values ...
    int64_t key_stride = 0, value_stride = 0;  // ... where these lie in rows of all heads; 0 for a paged cache
    int64_t ratio = 1;                       // tokens that a cached key is of, which lies in the block of their last
    // Products of queries and of keys with vectors, and which of these is a distance's.
    const float *query_vectors = nullptr, *key_vectors = nullptr;
    const int64_t* vector_numbers = nullptr;
    int64_t num_vectors = 0;
};

// Whether block-sparse attention lets a head's query see a block of keys.
inline bool sees_block(const Attention& a, int64_t position, int head, int64_t block) {
    if (position / a.sparse_block - block < a.local_blocks) return true;
    return (block + (a.first_head + head) * a.head_step + 1) % a.sparse_stride == 0;
}

// The first and the last key that a run's query sees: up to itself or, where it sees all of the run, to the run's end.
inline int64_t first_seen(const Attention& a, const AttentionRun& run, int64_t position) {
    int64_t first = a.window ? position - a.window + 1 : a.chunk ? position / a.chunk * a.chunk : 0;
    if (run.sees_all) first = std::min(first, run.start);
    return std::max(first, run.first_key);
}
inline int64_t last_seen(const AttentionRun& run, int64_t position) {
    return run.sees_all ? run.start + run.num_tokens - 1 : position;
}

// Rows `first` to `first + rows` of a run's [tokens * group] queries under one head of keys; of all its spans, or of one,
// whose sums go to `partial`.
struct Task {
    const AttentionRun* run;
    int kv_head, rows;
    int64_t first;
    int64_t span = -1;
    float* partial = nullptr;
};

// The keys that one row of the batch sees, where there are lists of them: positions in ascending order, and then -1.
struct KeyList {
    const int32_t* keys;
    int64_t count;

    KeyList(const Attention& a, int64_t batch_row) : keys(a.key_lists + batch_row * a.list_size) {
        count = std::partition_point(keys, keys + a.list_size, [](int32_t key) { return key >= 0; }) - keys;
    }
};

// The keys that a task's rows see, and the spans that these are in: positions or, of a list, places in it.
struct KeyRange {
    int64_t begin, end;

    KeyRange(const Attention& a, const Task& task) {
        const int64_t group = a.num_heads / a.num_kv_heads, start = task.run->start;
        if (a.key_lists != nullptr) {
            begin = 0;
            end = KeyList(a, task.run->first_row + task.first / group).count;
            return;
        }
        end = last_seen(*task.run, start + (task.first + task.rows - 1) / group) + 1;
        begin = first_seen(a, *task.run, start + task.first / group) / KEYS * KEYS;
    }
    int64_t first_span() const { return begin / SPAN; }
    int64_t spans() const { return (end - 1) / SPAN - first_span() + 1; }
};

}  // namespace octavo
