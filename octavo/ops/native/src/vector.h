// Vectors of 16 lanes, whatever the instruction set: one of its own registers, or halves down to those, with the
// operators of numbers.
//
// Compilers keep a vector that is wider than their registers in memory; a struct of registers they keep in registers.
// What is added up in which lane does not depend on a register's width, so that results do not either.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "description.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace octavo {

#if defined(__AVX512F__)
constexpr int REGISTER = 64, REGISTERS = 32;  // bytes, and how many there are
#elif defined(__AVX2__)
constexpr int REGISTER = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int REGISTER = 16, REGISTERS = 32;
#else
constexpr int REGISTER = 16, REGISTERS = 16;
#endif
constexpr int PART = REGISTER / 4;  // lanes of a register

template <typename T, int N>
struct Register {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <typename T, int N>
struct Halves;

// N numbers. Numbers of fewer than 4 bytes are split as the floats are that they belong to.
template <typename T, int N>
using Lanes = typename std::conditional_t<N <= PART && N * sizeof(T) <= REGISTER, Register<T, N>, Halves<T, N>>::type;

template <typename T, int N>
struct Halves {
    using type = Halves;
    using Half = Lanes<T, N / 2>;
    using Mask = Lanes<int32_t, N>;
    Half low, high;

    Halves() = default;
    INLINE Halves(const Half& low, const Half& high) : low(low), high(high) {}
    INLINE Halves(T x) : low(x - Half{}), high(x - Half{}) {}  // adding to zero would change -0.0

#define OPERATOR(op)                                                                                              \
    friend INLINE Halves operator op(const Halves& a, const Halves& b) { return {a.low op b.low, a.high op b.high}; } \
    friend INLINE Halves& operator op##=(Halves& a, const Halves& b) { return a = a op b; }
    OPERATOR(+) OPERATOR(-) OPERATOR(*) OPERATOR(/) OPERATOR(&) OPERATOR(|) OPERATOR(^)
#undef OPERATOR
#define OPERATOR(op) \
    friend INLINE Mask operator op(const Halves& a, const Halves& b) { return {a.low op b.low, a.high op b.high}; }
    OPERATOR(<) OPERATOR(<=) OPERATOR(>) OPERATOR(>=) OPERATOR(==) OPERATOR(!=)
#undef OPERATOR
    friend INLINE Halves operator<<(const Halves& a, int by) { return {a.low << by, a.high << by}; }
    friend INLINE Halves operator>>(const Halves& a, int by) { return {a.low >> by, a.high >> by}; }
    friend INLINE Halves operator-(const Halves& a) { return {-a.low, -a.high}; }
    INLINE T operator[](int i) const { return i < N / 2 ? low[i] : high[i - N / 2]; }
};

template <typename V>
constexpr bool SPLIT = false;
template <typename T, int N>
constexpr bool SPLIT<Halves<T, N>> = true;

typedef Lanes<float, LANES> vec;
typedef Lanes<int32_t, LANES> ivec;
typedef Lanes<uint32_t, LANES> uvec;
typedef Lanes<uint16_t, LANES> hvec;
typedef Lanes<float, PART> reg;
typedef Lanes<int32_t, PART> ireg;
typedef Lanes<uint32_t, PART> ureg;
typedef Lanes<uint16_t, PART> hreg;

// A function of registers, for all that is made of them.
#define BY_HALVES_1(f)                                    \
    template <typename T, int N>                          \
    INLINE auto f(const Halves<T, N>& a) {                \
        return join(f(a.low), f(a.high));                 \
    }
#define BY_HALVES_2(f)                                              \
    template <typename T, typename U, int N>                        \
    INLINE auto f(const Halves<T, N>& a, const Halves<U, N>& b) {   \
        return join(f(a.low, b.low), f(a.high, b.high));            \
    }
#define BY_HALVES_3(f)                                                                         \
    template <typename T, typename U, typename V, int N>                                       \
    INLINE auto f(const Halves<T, N>& a, const Halves<U, N>& b, const Halves<V, N>& c) {       \
        return join(f(a.low, b.low, c.low), f(a.high, b.high, c.high));                        \
    }

template <typename T>
struct NumberOf {
    using type = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<T>()[0])>>;
};
template <typename V>
constexpr int COUNT = sizeof(V) / sizeof(typename NumberOf<V>::type);

// ---- memory and lanes ----------------------------------------------------------------------------------------------

template <typename V>
INLINE V load_as(const void* p) {
    if constexpr (SPLIT<V>) {
        using Half = typename V::Half;
        return {load_as<Half>(p), load_as<Half>(static_cast<const char*>(p) + sizeof(Half))};
    } else {
        V v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
}

template <typename V>
INLINE void store_as(void* p, const V& v) {
    if constexpr (SPLIT<V>) {
        store_as(p, v.low);
        store_as(static_cast<char*>(p) + sizeof v.low, v.high);
    } else {
        std::memcpy(p, &v, sizeof v);
    }
}

template <typename To, typename From>
INLINE To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    if constexpr (SPLIT<From>) {
        using Half = typename To::Half;
        return {bit_cast<Half>(from.low), bit_cast<Half>(from.high)};
    } else {
        To to;
        std::memcpy(&to, &from, sizeof to);
        return to;
    }
}

template <typename V>
INLINE auto lower(const V& v) {
    if constexpr (SPLIT<V>) return v.low;
    else return load_as<Lanes<typename NumberOf<V>::type, COUNT<V> / 2>>(&v);
}
template <typename V>
INLINE auto upper(const V& v) {
    if constexpr (SPLIT<V>) return v.high;
    else return load_as<Lanes<typename NumberOf<V>::type, COUNT<V> / 2>>(reinterpret_cast<const char*>(&v) + sizeof v / 2);
}
template <typename V>
INLINE auto join(const V& low, const V& high) {
    using Both = Lanes<typename NumberOf<V>::type, 2 * COUNT<V>>;
    if constexpr (SPLIT<Both>) {
        return Both{low, high};
    } else {
        Both both;
        std::memcpy(&both, &low, sizeof low);
        std::memcpy(reinterpret_cast<char*>(&both) + sizeof low, &high, sizeof high);
        return both;
    }
}

// Each number as another type.
template <typename To, typename V>
INLINE auto convert(const V& v) {
    using Result = Lanes<To, COUNT<V>>;
    if constexpr (SPLIT<V> || SPLIT<Result>) return join(convert<To>(lower(v)), convert<To>(upper(v)));
    else return __builtin_convertvector(v, Result);
}
template <typename V>
INLINE auto to_float(const V& v) {
    return convert<float>(v);
}

INLINE vec broadcast(float x) { return x - vec{}; }
INLINE ivec broadcast(int32_t x) { return x - ivec{}; }
INLINE ivec lane_numbers() {
    static constexpr int32_t NUMBERS[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load_as<ivec>(NUMBERS);
}

// Vectors set to zero one by one: for arrays, `= {}` becomes an instruction that fills memory, which takes longer than
// a small product.
template <typename V, int N>
INLINE void clear(V (&v)[N]) {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = V{};
}
template <typename V, int M, int N>
INLINE void clear(V (&v)[M][N]) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) clear(v[i]);
}

// Computes a sum of integers here and now: GCC would put them in another order, with all that is added kept in memory.
INLINE void settle(ireg& v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
}
template <int N>
INLINE void settle(Halves<int32_t, N>& v) {
    settle(v.low);
    settle(v.high);
}

// Has v computed before anything is read from p: clang would read and compute the one while the other lies in memory.
template <typename V>
INLINE void settle_before(V& v, const uint8_t*& p) {
    if constexpr (SPLIT<V>) {
        settle_before(v.low, p);
        settle_before(v.high, p);
    } else {
#if defined(__x86_64__)
        asm("" : "+v"(v), "+r"(p));
#elif defined(__aarch64__)
        asm("" : "+w"(v), "+r"(p));
#endif
    }
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// a * b + c, rounded once wherever the processor can: never left to the compiler, which may choose differently from
// place to place.
INLINE reg fmadd(reg a, reg b, reg c) {
#if defined(__AVX512F__)
    return (reg)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (reg)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (reg)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
BY_HALVES_3(fmadd)

// The larger of each; b where one is not a number.
INLINE reg larger(reg a, reg b) {
#if defined(__AVX512F__)
    return (reg)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (reg)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (reg)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
}
BY_HALVES_2(larger)

template <typename V>
INLINE V smaller(const V& a, const V& b) {
    return -larger(-a, -b);
}

INLINE reg square_root(reg a) {
#if defined(__AVX512F__)
    return (reg)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (reg)_mm256_sqrt_ps((__m256)a);
#elif defined(__x86_64__)
    return (reg)_mm_sqrt_ps((__m128)a);
#else
    return (reg)vsqrtq_f32((float32x4_t)a);
#endif
}
BY_HALVES_1(square_root)

// Lanes of a where the mask is set, of b where it is not.
INLINE reg select(ireg mask, reg a, reg b) { return mask ? a : b; }
INLINE ireg select(ireg mask, ireg a, ireg b) { return mask ? a : b; }
INLINE ureg select(ireg mask, ureg a, ureg b) { return mask ? a : b; }
BY_HALVES_3(select)

INLINE vec absolute(vec v) { return bit_cast<vec>(bit_cast<uvec>(v) & 0x7fffffffu); }

// The lanes added by halves to four, and these.
INLINE float sum(vec v) {
    const auto a = lower(v) + upper(v);
    const auto c = lower(a) + upper(a);
    return (c[0] + c[2]) + (c[1] + c[3]);
}

INLINE float highest(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#elif defined(__AVX2__)
    const __m256 eight = (__m256)larger(v.low, v.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
    float lanes[LANES];
    store_as(lanes, v);
    float peak = lanes[0];
    for (int i = 1; i < LANES; ++i) peak = lanes[i] > peak ? lanes[i] : peak;
    return peak;
#endif
}

// To the nearest whole numbers, ties to even, of values below 2^22 in size: adding 1.5 * 2^23 leaves no fraction.
constexpr float MAGIC = 12582912.0f;
INLINE ivec rounded(vec v) { return bit_cast<ivec>(v + MAGIC) - bit_cast<ivec>(broadcast(MAGIC)); }

INLINE int64_t round_up(int64_t value, int64_t grain) { return (value + grain - 1) / grain * grain; }

}  // namespace octavo
