// Quantized weights: how each format lies in its file, and how it lies packed for computing.
//
// A packed weight is a row of panels, each of 16 outputs over the whole width. A panel is a row of units; a unit has
// the scales of its outputs, then for every 4 columns a vector of 64 codes, output by output, so that one instruction
// multiplies 4 columns of 16 outputs. Codes are without sign: a weight is `scale * code + min`, where `min` is a number
// of its own or `-zero * scale`. Nothing is expanded: 4-bit codes stay two in a byte, scales stay as the file has them.
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

// 16 bytes as whole numbers, and as floats.
INLINE ivec unsigned_numbers(const uint8_t* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return ivec((ireg)_mm256_cvtepu8_epi32(_mm_loadu_si64(p)), (ireg)_mm256_cvtepu8_epi32(_mm_loadu_si64(p + 8)));
#else
    return convert<int32_t>(load_as<Lanes<uint8_t, LANES>>(p));
#endif
}
INLINE vec unsigned_bytes(const uint8_t* p) { return to_float(unsigned_numbers(p)); }
INLINE vec signed_bytes(const uint8_t* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return to_float(ivec((ireg)_mm256_cvtepi8_epi32(_mm_loadu_si64(p)), (ireg)_mm256_cvtepi8_epi32(_mm_loadu_si64(p + 8))));
#else
    return to_float(convert<int32_t>(load_as<Lanes<int8_t, LANES>>(p)));
#endif
}

// Codes of 4 to 8 bits. BITS 4: a vector holds two steps. The fifth and sixth bits lie in vectors of their own.
template <int BITS>
struct Codes {
    static constexpr int BYTES = CHUNK * PANEL * BITS / 8;  // of a chunk

    static INLINE uvec step(const uint8_t* p, int s) {
        if (BITS == 8) return load_as<uvec>(p + 64 * s);
        const uvec pair = load_as<uvec>(p + 64 * (s / 2));
        uvec code = (s % 2 ? pair >> 4 : pair) & in_each_byte(15);
        if (BITS == 5) {
            const uvec high = load_as<uvec>(p + 256);
            code |= (s < 4 ? high << (4 - s) : high >> (s - 4)) & in_each_byte(16);
        }
        if (BITS == 6) {
            const uvec high = load_as<uvec>(p + 256 + 64 * (s / 4));
            const int at = 2 * (s % 4);
            code |= (at <= 4 ? high << (4 - at) : high >> (at - 4)) & in_each_byte(48);
        }
        return code;
    }

    // Puts one code of a chunk, whose bytes began as zero.
    static void put(uint8_t* p, int output, int column, int code) {
        const int s = column / 4, lane = 4 * output + column % 4;
        if (BITS == 8) {
            p[64 * s + lane] = static_cast<uint8_t>(code);
            return;
        }
        p[64 * (s / 2) + lane] |= static_cast<uint8_t>((code & 15) << (4 * (s % 2)));
        if (BITS == 5) p[256 + lane] |= static_cast<uint8_t>((code >> 4) << s);
        if (BITS == 6) p[256 + 64 * (s / 4) + lane] |= static_cast<uint8_t>((code >> 4) << (2 * (s % 4)));
    }
};

// What a format tells about one row's unit as the file stores it.
struct Stored {
    uint8_t codes[256];
    uint8_t scale[16], min[16];  // by block, as stored
    const uint8_t *d, *m;        // float16
};

// Formats of 32 columns with a float16 scale, and a float16 min where MIN.
template <int BITS, bool MIN, int ZERO_>
struct Simple {
    using Bits = Codes<BITS>;
    static constexpr int UNIT = 32, BLOCK = 32, ZERO = ZERO_, CODE_BITS = BITS;
    static constexpr bool HAS_MIN = MIN;
    static constexpr int HEADER = (MIN ? 2 : 1) * PANEL * 2;
    static constexpr int UNIT_BYTES = HEADER + Bits::BYTES;
    static constexpr int FILE_HEADER = MIN ? 4 : 2;
    static constexpr int FILE_BYTES = FILE_HEADER + UNIT * BITS / 8;

    static INLINE vec scale(const uint8_t* unit, int) { return halves_at(unit); }
    static INLINE vec min(const uint8_t* unit, int) { return halves_at(unit + 2 * PANEL); }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int) { return unit + HEADER; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        out.m = row + 2;
        const uint8_t* q = row + FILE_HEADER;
        if (BITS == 8) {
            for (int i = 0; i < 32; ++i) out.codes[i] = static_cast<uint8_t>(q[i] ^ 0x80);
            return;
        }
        uint32_t high = 0;
        if (BITS == 5) {
            std::memcpy(&high, q, 4);
            q += 4;
        }
        for (int i = 0; i < 16; ++i) {
            out.codes[i] = static_cast<uint8_t>((q[i] & 15) | ((high >> i & 1) << 4));
            out.codes[i + 16] = static_cast<uint8_t>((q[i] >> 4) | ((high >> (i + 16) & 1) << 4));
        }
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 2 * output, s.d, 2);
        if (MIN) std::memcpy(unit + 2 * (PANEL + output), s.m, 2);
    }
};

using Q4_0 = Simple<4, false, 8>;
using Q4_1 = Simple<4, true, 0>;
using Q5_0 = Simple<5, false, 16>;
using Q5_1 = Simple<5, true, 0>;
using Q8_0 = Simple<8, false, 128>;

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

// 4-bit codes into a table of 16 values.
struct IQ4_NL : Simple<4, false, 128> {
    static constexpr int CODE_BITS = 8;

    static INLINE uvec step(const uint8_t* chunk, int s) {
        static constexpr uint8_t VALUES[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                               129, 141, 153, 166, 181, 197, 217, 241};  // 128 added
        return look_up(Bits::step(chunk, s), VALUES);
    }
};

// Formats of checkpoints in safetensors: a float32 scale, and where MIN a float32 min, for each COLUMNS columns. In a row
// the first of two codes of 4 bits is in the low half of a byte.
template <int BITS, int COLUMNS, bool MIN, int ZERO_>
struct Grouped {
    using Bits = Codes<BITS>;
    static constexpr int UNIT = COLUMNS, BLOCK = 32, ZERO = ZERO_, CODE_BITS = BITS;
    static constexpr bool HAS_MIN = MIN;
    static constexpr int FILE_HEADER = MIN ? 8 : 4, HEADER = FILE_HEADER * PANEL;
    static constexpr int UNIT_BYTES = HEADER + COLUMNS / CHUNK * Bits::BYTES;
    static constexpr int FILE_BYTES = FILE_HEADER + COLUMNS * BITS / 8;

    static INLINE vec scale(const uint8_t* unit, int) { return load(reinterpret_cast<const float*>(unit)); }
    static INLINE vec min(const uint8_t* unit, int) { return load(reinterpret_cast<const float*>(unit) + PANEL); }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        out.m = row + 4;
        const uint8_t* q = row + FILE_HEADER;
        for (int i = 0; i < COLUMNS; ++i) {
            out.codes[i] = BITS == 8 ? q[i] : static_cast<uint8_t>(i % 2 ? q[i / 2] >> 4 : q[i / 2] & 15);
        }
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 4 * output, s.d, 4);
        if (MIN) std::memcpy(unit + 4 * (PANEL + output), s.m, 4);
    }
};

using U4_32 = Grouped<4, 32, true, 0>;
using U4_64 = Grouped<4, 64, true, 0>;
using U4_128 = Grouped<4, 128, true, 0>;
using U8_32 = Grouped<8, 32, false, 128>;
using U8_128 = Grouped<8, 128, false, 128>;

// 4-bit floats of 2 bits of exponent and 1 of mantissa (Open Compute Project 2023) are halves of whole numbers.
INLINE uvec halves_of_e2m1(const uvec& codes) {
    static constexpr uint8_t VALUES[16] = {128, 129, 130, 131, 132, 134, 136, 140,
                                           128, 127, 126, 125, 124, 122, 120, 116};  // 128 added
    return look_up(codes, VALUES);
}

// 32 of them with an exponent, as GGUF files have them. 2^-127 and less are taken as zero.
struct MXFP4 : Simple<4, false, 128> {
    static constexpr int CODE_BITS = 8, HEADER = PANEL, UNIT_BYTES = HEADER + Bits::BYTES, FILE_BYTES = 17;

    static INLINE vec scale(const uint8_t* unit, int) {
        const ivec exponent = unsigned_numbers(unit);
        return bit_cast<vec>(select(exponent > broadcast(1), (exponent - broadcast(1)) << 23, ivec{}));
    }
    static INLINE vec min(const uint8_t*, int) { return vec{}; }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int) { return unit + HEADER; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return halves_of_e2m1(Bits::step(chunk, s)); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int i = 0; i < 16; ++i) {
            out.codes[i] = row[1 + i] & 15;
            out.codes[i + 16] = row[1 + i] >> 4;
        }
    }
    static void header(uint8_t* unit, int output, const Stored& s) { unit[output] = s.d[0]; }
};

// 64 of them with a float16 scale for each 16, and a float32 factor of these.
struct NVFP4 {
    using Bits = Codes<4>;
    static constexpr int UNIT = 64, BLOCK = 16, ZERO = 128, CODE_BITS = 8;
    static constexpr bool HAS_MIN = false;
    static constexpr int SCALES = 4 * PANEL, HEADER = SCALES + 4 * 2 * PANEL, UNIT_BYTES = HEADER + 2 * Bits::BYTES;
    static constexpr int FILE_BYTES = 4 + 4 * 2 + UNIT / 2;

    static INLINE vec scale(const uint8_t* unit, int block) {
        return load(reinterpret_cast<const float*>(unit)) * halves_at(unit + SCALES + 2 * PANEL * block);
    }
    static INLINE vec min(const uint8_t*, int) { return vec{}; }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return halves_of_e2m1(Bits::step(chunk, s)); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        out.m = row + 4;
        for (int i = 0; i < UNIT; ++i) out.codes[i] = i % 2 ? row[12 + i / 2] >> 4 : row[12 + i / 2] & 15;
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 4 * output, s.d, 4);
        for (int b = 0; b < 4; ++b) std::memcpy(unit + SCALES + 2 * (PANEL * b + output), s.m + 2 * b, 2);
    }
};

// Formats of 256 columns with a 6-bit scale and min for each 32, and float16 factors of both.
template <int BITS>
struct SuperBlock {
    using Bits = Codes<BITS>;
    static constexpr int UNIT = 256, BLOCK = 32, ZERO = 0, CODE_BITS = BITS;
    static constexpr bool HAS_MIN = true;
    static constexpr int SCALES = 4 * PANEL, MINS = SCALES + 8 * PANEL, HEADER = MINS + 8 * PANEL;
    static constexpr int UNIT_BYTES = HEADER + 8 * Bits::BYTES;
    static constexpr int FILE_BYTES = 16 + 128 + (BITS == 5 ? 32 : 0);

    static INLINE vec scale(const uint8_t* unit, int block) {
        return halves_at(unit) * unsigned_bytes(unit + SCALES + PANEL * block);
    }
    static INLINE vec min(const uint8_t* unit, int block) {
        return -halves_at(unit + 2 * PANEL) * unsigned_bytes(unit + MINS + PANEL * block);
    }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        out.m = row + 2;
        const uint8_t* packed = row + 4;
        for (int j = 0; j < 8; ++j) {
            if (j < 4) {
                out.scale[j] = packed[j] & 63;
                out.min[j] = packed[j + 4] & 63;
            } else {
                out.scale[j] = static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
                out.min[j] = static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
            }
        }
        const uint8_t *high = row + 16, *q = row + 16 + (BITS == 5 ? 32 : 0);
        for (int i = 0; i < 256; ++i) {
            const int block = i / 32, l = i % 32, byte = q[block / 2 * 32 + l];
            const int fifth = BITS == 5 ? (high[l] >> block & 1) << 4 : 0;
            out.codes[i] = static_cast<uint8_t>((block % 2 ? byte >> 4 : byte & 15) | fifth);
        }
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 2 * output, s.d, 2);
        std::memcpy(unit + 2 * (PANEL + output), s.m, 2);
        for (int j = 0; j < 8; ++j) {
            unit[SCALES + PANEL * j + output] = s.scale[j];
            unit[MINS + PANEL * j + output] = s.min[j];
        }
    }
};

using Q4_K = SuperBlock<4>;
using Q5_K = SuperBlock<5>;

// 256 columns with an 8-bit scale for each 16, and a float16 factor.
struct Q6_K {
    using Bits = Codes<6>;
    static constexpr int UNIT = 256, BLOCK = 16, ZERO = 32, CODE_BITS = 6;
    static constexpr bool HAS_MIN = false;
    static constexpr int HEADER = 2 * PANEL + 16 * PANEL, UNIT_BYTES = HEADER + 8 * Bits::BYTES, FILE_BYTES = 210;

    static INLINE vec scale(const uint8_t* unit, int block) {
        return halves_at(unit) * signed_bytes(unit + 2 * PANEL + PANEL * block);
    }
    static INLINE vec min(const uint8_t*, int) { return vec{}; }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row + 208;
        out.m = row + 208;
        std::memcpy(out.scale, row + 192, 16);
        for (int i = 0; i < 256; ++i) {
            const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
            const int low = row[64 * half + 32 * (quarter % 2) + l], high = row[128 + 32 * half + l];
            out.codes[i] = static_cast<uint8_t>((quarter < 2 ? low & 15 : low >> 4) | (high >> 2 * quarter & 3) << 4);
        }
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 2 * output, s.d, 2);
        for (int j = 0; j < 16; ++j) unit[2 * PANEL + PANEL * j + output] = s.scale[j];
    }
};

template <typename F>
constexpr int64_t panel_bytes(int64_t width) {
    return width / F::UNIT * F::UNIT_BYTES;
}
template <typename F>
constexpr int64_t file_row_bytes(int64_t width) {
    return width / F::UNIT * F::FILE_BYTES;
}

// Its last argument with F as the format of a quantized WeightKind that is only known when called.
#define WITH_FORMAT(kind, F, ...)                                                          \
    switch (kind) {                                                                        \
        case octavo::WeightKind::Q4_0: { using F = octavo::Q4_0; __VA_ARGS__; break; }     \
        case octavo::WeightKind::Q4_1: { using F = octavo::Q4_1; __VA_ARGS__; break; }     \
        case octavo::WeightKind::Q5_0: { using F = octavo::Q5_0; __VA_ARGS__; break; }     \
        case octavo::WeightKind::Q5_1: { using F = octavo::Q5_1; __VA_ARGS__; break; }     \
        case octavo::WeightKind::Q8_0: { using F = octavo::Q8_0; __VA_ARGS__; break; }     \
        case octavo::WeightKind::Q4_K: { using F = octavo::Q4_K; __VA_ARGS__; break; }     \
        case octavo::WeightKind::Q5_K: { using F = octavo::Q5_K; __VA_ARGS__; break; }     \
        case octavo::WeightKind::Q6_K: { using F = octavo::Q6_K; __VA_ARGS__; break; }     \
        case octavo::WeightKind::IQ4_NL: { using F = octavo::IQ4_NL; __VA_ARGS__; break; } \
        case octavo::WeightKind::MXFP4: { using F = octavo::MXFP4; __VA_ARGS__; break; }   \
        case octavo::WeightKind::U4_32: { using F = octavo::U4_32; __VA_ARGS__; break; }   \
        case octavo::WeightKind::U4_64: { using F = octavo::U4_64; __VA_ARGS__; break; }   \
        case octavo::WeightKind::U4_128: { using F = octavo::U4_128; __VA_ARGS__; break; } \
        case octavo::WeightKind::U8_32: { using F = octavo::U8_32; __VA_ARGS__; break; }   \
        case octavo::WeightKind::U8_128: { using F = octavo::U8_128; __VA_ARGS__; break; } \
        case octavo::WeightKind::NVFP4: { using F = octavo::NVFP4; __VA_ARGS__; break; }   \
    }

}  // namespace octavo
