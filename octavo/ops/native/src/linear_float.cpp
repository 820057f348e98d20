// Products with weights in float32, float16 and bfloat16. A panel is `[columns][16 outputs]`; bfloat16's is
// `[columns / 2][16 outputs][2]`, as the processor's own product of pairs wants it.
#include "linear.h"

namespace octavo {
namespace {

// The weights of one column, 16 outputs.
template <typename T>
INLINE vec column(const uint8_t* panel, int64_t k) {
    return load(reinterpret_cast<const T*>(panel) + k * PANEL);
}
template <>
INLINE vec column<bf16>(const uint8_t* panel, int64_t k) {
    const uvec pair = load_as<uvec>(panel + k / 2 * 64);
    return bit_cast<vec>(k % 2 ? pair & 0xffff0000u : pair << 16);
}

template <typename T>
constexpr int64_t padded(int64_t width) {
    return std::is_same_v<T, bf16> ? round_up(width, 2) : width;
}

// R rows [columns][R] with one panel.
template <typename T, int R>
INLINE void multiply(const uint8_t* panel, const float* x, int64_t columns, vec* out) {
    for (int r = 0; r < R; ++r) out[r] = vec{};
    for (int64_t first = 0; first < columns; first += GROUP) {
        const int64_t last = std::min<int64_t>(first + GROUP, columns);
        vec total[R];
        clear(total);
#pragma GCC unroll 4
        for (int64_t k = first; k < last; ++k) {
            __builtin_prefetch(panel + k * PANEL * sizeof(T) + AHEAD);
            const vec w = column<T>(panel, k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) total[r] = fmadd(w, broadcast(x[k * R + r]), total[r]);
        }
        for (int r = 0; r < R; ++r) out[r] += total[r];
    }
}

#if defined(__AVX512BF16__)
#define HAS_PAIRS 1
// R rows [columns / 2][R][2] of bfloat16 with one panel, by the processor's product of pairs.
template <int R>
INLINE void multiply_pairs(const uint8_t* panel, const uint32_t* x, int64_t columns, vec* out) {
    for (int r = 0; r < R; ++r) out[r] = vec{};
    for (int64_t first = 0; first < columns / 2; first += GROUP / 2) {
        const int64_t last = std::min<int64_t>(first + GROUP / 2, columns / 2);
        __m512 total[R];
        for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int64_t k = first; k < last; ++k) {
            __builtin_prefetch(panel + k * 64 + AHEAD);
            const __m512bh w = load_as<__m512bh>(panel + k * 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512i pair = _mm512_set1_epi32(static_cast<int>(x[k * R + r]));
                total[r] = _mm512_dpbf16_ps(total[r], w, (__m512bh)pair);
            }
        }
        for (int r = 0; r < R; ++r) out[r] += (vec)total[r];
    }
}
#else
#define HAS_PAIRS 0
template <int R>
INLINE void multiply_pairs(const uint8_t*, const uint32_t*, int64_t, vec*) {}
#endif

// Rows into tiles: [columns][size] floats, or [columns / 2][size] pairs of bfloat16.
template <bool PAIRS>
void lay_out(const Product& p, const Tiles& tiles, int64_t columns, float* tiled) {
    const int64_t row_floats = PAIRS ? columns / 2 : columns;
    parallel(tiles.padded_rows(), std::max<int64_t>(1, 16384 / columns), [&](int64_t first, int64_t last) {
        static thread_local Scratch scratch;
        auto* x = reinterpret_cast<float*>(scratch.get(columns * 4));
        for (int64_t row = first; row < last; ++row) {
            const int64_t tile = row / TILE;
            const int size = tiles.size(tile), r = static_cast<int>(row % TILE);
            float* to = tiled + tile * TILE * row_floats;
            if (row >= p.rows) {
                for (int64_t k = 0; k < row_floats; ++k) to[k * size + r] = 0.0f;
            } else if (PAIRS) {
                const auto* from = static_cast<const bf16*>(p.x) + p.source(row) * p.x_stride;
                for (int64_t k = 0; k < p.width / 2; ++k) std::memcpy(to + k * size + r, from + 2 * k, 4);
                if (p.width % 2) {
                    const bf16 pair[2] = {from[p.width - 1], {0}};
                    std::memcpy(to + p.width / 2 * size + r, pair, 4);
                }
            } else {
                read_row(p, row, x, columns);
                for (int64_t k = 0; k < columns; ++k) to[k * size + r] = x[k];
            }
        }
    });
}

template <typename T, bool PAIRS>
void product(const Product& p) {
    static thread_local Scratch scratch;
    const int64_t columns = padded<T>(p.width), row_floats = PAIRS ? columns / 2 : columns;
    const Tiles tiles(p.rows);
    auto* tiled = reinterpret_cast<float*>(scratch.get(tiles.padded_rows() * row_floats * 4));
    lay_out<PAIRS>(p, tiles, columns, tiled);

    const int64_t panels = p.panels(), bytes = columns * PANEL * sizeof(T);
    parallel(panels, even_grain(panels, tiles.count() == 1 ? 4 : 32), [&](int64_t first, int64_t last) {
        for (int64_t panel = first; panel < last; ++panel) {
            for (int64_t tile = 0; tile < tiles.count(); ++tile) {
                with_size(tiles.size(tile), [&](auto size) {
                    constexpr int R = decltype(size)::value;
                    const float* x = tiled + tile * TILE * row_floats;
                    const auto run = [&](const uint8_t* weights, vec* out) {
                        if (PAIRS) {
                            multiply_pairs<R>(weights, reinterpret_cast<const uint32_t*>(x), columns, out);
                        } else {
                            multiply<T, R>(weights, x, columns, out);
                        }
                    };
                    vec out[R], more[R];
                    clear(more);
                    run(p.weights + panel * bytes, out);
                    if (p.gated()) run(p.weights + (panels + panel) * bytes, more);
                    for (int r = 0; r < R && tile * TILE + r < p.rows; ++r) {
                        emit(p, tile * TILE + r, panel, out[r], more[r]);
                    }
                });
            }
        }
    });
}

}  // namespace

void multiply_float(const Product& p, int kind) {
    switch (kind) {
        case KIND_F32: return product<float, false>(p);
        case KIND_F16: return product<f16, false>(p);
        case KIND_BF16:
            if (HAS_PAIRS && p.x_type == BF16) return product<bf16, true>(p);
            return product<bf16, false>(p);
    }
}

}  // namespace octavo
