// Quantized weights: how each format lies in its file, and how it lies packed for computing.
//
// A packed weight is a row of panels, each of 16 outputs over the whole width. A panel is a row of units; a unit has
// the scales of its outputs, then for every 4 columns a vector of 64 codes, output by output, so that one instruction
// multiplies 4 columns of 16 outputs. Codes are without sign: a weight is `scale * code + min`, where `min` is a number
// of its own or `-zero * scale`. Nothing is expanded: 4-bit codes stay two in a byte, scales stay as the file has them.
#pragma once

#include "codes.h"
#include "grids.h"
#include "super_blocks.h"

namespace octavo {

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
        split_halves<16>(q, out.codes);
        for (int i = 0; i < (BITS == 5 ? 32 : 0); ++i) out.codes[i] |= static_cast<uint8_t>((high >> i & 1) << 4);
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

struct IQ4_NL : Simple<4, false, 128> {
    static constexpr int CODE_BITS = 8;

    static INLINE uvec step(const uint8_t* chunk, int s) { return values_of_iq4(Bits::step(chunk, s)); }
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
        if constexpr (BITS == 8) std::memcpy(out.codes, q, COLUMNS);
        else split_pairs<COLUMNS / 2>(q, out.codes);
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
using U8_MIN_32 = Grouped<8, 32, true, 0>;
using U8_MIN_128 = Grouped<8, 128, true, 0>;

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
        split_halves<16>(row + 1, out.codes);
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
        split_pairs<UNIT / 2>(row + 12, out.codes);
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 4 * output, s.d, 4);
        for (int b = 0; b < 4; ++b) std::memcpy(unit + SCALES + 2 * (PANEL * b + output), s.m + 2 * b, 2);
    }
};

// The same of GGUF files, whose scales are 8-bit floats: as float16 with the same bits they are a 256th of these.
struct GGUF_NVFP4 : NVFP4 {
    using Layout = NVFP4;
    static constexpr int FILE_BYTES = 4 + UNIT / 2;

    static void read(const uint8_t* row, Stored& out) {
        static constexpr float FACTOR = 256.0f / 2;
        out.d = reinterpret_cast<const uint8_t*>(&FACTOR);
        out.m = out.made;
        for (int b = 0; b < 4; ++b) {
            const auto half = static_cast<uint16_t>(row[b] == 0x7f ? 0 : (row[b] & 0x7f) << 7);
            std::memcpy(out.made + 2 * b, &half, 2);
            split_halves<8>(row + 4 + 8 * b, out.codes + 16 * b);
        }
    }
};

// What a format is once it is packed.
template <typename F>
auto packed_as() {
    if constexpr (requires { typename F::Layout; }) return typename F::Layout{};
    else return F{};
}
template <typename F>
using PackedAs = decltype(packed_as<F>());

template <typename F>
constexpr int64_t panel_bytes(int64_t width) {
    return width / F::UNIT * F::UNIT_BYTES;
}
template <typename F>
constexpr int64_t file_row_bytes(int64_t width) {
    return width / F::UNIT * F::FILE_BYTES;
}

// Its last argument with F as the format of a quantized WeightKind that is only known when called.
#define WITH_FORMAT(kind, F, ...)                                                                  \
    switch (kind) {                                                                                \
        case octavo::WeightKind::Q4_0: { using F = octavo::Q4_0; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q4_1: { using F = octavo::Q4_1; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q5_0: { using F = octavo::Q5_0; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q5_1: { using F = octavo::Q5_1; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q8_0: { using F = octavo::Q8_0; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q2_K: { using F = octavo::Q2_K; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q3_K: { using F = octavo::Q3_K; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q4_K: { using F = octavo::Q4_K; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q5_K: { using F = octavo::Q5_K; __VA_ARGS__; break; }             \
        case octavo::WeightKind::Q6_K: { using F = octavo::Q6_K; __VA_ARGS__; break; }             \
        case octavo::WeightKind::IQ2_XXS: { using F = octavo::IQ2_XXS; __VA_ARGS__; break; }       \
        case octavo::WeightKind::IQ2_XS: { using F = octavo::IQ2_XS; __VA_ARGS__; break; }         \
        case octavo::WeightKind::IQ3_XXS: { using F = octavo::IQ3_XXS; __VA_ARGS__; break; }       \
        case octavo::WeightKind::IQ1_S: { using F = octavo::IQ1_S; __VA_ARGS__; break; }           \
        case octavo::WeightKind::IQ4_NL: { using F = octavo::IQ4_NL; __VA_ARGS__; break; }         \
        case octavo::WeightKind::IQ3_S: { using F = octavo::IQ3_S; __VA_ARGS__; break; }           \
        case octavo::WeightKind::IQ2_S: { using F = octavo::IQ2_S; __VA_ARGS__; break; }           \
        case octavo::WeightKind::IQ4_XS: { using F = octavo::IQ4_XS; __VA_ARGS__; break; }         \
        case octavo::WeightKind::IQ1_M: { using F = octavo::IQ1_M; __VA_ARGS__; break; }           \
        case octavo::WeightKind::TQ1_0: { using F = octavo::TQ1_0; __VA_ARGS__; break; }           \
        case octavo::WeightKind::TQ2_0: { using F = octavo::TQ2_0; __VA_ARGS__; break; }           \
        case octavo::WeightKind::MXFP4: { using F = octavo::MXFP4; __VA_ARGS__; break; }           \
        case octavo::WeightKind::GGUF_NVFP4: { using F = octavo::GGUF_NVFP4; __VA_ARGS__; break; } \
        case octavo::WeightKind::U4_32: { using F = octavo::U4_32; __VA_ARGS__; break; }           \
        case octavo::WeightKind::U4_64: { using F = octavo::U4_64; __VA_ARGS__; break; }           \
        case octavo::WeightKind::U4_128: { using F = octavo::U4_128; __VA_ARGS__; break; }         \
        case octavo::WeightKind::U8_32: { using F = octavo::U8_32; __VA_ARGS__; break; }           \
        case octavo::WeightKind::U8_128: { using F = octavo::U8_128; __VA_ARGS__; break; }         \
        case octavo::WeightKind::U8_MIN_32: { using F = octavo::U8_MIN_32; __VA_ARGS__; break; }   \
        case octavo::WeightKind::U8_MIN_128: { using F = octavo::U8_MIN_128; __VA_ARGS__; break; } \
        case octavo::WeightKind::NVFP4: { using F = octavo::NVFP4; __VA_ARGS__; break; }           \
    }

}  // namespace octavo
