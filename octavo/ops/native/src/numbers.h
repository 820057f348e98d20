// Numbers and vectors: float32, bfloat16 and float16 in memory, 16 floats at a time in registers.
//
// Vectors are GCC's and Clang's own, so that the same source serves every instruction set; intrinsics stand only where
// a compiler does not find the instruction by itself. Nothing here depends on a vector's neighbours.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace octavo {

constexpr int LANES = 16;
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint8_t bytes64 __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// What memory holds; the numbers are those that Python passes.
enum Type { F32 = 0, BF16 = 1, F16 = 2 };

template <typename To, typename From>
INLINE To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <typename V>
INLINE V load_as(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Spelled out, since adding to zero is an addition: -0.0 would change.
INLINE vec broadcast(float x) { return vec{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
// Vectors set to zero one by one: for arrays, `= {}` becomes an instruction that fills memory, which takes longer than
// a small product.
template <int N>
INLINE void clear(vec (&v)[N]) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = vec{};
}
template <int M, int N>
INLINE void clear(vec (&v)[M][N]) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) clear(v[i]);
}
INLINE ivec broadcast(int32_t x) { return ivec{} + x; }
INLINE vec to_float(ivec v) { return __builtin_convertvector(v, vec); }

// a * b + c, rounded once wherever the processor can: never left to the compiler, which may choose differently from
// place to place.
INLINE vec fmadd(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    __m256 x[2], y[2], z[2];
    std::memcpy(x, &a, sizeof a);
    std::memcpy(y, &b, sizeof b);
    std::memcpy(z, &c, sizeof c);
    z[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
    z[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
    return load_as<vec>(z);
#elif defined(__ARM_NEON)
    float32x4_t x[4], y[4], z[4];
    std::memcpy(x, &a, sizeof a);
    std::memcpy(y, &b, sizeof b);
    std::memcpy(z, &c, sizeof c);
    for (int i = 0; i < 4; ++i) z[i] = vfmaq_f32(z[i], x[i], y[i]);
    return load_as<vec>(z);
#else
    return a * b + c;
#endif
}

// ---- float16 and bfloat16 ------------------------------------------------------------------------------------------

INLINE vec widen(const hvec h, const bf16*) { return bit_cast<vec>(__builtin_convertvector(h, uvec) << 16); }

INLINE vec widen(const hvec h, const f16*) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    __m256 v[2] = {_mm256_cvtph_ps(load_as<__m128i>(&h)),
                   _mm256_cvtph_ps(load_as<__m128i>(reinterpret_cast<const char*>(&h) + 16))};
    return load_as<vec>(v);
#elif defined(__ARM_NEON)
    float16x4_t parts[4];
    float32x4_t v[4];
    std::memcpy(parts, &h, sizeof h);
    for (int i = 0; i < 4; ++i) v[i] = vcvt_f32_f16(parts[i]);
    return load_as<vec>(v);
#else
    // The exponent is moved by a multiplication, which also turns the subnormal ones into normal numbers.
    const uvec u = __builtin_convertvector(h, uvec);
    const uvec magnitude = (u & 0x7fff) << 13;
    const vec scaled = bit_cast<vec>(magnitude) * 0x1p112f;
    const uvec special = magnitude | 0x7f800000u;
    const uvec bits = (u & 0x7c00) == 0x7c00 ? special : bit_cast<uvec>(scaled);
    return bit_cast<vec>(bits | ((u & 0x8000) << 16));
#endif
}

// Round to nearest, ties to even, as PyTorch does. NaN stays NaN: its quiet bit is set.
INLINE hvec narrow(vec v, const bf16*) {
#if defined(__AVX512BF16__)
    return (hvec)_mm512_cvtneps_pbh((__m512)v);  // numbers below 1e-38 become 0
#else
    const uvec u = bit_cast<uvec>(v);
    const uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const uvec quiet = (u >> 16) | 0x40;
    return __builtin_convertvector(v != v ? quiet : rounded, hvec);
#endif
}

INLINE hvec narrow(vec v, const f16*) {
#if defined(__AVX512F__)
    return (hvec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    __m256 x[2];
    std::memcpy(x, &v, sizeof v);
    __m128i h[2] = {_mm256_cvtps_ph(x[0], _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(x[1], _MM_FROUND_TO_NEAREST_INT)};
    return load_as<hvec>(h);
#elif defined(__ARM_NEON)
    float32x4_t parts[4];
    float16x4_t h[4];
    std::memcpy(parts, &v, sizeof v);
    for (int i = 0; i < 4; ++i) h[i] = vcvt_f16_f32(parts[i]);
    return load_as<hvec>(h);
#else
    const uvec u = bit_cast<uvec>(v), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    // Below 2^-14 the result is subnormal: adding 0.5 puts its last bit where rounding happens.
    const uvec tiny = bit_cast<uvec>(bit_cast<vec>(magnitude) + 0.5f) - 0x3f000000u;
    const uvec usual = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const uvec infinite = uvec{} + 0x7c00u, nan = uvec{} + 0x7e00u;
    const uvec finite = magnitude < 0x38800000u ? tiny : usual;
    const uvec big = magnitude > 0x7f800000u ? nan : infinite;
    return __builtin_convertvector(sign | (magnitude >= 0x477ff000u ? big : finite), hvec);
#endif
}

INLINE vec load(const float* p) { return load_as<vec>(p); }
INLINE vec load(const bf16* p) { return widen(load_as<hvec>(p), p); }
INLINE vec load(const f16* p) { return widen(load_as<hvec>(p), p); }
INLINE void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
template <typename Half>
INLINE void store(Half* p, vec v) {
    const hvec h = narrow(v, p);
    std::memcpy(p, &h, sizeof h);
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
    const f16 buffer[LANES] = {x};
    return load(buffer)[0];
}
template <typename T>
INLINE void set(T* p, float x) {
    store_some(p, broadcast(x), 1);
}
INLINE void set(float* p, float x) { *p = x; }

// ---- sums ----------------------------------------------------------------------------------------------------------

// The sixteen lanes added by halves to four.
INLINE vec4 halves(vec v) {
    const vec8 a = load_as<vec8>(&v) + load_as<vec8>(reinterpret_cast<const char*>(&v) + sizeof(vec8));
    return load_as<vec4>(&a) + load_as<vec4>(reinterpret_cast<const char*>(&a) + sizeof(vec4));
}

INLINE float sum(vec v) {
    const vec4 c = halves(v);
    return (c[0] + c[2]) + (c[1] + c[3]);
}

INLINE vec absolute(vec v) { return bit_cast<vec>(bit_cast<uvec>(v) & 0x7fffffffu); }

INLINE vec larger(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

INLINE float highest(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float peak = v[0];
    for (int i = 1; i < LANES; ++i) peak = v[i] > peak ? v[i] : peak;
    return peak;
#endif
}

// To the nearest whole numbers, ties to even, of values below 2^22 in size: adding 1.5 * 2^23 leaves no fraction.
INLINE ivec rounded(vec v) {
    const vec magic = broadcast(12582912.0f);
    return bit_cast<ivec>(v + magic) - bit_cast<ivec>(magic);
}

// Sixteen whole numbers that fit, as bytes.
INLINE void store_bytes(int8_t* p, ivec v) {
    typedef int8_t b16 __attribute__((vector_size(16)));
#if defined(__AVX512F__)
    const b16 narrow = (b16)_mm512_cvtepi32_epi8((__m512i)v);
#else
    const b16 narrow = __builtin_convertvector(v, b16);
#endif
    std::memcpy(p, &narrow, sizeof narrow);
}

// ---- functions -----------------------------------------------------------------------------------------------------

// exp by 2^n times a polynomial on [-ln2/2, ln2/2]; relative error below 2e-7. Far below zero it is exactly 0.
INLINE vec exponential(vec x) {
#if defined(__AVX512F__)
    // The processor's own 2^n reaches the smallest numbers too: below -104 the result is exactly 0. NaN passes through.
    const vec clamped = (vec)_mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), (__m512)x));
#else
    const vec clamped = x < -87.0f ? broadcast(-87.0f) : (x > 88.0f ? broadcast(88.0f) : x);
#endif
    const vec magic = broadcast(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
    const vec n = fmadd(clamped, broadcast(1.44269504f), magic) - magic;
    const vec r = fmadd(n, broadcast(2.12194440e-4f), fmadd(n, broadcast(-0.693359375f), clamped));
    vec p = broadcast(1.9875691500e-4f);
    p = fmadd(p, r, broadcast(1.3981999507e-3f));
    p = fmadd(p, r, broadcast(8.3334519073e-3f));
    p = fmadd(p, r, broadcast(4.1665795894e-2f));
    p = fmadd(p, r, broadcast(1.6666665459e-1f));
    p = fmadd(p, r, broadcast(5.0000001201e-1f));
    p = fmadd(p * r, r, r + 1.0f);
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const vec scale = bit_cast<vec>((__builtin_convertvector(n, ivec) + 127) << 23);
    const vec infinity = broadcast(std::numeric_limits<float>::infinity());
    const vec bounded = x < -87.0f ? vec{} : (x > 88.0f ? infinity : p * scale);
    return x != x ? x : bounded;
#endif
}

// 2^x for x up to 0: by 2^n times a polynomial on [-1/2, 1/2]; relative error below 3e-7. Far below zero it is exactly 0.
INLINE vec power_of_2(vec x) {
#if defined(__AVX512F__)
    const vec clamped = (vec)_mm512_max_ps(_mm512_set1_ps(-160.0f), (__m512)x);
    const vec n = (vec)_mm512_roundscale_ps((__m512)clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const vec magic = broadcast(12582912.0f);
    const vec clamped = x < -126.0f ? broadcast(-126.0f) : x;
    const vec n = (clamped + magic) - magic;
#endif
    const vec r = clamped - n;
    vec p = broadcast(1.5403530e-4f);
    p = fmadd(p, r, broadcast(1.3333558e-3f));
    p = fmadd(p, r, broadcast(9.6181291e-3f));
    p = fmadd(p, r, broadcast(5.5504109e-2f));
    p = fmadd(p, r, broadcast(2.4022651e-1f));
    p = fmadd(p, r, broadcast(6.9314718e-1f));
    p = fmadd(p, r, broadcast(1.0f));
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    const vec scaled = p * bit_cast<vec>((__builtin_convertvector(n, ivec) + 127) << 23);
    return x < -126.0f ? vec{} : (x != x ? x : scaled);
#endif
}

// Sine and cosine of x below 2^30 in size, to 2e-7: what is left of it after quarter turns, taken off in double
// precision, goes into polynomials on [-pi/4, pi/4] (Cephes' coefficients).
INLINE void sine_cosine(vec x, vec* sine, vec* cosine) {
    typedef double dvec __attribute__((vector_size(128)));
    typedef int64_t lvec __attribute__((vector_size(128)));
    const dvec magic = dvec{} + 0x1.8p52;
    const dvec whole = __builtin_convertvector(x, dvec);
    const dvec turned = whole * 0x1.45f306dc9c883p-1 + magic, quarters = turned - magic;
    // The first part of pi/2 has so few bits that its product is exact.
    const dvec rest = (whole - quarters * 0x1.921fb54p0) - quarters * 0x1.10b4611a62633p-30;
    const vec r = __builtin_convertvector(rest, vec), square = r * r;
    const ivec quarter = __builtin_convertvector(bit_cast<lvec>(turned), ivec);
    vec s = fmadd(square, broadcast(-1.9515295891e-4f), broadcast(8.3321608736e-3f));
    s = fmadd(s, square, broadcast(-1.6666654611e-1f));
    s = fmadd(s * square, r, r);
    vec c = fmadd(square, broadcast(2.443315711809948e-5f), broadcast(-1.388731625493765e-3f));
    c = fmadd(c, square, broadcast(4.166664568298827e-2f));
    c = fmadd(c * square, square, fmadd(square, broadcast(-0.5f), broadcast(1.0f)));
    const ivec swapped = (quarter & 1) != 0;
    const vec to_sine = swapped ? c : s, to_cosine = swapped ? s : c;
    *sine = bit_cast<vec>(bit_cast<ivec>(to_sine) ^ ((quarter & 2) << 30));
    *cosine = bit_cast<vec>(bit_cast<ivec>(to_cosine) ^ (((quarter + 1) & 2) << 30));
}

INLINE vec hyperbolic_tangent(vec x) {
    // Beyond 10 it is 1 to the last bit, and the exponential would overflow further out.
    const vec bounded = x < -10.0f ? broadcast(-10.0f) : (x > 10.0f ? broadcast(10.0f) : x);
    return 1.0f - 2.0f / (exponential(bounded * 2.0f) + 1.0f);
}

INLINE int64_t round_up(int64_t value, int64_t grain) { return (value + grain - 1) / grain * grain; }

}  // namespace octavo
