// Products of rows in bfloat16 with weights in bfloat16 by the processor's products of tiles (Intel's AMX).
//
// Panels lie as a tile wants them: 16 pairs of columns are 16 rows of 64 bytes. Two tiles of rows meet two panels, so that
// each tile that is loaded is multiplied twice; a single tile of rows, of which the weights' way from memory takes the
// time, meets up to four. Sums stay in their tiles for all columns of a call, and go through memory unrounded between calls,
// so that a result depends neither on how columns are cut into calls, in multiples of 32, nor on the rows beside it.
#pragma once

#include "tiles.h"
#include "vector.h"

namespace octavo {

constexpr int PAIR_STEPS = 16;  // pairs of columns in a tile

#if HAS_TILES

// Tiles 0 to 3 are sums, 4 and 5 rows of x, 6 and 7 weights.
inline void shape_float_tiles(int rows) {
    TileShapes shapes;
    for (int t = 0; t < 6; ++t) shapes.set(t, rows, 64);
    for (int t = 6; t < 8; ++t) shapes.set(t, PAIR_STEPS, 64);
    TILE_CONFIGURE(shapes);
}

// The sums of A tiles of rows, the second TILE_ROWS rows behind the first, with P panels, a panel's `apart` vectors from
// the next one's, get the products of `steps` pairs of columns. Rows of x are `x_bytes` apart, and have zeros up to a
// whole tile. `ahead(step)` says how far behind a panel's step what is needed later lies, 0 for nothing.
template <int A, int P, typename Ahead>
__attribute__((noinline)) void add_tile_products(const uint8_t* const* panels, const float* x, int64_t x_bytes,
                                                 int64_t steps, vec* sums, int64_t apart, const Ahead& ahead) {
    static_assert(A * P <= 4);
    constexpr int64_t STRIDE = sizeof(vec);
    // The names of tiles are parts of instructions: each has to be written out.
    TILE_LOAD(0, sums, STRIDE);
    if constexpr (P > 1) TILE_LOAD(1, sums + apart, STRIDE);
    if constexpr (A > 1) TILE_LOAD(2, sums + TILE_ROWS, STRIDE);
    if constexpr (A > 1 && P > 1) TILE_LOAD(3, sums + apart + TILE_ROWS, STRIDE);
    if constexpr (P > 2) {
        TILE_LOAD(2, sums + 2 * apart, STRIDE);
        TILE_LOAD(3, sums + 3 * apart, STRIDE);
    }
    alignas(64) uint8_t rest[PAIR_STEPS * 64];
    for (int64_t k = 0; k < steps; k += PAIR_STEPS) {
        const int64_t far = ahead(k);
        const auto weights = [&](int p) {
            const uint8_t* at = panels[p] + k * 64;
            if (far != 0) {
                for (int i = 0; i < PAIR_STEPS; ++i) __builtin_prefetch(at + far + i * 64);
            }
            if (k + PAIR_STEPS <= steps) return at;
            // Behind a panel's end is what zeros may not be multiplied with: infinities, and what is not a number.
            std::memcpy(rest, at, (steps - k) * 64);
            std::memset(rest + (steps - k) * 64, 0, (k + PAIR_STEPS - steps) * 64);
            return static_cast<const uint8_t*>(rest);
        };
        TILE_LOAD(4, x + k, x_bytes);
        if constexpr (A > 1) TILE_LOAD(5, x + k + TILE_ROWS * x_bytes / 4, x_bytes);
        const uint8_t* at = weights(0);
        TILE_LOAD(6, at, 64);
        TILE_PRODUCT_BF16(0, 4, 6);
        if constexpr (P > 1) {
            at = weights(1);
            TILE_LOAD(7, at, 64);
            TILE_PRODUCT_BF16(1, 4, 7);
        }
        if constexpr (A > 1) TILE_PRODUCT_BF16(2, 5, 6);
        if constexpr (A > 1 && P > 1) TILE_PRODUCT_BF16(3, 5, 7);
        if constexpr (P > 2) {
            at = weights(2);
            TILE_LOAD(6, at, 64);
            TILE_PRODUCT_BF16(2, 4, 6);
            at = weights(3);
            TILE_LOAD(7, at, 64);
            TILE_PRODUCT_BF16(3, 4, 7);
        }
    }
    TILE_STORE(0, sums, STRIDE);
    if constexpr (P > 1) TILE_STORE(1, sums + apart, STRIDE);
    if constexpr (A > 1) TILE_STORE(2, sums + TILE_ROWS, STRIDE);
    if constexpr (A > 1 && P > 1) TILE_STORE(3, sums + apart + TILE_ROWS, STRIDE);
    if constexpr (P > 2) {
        TILE_STORE(2, sums + 2 * apart, STRIDE);
        TILE_STORE(3, sums + 3 * apart, STRIDE);
    }
}

#endif

}  // namespace octavo
