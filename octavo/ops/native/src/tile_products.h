// Products of many rows with quantized weights by the processor's products of tiles (Intel's AMX).
//
// Two tiles of 16 rows meet two panels of 16 outputs, so that each tile that is loaded is multiplied twice. Its products
// are integers, which lie in memory for some blocks of columns; while tiles of these blocks are multiplied, vectors turn
// the sums of the blocks before them into floats, in the order in which multiply() does: so the bits are the same.
#pragma once

#include "quantized.h"
#include "tiles.h"

#if HAS_TILES

namespace octavo {

constexpr int PAIR = 2;                // tiles of rows, and panels, that meet at a time
constexpr int SUMMED = 4;              // blocks whose sums lie in memory before they are turned into floats
constexpr int ROWS_AT_ONCE = WIDE_TILE / SUMMED;  // whose sums are turned into floats between two products

using TileSums = int32_t[SUMMED][WIDE_TILE][PANEL];
using TileResults = vec[PAIR][PAIR][WIDE_TILE];  // by tile of rows, panel, row

// Tiles 0 to 3 are sums, of a tile of rows and a panel; 4 and 5 activations, 6 and 7 weights.
template <typename S>
void shape_tiles() {
    TileShapes shapes;
    for (int t = 0; t < 4; ++t) shapes.set(t, WIDE_TILE, 4 * PANEL);
    for (int t = 4; t < 6; ++t) shapes.set(t, WIDE_TILE, S::BLOCK);
    for (int t = 6; t < 8; ++t) shapes.set(t, S::BLOCK / 4, 4 * PANEL);
    TILE_CONFIGURE(shapes);
}

// The names of tiles are parts of instructions: each has to be written out.
#define MULTIPLY_TILES(c, a, b)                       \
    do {                                              \
        TILE_ZERO(c);                                 \
        if constexpr (HAS_ZERO<S>) TILE_PRODUCT_SIGNED(c, a, b); \
        else TILE_PRODUCT(c, a, b);                   \
    } while (0)

// The sums of ROWS_AT_ONCE rows from `row` on, of `count` blocks, times their scales, added to `out`. `scales` and `sums`
// are those of the blocks' activations, WIDE_TILE apart, `weights` those of the blocks.
template <typename S>
INLINE void take_sums(const TileSums& dots, int count, int row, const float* scales, const int32_t* sums,
                      const float* weights, const float* mins, vec* out) {
    constexpr int BLOCKS = CHUNK / S::BLOCK, R = ROWS_AT_ONCE;
    vec acc[R], total[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r] = load_as<vec>(out + row + r);
    for (int first = 0; first < count; first += BLOCKS, scales += WIDE_TILE) {
#pragma GCC unroll 2
        for (int b = 0; b < BLOCKS; ++b) {
            const vec scale = load(weights + (first + b) * PANEL);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const vec product = to_float(load_as<ivec>(dots[first + b][row + r]));
                total[r] = b == 0 ? product * scale : fmadd(product, scale, total[r]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[r] = fmadd(total[r], broadcast(scales[row + r]), acc[r]);
#pragma GCC unroll 2
        for (int b = 0; b < (S::HAS_MIN ? BLOCKS : 0); ++b) {
            const vec min = load(mins + (first + b) * PANEL);
            const int32_t* of_block = sums + (first + b) * WIDE_TILE + row;
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) acc[r] = fmadd(min, broadcast(bit_cast<float>(of_block[r])), acc[r]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) store_as(out + row + r, acc[r]);
}

// A tiles of rows, the second `apart` bytes behind the first, with B panels: what multiply() computes to the last bit.
template <typename S, int A, int B>
__attribute__((noinline)) void multiply_tiles(const Unpacked<S>* weights, const Activations<S>& of, const uint8_t* tiles,
                                              int64_t apart, TileResults& out) {
    static_assert(SUMMED == 4, "each block's four products have the sums of one tile and panel between them");
    constexpr int BLOCKS = CHUNK / S::BLOCK;
    constexpr int64_t ROW_BLOCK = WIDE_TILE * S::BLOCK, PANEL_BLOCK = S::BLOCK * PANEL, STRIDE = 4 * PANEL;
    alignas(64) TileSums dots[2][PAIR * PAIR];  // in turn: one is filled while the other is emptied
    const int8_t* x = of.codes(tiles);
    const int8_t* more_x = of.codes(tiles + apart);
    const uint8_t* codes = weights[0].codes;
    const uint8_t* more_codes = weights[B - 1].codes;
    for (int a = 0; a < A; ++a) {
        for (int b = 0; b < B; ++b) clear(out[a][b]);
    }
    const int64_t blocks = of.columns / S::BLOCK;
    int before = 0;  // blocks whose sums wait
    for (int64_t first = 0; first < blocks + SUMMED; first += SUMMED) {
        const int now = static_cast<int>(std::clamp<int64_t>(blocks - first, 0, SUMMED));
        const int turn = first / SUMMED % 2;
        TileSums* filled = dots[turn];
        const int64_t emptied = std::max<int64_t>(0, first - SUMMED);  // the first block whose sums wait
        const auto take = [&](int tile, int quarter) {
            const int a = tile / PAIR, b = tile % PAIR;
            if (a >= A || b >= B || before == 0) return;
            const uint8_t* activations = tiles + a * apart;
            take_sums<S>(dots[1 - turn][tile], before, quarter * ROWS_AT_ONCE,
                         of.scales(activations, WIDE_TILE) + emptied / BLOCKS * WIDE_TILE,
                         of.sums(activations, WIDE_TILE) + emptied * WIDE_TILE, weights[b].scales + emptied * PANEL,
                         weights[b].mins + emptied * PANEL, out[a][b]);
        };
        for (int i = 0; i < SUMMED; ++i) {
            if (i >= now) {
                for (int quarter = 0; quarter < SUMMED; ++quarter) take(i, quarter);
                continue;
            }
            const int64_t block = first + i;
            TILE_LOAD(4, x + block * ROW_BLOCK, S::BLOCK);
            TILE_LOAD(6, codes + block * PANEL_BLOCK, STRIDE);
            MULTIPLY_TILES(0, 4, 6);
            if constexpr (B > 1) {
                TILE_LOAD(7, more_codes + block * PANEL_BLOCK, STRIDE);
                MULTIPLY_TILES(1, 4, 7);
            }
            take(i, 0);
            TILE_STORE(0, filled[0][i], STRIDE);
            if constexpr (A > 1) {
                TILE_LOAD(5, more_x + block * ROW_BLOCK, S::BLOCK);
                MULTIPLY_TILES(2, 5, 6);
            }
            take(i, 1);
            if constexpr (B > 1) TILE_STORE(1, filled[1][i], STRIDE);
            if constexpr (A > 1 && B > 1) MULTIPLY_TILES(3, 5, 7);
            take(i, 2);
            if constexpr (A > 1) TILE_STORE(2, filled[2][i], STRIDE);
            take(i, 3);
            if constexpr (A > 1 && B > 1) TILE_STORE(3, filled[3][i], STRIDE);
        }
        before = now;
    }
}

#undef MULTIPLY_TILES

}  // namespace octavo

#endif
