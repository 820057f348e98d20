// Weights of few bits that no whole numbers stand for: floats of 8 bits, and codes of 4 that are places in a table of
// floats. They are widened as they meet rows of floats, and a group's sum is times the scale of its output.
//
// A packed weight is a row of panels of 16 outputs: codes column by column, those of 4 bits in pairs of columns, the
// first in the low halves; then the float32 scales `[groups][16]`. A row as it is stored is units of GROUPED columns:
// a float32 scale, then codes, of 4 bits the first in the low half.
#pragma once

#include "numbers.h"

namespace octavo {

// What both have in common; BITS of a code.
template <int BITS, int COLUMNS>
struct ScaledCodes {
    static constexpr int GROUPED = COLUMNS;
    static constexpr int64_t UNIT_BYTES = 4 + COLUMNS * BITS / 8;

    static int64_t padded(int64_t width) { return round_up(width, COLUMNS); }
    static constexpr int64_t code_bytes(int64_t columns) { return columns * PANEL * BITS / 8; }
    static int64_t panel_bytes(int64_t columns) { return code_bytes(columns) + columns / COLUMNS * PANEL * 4; }
    static INLINE const float* scales(const uint8_t* panel, int64_t columns) {
        return reinterpret_cast<const float*>(panel + code_bytes(columns));
    }
    using Word = uint8_t;  // what of an output lies side by side
};

// Floats of 8 bits: 4 of exponent, 3 of mantissa. As float16 with the same bits they are a 256th of what they are, and
// their scales are packed times 256. Two columns lie together, output by output, as in panels of bfloat16.
struct E4M3 : ScaledCodes<8, 128> {
    static constexpr float FACTOR = 256.0f;

    using Word = uint16_t;

    static INLINE vec weights(const uint8_t* panel, int64_t column) {
        const uint8_t* p = panel + column / 2 * 2 * PANEL;
#if defined(__AVX512BW__)
        const __m256i two = load_as<__m256i>(p), own = column % 2 ? two : _mm256_slli_epi16(two, 8);
        return (vec)_mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(own, 1), _mm256_set1_epi16(-16512)));
#elif defined(__AVX2__) && defined(__F16C__)
        const auto half = [&](const uint8_t* bytes) {
            const __m128i two = load_as<__m128i>(bytes), own = column % 2 ? two : _mm_slli_epi16(two, 8);
            return (reg)_mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(own, 1), _mm_set1_epi16(-16512)));
        };
        return {half(p), half(p + 16)};
#else
        const hvec two = load_as<hvec>(p), own = column % 2 ? two : two << 8;
        return widen((own & uint16_t(0x7f00)) >> 1 | (own & uint16_t(0x8000)), static_cast<const f16*>(nullptr));
#endif
    }

#if defined(__AVX512BW__)
    // Two columns as pairs of bfloat16, which have all of such a float: its bits with another exponent, to which those
    // with the exponent of zero add what makes them numbers without one.
    static INLINE vec pairs(const uint8_t* panel, int64_t column) {
        static constexpr int16_t NORMAL = 112 << 7;
        alignas(64) static constexpr int16_t SMALL[32] = {
            0,
            (110 << 7) - (1 << 4),
            (111 << 7) - (2 << 4),
            (111 << 7 | 64) - (3 << 4),
            (112 << 7) - (4 << 4),
            (112 << 7 | 32) - (5 << 4),
            (112 << 7 | 64) - (6 << 4),
            (112 << 7 | 96) - (7 << 4),
        };
        const __m512i wide = _mm512_cvtepi8_epi16(load_as<__m256i>(panel + column * PANEL));
        const __m512i bits = _mm512_and_si512(_mm512_slli_epi16(wide, 4), _mm512_set1_epi16(-30736));
        const __mmask32 small = _mm512_testn_epi16_mask(wide, _mm512_set1_epi16(0x78));
        const __m512i normal = _mm512_set1_epi16(NORMAL), of_small = _mm512_load_si512(SMALL);
        const __m512i add = _mm512_mask_permutexvar_epi16(normal, small, wide, of_small);
        return (vec)_mm512_add_epi16(bits, add);
    }
#endif
};

// Floats of 8 bits: 5 of exponent, 2 of mantissa, which are the upper half of a float16.
struct E5M2 : ScaledCodes<8, 128> {
    static constexpr float FACTOR = 1.0f;

    static INLINE vec weights(const uint8_t* panel, int64_t column) {
        const uint8_t* p = panel + column * PANEL;
#if defined(__AVX512BW__)
        return (vec)_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load_as<__m128i>(p)), 8));
#elif defined(__AVX2__) && defined(__F16C__)
        const auto half = [](const uint8_t* bytes) {
            return (reg)_mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadu_si64(bytes)), 8));
        };
        return {half(p), half(p + 8)};
#else
        return widen(convert<uint16_t>(load_as<Lanes<uint8_t, LANES>>(p)) << 8, static_cast<const f16*>(nullptr));
#endif
    }
};

// Codes of 4 bits into a table.
struct Table4 : ScaledCodes<4, 64> {
    static constexpr float FACTOR = 1.0f;

    static INLINE vec look_up(const uint8_t* panel, int64_t column, const float* table) {
        const uint8_t* p = panel + column / 2 * PANEL;
        const int at = static_cast<int>(column % 2) * 4;
#if defined(__AVX512F__)
        const __m512i codes = _mm512_srli_epi32(_mm512_cvtepu8_epi32(load_as<__m128i>(p)), at);
        return (vec)_mm512_permutexvar_ps(codes, (__m512)load(table));  // which takes the lowest 4 bits
#elif defined(__AVX2__)
        const auto half = [&](const uint8_t* bytes) {
            const __m256i codes = _mm256_srli_epi32(_mm256_cvtepu8_epi32(_mm_loadu_si64(bytes)), at);
            const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
            const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), codes);
            return (reg)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
        };
        return {half(p), half(p + 8)};
#else
        float values[PANEL];
        for (int o = 0; o < PANEL; ++o) values[o] = table[p[o] >> at & 15];
        return load(values);
#endif
    }
};

// bitsandbytes' normal floats: the middles of 16 parts of a normal distribution, over the largest (Dettmers et al. 2023).
struct NF4 : Table4 {
    static INLINE vec weights(const uint8_t* panel, int64_t column) {
        static constexpr float VALUES[16] = {
            -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
            -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
            0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
            0.7229568362236023f, 1.0f};
        return look_up(panel, column, VALUES);
    }
};

// bitsandbytes' floats of 4 bits: of 12, the largest.
struct FP4 : Table4 {
    static INLINE vec weights(const uint8_t* panel, int64_t column) {
        static constexpr float VALUES[16] = {
            0.0f,  0.0625f / 12.0f,  8.0f / 12.0f,  1.0f,  4.0f / 12.0f,  6.0f / 12.0f,  2.0f / 12.0f,  3.0f / 12.0f,
            -0.0f, -0.0625f / 12.0f, -8.0f / 12.0f, -1.0f, -4.0f / 12.0f, -6.0f / 12.0f, -2.0f / 12.0f, -3.0f / 12.0f};
        return look_up(panel, column, VALUES);
    }
};

// Its last argument with S as the layout of such a WeightKind, which is only known when called.
#define WITH_SCALED(kind, S, ...)                                                       \
    switch (kind) {                                                                     \
        case octavo::WeightKind::E4M3: { using S = octavo::E4M3; __VA_ARGS__; break; }  \
        case octavo::WeightKind::NF4: { using S = octavo::NF4; __VA_ARGS__; break; }    \
        case octavo::WeightKind::FP4: { using S = octavo::FP4; __VA_ARGS__; break; }    \
        case octavo::WeightKind::E5M2: { using S = octavo::E5M2; __VA_ARGS__; break; }  \
        default: break;                                                                 \
    }

}  // namespace octavo
