// Functions of vectors: exponentials, sines, hyperbolic tangents.
#pragma once

#include <limits>

#include "vector.h"

namespace octavo {

// exp by 2^n times a polynomial on [-ln2/2, ln2/2]; relative error below 2e-7. Far below zero it is exactly 0.
INLINE vec exponential(vec x) {
#if defined(__AVX512F__)
    // The processor's own 2^n reaches the smallest numbers too: below -104 the result is exactly 0. NaN passes through.
    const vec clamped = (vec)_mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), (__m512)x));
#else
    const vec clamped = smaller(broadcast(88.0f), larger(broadcast(-87.0f), x));
#endif
    const vec magic = broadcast(MAGIC);
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
    const vec scale = bit_cast<vec>((convert<int32_t>(n) + 127) << 23);
    const vec infinity = broadcast(std::numeric_limits<float>::infinity());
    return select(x < -87.0f, vec{}, select(x > 88.0f, infinity, p * scale));
#endif
}

// 2^x for x up to 0: by 2^n times a polynomial on [-1/2, 1/2]; relative error below 3e-7. Far below zero it is exactly 0.
INLINE vec power_of_2(vec x) {
#if defined(__AVX512F__)
    const vec clamped = (vec)_mm512_max_ps(_mm512_set1_ps(-160.0f), (__m512)x);
    const vec n = (vec)_mm512_roundscale_ps((__m512)clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const vec clamped = larger(broadcast(-126.0f), x);
    const vec n = (clamped + MAGIC) - MAGIC;
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
    return select(x < -126.0f, vec{}, p * bit_cast<vec>((convert<int32_t>(n) + 127) << 23));
#endif
}

// Sine and cosine of x below 2^30 in size, to 2e-7: what is left of it after quarter turns, taken off in double
// precision, goes into polynomials on [-pi/4, pi/4] (Cephes' coefficients).
INLINE void sine_cosine(vec x, vec* sine, vec* cosine) {
    typedef Lanes<double, LANES> dvec;
    constexpr double magic = 0x1.8p52;
    const dvec whole = convert<double>(x);
    const dvec turned = whole * 0x1.45f306dc9c883p-1 + magic, quarters = turned - magic;
    // The first part of pi/2 has so few bits that its product is exact.
    const dvec rest = (whole - quarters * 0x1.921fb54p0) - quarters * 0x1.10b4611a62633p-30;
    const vec r = to_float(rest), square = r * r;
    const ivec quarter = convert<int32_t>(bit_cast<Lanes<int64_t, LANES>>(turned));
    vec s = fmadd(square, broadcast(-1.9515295891e-4f), broadcast(8.3321608736e-3f));
    s = fmadd(s, square, broadcast(-1.6666654611e-1f));
    s = fmadd(s * square, r, r);
    vec c = fmadd(square, broadcast(2.443315711809948e-5f), broadcast(-1.388731625493765e-3f));
    c = fmadd(c, square, broadcast(4.166664568298827e-2f));
    c = fmadd(c * square, square, fmadd(square, broadcast(-0.5f), broadcast(1.0f)));
    const ivec swapped = (quarter & 1) != 0;
    const vec to_sine = select(swapped, c, s), to_cosine = select(swapped, s, c);
    *sine = bit_cast<vec>(bit_cast<ivec>(to_sine) ^ ((quarter & 2) << 30));
    *cosine = bit_cast<vec>(bit_cast<ivec>(to_cosine) ^ (((quarter + 1) & 2) << 30));
}

INLINE vec hyperbolic_tangent(vec x) {
    // Beyond 10 it is 1 to the last bit, and the exponential would overflow further out.
    const vec bounded = smaller(broadcast(10.0f), larger(broadcast(-10.0f), x));
    return 1.0f - 2.0f / (exponential(bounded * 2.0f) + 1.0f);
}

}  // namespace octavo
