// What products with quantized weights work on: rows of activations as int8, in tiles, and panels of weights, packed or
// unpacked for many rows.
#pragma once

#include "linear.h"

namespace octavo {

// Without wide vectors an operation is many instructions, and unrolling only makes the code long.
#if defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL _Pragma("GCC unroll 1")
#endif

// What formats differ in once their codes are unpacked: the products of many rows are compiled for these alone.
template <int BLOCK_, bool LOW, bool CHANNEL, bool WIDE_>
struct Shape {
    static constexpr int BLOCK = BLOCK_;
    static constexpr bool HAS_LOW = LOW, BY_CHANNEL = CHANNEL, WIDE = WIDE_;
    // Columns whose activations are summed for the weights' zero.
    static constexpr int SUMMED = CHANNEL ? GROUP : BLOCK_;
};
template <typename F>
using ShapeOf = Shape<F::BLOCK, F::HAS_LOW, F::BY_CHANNEL, F::WIDE>;

#if defined(__AVX512VNNI__)
// 8 rows of 32 bytes, `stride` apart, to [8][8 rows][4].
INLINE void transpose8(const int8_t* rows, int64_t stride, uint8_t* out) {
    __m512i a[4], b[4];  // two rows each
    for (int r = 0; r < 4; ++r) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + r * stride));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + (r + 4) * stride));
        a[r] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    for (int i = 0; i < 4; i += 2) {  // quarters: columns 0 to 3 of row r, 4 to 7; of row r + 4 the same
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    a[0] = _mm512_unpacklo_epi64(b[0], b[2]);  // column 0 of rows 0 to 3, column 4; of rows 4 to 7 the same
    a[1] = _mm512_unpackhi_epi64(b[0], b[2]);
    a[2] = _mm512_unpacklo_epi64(b[1], b[3]);
    a[3] = _mm512_unpackhi_epi64(b[1], b[3]);
    const __m512i even = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), odd = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
    for (int i = 0; i < 4; i += 2) {
        _mm512_storeu_si512(out + 32 * i, _mm512_permutex2var_epi64(a[i], even, a[i + 1]));
        _mm512_storeu_si512(out + 32 * (i + 4), _mm512_permutex2var_epi64(a[i], odd, a[i + 1]));
    }
}
#endif

// A tile's activations: codes [columns / 4][rows][4] (a wide tile's [rows][columns]), then sums [columns / SUMMED][rows],
// then scales [groups][rows]. Sums are what the weights' zero takes off, in integers, or what their low is multiplied
// with, as floats.
template <typename S>
struct Activations {
    int64_t columns;  // a multiple of CHUNK
    int zero;         // of the weights' codes

    int64_t sums() const { return (columns + S::SUMMED - 1) / S::SUMMED; }
    int64_t groups() const { return (columns + GROUP - 1) / GROUP; }
    int64_t row_bytes() const { return columns + 4 * sums() + 4 * groups(); }

    const int8_t* codes(const uint8_t* tile) const { return reinterpret_cast<const int8_t*>(tile); }
    const int32_t* sums_at(const uint8_t* tile, int size) const {
        return reinterpret_cast<const int32_t*>(tile + columns * size);
    }
    const float* scales_at(const uint8_t* tile, int size) const {
        return reinterpret_cast<const float*>(tile + (columns + 4 * sums()) * size);
    }

    int32_t* sums_at(uint8_t* tile, int size) const { return reinterpret_cast<int32_t*>(tile + columns * size); }

    // Row `r` of a tile of `size`, from `x`, `columns` floats: scales go to the tile, codes to `codes`.
    void quantize(const float* x, uint8_t* tile, int r, int size, int8_t* codes) const {
        auto* scales_out = reinterpret_cast<float*>(tile + (columns + 4 * sums()) * size);
        const vec magic = broadcast(12582912.0f);
        for (int64_t first = 0; first < columns; first += GROUP) {
            const int64_t last = std::min<int64_t>(first + GROUP, columns);
            vec peaks = {}, poison = {};
            for (int64_t i = first; i < last; i += LANES) {
                const vec v = load(x + i);
                peaks = larger(peaks, absolute(v));
                poison = fmadd(v, vec{}, poison);  // not a number where a value is not finite
            }
            const float peak = highest(peaks), inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
            scales_out[first / GROUP * size + r] = peak / 127.0f + sum(poison);
            for (int64_t i = first; i < last; i += LANES) {
                const vec shifted = fmadd(load(x + i), broadcast(inverse), magic);
                store_bytes(codes + i, bit_cast<ivec>(shifted) - bit_cast<ivec>(magic));
            }
        }
    }

    // What a sum of codes is kept as.
    INLINE ivec kept(ivec sum) const { return S::HAS_LOW ? bit_cast<ivec>(to_float(sum)) : sum * -zero; }

    // The sums of a tile, from the codes of its rows, one after the other.
    void add_up(const int8_t* codes, uint8_t* tile, int size) const {
        typedef int8_t b16 __attribute__((vector_size(16)));
        int32_t* to = sums_at(tile, size);
        for (int r = 0; r < size; ++r) {
            for (int64_t at = 0; at < columns; at += S::SUMMED) {
                ivec total = {};
                for (int64_t i = at; i < std::min<int64_t>(at + S::SUMMED, columns); i += LANES) {
                    total += __builtin_convertvector(load_as<b16>(codes + r * columns + i), ivec);
                }
                to[at / S::SUMMED * size + r] = kept(broadcast(static_cast<int32_t>(sum(to_float(total)))))[0];
            }
        }
    }

    // The codes of a tile's rows, one after the other, into their places, and their sums.
    void interleave(const int8_t* codes, uint8_t* tile, int size) const {
#if defined(__AVX512VNNI__)
        if (size == TILE) {
            for (int64_t i = 0; i < columns; i += CHUNK) transpose8(codes + i, columns, tile + i * TILE);
            for (int64_t at = 0; at < columns; at += S::SUMMED) {
                const int64_t bytes = std::min<int64_t>(S::SUMMED, columns - at) * TILE;
                __m512i total = _mm512_setzero_si512();
                for (int64_t i = 0; i < bytes; i += 64) {
                    total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), _mm512_loadu_si512(tile + at * TILE + i));
                }
                total = _mm512_add_epi32(total, _mm512_shuffle_i32x4(total, total, 0x4e));  // two steps of the 8 rows
                const ivec all = kept((ivec)total);
                std::memcpy(sums_at(tile, size) + at / S::SUMMED * TILE, &all, TILE * sizeof(int32_t));
            }
            return;
        }
#endif
        for (int64_t i = 0; i < columns; i += 4) {
            for (int r = 0; r < size; ++r) std::memcpy(tile + i * size + 4 * r, codes + r * columns + i, 4);
        }
        add_up(codes, tile, size);
    }
};

// Weights of a panel as they are packed.
template <typename F>
struct Packed {
    const uint8_t* units;

    INLINE const uint8_t* unit(int64_t chunk) const { return units + chunk / (F::UNIT / CHUNK) * F::UNIT_BYTES; }
    static INLINE int part(int64_t chunk) { return static_cast<int>(chunk % (F::UNIT / CHUNK)); }
    INLINE const uint8_t* chunk(int64_t c) const { return F::chunk(unit(c), part(c)); }
    static INLINE bytes64 step(const uint8_t* chunk, int s) { return F::step(chunk, s); }
    INLINE vec scale(int64_t c, int b) const { return F::scale(unit(c), part(c) * (CHUNK / F::BLOCK) + b); }
    INLINE vec low(int64_t c, int b) const { return F::low(unit(c), part(c) * (CHUNK / F::BLOCK) + b); }
    INLINE void prefetch(int64_t c) const {
        const uint8_t* p = chunk(c) + AHEAD;
        for (int i = 0; i < F::Bits::BYTES; i += 64) __builtin_prefetch(p + i);
    }
};

// Weights of a panel unpacked once for many rows: a byte a code, float32 scales and lows.
template <typename S>
struct Unpacked {
    static constexpr int BLOCKS = CHUNK / S::BLOCK;
    const uint8_t* codes;
    const float *scales, *lows;

    static int64_t bytes(int64_t columns) { return columns * PANEL + 2 * columns / S::BLOCK * PANEL * 4; }

    template <typename F>
    Unpacked(const Packed<F>& packed, int64_t columns, uint8_t* room)
        : codes(room),
          scales(reinterpret_cast<float*>(room + columns * PANEL)),
          lows(scales + columns / S::BLOCK * PANEL) {
        auto* scale = const_cast<float*>(scales);
        auto* low = const_cast<float*>(lows);
        for (int64_t c = 0; c < columns / CHUNK; ++c) {
            packed.prefetch(c);
            const uint8_t* chunk = packed.chunk(c);
            UNROLL
            for (int s = 0; s < CHUNK_STEPS; ++s) {
                const bytes64 step = F::step(chunk, s);
                std::memcpy(room + (c * CHUNK_STEPS + s) * 64, &step, sizeof step);
            }
            for (int b = 0; b < BLOCKS; ++b) {
                store(scale + (c * BLOCKS + b) * PANEL, packed.scale(c, b));
                if (S::HAS_LOW) store(low + (c * BLOCKS + b) * PANEL, packed.low(c, b));
            }
        }
    }

    INLINE const uint8_t* chunk(int64_t c) const { return codes + c * CHUNK * PANEL; }
    static INLINE bytes64 step(const uint8_t* chunk, int s) { return load_as<bytes64>(chunk + 64 * s); }
    INLINE vec scale(int64_t c, int b) const { return load(scales + (c * BLOCKS + b) * PANEL); }
    INLINE vec low(int64_t c, int b) const { return load(lows + (c * BLOCKS + b) * PANEL); }
    INLINE void prefetch(int64_t) const {}
};

}  // namespace octavo
