// Numbers in memory: float32, bfloat16 and float16, read and written a vector at a time.
#pragma once

#include "vector.h"

namespace octavo {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// ---- float16 and bfloat16 ------------------------------------------------------------------------------------------

INLINE reg widen(hreg h, const bf16*) { return bit_cast<reg>(__builtin_convertvector(h, ureg) << 16); }

INLINE reg widen(hreg h, const f16*) {
#if defined(__AVX512F__)
    return (reg)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (reg)_mm256_cvtph_ps((__m128i)h);
#elif defined(__ARM_NEON)
    return (reg)vcvt_f32_f16((float16x4_t)h);
#else
    // The exponent is moved by a multiplication, which also turns the subnormal ones into normal numbers.
    const ureg u = __builtin_convertvector(h, ureg);
    const ureg magnitude = (u & 0x7fff) << 13;
    const reg scaled = bit_cast<reg>(magnitude) * 0x1p112f;
    const ureg special = magnitude | 0x7f800000u;
    const ureg bits = (u & 0x7c00) == 0x7c00 ? special : bit_cast<ureg>(scaled);
    return bit_cast<reg>(bits | ((u & 0x8000) << 16));
#endif
}

INLINE hreg low_halves(ureg u) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i packed = _mm256_packus_epi32((__m256i)u, (__m256i)u);
    return (hreg)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(u, hreg);
#endif
}

// Round to nearest, ties to even, as PyTorch does. NaN stays NaN: its quiet bit is set.
INLINE hreg narrow(reg v, const bf16*) {
#if defined(__AVX512BF16__)
    return (hreg)_mm512_cvtneps_pbh((__m512)v);  // numbers below 1e-38 become 0
#else
    const ureg u = bit_cast<ureg>(v);
    const ureg rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const ureg quiet = (u >> 16) | 0x40;
    return low_halves(v != v ? quiet : rounded);
#endif
}

INLINE hreg narrow(reg v, const f16*) {
#if defined(__AVX512F__)
    return (hreg)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    return (hreg)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__ARM_NEON)
    return (hreg)vcvt_f16_f32((float32x4_t)v);
#else
    const ureg u = bit_cast<ureg>(v), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    // Below 2^-14 the result is subnormal: adding 0.5 puts its last bit where rounding happens.
    const ureg tiny = bit_cast<ureg>(bit_cast<reg>(magnitude) + 0.5f) - 0x3f000000u;
    const ureg usual = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const ureg infinite = ureg{} + 0x7c00u, nan = ureg{} + 0x7e00u;
    const ureg finite = magnitude < 0x38800000u ? tiny : usual;
    const ureg big = magnitude > 0x7f800000u ? nan : infinite;
    return low_halves(sign | (magnitude >= 0x477ff000u ? big : finite));
#endif
}

template <typename H, typename T, int N>
INLINE auto widen(const Halves<H, N>& h, const T* type) {
    return join(widen(h.low, type), widen(h.high, type));
}
template <typename T, int N>
INLINE auto narrow(const Halves<float, N>& v, const T* type) {
    return join(narrow(v.low, type), narrow(v.high, type));
}

INLINE vec load(const float* p) { return load_as<vec>(p); }
INLINE vec load(const bf16* p) { return widen(load_as<hvec>(p), p); }
INLINE vec load(const f16* p) { return widen(load_as<hvec>(p), p); }
INLINE void store(float* p, vec v) { store_as(p, v); }
template <typename Half>
INLINE void store(Half* p, vec v) {
    store_as(p, narrow(v, p));
}

// The ragged end of a row goes through a full vector too, so that its bits are those of any other place.
template <typename T>
INLINE vec load_some(const T* p, int count) {
    T buffer[LANES] = {};
    std::memcpy(buffer, p, count * sizeof(T));
    return load(buffer);
}

template <typename T>
INLINE void store_some(T* p, vec v, int count) {
    T buffer[LANES];
    store(buffer, v);
    std::memcpy(p, buffer, count * sizeof(T));
}

INLINE float as_float(float x) { return x; }
INLINE float as_float(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
INLINE float as_float(f16 x) {
#if defined(__F16C__)
    return _cvtsh_ss(x.bits);
#else
    const f16 buffer[LANES] = {x};
    return load(buffer)[0];
#endif
}
template <typename T>
INLINE void set(T* p, float x) {
    store_some(p, broadcast(x), 1);
}
INLINE void set(float* p, float x) { *p = x; }

// Sixteen whole numbers from -128 to 127 as bytes.
INLINE void store_bytes(int8_t* p, ivec v) {
#if defined(__AVX512F__)
    store_as(p, _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
    const __m256i words = _mm256_packs_epi32((__m256i)v.low, (__m256i)v.high);
    const __m256i bytes = _mm256_packs_epi16(words, words);
    store_as(p, _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0))));
#elif defined(__x86_64__)
    const __m128i a = _mm_packs_epi32((__m128i)v.low.low, (__m128i)v.low.high);
    const __m128i b = _mm_packs_epi32((__m128i)v.high.low, (__m128i)v.high.high);
    store_as(p, _mm_packs_epi16(a, b));
#else
    store_as(p, convert<int8_t>(v));
#endif
}

}  // namespace octavo
