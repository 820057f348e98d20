// Attention's products in bfloat16 by the processor's products of tiles (Intel's AMX): 16 queries with the 64 keys of a
// tile of keys, and their weights with its values.
//
// Scores take pairs of a key's numbers, 16 pairs at a time; sums of values take pairs of keys, 32 keys at a time and, where
// an odd number of 16 keys is seen, 16 at last. Keys and values lie in pairs as tiles want them, in a paired cache too.
// What is not whole is shorter or has zeros behind it, which add nothing: so a row has the same bits among few rows as among
// many. (See tiles.h: vectors add up in another order.)
#pragma once

#include "attention_task.h"
#include "tiles.h"

namespace octavo {

#if HAS_TILES

// Tiles 0 to 3 are sums, 4 rows and 6 what these are multiplied with; 5 and 7 the same of 8 pairs in place of 16.
inline void shape_attention_tiles(int rows) {
    constexpr int PAIRS = TILE_ROWS, HALF = PAIRS / 2;
    TileShapes shapes;
    for (int t = 0; t < 4; ++t) shapes.set(t, rows, 64);
    shapes.set(4, rows, 4 * PAIRS);
    shapes.set(5, rows, 4 * HALF);
    shapes.set(6, PAIRS, 64);
    shapes.set(7, HALF, 64);
    TILE_CONFIGURE(shapes);
}

// The names of tiles are parts of instructions: each has to be written out.
#define FOR_SUMS(N, DO)              \
    DO(0);                           \
    if constexpr ((N) > 1) { DO(1); } \
    if constexpr ((N) > 2) { DO(2); } \
    if constexpr ((N) > 3) { DO(3); }

// The products of rows of queries, `query_floats` apart, with V vectors of 16 keys, into rows of KEYS. `steps` is a number
// of pairs, a multiple of 8.
template <int V>
__attribute__((noinline)) void score_by_tiles(const float* queries, int64_t query_floats, const float* const* keys,
                                              int64_t steps, float* out) {
    const int64_t stride = query_floats * 4;
#define ZERO(v) TILE_ZERO(v)
    FOR_SUMS(V, ZERO)
#undef ZERO
    int64_t i = 0;
    for (; i + 16 <= steps; i += 16) {
        TILE_LOAD(4, queries + i, stride);
#define ADD(v)                                \
    TILE_LOAD(6, keys[v] + i * LANES, 64);    \
    TILE_PRODUCT_BF16(v, 4, 6)
        FOR_SUMS(V, ADD)
#undef ADD
    }
    if (i < steps) {
        TILE_LOAD(5, queries + i, stride);
#define ADD(v)                                \
    TILE_LOAD(7, keys[v] + i * LANES, 64);    \
    TILE_PRODUCT_BF16(v, 5, 7)
        FOR_SUMS(V, ADD)
#undef ADD
    }
#define STORE(v) TILE_STORE(v, out + (v) * LANES, KEYS * 4)
    FOR_SUMS(V, STORE)
#undef STORE
}

// Adds to V vectors of the rows' sums, `stride` floats apart, what `parts` parts of 16 keys give with weights in rows of
// KEYS floats. Values lie one part behind the other.
template <int V>
__attribute__((noinline)) void add_values_by_tiles(const float* weights, const float* values, int64_t value_floats,
                                                   int parts, float* sums, int64_t stride) {
    constexpr int PAIRS = LANES / 2;  // of a part
#define LOAD(v) TILE_LOAD(v, sums + (v) * LANES, stride * 4)
    FOR_SUMS(V, LOAD)
#undef LOAD
    int part = 0;
    for (; part + 2 <= parts; part += 2) {
        TILE_LOAD(4, weights + part * PAIRS, KEYS * 4);
#define ADD(v)                                                                             \
    TILE_LOAD(6, values + part * PAIRS * value_floats + (v) * LANES, value_floats * 4);    \
    TILE_PRODUCT_BF16(v, 4, 6)
        FOR_SUMS(V, ADD)
#undef ADD
    }
    if (part < parts) {
        TILE_LOAD(5, weights + part * PAIRS, KEYS * 4);
#define ADD(v)                                                                             \
    TILE_LOAD(7, values + part * PAIRS * value_floats + (v) * LANES, value_floats * 4);    \
    TILE_PRODUCT_BF16(v, 5, 7)
        FOR_SUMS(V, ADD)
#undef ADD
    }
#define STORE(v) TILE_STORE(v, sums + (v) * LANES, stride * 4)
    FOR_SUMS(V, STORE)
#undef STORE
}

#undef FOR_SUMS

#endif

}  // namespace octavo
