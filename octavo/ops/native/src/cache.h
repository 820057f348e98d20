// What the paged cache holds: `[blocks, heads, block_size, row]`, a row being `dim` numbers; for int8 `dim` codes and
// the float32 that scales them; for int4 groups of 32 codes, 16 low halves of bytes and 16 high ones, each group with
// its scale and its low in float16.
#pragma once

#include <algorithm>
#include <cmath>

#include "call.h"
#include "codes.h"

namespace octavo {

struct int8_row {};
struct int4_row {};

#define WITH_CACHE(dtype, C, ...)                                                      \
    if (dtype == octavo::DType::INT8) { using C = octavo::int8_row; __VA_ARGS__ }      \
    else if (dtype == octavo::DType::INT4) { using C = octavo::int4_row; __VA_ARGS__ } \
    else WITH_TYPE(dtype, C, __VA_ARGS__)

constexpr int INT4_GROUP = 2 * LANES;  // numbers of an int4 row that have a scale and a low
constexpr int INT4_CODES = LANES;      // bytes of their codes
constexpr int INT4_BYTES = INT4_CODES + 2 * static_cast<int>(sizeof(f16));
static_assert(INT4_GROUP == 32);

template <typename C>
INLINE int64_t row_bytes(int dim) {
    return static_cast<int64_t>(dim) * static_cast<int64_t>(sizeof(C));
}
template <>
INLINE int64_t row_bytes<int8_row>(int dim) {
    return dim + static_cast<int64_t>(sizeof(float));
}

template <>
INLINE int64_t row_bytes<int4_row>(int dim) {
    return round_up(dim, INT4_GROUP) / INT4_GROUP * INT4_BYTES;
}

// Zero, or not a number where one of them is not finite: comparisons pass over what is not a number.
INLINE float nothing_or_nan(const float* x, int64_t count) {
    vec total = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) total = fmadd(load(x + i), vec{}, total);
    if (i < count) total = fmadd(load_some(x + i, static_cast<int>(count - i)), vec{}, total);
    return sum(total);
}

// Codes of `count` numbers, with room for those of whole vectors. Returns their scale.
INLINE float store_int8(int8_t* out, const float* x, int64_t count) {
    const auto some = [&](int64_t i) {
        return i + LANES <= count ? load(x + i) : load_some(x + i, static_cast<int>(count - i));
    };
    vec peaks = {};
    for (int64_t i = 0; i < count; i += LANES) peaks = larger(absolute(some(i)), peaks);
    const float peak = highest(peaks), inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
    for (int64_t i = 0; i < count; i += LANES) store_bytes(out + i, rounded(some(i) * inverse));
    return peak / 127.0f + nothing_or_nan(x, count);
}

// What float16 has not is its largest number; what is not a number stays so.
INLINE float as_half(float x, f16* to) {
    const float largest = 65504.0f;
    set(to, x > largest ? largest : x < -largest ? -largest : x);
    return as_float(*to);
}

// What makes numbers of an int4 group's codes.
struct Int4Factors {
    f16 scale, low;
};

// Codes of up to 32 numbers, as vectors of the first and of the last 16. A group with a number that is not finite becomes
// NaN, so that its token is found by its hidden state.
INLINE Int4Factors int4_codes(const float* x, int count, ivec (&codes)[2]) {
    float group[INT4_GROUP];
    std::copy(x, x + count, group);
    std::fill(group + count, group + INT4_GROUP, x[count - 1]);  // which leaves the range as it is
    const vec first = load(group), second = load(group + LANES);
    const float high = highest(larger(first, second)), lowest = -highest(larger(-first, -second));
    Int4Factors factors;
    const float low = as_half(lowest, &factors.low), span = high - low;
    const float scale = as_half(std::fmax(span / 15.0f, 0.0f) + nothing_or_nan(group, INT4_GROUP), &factors.scale);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const auto code = [&](vec v) { return rounded(smaller(larger((v - low) * inverse, vec{}), broadcast(15.0f))); };
    codes[0] = code(first);
    codes[1] = code(second);
    return factors;
}

INLINE void store_int4(char* out, const float* x, int count) {
    ivec codes[2];
    const Int4Factors factors = int4_codes(x, count, codes);
    const ivec pairs = codes[0] | codes[1] << 4;
    // As bytes with a sign, which keep all eight bits.
    store_bytes(reinterpret_cast<int8_t*>(out), select(pairs > 127, pairs - 256, pairs));
    std::memcpy(out + INT4_CODES, &factors, sizeof factors);
}

// The numbers of a group of a row.
struct Int4Numbers {
    vec first, last;  // 16 each

    INLINE explicit Int4Numbers(const char* from) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(from);
        const auto* halves = bytes + INT4_CODES;
#if defined(__F16C__)
        const __m128 factors = _mm_cvtph_ps(_mm_loadu_si32(halves));  // of one by one, each would wait for a store
        const float scale = factors[0], low = factors[1];
#else
        const float scale = half_at(halves), low = half_at(halves + sizeof(f16));
#endif
        const ivec pairs = unsigned_numbers(bytes);
        first = fmadd(to_float(pairs & 15), broadcast(scale), broadcast(low));
        last = fmadd(to_float(pairs >> 4), broadcast(scale), broadcast(low));
    }
};

INLINE void widen_int4(const char* from, float* to) {
    const Int4Numbers numbers(from);
    store(to, numbers.first);
    store(to + LANES, numbers.last);
}

// How the tokens of a block lie under one head. Paired, a cache of bfloat16 or int8 is as the processor's product of pairs
// reads it, with nothing to rearrange: keys 16 tokens at a time as `[dim / 2][16 tokens][2]`, values as
// `[tokens / 2][dim][2]`; of int8 the 16 scales follow each 16 tokens' codes. Blocks are then of a multiple of 16 tokens,
// and so is dim. Of int4 only keys are paired, whose dim is a multiple of 32, each group as `[16 pairs][16 tokens]` bytes,
// 16 scales and 16 lows: values of two tokens would share bytes, which threads write apart.
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
        const bool is_row_of_int4 = std::is_same_v<C, int4_row> && layout == Layout::PAIRED_VALUES;
        if (layout != Layout::ROWS && !is_row_of_int4) return write_paired(slot, head, x);
        if constexpr (std::is_same_v<C, int8_row>) {
            char* to = row(slot, head);
            int8_t codes[MAX_HEAD_DIM];
            const float scale = store_int8(codes, x, dim);
            std::memcpy(to, codes, dim);
            std::memcpy(to + dim, &scale, sizeof scale);
        } else if constexpr (std::is_same_v<C, int4_row>) {
            char* to = row(slot, head);
            for (int i = 0; i < dim; i += INT4_GROUP, to += INT4_BYTES) {
                store_int4(to, x + i, std::min(INT4_GROUP, dim - i));
            }
        } else {
            C* to = reinterpret_cast<C*>(row(slot, head));
            int i = 0;
            for (; i + LANES <= dim; i += LANES) store(to + i, load(x + i));
            if (i < dim) store_some(to + i, load_some(x + i, dim - i), dim - i);
        }
    }

private:
    void write_paired(int64_t slot, int head, const float* x) const {
        const int64_t token = slot % block_size % LANES;
        char* group = row(slot - token, head);  // of the 16 tokens that lie together
        if constexpr (std::is_same_v<C, bf16>) {
            bf16 halves[MAX_HEAD_DIM];
            for (int i = 0; i < dim; i += LANES) store(halves + i, load(x + i));
            put_paired(reinterpret_cast<bf16*>(group), token, halves);
        } else if constexpr (std::is_same_v<C, int8_row>) {
            int8_t codes[MAX_HEAD_DIM];
            const float scale = store_int8(codes, x, dim);
            put_paired(reinterpret_cast<int8_t*>(group), token, codes);
            std::memcpy(group + dim * LANES + token * sizeof scale, &scale, sizeof scale);
        } else if constexpr (std::is_same_v<C, int4_row>) {
            for (int i = 0; i < dim; i += INT4_GROUP, group += INT4_BYTES * LANES) put_int4(group, token, x + i);
        }
    }

    static void put_int4(char* group, int64_t token, const float* x) {
        ivec codes[2];
        const Int4Factors factors = int4_codes(x, INT4_GROUP, codes);
        int32_t of[INT4_GROUP];
        store_as(of, codes[0]);
        store_as(of + LANES, codes[1]);
        for (int i = 0; i < INT4_CODES; ++i) group[i * LANES + token] = static_cast<char>(of[2 * i] | of[2 * i + 1] << 4);
        auto* halves = reinterpret_cast<f16*>(group + INT4_CODES * LANES);
        halves[token] = factors.scale;
        halves[LANES + token] = factors.low;
    }

    template <typename T>
    void put_paired(T* group, int64_t token, const T* x) const {
        if (layout == Layout::PAIRED_KEYS) {
            for (int i = 0; i < dim; i += 2) std::memcpy(group + i * LANES + 2 * token, x + i, 2 * sizeof(T));
        } else {
            T* pair = group + token / 2 * 2 * dim + token % 2;
            for (int i = 0; i < dim; ++i) pair[2 * i] = x[i];
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
    } else if constexpr (std::is_same_v<C, int4_row>) {
        int i = 0;
        for (; i + INT4_GROUP <= dim; i += INT4_GROUP, from += INT4_BYTES) widen_int4(from, to + i);
        if (i < dim) {
            float group[INT4_GROUP];
            widen_int4(from, group);
            std::copy(group, group + dim - i, to + i);
        }
        for (i = dim; i < room; ++i) to[i] = 0.0f;
    } else {
        const C* x = reinterpret_cast<const C*>(from);
        int i = 0;
        for (; i + LANES <= dim; i += LANES) store(to + i, load(x + i));
        if (i < dim) store(to + i, load_some(x + i, dim - i));
        for (i = static_cast<int>(round_up(dim, LANES)); i < room; i += LANES) store(to + i, vec{});
    }
}

}  // namespace octavo
