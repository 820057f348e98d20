// Products of weights' codes with activations: 4 columns of 16 outputs at a time, summed in integers.
//
// Codes are bytes without sign and activations bytes from -127 to 127. Where an instruction adds products up in 16 bits,
// several steps share one sum before it is widened: exact, and less work.
#pragma once

#include "vector.h"

namespace octavo {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || !defined(__AVX2__)
#define SUMS_PAIRS 0
#else
#define SUMS_PAIRS 1
#endif

// What is taken off codes of 8 bits where the instructions want numbers with a sign.
#if SUMS_PAIRS || defined(__aarch64__)
constexpr int TAKEN_OFF = 128;
#else
constexpr int TAKEN_OFF = 0;
#endif

// Steps whose products, two columns in 16 bits, can be added up: 2 * 15 * 127 * 8 is below 2^15.
template <int BITS>
constexpr int STEPS_TOGETHER = !SUMS_PAIRS ? 1 : BITS == 4 ? 8 : BITS == 5 ? 4 : BITS == 6 ? 2 : 1;

// Four activations, for every output.
INLINE ireg four_of(const int8_t* x) { return load_as<int32_t>(x) - ireg{}; }

#if SUMS_PAIRS
// Sums of two columns' products in 16 bits.
template <int BITS>
INLINE ireg pair_products(ureg codes, ireg four) {
#if defined(__AVX512BW__)
    if (BITS < 8) return (ireg)_mm512_maddubs_epi16((__m512i)codes, (__m512i)four);
    const __m512i with_sign = (__m512i)(codes ^ 0x80808080u);
    const __m512i signed_four =
        _mm512_mask_sub_epi8((__m512i)four, _mm512_movepi8_mask(with_sign), _mm512_setzero_si512(), (__m512i)four);
    return (ireg)_mm512_maddubs_epi16(_mm512_abs_epi8(with_sign), signed_four);
#else
    if (BITS < 8) return (ireg)_mm256_maddubs_epi16((__m256i)codes, (__m256i)four);
    const __m256i with_sign = (__m256i)(codes ^ 0x80808080u);
    return (ireg)_mm256_maddubs_epi16(_mm256_abs_epi8(with_sign), _mm256_sign_epi8((__m256i)four, with_sign));
#endif
}
INLINE ireg add_pairs(ireg a, ireg b) {
#if defined(__AVX512BW__)
    return (ireg)_mm512_add_epi16((__m512i)a, (__m512i)b);
#else
    return (ireg)_mm256_add_epi16((__m256i)a, (__m256i)b);
#endif
}
INLINE ireg sum_pairs(ireg pairs) {
#if defined(__AVX512BW__)
    return (ireg)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1));
#else
    return (ireg)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
#endif
}
BY_HALVES_2(add_pairs)
BY_HALVES_1(sum_pairs)
template <int BITS, int N>
INLINE auto pair_products(const Halves<uint32_t, N>& codes, ireg four) {
    return join(pair_products<BITS>(codes.low, four), pair_products<BITS>(codes.high, four));
}
#endif

// total + the products of 4 columns.
template <int BITS>
INLINE ireg dot4(ireg total, ureg codes, ireg four) {
#if defined(__AVX512VNNI__)
    return (ireg)_mm512_dpbusd_epi32((__m512i)total, (__m512i)codes, (__m512i)four);
#elif defined(__AVXVNNI__)
    return (ireg)_mm256_dpbusd_avx_epi32((__m256i)total, (__m256i)codes, (__m256i)four);
#elif SUMS_PAIRS
    return total + sum_pairs(pair_products<BITS>(codes, four));
#elif defined(__aarch64__)
    const int8x16_t w = (int8x16_t)(BITS == 8 ? codes ^ 0x80808080u : codes), x = (int8x16_t)four;
#if defined(__ARM_FEATURE_DOTPROD)
    return (ireg)vdotq_s32((int32x4_t)total, w, x);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return (ireg)vpadalq_s16((int32x4_t)total, vpaddq_s16(low, high));
#endif
#elif defined(__x86_64__)
    const __m128i w = (__m128i)codes, x = (__m128i)four, even = _mm_srai_epi16(_mm_slli_epi16(x, 8), 8);
    const __m128i products = _mm_add_epi32(_mm_madd_epi16(_mm_and_si128(w, _mm_set1_epi16(255)), even),
                                           _mm_madd_epi16(_mm_srli_epi16(w, 8), _mm_srai_epi16(x, 8)));
    return (ireg)_mm_add_epi32((__m128i)total, products);
#else
    for (int i = 0; i < 32; i += 8) total += (ireg)(codes >> i & 255u) * (four << (24 - i) >> 24);
    return total;
#endif
}
template <int BITS, int N>
INLINE auto dot4(const Halves<int32_t, N>& total, const Halves<uint32_t, N>& codes, ireg four) {
    return join(dot4<BITS>(total.low, codes.low, four), dot4<BITS>(total.high, codes.high, four));
}

}  // namespace octavo
