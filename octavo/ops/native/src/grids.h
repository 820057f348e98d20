// Formats of GGUF files whose codes are numbers of points in a grid, of 4 or 8 columns each. Looking these up for every
// product would cost more than reading the columns' own codes: they are packed column by column, and lose nothing.
#pragma once

#include "super_blocks.h"

namespace octavo {

// The lowest 7 of 8 signs, whose product is positive.
inline int even_signs(uint32_t seven) {
    seven &= 127;
    return static_cast<int>(seven | (__builtin_popcount(seven) & 1) << 7);
}
inline uint32_t word_at(const uint8_t* p, int bytes) {
    uint32_t word = 0;
    std::memcpy(&word, p, bytes);
    return word;
}
// What is packed of a scale of 2 * s + 1.
inline uint8_t odd(uint32_t s) { return static_cast<uint8_t>(2 * (s & 15) + 1); }

// Codes of a point of COLUMNS, which the grid has for the COUNT values above zero, the least first. Those below zero come
// before them, the least first.
template <int COLUMNS, int COUNT>
inline void read_point(const Stored& stored, uint32_t number, int signs, uint8_t* to) {
    for (int i = 0; i < COLUMNS; ++i) {
        const int code = stored.grid[number * COLUMNS + i];
        to[i] = static_cast<uint8_t>(signs >> i & 1 ? COUNT - 1 - code : COUNT + code);
    }
}

// Points of 8 columns of three values and their signs.
template <int BLOCK>
struct Grid2 : Numbered<3, BLOCK, 43, 7, 8> {
    using Bits = Codes<3>;

    static INLINE uvec step(const uint8_t* chunk, int s) {
        static constexpr uint8_t VALUES[16] = {0, 18, 35, 51, 68, 86};  // -43, -25, -8, 8, 25, 43, with 43 added
        return look_up(Bits::step(chunk, s), VALUES);
    }
};

struct IQ2_XXS : Grid2<32> {
    static constexpr int FILE_BYTES = 66;

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int j = 0; j < 8; ++j) {
            const uint8_t* block = row + 2 + 8 * j;
            const uint32_t rest = word_at(block + 4, 4);
            out.scale[j] = odd(rest >> 28);
            for (int g = 0; g < 4; ++g) {
                read_point<8, 3>(out, block[g], even_signs(rest >> 7 * g), out.codes + 32 * j + 8 * g);
            }
        }
    }
};

struct IQ2_XS : Grid2<16> {
    static constexpr int FILE_BYTES = 74;

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int j = 0; j < 16; ++j) out.scale[j] = odd(row[66 + j / 2] >> j % 2 * 4);
        for (int g = 0; g < 32; ++g) {
            const uint32_t point = word_at(row + 2 + 2 * g, 2);
            read_point<8, 3>(out, point & 511, even_signs(point >> 9), out.codes + 8 * g);
        }
    }
};

struct IQ2_S : Grid2<16> {
    using Layout = IQ2_XS;
    static constexpr int FILE_BYTES = 82;

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int j = 0; j < 16; ++j) out.scale[j] = odd(row[74 + j / 2] >> j % 2 * 4);
        for (int g = 0; g < 32; ++g) {
            const uint32_t high = row[66 + g / 4] >> g % 4 * 2 & 3;
            read_point<8, 3>(out, row[2 + g] | high << 8, row[34 + g], out.codes + 8 * g);
        }
    }
};

// Points of 4 columns of eight values and their signs.
struct IQ3_XXS : Numbered<4, 32, 62, 7, 4> {
    static constexpr int FILE_BYTES = 98;

    static INLINE uvec step(const uint8_t* chunk, int s) {
        static constexpr uint8_t VALUES[16] = {0,  10, 18, 26, 34, 42,  50,  58,
                                               66, 74, 82, 90, 98, 106, 114, 124};  // 62 added
        return look_up(Bits::step(chunk, s), VALUES);
    }
    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int j = 0; j < 8; ++j) {
            const uint32_t rest = word_at(row + 66 + 4 * j, 4);
            out.scale[j] = odd(rest >> 28);
            for (int g = 0; g < 8; ++g) {
                const int signs = even_signs(rest >> g / 2 * 7) >> g % 2 * 4;
                read_point<4, 8>(out, row[2 + 8 * j + g], signs, out.codes + 32 * j + 4 * g);
            }
        }
    }
};

// The values are odd numbers up to 15, so that codes are half of these with 15 added.
struct IQ3_S : Numbered<4, 32, 15, 5> {
    static constexpr int FILE_BYTES = 110;

    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s) << 1; }
    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int j = 0; j < 8; ++j) out.scale[j] = odd(row[106 + j / 2] >> j % 2 * 4);
        for (int g = 0; g < 64; ++g) {
            const uint32_t high = row[66 + g / 8] >> g % 8 & 1;
            read_point<4, 8>(out, row[2 + g] | high << 8, row[74 + g / 2] >> g % 2 * 4, out.codes + 4 * g);
        }
    }
};

// Points of 8 columns of -1, 0 and 1, to all of which an eighth is added, or taken off, for each 32.
struct IQ1_S {
    using Bits = Codes<2>;
    static constexpr int UNIT = 256, BLOCK = 32, ZERO = 0, CODE_BITS = 2;
    static constexpr bool HAS_MIN = true;
    static constexpr int HEADER = (2 + 8) * PANEL, UNIT_BYTES = HEADER + 8 * Bits::BYTES, FILE_BYTES = 50;

    static INLINE ivec numbers(const uint8_t* unit, int block) { return unsigned_numbers(unit + (2 + block) * PANEL); }
    static INLINE vec scale(const uint8_t* unit, int block) { return halves_at(unit) * to_float(numbers(unit, block) & 15); }
    static INLINE vec min(const uint8_t* unit, int block) {
        const ivec number = numbers(unit, block), eighths = (number >> 7 << 1) - broadcast(9);  // -9 or -7
        return halves_at(unit) * 0.125f * to_float((number & 15) * eighths);
    }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return Bits::step(chunk, s); }

    static void read(const uint8_t* row, Stored& out) {
        out.d = row;
        for (int j = 0; j < 8; ++j) {
            const uint32_t high = word_at(row + 34 + 2 * j, 2);
            out.scale[j] = static_cast<uint8_t>(odd(high >> 12 & 7) | (high >> 15 ? 0 : 128));
            for (int g = 0; g < 4; ++g) {
                const uint32_t number = row[2 + 4 * j + g] | (high >> 3 * g & 7) << 8;
                std::memcpy(out.codes + 32 * j + 8 * g, out.grid + 8 * number, 8);
            }
        }
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 2 * output, s.d, 2);
        for (int j = 0; j < 8; ++j) unit[(2 + j) * PANEL + output] = s.scale[j];
    }
};

// The same with that eighth for each 8, and a scale for each 16: codes are eighths with 9 added. A block's byte lies
// behind its chunk's codes: the scale, in bit 4 whether an eighth is added to its first 8, and in bit 5 to its others.
struct IQ1_M {
    struct Bits : Codes<2> {
        static constexpr int BYTES = Codes<2>::BYTES + 2 * PANEL;
    };
    static constexpr int UNIT = 256, BLOCK = 16, ZERO = 9, CODE_BITS = 5;
    static constexpr bool HAS_MIN = false;
    static constexpr int HEADER = 2 * PANEL, UNIT_BYTES = HEADER + 8 * Bits::BYTES, FILE_BYTES = 56;

    static INLINE ivec numbers(const uint8_t* chunk, int block) {
        return unsigned_numbers(chunk + Codes<2>::BYTES + block * PANEL);
    }
    static INLINE vec scale(const uint8_t* unit, int block) {
        return halves_at(unit) * 0.125f * to_float(numbers(chunk(unit, block >> 1), block & 1) & 15);
    }
    static INLINE vec min(const uint8_t*, int) { return vec{}; }
    static INLINE const uint8_t* chunk(const uint8_t* unit, int c) { return unit + HEADER + c * Bits::BYTES; }
    static INLINE uvec step(const uint8_t* chunk, int s) {
        const ivec is_added = numbers(chunk, s / 4) << 27 - s / 2 % 2 >> 31;
        return Bits::step(chunk, s) << 3 | (bit_cast<uvec>(is_added) & in_each_byte(2));
    }

    static void read(const uint8_t* row, Stored& out) {
        const uint8_t* scales = row + 48;
        uint32_t d = 0;
        for (int i = 0; i < 4; ++i) d |= word_at(scales + 2 * i, 2) >> 12 << 4 * i;
        std::memcpy(out.made, &d, 2);
        out.d = out.made;
        for (int j = 0; j < 16; ++j) {
            const uint32_t both = row[32 + j];  // groups of 8, each 3 bits of its number and a sign
            out.scale[j] = odd(word_at(scales + j / 4 * 2, 2) >> j % 4 * 3 & 7);
            for (int g = 0; g < 2; ++g) {
                const uint32_t number = row[2 * j + g] | (both >> 4 * g & 7) << 8;
                std::memcpy(out.codes + 16 * j + 8 * g, out.grid + 8 * number, 8);
                out.scale[j] |= static_cast<uint8_t>((both >> (4 * g + 3) & 1 ? 0 : 16) << g);
            }
        }
    }
    static void header(uint8_t* unit, int output, const Stored& s) {
        std::memcpy(unit + 2 * output, s.d, 2);
        for (int j = 0; j < 16; ++j) {
            const_cast<uint8_t*>(chunk(unit, j / 2))[Codes<2>::BYTES + j % 2 * PANEL + output] = s.scale[j];
        }
    }
};

}  // namespace octavo
