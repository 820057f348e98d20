// Products of tiles by the processor (Intel's AMX), or the same in C++ where OCTAVO_EMULATE_TILES is defined: so that what
// its library builds on them is tested on any machine.
//
// A tile has up to 16 rows of 64 bytes. TILE_PRODUCT(c, a, b) adds to 16 x 16 int32 the products of a's rows of signed
// bytes with b's columns of unsigned ones, 4 of which lie in each four bytes of a row; TILE_PRODUCT_SIGNED takes b's as
// signed. TILE_PRODUCT_BF16 adds to 16 x 16 float32 those of a's rows of bfloat16 with b's columns, 2 of which lie in
// each four bytes: numbers at even places and at odd ones are summed up apart, each from zero, then both sums are added,
// and what they make to c, with one rounding each (TDPBF16PS in Intel's manual, volume 2). No product of vectors here adds
// up so, and a row must have the same bits among few rows as among many: where bfloat16 is multiplied by tiles, all rows
// are.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define HAS_TILES 1
#include <immintrin.h>
#else  // other sets pack weights as their own products read them
#define HAS_TILES 0
#endif

namespace octavo {

constexpr int TILE_ROWS = 16;

// Whether tiles serve, where the library has them: for products with codes, which are the same by vectors; and for those of
// bfloat16, with weights and in attention, which are not.
struct TilesServe {
    std::atomic<bool> codes = true, bf16 = true, attention = true;
};
inline TilesServe tiles_serve;

// Rows and bytes of a row of each tile, as the instruction reads it.
struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int of_rows, int of_bytes) {
        rows[tile] = static_cast<uint8_t>(of_rows);
        row_bytes[tile] = static_cast<uint16_t>(of_bytes);
    }
};
static_assert(sizeof(TileShapes) == 64);

#if HAS_TILES && defined(OCTAVO_EMULATE_TILES)

struct EmulatedTiles {
    TileShapes shapes;
    uint8_t tiles[8][TILE_ROWS][64];

    void zero(int t) { std::memset(tiles[t], 0, sizeof tiles[t]); }
    void load(int t, const void* from, int64_t stride) {
        zero(t);
        for (int r = 0; r < shapes.rows[t]; ++r) {
            std::memcpy(tiles[t][r], static_cast<const char*>(from) + r * stride, shapes.row_bytes[t]);
        }
    }
    void store(int t, void* to, int64_t stride) const {
        for (int r = 0; r < shapes.rows[t]; ++r) {
            std::memcpy(static_cast<char*>(to) + r * stride, tiles[t][r], shapes.row_bytes[t]);
        }
    }
    template <typename Byte>
    void product(int c, int a, int b) {
        for (int r = 0; r < shapes.rows[c]; ++r) {
            for (int n = 0; n < shapes.row_bytes[c] / 4; ++n) {
                int32_t total;
                std::memcpy(&total, tiles[c][r] + 4 * n, 4);
                for (int k = 0; k < shapes.row_bytes[a]; ++k) {
                    total += static_cast<int8_t>(tiles[a][r][k]) * static_cast<Byte>(tiles[b][k / 4][4 * n + k % 4]);
                }
                std::memcpy(tiles[c][r] + 4 * n, &total, 4);
            }
        }
    }

    // Numbers too small for float32's exponent are zeros, on their way in and out.
    static float flushed(float x) {
        return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
    }
    static float number(const uint8_t* at) {
        uint16_t half;
        std::memcpy(&half, at, 2);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        float x;
        std::memcpy(&x, &bits, 4);
        return flushed(x);
    }
    void product_bf16(int c, int a, int b) {
        const int columns = shapes.row_bytes[c] / 4;
        for (int r = 0; r < shapes.rows[c]; ++r) {
            float apart[2][TILE_ROWS] = {};
            for (int k = 0; k < shapes.row_bytes[a] / 4; ++k) {
                for (int odd = 0; odd < 2; ++odd) {
                    const float x = number(tiles[a][r] + 4 * k + 2 * odd);
                    for (int n = 0; n < columns; ++n) {
                        const float w = number(tiles[b][k] + 4 * n + 2 * odd);
                        apart[odd][n] = flushed(std::fma(x, w, apart[odd][n]));
                    }
                }
            }
            for (int n = 0; n < columns; ++n) {
                float total;
                std::memcpy(&total, tiles[c][r] + 4 * n, 4);
                total = flushed(flushed(total) + flushed(apart[0][n] + apart[1][n]));
                std::memcpy(tiles[c][r] + 4 * n, &total, 4);
            }
        }
    }
};
inline thread_local EmulatedTiles emulated_tiles;

#define TILE_CONFIGURE(wanted) (octavo::emulated_tiles.shapes = (wanted))
#define TILE_RELEASE() (octavo::emulated_tiles.shapes = {})
#define TILE_ZERO(t) octavo::emulated_tiles.zero(t)
#define TILE_LOAD(t, from, stride) octavo::emulated_tiles.load(t, from, stride)
#define TILE_STORE(t, to, stride) octavo::emulated_tiles.store(t, to, stride)
#define TILE_PRODUCT(c, a, b) octavo::emulated_tiles.product<uint8_t>(c, a, b)
#define TILE_PRODUCT_SIGNED(c, a, b) octavo::emulated_tiles.product<int8_t>(c, a, b)
#define TILE_PRODUCT_BF16(c, a, b) octavo::emulated_tiles.product_bf16(c, a, b)

#elif HAS_TILES

// GCC's intrinsics do not tell the compiler all that they read: without this it may leave out what was stored for them, or
// store what comes next before they have read.
#define TILE_SEES(memory) asm volatile("" ::"r"(memory) : "memory")
#define TILE_CONFIGURE(wanted)         \
    do {                               \
        TILE_SEES(&(wanted));          \
        _tile_loadconfig(&(wanted));   \
    } while (0)
#define TILE_RELEASE() _tile_release()
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, from, stride)     \
    do {                               \
        TILE_SEES(from);               \
        _tile_loadd(t, from, stride);  \
        TILE_SEES(from);               \
    } while (0)
#define TILE_STORE(t, to, stride) _tile_stored(t, to, stride)
#define TILE_PRODUCT(c, a, b) _tile_dpbsud(c, a, b)
#define TILE_PRODUCT_SIGNED(c, a, b) _tile_dpbssd(c, a, b)
#define TILE_PRODUCT_BF16(c, a, b) _tile_dpbf16ps(c, a, b)

#endif

}  // namespace octavo
