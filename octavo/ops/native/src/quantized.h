// What products with quantized weights work on: rows of activations as int8, in tiles, and panels of weights, packed or
// unpacked for many rows.
#pragma once

#include "dot.h"
#include "linear.h"
#include "tiles.h"

namespace octavo {

constexpr int SCALED = 32;  // columns of a row of activations that share a scale

// What formats differ in once their codes are unpacked: the products of many rows are compiled for these alone.
template <int BLOCK_, bool MIN, int CODE_BITS_>
struct Shape {
    static constexpr int BLOCK = BLOCK_, CODE_BITS = CODE_BITS_;
    static constexpr bool HAS_MIN = MIN;
};
template <typename F>
using ShapeOf = Shape<F::BLOCK, F::HAS_MIN, F::CODE_BITS>;

// Whether products may take tiles of 16 rows: those of processors that multiply such tiles by themselves.
constexpr bool WIDE_TILES = HAS_TILES;

// Whether there is anything to make up for.
template <typename S>
constexpr bool HAS_ZERO = !S::HAS_MIN && !(S::CODE_BITS == 8 && TAKEN_OFF == 128);

// Sums of the four bytes in each lane.
template <typename V>
INLINE V sum_bytes(V v) {
    return (v << 24 >> 24) + (v << 16 >> 24) + ((v << 8 >> 24) + (v >> 24));
}

// N lanes added to R.
template <int R, typename V>
INLINE auto fold(const V& v) {
    if constexpr (COUNT<V> > R) return fold<R>(lower(v) + upper(v));
    else return v;
}

// 4 rows of 16 bytes, `stride` apart, to 4 columns of [4 rows][4], `step` apart.
INLINE void transpose4(const int8_t* rows, int64_t stride, uint8_t* out, int64_t step) {
    typedef uint32_t four __attribute__((vector_size(16)));
    four a[4], b[4];
    for (int r = 0; r < 4; ++r) a[r] = load_as<four>(rows + r * stride);
    for (int r = 0; r < 4; r += 2) {
        b[r] = __builtin_shufflevector(a[r], a[r + 1], 0, 4, 1, 5);
        b[r + 1] = __builtin_shufflevector(a[r], a[r + 1], 2, 6, 3, 7);
    }
    for (int r = 0; r < 2; ++r) {
        store_as(out + 2 * r * step, __builtin_shufflevector(b[r], b[r + 2], 0, 1, 4, 5));
        store_as(out + (2 * r + 1) * step, __builtin_shufflevector(b[r], b[r + 2], 2, 3, 6, 7));
    }
}

// A tile's activations: codes [columns / 4][rows][4] (a wide tile's [columns / BLOCK][rows][BLOCK]), then scales [columns
// / SCALED][rows], then of each weights' block the sum of its activations [columns / BLOCK][rows]: what the weights' zero takes
// off, in integers, or what their min is multiplied with, as floats.
template <typename S>
struct Activations {
    int64_t columns;  // a multiple of CHUNK
    int zero;         // of the weights' codes

    int64_t row_bytes() const { return columns + 4 * (columns / SCALED + columns / S::BLOCK); }

    static const int8_t* codes(const uint8_t* tile) { return reinterpret_cast<const int8_t*>(tile); }
    float* scales(const uint8_t* tile, int size) const {
        return reinterpret_cast<float*>(const_cast<uint8_t*>(tile + columns * size));
    }
    int32_t* sums(const uint8_t* tile, int size) const {
        return reinterpret_cast<int32_t*>(scales(tile, size) + columns / SCALED * size);
    }

    // Row `r` of a tile of `size`, from `x`, `columns` floats: scales go to the tile, codes to `codes`.
    void quantize(const float* x, uint8_t* tile, int r, int size, int8_t* codes) const {
        float* to = scales(tile, size);
        vec non_finite = {};
        for (int64_t first = 0; first < columns; first += SCALED) {
            const vec a = load(x + first), b = load(x + first + LANES);
            non_finite = fmadd(b, vec{}, fmadd(a, vec{}, non_finite));  // NaN where a value is not finite
            const float peak = highest(larger(absolute(a), absolute(b))), inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
            to[first / SCALED * size + r] = peak / 127.0f;
            store_bytes(codes + first, nearest(a, inverse));
            store_bytes(codes + first + LANES, nearest(b, inverse));
        }
        const float nan = sum(non_finite);
        for (int64_t i = 0; i < columns / SCALED && nan != 0.0f; ++i) to[i * size + r] = nan;
    }

    // What its codes leave of a row.
    void subtract_codes(float* x, const uint8_t* tile, int r, int size, const int8_t* codes) const {
        for (int64_t i = 0; i < columns; i += LANES) {
            const vec code = signed_bytes(reinterpret_cast<const uint8_t*>(codes + i));
            store(x + i, fmadd(code, broadcast(-scales(tile, size)[i / SCALED * size + r]), load(x + i)));
        }
    }

    static INLINE ivec nearest(vec v, float inverse) {
        return bit_cast<ivec>(fmadd(v, broadcast(inverse), broadcast(MAGIC))) - bit_cast<ivec>(broadcast(MAGIC));
    }

    // The sums of R rows, from their codes [columns / 4][R][4] (one row's are one after the other), and their places
    // `stride` apart.
    template <int R>
    void add_up(const int8_t* codes, const float* scales, int32_t* to, int64_t stride) const {
        using Codes = Lanes<int32_t, S::BLOCK * R / 4 < LANES ? S::BLOCK * R / 4 : LANES>;
        for (int64_t at = 0; at < columns; at += S::BLOCK) {
            Codes total = {};
            for (int64_t i = at * R; i < (at + S::BLOCK) * R; i += sizeof(Codes)) total += sum_bytes(load_as<Codes>(codes + i));
            int32_t by_row[LANES];
            store_as(by_row, fold<R < 4 ? 4 : R>(total));
            for (int r = 0; r < R; ++r) {
                int32_t sum = by_row[r];
                for (int i = r + R; i < 4; i += R) sum += by_row[i];
                const float scaled = static_cast<float>(sum) * scales[at / SCALED * stride + r];
                to[at / S::BLOCK * stride + r] = S::HAS_MIN ? bit_cast<int32_t>(scaled) : sum * -zero;
            }
        }
    }

    // The codes of a tile's rows, one after the other, into their places, and their sums.
    template <int R>
    void interleave(const int8_t* codes, uint8_t* tile) const {
        if (R % 4 == 0) {
            for (int64_t i = 0; i < columns; i += 16) {
                for (int r = 0; r < R; r += 4) transpose4(codes + r * columns + i, columns, tile + i * R + 4 * r, 4 * R);
            }
        } else {
            for (int64_t i = 0; i < columns; i += 4) {
                for (int r = 0; r < R; ++r) std::memcpy(tile + i * R + 4 * r, codes + r * columns + i, 4);
            }
        }
        add_up<R>(Activations::codes(tile), scales(tile, R), sums(tile, R), R);
    }

    // The same for a wide tile: of its sums, what mins are multiplied with, since its weights have a sign.
    void interleave_wide(const int8_t* codes, uint8_t* tile) const {
        for (int r = 0; r < WIDE_TILE; ++r, codes += columns) {
            uint8_t* to = tile + r * S::BLOCK;
            for (int64_t i = 0; i < columns; i += S::BLOCK) std::memcpy(to + i * WIDE_TILE, codes + i, S::BLOCK);
            if (S::HAS_MIN) add_up<1>(codes, scales(tile, WIDE_TILE) + r, sums(tile, WIDE_TILE) + r, WIDE_TILE);
        }
    }
};

// Weights of a panel as they are packed.
template <typename F>
struct Packed {
    const uint8_t* units = nullptr;

    INLINE const uint8_t* unit(int64_t chunk) const { return units + chunk / (F::UNIT / CHUNK) * F::UNIT_BYTES; }
    static INLINE int part(int64_t chunk) { return static_cast<int>(chunk % (F::UNIT / CHUNK)); }
    INLINE const uint8_t* chunk(int64_t c) const { return F::chunk(unit(c), part(c)); }
    static INLINE uvec step(const uint8_t* chunk, int s) { return F::step(chunk, s); }
    INLINE vec scale(int64_t c, int b) const { return F::scale(unit(c), part(c) * (CHUNK / F::BLOCK) + b); }
    // Of the codes as they are multiplied: what is taken off them is added here.
    INLINE vec min(int64_t c, int b) const {
        const vec min = F::min(unit(c), part(c) * (CHUNK / F::BLOCK) + b);
        return F::CODE_BITS == 8 && TAKEN_OFF > 0 ? min + scale(c, b) * static_cast<float>(TAKEN_OFF) : min;
    }
    INLINE void prefetch(int64_t c) const {
        constexpr int SHARE = F::UNIT_BYTES / (F::UNIT / CHUNK);  // of a unit, its scales too
        const uint8_t* p = unit(c) + part(c) * SHARE + AHEAD;
        for (int i = 0; i < SHARE; i += 64) __builtin_prefetch(p + i);
    }
};

// Weights of a panel unpacked once for many rows: a byte a code, float32 scales and mins. Codes for wide tiles have their
// zero taken off, where they have one: there is nothing to make up for then.
template <typename S>
struct Unpacked {
    static constexpr int BLOCKS = CHUNK / S::BLOCK;
    const uint8_t* codes;
    const float *scales, *mins;

    static int64_t bytes(int64_t columns) { return columns * PANEL + 2 * columns / S::BLOCK * PANEL * 4; }

    Unpacked() = default;

    template <typename F>
    Unpacked(const Packed<F>& packed, int64_t columns, uint8_t* room, bool for_wide)
        : codes(room),
          scales(reinterpret_cast<float*>(room + columns * PANEL)),
          mins(scales + columns / S::BLOCK * PANEL) {
        auto* scale = const_cast<float*>(scales);
        auto* min = const_cast<float*>(mins);
        for (int64_t c = 0; c < columns / CHUNK; ++c) {
            packed.prefetch(c);
            const uint8_t* chunk = packed.chunk(c);
#pragma GCC unroll 8
            for (int s = 0; s < CHUNK_STEPS; ++s) {
                uvec codes = F::step(chunk, s);
#if HAS_TILES
                if (HAS_ZERO<S> && for_wide) codes = (uvec)_mm512_sub_epi8((__m512i)codes, _mm512_set1_epi8(static_cast<char>(F::ZERO)));
#endif
                store_as(room + (c * CHUNK_STEPS + s) * 64, codes);
            }
            for (int b = 0; b < BLOCKS; ++b) {
                store(scale + (c * BLOCKS + b) * PANEL, packed.scale(c, b));
                if (S::HAS_MIN) store(min + (c * BLOCKS + b) * PANEL, packed.min(c, b));
            }
        }
    }

    INLINE const uint8_t* chunk(int64_t c) const { return codes + c * CHUNK * PANEL; }
    static INLINE uvec step(const uint8_t* chunk, int s) { return load_as<uvec>(chunk + 64 * s); }
    INLINE vec scale(int64_t c, int b) const { return load(scales + (c * BLOCKS + b) * PANEL); }
    INLINE vec min(int64_t c, int b) const { return load(mins + (c * BLOCKS + b) * PANEL); }
    INLINE void prefetch(int64_t) const {}
};

}  // namespace octavo
