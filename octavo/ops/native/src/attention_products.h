// Attention's products in registers: scores of queries with keys, weights with values, and laying keys and values out.
#pragma once

#include "cache.h"
#include "functions.h"
#include "rows.h"

namespace octavo {

constexpr int KEYS = 64;  // in a tile
constexpr int KEY_VECTORS = KEYS / LANES;
constexpr int ROWS = std::min(6, HELD - 1);  // queries that share each vector of keys or values that is loaded

#if defined(__AVX512BF16__)
template <typename C>
constexpr bool PAIRED = std::is_same_v<C, bf16>;
#else
template <typename C>
constexpr bool PAIRED = false;
#endif

INLINE vec pair_product(vec total, vec pairs, float pair) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)pairs, (__m512bh)_mm512_set1_ps(pair));
#else
    return total + pairs * pair;  // never called: PAIRED is false
#endif
}

// Vectors that R rows are multiplied with at a time.
template <int R>
constexpr int VECTORS = HELD >= 4 * (R + (R > 1)) ? 4 : HELD >= 2 * (R + (R > 1)) ? 2 : 1;

// total[r][v] += x[r] * vectors[v]: numbers, or two in a pair. Rows of x lie `x_stride` apart.
template <bool PAIRS, int R, int V>
INLINE void add_products(const float* x, int64_t x_stride, const vec (&vectors)[V], vec (&total)[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const float by = x[r * x_stride];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            total[r][v] =
                PAIRS ? pair_product(total[r][v], vectors[v], by) : fmadd(vectors[v], broadcast(by), total[r][v]);
        }
    }
}

// The scores of R rows of queries for V vectors of 16 keys, into rows of KEYS.
template <bool PAIRS, int R, int V>
void score(const float* queries, int64_t query_floats, const float* const* keys, int64_t steps, float scale, float* out) {
    vec total[R][V];
    clear(total);
#pragma GCC unroll 2
    for (int64_t i = 0; i < steps; ++i) {
        vec vectors[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) vectors[v] = load(keys[v] + i * LANES);
        add_products<PAIRS, R, V>(queries + i, query_floats, vectors, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(out + r * KEYS + v * LANES, total[r][v] * scale);
}

// Adds to V vectors of R rows of sums what `steps` steps of values, in parts of 16 keys, give with the rows' weights.
template <bool PAIRS, int R, int V>
void add_values(const float* weights, const float* const* parts, int64_t at, int64_t value_floats, int steps, float* sums,
                int64_t stride) {
    constexpr int PART_STEPS = LANES / (PAIRS ? 2 : 1);
    vec total[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) total[r][v] = load(sums + r * stride + v * LANES);
    // One loop: compilers would move the sums to memory between the parts.
    for (int i = 0; i < steps; ++i) {
        const float* values = parts[i / PART_STEPS] + at + i % PART_STEPS * value_floats;
        vec vectors[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) vectors[v] = load(values + v * LANES);
        add_products<PAIRS, R, V>(weights + i, KEYS, vectors, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(sums + r * stride + v * LANES, total[r][v]);
}

// 16 rows of 16 four-byte values, `stride` bytes apart, to columns.
INLINE void transpose(const float* const* rows, float* out) {
#if defined(__AVX512F__)
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i]);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        _mm512_storeu_si512(out + i * 16, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(out + (i + 8) * 16, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_si512(out + (i + 4) * 16, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_si512(out + (i + 12) * 16, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
#elif defined(__AVX2__)
    for (int half = 0; half < 16; half += 8) {
        const float* const* of = rows + half;
        for (int c = 0; c < 16; c += 4) {
            const auto two = [&](int r) {  // columns c to c + 3 of rows r and r + 4
                return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(of[r] + c)), _mm_loadu_ps(of[r + 4] + c), 1);
            };
            const __m256 a = two(0), b = two(1), d = two(2), e = two(3);
            const __m256 ab = _mm256_unpacklo_ps(a, b), de = _mm256_unpacklo_ps(d, e);
            const __m256 ab2 = _mm256_unpackhi_ps(a, b), de2 = _mm256_unpackhi_ps(d, e);
            float* to = out + c * 16 + half;
            _mm256_storeu_ps(to, _mm256_shuffle_ps(ab, de, 0x44));
            _mm256_storeu_ps(to + 16, _mm256_shuffle_ps(ab, de, 0xee));
            _mm256_storeu_ps(to + 32, _mm256_shuffle_ps(ab2, de2, 0x44));
            _mm256_storeu_ps(to + 48, _mm256_shuffle_ps(ab2, de2, 0xee));
        }
    }
#else
    for (int c = 0; c < 16; ++c)
        for (int r = 0; r < 16; ++r) std::memcpy(out + c * 16 + r, rows[r] + c, 4);
#endif
}

// Two rows of `dim` bfloat16 to pairs.
INLINE void interleave(const uint16_t* a, const uint16_t* b, uint16_t* out, int dim) {
    int i = 0;
#if defined(__AVX512BW__)
    alignas(64) static constexpr uint16_t LOW[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(LOW), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (; i + 32 <= dim; i += 32) {
        const __m512i x = _mm512_loadu_si512(a + i), y = _mm512_loadu_si512(b + i);
        _mm512_storeu_si512(out + 2 * i, _mm512_permutex2var_epi16(x, low, y));
        _mm512_storeu_si512(out + 2 * i + 32, _mm512_permutex2var_epi16(x, high, y));
    }
#endif
    for (; i < dim; ++i) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

}  // namespace octavo
