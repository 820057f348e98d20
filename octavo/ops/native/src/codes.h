// Codes of weights: how they lie packed, and what formats are read into on their way there.
#pragma once

#include "numbers.h"

namespace octavo {

constexpr int CHUNK = 32;  // columns that every format can be cut into
constexpr int CHUNK_STEPS = CHUNK / 4;

INLINE float half_at(const uint8_t* p) {
    f16 h;
    std::memcpy(&h, p, sizeof h);
    return as_float(h);
}
INLINE vec halves_at(const uint8_t* p) { return load(reinterpret_cast<const f16*>(p)); }
INLINE uvec in_each_byte(uint32_t value) { return uvec{} + value * 0x01010101u; }

// 16 bytes as whole numbers, and as floats. GCC makes no instruction of such a conversion, but one for each byte.
INLINE ivec unsigned_numbers(const uint8_t* p) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepu8_epi32(load_as<__m128i>(p));
#elif defined(__AVX2__)
    return ivec((ireg)_mm256_cvtepu8_epi32(_mm_loadu_si64(p)), (ireg)_mm256_cvtepu8_epi32(_mm_loadu_si64(p + 8)));
#else
    return convert<int32_t>(load_as<Lanes<uint8_t, LANES>>(p));
#endif
}
INLINE vec unsigned_bytes(const uint8_t* p) { return to_float(unsigned_numbers(p)); }
INLINE ivec signed_numbers(const uint8_t* p) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtepi8_epi32(load_as<__m128i>(p));
#elif defined(__AVX2__)
    return ivec((ireg)_mm256_cvtepi8_epi32(_mm_loadu_si64(p)), (ireg)_mm256_cvtepi8_epi32(_mm_loadu_si64(p + 8)));
#else
    return convert<int32_t>(load_as<Lanes<int8_t, LANES>>(p));
#endif
}
INLINE vec signed_bytes(const uint8_t* p) { return to_float(signed_numbers(p)); }

// Codes of 2 to 8 bits, but 7. BITS 4: a vector holds two steps, BITS 2: four. What 3, 5 and 6 have beyond these lies in
// vectors of its own.
template <int BITS>
struct Codes {
    static constexpr int BYTES = CHUNK * PANEL * BITS / 8;  // of a chunk
    static constexpr int LOW = BITS == 8 ? 8 : BITS < 4 ? 2 : 4, HIGH = BITS - LOW;  // bits
    static constexpr int TOGETHER = 8 / LOW, MORE = CHUNK * PANEL * LOW / 8;  // steps of a vector; where HIGH ones begin
    static constexpr int HIGH_TOGETHER = HIGH == 2 ? 4 : 8;

    static INLINE uvec step(const uint8_t* p, int s) {
        if (LOW == 8) return load_as<uvec>(p + 64 * s);
        uvec code = load_as<uvec>(p + 64 * (s / TOGETHER)) >> LOW * (s % TOGETHER) & in_each_byte((1 << LOW) - 1);
        if (HIGH > 0) {
            const uvec high = load_as<uvec>(p + MORE + 64 * (s / HIGH_TOGETHER));
            const int by = HIGH * (s % HIGH_TOGETHER) - LOW;
            code |= (by < 0 ? high << -by : high >> by) & in_each_byte((1 << BITS) - (1 << LOW));
        }
        return code;
    }

    // Puts an output's codes of a chunk: those of a step at once, a byte each.
    static void put(uint8_t* p, int output, const uint8_t* codes) {
        put_bits<TOGETHER, LOW>(p + 4 * output, codes, 0);
        if constexpr (HIGH > 0) put_bits<HIGH_TOGETHER, HIGH>(p + MORE + 4 * output, codes, LOW);
    }

private:
    // SIZE bits of each code, from bit `first` on, of STEPS steps in one vector.
    template <int STEPS, int SIZE>
    static void put_bits(uint8_t* p, const uint8_t* codes, int first) {
#pragma GCC unroll 8
        for (int s = 0; s < CHUNK_STEPS; s += STEPS) {
            uint32_t all = 0;
#pragma GCC unroll 8
            for (int i = 0; i < STEPS; ++i) {
                uint32_t four;
                std::memcpy(&four, codes + 4 * (s + i), 4);
                all |= (four >> first & ((1 << SIZE) - 1) * 0x01010101u) << SIZE * i;
            }
            std::memcpy(p + 64 * (s / STEPS), &all, 4);
        }
    }
};

// The low halves of N bytes, then their high halves.
template <int N>
INLINE void split_halves(const uint8_t* bytes, uint8_t* codes) {
    const auto both = load_as<Lanes<uint32_t, N / 4>>(bytes);
    store_as(codes, both & 0x0f0f0f0fu);
    store_as(codes + N, both >> 4 & 0x0f0f0f0fu);
}

// Of each of N bytes the low half, and then the high half.
template <int N>
INLINE void split_pairs(const uint8_t* bytes, uint8_t* codes) {
    for (int i = 0; i < N; i += 4) {
        uint32_t four;
        std::memcpy(&four, bytes + i, 4);
        uint64_t apart = four;
        apart = (apart | apart << 16) & 0x0000ffff0000ffffu;
        apart = (apart | apart << 8) & 0x00ff00ff00ff00ffu;
        apart = (apart | apart << 4) & 0x0f0f0f0f0f0f0f0fu;
        std::memcpy(codes + 2 * i, &apart, 8);
    }
}

// SIZE bits of each of 32 bytes, from bit `first` on.
template <int SIZE>
INLINE Lanes<uint32_t, 8> bits_of(const uint8_t* bytes, int first) {
    return load_as<Lanes<uint32_t, 8>>(bytes) >> first & ((1 << SIZE) - 1) * 0x01010101u;
}

// Gives 32 codes such bits, from their bit `to` on, where they have none.
template <int SIZE>
INLINE void add_bits(const uint8_t* bytes, int first, int to, uint8_t* codes) {
    store_as(codes, load_as<Lanes<uint32_t, 8>>(codes) | bits_of<SIZE>(bytes, first) << to);
}

// What a format tells about one row's unit as the file stores it.
struct Stored {
    uint8_t codes[256];
    uint8_t scale[16], min[16];     // by block, as stored
    const uint8_t *d, *m;           // float16
    uint8_t made[8];                // for numbers that lie in no one place
    const uint8_t* grid = nullptr;  // codes of several columns, where the file has their numbers in this table
};

// Each byte of `index`, below 16, as that of a table of 16.
INLINE ureg look_up(ureg index, const uint8_t* table) {
#if defined(__AVX512BW__)
    return (ureg)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_as<__m128i>(table)), (__m512i)index);
#elif defined(__AVX2__)
    return (ureg)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_as<__m128i>(table)), (__m256i)index);
#elif defined(__aarch64__)
    return (ureg)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index);
#else
    uint8_t bytes[REGISTER];
    store_as(bytes, index);
    for (uint8_t& byte : bytes) byte = table[byte];
    return load_as<ureg>(bytes);
#endif
}
template <int N>
INLINE auto look_up(const Halves<uint32_t, N>& index, const uint8_t* table) {
    return join(look_up(index.low, table), look_up(index.high, table));
}

}  // namespace octavo
