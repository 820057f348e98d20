// Attention's products in registers: scores of queries with keys, weights with values, and laying keys and values out.
#pragma once

#include "attention_task.h"
#include "cache.h"
#include "functions.h"
#include "rows.h"

namespace octavo {

constexpr int KEY_VECTORS = KEYS / LANES;
constexpr int ROWS = std::min(6, HELD - 1);  // queries that share each vector of keys or values that is loaded

// How numbers are multiplied: as floats; in pairs of bfloat16, two in a lane; or, a cache of codes, in pairs of 16-bit
// whole numbers, whose sums are exact.
struct InPlace {
    // A vector of what is multiplied, `lanes` behind the first.
    static INLINE vec at(const float* first, int64_t lanes) { return load(first + lanes); }
};

struct Floats : InPlace {
    using total = vec;
    static constexpr int STEP = 1;  // numbers in a lane
    static INLINE vec add(vec total, vec vectors, float by) { return fmadd(vectors, broadcast(by), total); }
};

struct Pairs : InPlace {
    using total = vec;
    static constexpr int STEP = 2;
    static INLINE vec add(vec total, vec pairs, float pair) {
#if defined(__AVX512BF16__)
        return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)pairs, (__m512bh)_mm512_set1_ps(pair));
#else
        return total + pairs * pair;  // never called
#endif
    }
};

// Of each lane a pair of bfloat16.
INLINE vec paired(vec low, vec high) {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr uint16_t TURNS[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (vec)_mm512_permutexvar_epi16(_mm512_load_si512(TURNS), halves);
#else
    return low + high;  // never called
#endif
}

INLINE ireg add_words(ireg total, ireg words, ireg by) {
#if defined(__AVX512VNNI__)
    return (ireg)_mm512_dpwssd_epi32((__m512i)total, (__m512i)words, (__m512i)by);
#elif defined(__AVXVNNI__)
    return (ireg)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)words, (__m256i)by);
#else
    return total + words * by;  // never called
#endif
}
BY_HALVES_3(add_words)

struct Words : InPlace {
    using total = ivec;
    static constexpr int STEP = 2;
    static INLINE ivec add(ivec total, vec words, float by) {
        return add_words(total, bit_cast<ivec>(words), broadcast(bit_cast<int32_t>(by)));
    }
};

// Words of codes that lie in pairs, as they are loaded.
struct PairedCodes : Words {
    static INLINE vec at(const float* first, int64_t lanes) {
        const auto* codes = reinterpret_cast<const int8_t*>(first) + STEP * lanes;
#if defined(__AVX512BW__)
        return (vec)_mm512_cvtepi8_epi16(load_as<__m256i>(codes));
#elif defined(__AVX2__)
        return bit_cast<vec>(ivec((ireg)_mm256_cvtepi8_epi16(load_as<__m128i>(codes)),
                                  (ireg)_mm256_cvtepi8_epi16(load_as<__m128i>(codes + LANES))));
#else
        return load(first + lanes);  // never called
#endif
    }
};

// Which of these a cache is computed with, where the processor has the instruction.
template <typename C>
struct ProductsOf {
    using type = Floats;
};
#if defined(__AVX512BF16__)
template <>
struct ProductsOf<bf16> {
    using type = Pairs;
};
template <>
struct ProductsOf<int4_row> {  // whose own errors are far larger than those of bfloat16
    using type = Pairs;
};
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
template <>
struct ProductsOf<int8_row> {
    using type = Words;
};
#endif

// What numbers up to `peak` are multiplied by to become words, of which `products` are multiplied with codes: a power of
// 2, so that whole numbers stay exact, and such that the sum is below 2^31.
INLINE float word_factor(float peak, int64_t products) {
    const int64_t most = std::min<int64_t>(32767, 0x7fffffff / (127 * products));
    if (!(peak > 0.0f)) return 0.0f;
    const float ratio = std::min(static_cast<float>(most) / peak, 0x1p100f);
    return bit_cast<float>(bit_cast<uint32_t>(ratio) & 0x7f800000u);
}

// Vectors that R rows are multiplied with at a time.
template <int R>
constexpr int VECTORS = HELD >= 4 * (R + (R > 1)) ? 4 : HELD >= 2 * (R + (R > 1)) ? 2 : 1;

// total[r][v] += x[r] * vectors[v]. Rows of x lie `x_stride` apart.
template <typename P, int R, int V>
INLINE void add_products(const float* x, int64_t x_stride, const vec (&vectors)[V], typename P::total (&total)[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const float by = x[r * x_stride];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) total[r][v] = P::add(total[r][v], vectors[v], by);
    }
}

// The scores of R rows of queries for V vectors of 16 keys, into rows of KEYS: the products by the rows' scales and, of
// codes, by the keys'.
template <typename P, int R, int V>
void score(const float* queries, int64_t query_floats, const float* const* keys, int64_t steps, const float* row_scales,
           const float* key_scales, float* out) {
    typename P::total total[R][V];
    clear(total);
#pragma GCC unroll 2
    for (int64_t i = 0; i < steps; ++i) {
        vec vectors[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) vectors[v] = P::at(keys[v], i * LANES);
        add_products<P, R, V>(queries + i, query_floats, vectors, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            vec scaled = to_float(total[r][v]) * row_scales[r];
            if (std::is_base_of_v<Words, P>) scaled *= load(key_scales + v * LANES);
            store(out + r * KEYS + v * LANES, scaled);
        }
}

// Adds to V vectors of R rows of sums what `steps` steps of values, in parts of 16 keys, give with the rows' weights; of
// codes, by the rows' scales.
template <typename P, int R, int V>
void add_values(const float* weights, const float* const* parts, int64_t at, int64_t value_floats, int steps,
                const float* row_scales, float* sums, int64_t stride) {
    constexpr int PART_STEPS = LANES / P::STEP;
    typename P::total total[R][V];
    if constexpr (std::is_base_of_v<Words, P>) {
        clear(total);
    } else {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) total[r][v] = load(sums + r * stride + v * LANES);
    }
    // One loop: compilers would move the sums to memory between the parts.
    for (int i = 0; i < steps; ++i) {
        const float* values = parts[i / PART_STEPS];
        const int64_t first = at + i % PART_STEPS * value_floats;
        vec vectors[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) vectors[v] = P::at(values, first + v * LANES);
        add_products<P, R, V>(weights + i, KEYS, vectors, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            float* to = sums + r * stride + v * LANES;
            if constexpr (std::is_base_of_v<Words, P>) {
                store(to, fmadd(to_float(total[r][v]), broadcast(row_scales[r]), load(to)));
            } else {
                store(to, total[r][v]);
            }
        }
}

// `count` floats, a multiple of a vector and zero past the row, as words: the nearest whole numbers of x * factor.
INLINE void store_words(int16_t* to, const float* x, float factor, int count) {
    for (int i = 0; i < count; i += LANES) store_as(to + i, convert<int16_t>(rounded(load(x + i) * factor)));
}

// Two of four codes in each lane as words: those whose bits `left` shifts to the top of a word.
INLINE ireg words_of(ireg four, int left) {
#if defined(__AVX512BW__)
    return (ireg)_mm512_srai_epi16(_mm512_sll_epi16((__m512i)four, _mm_cvtsi32_si128(left)), 8);
#elif defined(__AVX2__)
    return (ireg)_mm256_srai_epi16(_mm256_sll_epi16((__m256i)four, _mm_cvtsi32_si128(left)), 8);
#else
    return four << left;  // never called
#endif
}
template <int N>
INLINE auto words_of(const Halves<int32_t, N>& four, int left) {
    return join(words_of(four.low, left), words_of(four.high, left));
}

// 16 vectors of four codes of each lane to twice as many of two words: the first and the third, the second and the last.
INLINE void widen_codes(const float* codes, float* words) {
    for (int i = 0; i < LANES; ++i) {
        const ivec four = load_as<ivec>(codes + i * LANES);
        store_as(words + 2 * i * LANES, words_of(four, 8));
        store_as(words + (2 * i + 1) * LANES, words_of(four, 0));
    }
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

// Two rows of `dim` codes to pairs of words.
INLINE void interleave(const int8_t* a, const int8_t* b, int16_t* out, int dim) {
    int i = 0;
#if defined(__AVX512BW__)
    // Eights of columns such that those of a half lie side by side once their bytes are.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (; i + 64 <= dim; i += 64) {
        const __m512i x = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(a + i));
        const __m512i y = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(b + i));
        const __m512i low = _mm512_unpacklo_epi8(x, y), high = _mm512_unpackhi_epi8(x, y);
        int16_t* to = out + 2 * i;
        for (const __m512i half : {low, high}) {
            _mm512_storeu_si512(to, _mm512_cvtepi8_epi16(_mm512_castsi512_si256(half)));
            _mm512_storeu_si512(to + 32, _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(half, 1)));
            to += 64;
        }
    }
#endif
#if defined(__AVX2__)
    for (; i + LANES <= dim; i += LANES) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i));
        const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i));
        auto* to = reinterpret_cast<__m256i*>(out + 2 * i);
        _mm256_storeu_si256(to, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)));
        _mm256_storeu_si256(to + 1, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y)));
    }
#endif
    for (; i < dim; ++i) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

}  // namespace octavo
