// Formats of GGUF files of 256 columns, whose float16 factors are shared by blocks with whole numbers of their own.
#pragma once

#include "codes.h"

namespace octavo {

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
        for (int j = 0; j < 4; ++j) split_halves<32>(q + 32 * j, out.codes + 64 * j);
        for (int j = 0; j < (BITS == 5 ? 8 : 0); ++j) add_bits<1>(high, j, 4, out.codes + 32 * j);
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

// Codes of 2 bits as K formats and ternary ones have them: of 32 columns each bit pair of 32 bytes.
inline void read_pairs_of_bits(const uint8_t* q, Stored& out) {
    for (int j = 0; j < 8; ++j) store_as(out.codes + 32 * j, bits_of<2>(q + j / 4 * 32, j % 4 * 2));
}

// 2-bit codes with a 4-bit scale and min for each 16, and float16 factors of both.
struct Q2_K {
    using Bits = Codes<2>;
    static constexpr int UNIT = 256, BLOCK = 16, ZERO = 0, CODE_BITS = 2;
    static constexpr bool HAS_MIN = true;
    static constexpr int SCALES = 4 * PANEL, HEADER = SCALES + 16 * PANEL, UNIT_BYTES = HEADER + 8 * Bits::BYTES;
    static constexpr int FILE_BYTES = 84;

    static INLINE ivec both(const uint8_t* unit, int block) { return unsigned_numbers(unit + SCALES + PANEL * block); }
    static INLINE vec scale(const uint8_t* unit, int block) { return halves_at(unit) * to_float(both(unit, block) & 15); }
    static INLINE vec min(const uint8_t* unit, int block) {
        return -halves_at(unit + 2 * PANEL) * to_float(both(unit, block) >> 4);
    }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row + 80;
        out.m = row + 82;
        std::memcpy(out.scale, row, 16);
        read_pairs_of_bits(row + 16, out);
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 2 * output, s.d, 2);
        std::memcpy(unit + 2 * (PANEL + output), s.m, 2);
        for (int j = 0; j < 16; ++j) unit[SCALES + PANEL * j + output] = s.scale[j];
    }
};

// Formats with a whole number of 8 bits for each BLOCK_ columns, and a float16 factor of a DIVISOR-th of these.
template <int BITS, int BLOCK_, int ZERO_, int CODE_BITS_ = BITS, int DIVISOR = 1>
struct Numbered {
    using Bits = Codes<BITS>;
    static constexpr int UNIT = 256, BLOCK = BLOCK_, ZERO = ZERO_, CODE_BITS = CODE_BITS_, BLOCKS = UNIT / BLOCK;
    static constexpr bool HAS_MIN = false;
    static constexpr int HEADER = (2 + BLOCKS) * PANEL, UNIT_BYTES = HEADER + 8 * Bits::BYTES;

    static INLINE vec scale(const uint8_t* unit, int block) {
        return halves_at(unit) * (1.0f / DIVISOR) * signed_bytes(unit + (2 + block) * PANEL);
    }
    static INLINE vec min(const uint8_t*, int) { return vec{}; }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s); }

    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 2 * output, s.d, 2);
        for (int j = 0; j < BLOCKS; ++j) unit[(2 + j) * PANEL + output] = s.scale[j];
    }
};

struct Q6_K : Numbered<6, 16, 32> {
    static constexpr int FILE_BYTES = 210;

    static void read(const uint8_t* row, Stored& out) {
        out.d = row + 208;
        std::memcpy(out.scale, row + 192, 16);
        for (int j = 0; j < 2; ++j) split_halves<64>(row + 64 * j, out.codes + 128 * j);
        for (int j = 0; j < 8; ++j) add_bits<2>(row + 128 + j / 4 * 32, j % 4 * 2, 4, out.codes + 32 * j);
    }
};

// The file has scales of 6 bits, 32 added.
struct Q3_K : Numbered<3, 16, 4> {
    static constexpr int FILE_BYTES = 110;

    static void read(const uint8_t* row, Stored& out) {
        out.d = row + 108;
        const uint8_t* packed = row + 96;
        for (int j = 0; j < 16; ++j) {
            const int low = packed[j % 8] >> j / 8 * 4 & 15, high = packed[8 + j % 4] >> j / 4 * 2 & 3;
            out.scale[j] = static_cast<uint8_t>((low | high << 4) - 32);
        }
        read_pairs_of_bits(row + 32, out);
        for (int j = 0; j < 8; ++j) add_bits<1>(row, j, 2, out.codes + 32 * j);
    }
};

// 4-bit codes into a table of 16 values.
INLINE uvec values_of_iq4(const uvec& codes) {
    static constexpr uint8_t VALUES[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                           129, 141, 153, 166, 181, 197, 217, 241};  // 128 added
    return look_up(codes, VALUES);
}

struct IQ4_XS : Numbered<4, 32, 128, 8> {
    static constexpr int FILE_BYTES = 136;

    static INLINE uvec step(const uint8_t* chunk, int s) { return values_of_iq4(Bits::step(chunk, s)); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int j = 0; j < 8; ++j) {
            const int low = row[4 + j / 2] >> j % 2 * 4 & 15, high = row[2 + j / 4] >> j % 4 * 2 & 3;
            out.scale[j] = static_cast<uint8_t>((low | high << 4) - 32);
            split_halves<16>(row + 8 + 16 * j, out.codes + 32 * j);
        }
    }
};

// -1, 0 and 1, with a float16 scale for all 256.
struct TQ2_0 : Numbered<2, 32, 1> {
    static constexpr int HEADER = 2 * PANEL, UNIT_BYTES = HEADER + 8 * Bits::BYTES, FILE_BYTES = 66;

    static INLINE vec scale(const uint8_t* unit, int) { return halves_at(unit); }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row + 64;
        read_pairs_of_bits(row, out);
    }
    static void header(uint8_t* unit, int output, const Stored& s) { std::memcpy(unit + 2 * output, s.d, 2); }
};

// The same as a 243rd and its multiples, five in a byte.
struct TQ1_0 : TQ2_0 {
    using Layout = TQ2_0;
    static constexpr int FILE_BYTES = 54;

    // `count` bytes, the first digit of each, then their second.
    static uint8_t* digits(const uint8_t* q, int count, int of_each, uint8_t* to) {
        for (int digit = 0, power = 1; digit < of_each; ++digit, power *= 3) {
            for (int i = 0; i < count; ++i) *to++ = static_cast<uint8_t>(static_cast<uint8_t>(q[i] * power) * 3 >> 8);
        }
        return to;
    }
    static void read(const uint8_t* row, Stored& out) {
        out.d = row + 52;
        digits(row + 48, 4, 4, digits(row + 32, 16, 5, digits(row, 32, 5, out.codes)));
    }
};

}  // namespace octavo
