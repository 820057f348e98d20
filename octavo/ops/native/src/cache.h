// What the paged cache holds: `[blocks, heads, block_size, row]`, a row being `dim` numbers, or for int8 `dim` codes and
// the float32 that scales them.
#pragma once

#include <cmath>

#include "call.h"
#include "numbers.h"

namespace octavo {

struct int8_row {};

#define WITH_CACHE(dtype, C, ...)                                                 \
    if (dtype == octavo::DType::INT8) { using C = octavo::int8_row; __VA_ARGS__ } \
    else WITH_TYPE(dtype, C, __VA_ARGS__)

template <typename C>
INLINE int64_t row_bytes(int dim) {
    return static_cast<int64_t>(dim) * static_cast<int64_t>(sizeof(C));
}
template <>
INLINE int64_t row_bytes<int8_row>(int dim) {
    return dim + static_cast<int64_t>(sizeof(float));
}

INLINE float store_int8(int8_t* out, const float* x, int64_t count) {
    float peak = 0.0f;
    for (int64_t i = 0; i < count; ++i) peak = std::fmax(peak, std::fabs(x[i]));
    const float inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int8_t>(std::nearbyintf(x[i] * inverse));
    return peak / 127.0f;
}

// How the tokens of a block lie under one head. Paired, a bfloat16 cache is as the processor's product of pairs reads
// it, with nothing to rearrange: keys 16 tokens at a time as `[dim / 2][16 tokens][2]`, values as `[tokens / 2][dim][2]`.
// Blocks are then of a multiple of 16 tokens, and so is dim.
enum class Layout { ROWS, PAIRED_KEYS, PAIRED_VALUES };

template <typename C>
struct CacheWriter {
    void* cache;
    int64_t block_size;
    int num_heads, dim;
    Layout layout = Layout::ROWS;

    char* row(int64_t slot, int head) const {
        const int64_t at = (slot / block_size * num_heads + head) * block_size + slot % block_size;
        return static_cast<char*>(cache) + at * row_bytes<C>(dim);
    }

    void write(int64_t slot, int head, const float* x) const {
        if (std::is_same_v<C, bf16> && layout != Layout::ROWS) {
            bf16 halves[MAX_HEAD_DIM];
            for (int i = 0; i < dim; i += LANES) store(halves + i, load(x + i));
            const int64_t token = slot % block_size, first = token % (layout == Layout::PAIRED_KEYS ? LANES : 2);
            auto* group = reinterpret_cast<bf16*>(row(slot - first, head));  // the tokens that lie together
            if (layout == Layout::PAIRED_KEYS) {
                for (int i = 0; i < dim; i += 2) std::memcpy(group + i * LANES + 2 * first, halves + i, 4);
            } else {
                for (int i = 0; i < dim; ++i) group[2 * i + first] = halves[i];
            }
            return;
        }
        if constexpr (std::is_same_v<C, int8_row>) {
            char* to = row(slot, head);
            const float scale = store_int8(reinterpret_cast<int8_t*>(to), x, dim);
            std::memcpy(to + dim, &scale, sizeof scale);
        } else {
            C* to = reinterpret_cast<C*>(row(slot, head));
            int i = 0;
            for (; i + LANES <= dim; i += LANES) store(to + i, load(x + i));
            if (i < dim) store_some(to + i, load_some(x + i, dim - i), dim - i);
        }
    }
};

// A row of `dim` numbers as floats, zero up to `room`, a multiple of a vector.
template <typename C>
INLINE void widen_row(const char* from, float* to, int dim, int room) {
    if constexpr (std::is_same_v<C, int8_row>) {
        float scale;
        std::memcpy(&scale, from + dim, sizeof scale);
        for (int i = 0; i < dim; ++i) to[i] = static_cast<float>(static_cast<int8_t>(from[i])) * scale;
        for (int i = dim; i < room; ++i) to[i] = 0.0f;
    } else {
        const C* x = reinterpret_cast<const C*>(from);
        int i = 0;
        for (; i + LANES <= dim; i += LANES) store(to + i, load(x + i));
        if (i < dim) store(to + i, load_some(x + i, dim - i));
        for (i = static_cast<int>(round_up(dim, LANES)); i < room; i += LANES) store(to + i, vec{});
    }
}

}  // namespace octavo
