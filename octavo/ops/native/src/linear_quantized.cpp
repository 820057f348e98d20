// Products with quantized weights. Activations become int8, with a scale for each 128 of a row's values; products of
// codes are summed exactly, in integers, within a block of weights, and blocks in float32.
#include "quantized.h"
#include "tiles.h"

namespace octavo {
namespace {

// What dot4 takes off WIDE codes, where the instruction wants numbers that have signs.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int TAKEN_OFF = 128;
#else
constexpr int TAKEN_OFF = 0;
#endif

// acc + the products of 4 columns of 16 outputs' codes with 4 activations. WIDE codes take all 8 bits.
template <bool WIDE>
INLINE ivec dot4(ivec acc, bytes64 codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32(four));
#elif defined(__AVX512BW__)
    const __m512i w = (__m512i)codes, b = _mm512_set1_epi32(four);
    if (!WIDE) {
        const __m512i pairs = _mm512_maddubs_epi16(w, b);
        return (ivec)_mm512_add_epi32((__m512i)acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(b, 8));
    return (ivec)_mm512_add_epi32((__m512i)acc, _mm512_add_epi32(even, odd));
#elif defined(__AVX2__)
    __m256i w[2], a[2];
    std::memcpy(w, &codes, sizeof w);
    std::memcpy(a, &acc, sizeof a);
    const __m256i b = _mm256_set1_epi32(four);
    for (int i = 0; i < 2; ++i) {
        if (!WIDE) {
            const __m256i pairs = _mm256_maddubs_epi16(w[i], b);
            a[i] = _mm256_add_epi32(a[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        } else {
            const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w[i], _mm256_set1_epi16(255)),
                                                   _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
            const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w[i], 8), _mm256_srai_epi16(b, 8));
            a[i] = _mm256_add_epi32(a[i], _mm256_add_epi32(even, odd));
        }
    }
    return load_as<ivec>(a);
#elif defined(__ARM_FEATURE_DOTPROD)
    int8x16_t w[4];
    int32x4_t a[4];
    const bytes64 with_sign = WIDE ? codes ^ 0x80 : codes;
    std::memcpy(w, &with_sign, sizeof w);
    std::memcpy(a, &acc, sizeof a);
    const int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int i = 0; i < 4; ++i) a[i] = vdotq_s32(a[i], w[i], b);
    return load_as<ivec>(a);
#else
    const uvec w = bit_cast<uvec>(codes);
    for (int i = 0; i < 4; ++i) acc += bit_cast<ivec>((w >> (8 * i)) & 255) * static_cast<int32_t>(x[i]);
    return acc;
#endif
}

// R rows with one panel.
template <typename S, typename Weights, int R>
__attribute__((noinline)) void multiply(const Weights& w, const Activations<S>& of, const uint8_t* tile, vec* out) {
    constexpr int BLOCKS = CHUNK / S::BLOCK, STEPS = S::BLOCK / 4;
    const int8_t* x = of.codes(tile);
    const int32_t* sums = of.sums_at(tile, R);
    const float* scales = of.scales_at(tile, R);
    const int64_t chunks = of.columns / CHUNK;
    vec acc[R];
    clear(acc);
    for (int64_t first = 0, group = 0; first < chunks; first += GROUP / CHUNK, ++group) {
        const int64_t last = std::min<int64_t>(first + GROUP / CHUNK, chunks);
        vec total[R];
        clear(total);
        ivec dots[R];
        if (S::BY_CHANNEL) {
            for (int r = 0; r < R; ++r) dots[r] = broadcast(sums[group * R + r]);
        }
        for (int64_t c = first; c < last; ++c) {
            const uint8_t* chunk = w.chunk(c);
            w.prefetch(c);
            UNROLL
            for (int b = 0; b < BLOCKS; ++b) {
                const int64_t block = c * BLOCKS + b;
                if (!S::BY_CHANNEL) {
                    for (int r = 0; r < R; ++r) dots[r] = S::HAS_LOW ? ivec{} : broadcast(sums[block * R + r]);
                }
            UNROLL
                for (int s = 0; s < STEPS; ++s) {
                    const bytes64 codes = Weights::step(chunk, b * STEPS + s);
                    const int8_t* four = x + ((c * CHUNK_STEPS + b * STEPS + s) * R) * 4;
            UNROLL
                    for (int r = 0; r < R; ++r) dots[r] = dot4<S::WIDE>(dots[r], codes, four + 4 * r);
                }
                if (!S::BY_CHANNEL) {
                    const vec scale = w.scale(c, b);
                    for (int r = 0; r < R; ++r) total[r] = fmadd(to_float(dots[r]), scale, total[r]);
                    if (S::HAS_LOW) {
                        const vec low = w.low(c, b);
                        for (int r = 0; r < R; ++r) {
                            total[r] = fmadd(low, broadcast(bit_cast<float>(sums[block * R + r])), total[r]);
                        }
                    }
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            const vec of_group = S::BY_CHANNEL ? to_float(dots[r]) : total[r];
            acc[r] = fmadd(of_group, broadcast(scales[group * R + r]), acc[r]);
        }
    }
    for (int r = 0; r < R; ++r) out[r] = acc[r];
}

#if HAS_TILES
constexpr bool WIDE_TILES = true;

template <typename S>
void shape_tiles() {
    TileShapes shapes;
    for (int t = 0; t < 6; t += 3) {
        shapes.set(t, WIDE_TILE, 4 * PANEL);               // products of codes
        shapes.set(t + 1, WIDE_TILE, S::BLOCK);            // activations
        shapes.set(t + 2, S::BLOCK / 4, 4 * PANEL);        // weights
    }
    TILE_CONFIGURE(shapes);
}

// 16 rows with one panel: what multiply() computes to the last bit, for integers are exact in any order.
template <typename S>
__attribute__((noinline)) void multiply_wide(const Unpacked<S>& w, const Activations<S>& of, const uint8_t* tile,
                                             vec* out) {
    constexpr int R = WIDE_TILE;
    const int8_t* x = of.codes(tile);
    const int32_t* sums = of.sums_at(tile, R);
    const float* scales = of.scales_at(tile, R);
    alignas(64) int32_t dots[GROUP / S::BLOCK][R][PANEL];
    for (int r = 0; r < R; ++r) out[r] = vec{};
    for (int64_t first = 0, group = 0; first < of.columns; first += GROUP, ++group) {
        const int blocks = static_cast<int>((std::min<int64_t>(first + GROUP, of.columns) - first) / S::BLOCK);
        const auto* codes = w.codes + first * PANEL;
        if (S::BY_CHANNEL) TILE_ZERO(0);
        for (int b = 0; b < blocks; b += 2) {  // two at a time: one's products are awaited while the other's run
            if (!S::BY_CHANNEL) TILE_ZERO(0);
            TILE_LOAD(1, x + first + b * S::BLOCK, of.columns);
            TILE_LOAD(2, codes + b * S::BLOCK * PANEL, 4 * PANEL);
            TILE_PRODUCT(0, 1, 2);
            if (b + 1 < blocks) {
                TILE_LOAD(4, x + first + (b + 1) * S::BLOCK, of.columns);
                TILE_LOAD(5, codes + (b + 1) * S::BLOCK * PANEL, 4 * PANEL);
                if (S::BY_CHANNEL) {
                    TILE_PRODUCT(0, 4, 5);
                } else {
                    TILE_ZERO(3);
                    TILE_PRODUCT(3, 4, 5);
                    TILE_STORE(3, dots[b + 1], 4 * PANEL);
                }
            }
            if (!S::BY_CHANNEL) TILE_STORE(0, dots[b], 4 * PANEL);
        }
        if (S::BY_CHANNEL) TILE_STORE(0, dots[0], 4 * PANEL);
        for (int r = 0; r < R; ++r) {
            vec total = {};
            if (S::BY_CHANNEL) total = to_float(load_as<ivec>(dots[0][r]) + broadcast(sums[group * R + r]));
            for (int b = 0; b < (S::BY_CHANNEL ? 0 : blocks); ++b) {
                const int64_t block = first / S::BLOCK + b;
                const ivec with_zero = load_as<ivec>(dots[b][r]) + (S::HAS_LOW ? ivec{} : broadcast(sums[block * R + r]));
                total = fmadd(to_float(with_zero), load(w.scales + block * PANEL), total);
                if (S::HAS_LOW) {
                    total = fmadd(load(w.lows + block * PANEL), broadcast(bit_cast<float>(sums[block * R + r])), total);
                }
            }
            out[r] = fmadd(total, broadcast(scales[group * R + r]), out[r]);
        }
    }
}
#else
constexpr bool WIDE_TILES = false;
#endif

template <typename S>
void quantize_rows(const Product& p, const Activations<S>& of, const Tiles& tiles, uint8_t* activations) {
    parallel(tiles.count(), std::max<int64_t>(1, 8192 / (of.columns * TILE)), [&](int64_t first, int64_t last) {
        static thread_local Scratch scratch;
        uint8_t* room = scratch.get(of.columns * (sizeof(float) + TILE));
        auto* x = reinterpret_cast<float*>(room);
        auto* codes = reinterpret_cast<int8_t*>(room + of.columns * sizeof(float));
        for (int64_t t = first; t < last; ++t) {
            const int64_t row = tiles.first_row(t);
            uint8_t* tile = activations + row * of.row_bytes();
            const int size = tiles.size(t);
            int8_t* to = size == WIDE_TILE ? reinterpret_cast<int8_t*>(tile) : codes;
            for (int r = 0; r < size; ++r) {
                // Rows past the last are the last once more, and nobody reads their results.
                read_row(p, std::min(row + r, p.rows - 1), x, of.columns);
                of.quantize(x, tile, r, size, to + r * of.columns);
            }
            size < WIDE_TILE ? of.interleave(codes, tile, size) : of.add_up(to, tile, size);
        }
    });
}

// Formats whose codes and scales take many instructions to unpack, so that many rows had better share it.
template <typename F>
constexpr bool UNPACKS = F::UNIT > CHUNK;
constexpr int64_t MANY_TILES = 5;
constexpr int64_t MANY_ROWS = 64;  // with fewer, unpacking for wide tiles takes longer than these save

template <typename F>
void product(const Product& p) {
    using S = ShapeOf<F>;
    static thread_local Scratch scratch;
    static_assert(!(F::WIDE && F::HAS_LOW), "a low stands for no zero, and could not make up for what is taken off");
    const Activations<S> of{round_up(p.width, F::UNIT), F::ZERO - (F::WIDE ? TAKEN_OFF : 0)};
    const Tiles tiles(p.rows, WIDE_TILES && p.rows >= MANY_ROWS ? p.rows / WIDE_TILE : 0);
    uint8_t* activations = scratch.get(tiles.padded_rows() * of.row_bytes());
    quantize_rows(p, of, tiles, activations);

    const int64_t panels = p.panels(), bytes = panel_bytes<F>(of.columns);
    parallel(panels, even_grain(panels, tiles.count() == 1 ? 4 : 32), [&](int64_t first, int64_t last) {
        static thread_local Scratch unpacking;
#if HAS_TILES
        if (tiles.wide > 0) shape_tiles<S>();
#endif
        for (int64_t panel = first; panel < last; ++panel) {
            const uint8_t* start = p.weights + panel * bytes;
            const uint8_t* other = p.gated() ? start + panels * bytes : start;
            const auto run = [&](const auto& weights, const auto& others, int64_t tile) {
                using Weights = std::decay_t<decltype(weights)>;
                const int64_t row = tiles.first_row(tile);
                const uint8_t* x = activations + row * of.row_bytes();
                const auto rows_of = [&](auto size, const auto& product_with) {
                    constexpr int R = decltype(size)::value;
                    vec out[R], more[R];
                    clear(more);
                    product_with(weights, out);
                    if (p.gated()) product_with(others, more);
                    if (F::BY_CHANNEL) {
                        const vec scale = load(reinterpret_cast<const float*>(start));
                        const vec of_others = load(reinterpret_cast<const float*>(other));
                        for (int r = 0; r < R; ++r) {
                            out[r] *= scale;
                            more[r] *= of_others;
                        }
                    }
                    for (int r = 0; r < R && row + r < p.rows; ++r) emit(p, row + r, panel, out[r], more[r]);
                };
#if HAS_TILES
                if constexpr (std::is_same_v<Weights, Unpacked<S>>) {
                    if (tiles.size(tile) == WIDE_TILE) {
                        return rows_of(std::integral_constant<int, WIDE_TILE>(),
                                       [&](const Weights& w, vec* out) { multiply_wide<S>(w, of, x, out); });
                    }
                }
#endif
                with_size(tiles.size(tile), [&](auto size) {
                    rows_of(size, [&](const Weights& w, vec* out) {
                        multiply<S, Weights, decltype(size)::value>(w, of, x, out);
                    });
                });
            };
            const Packed<F> packed{start + panel_start<F>()}, others{other + panel_start<F>()};
            if (tiles.wide == 0 && (!UNPACKS<F> || tiles.count() < MANY_TILES)) {
                for (int64_t tile = 0; tile < tiles.count(); ++tile) run(packed, others, tile);
            } else if constexpr (UNPACKS<F> || WIDE_TILES) {
                const int64_t size = round_up(Unpacked<S>::bytes(of.columns), 64);
                uint8_t* room = unpacking.get(2 * size);
                const Unpacked<S> unpacked(packed, of.columns, room);
                const Unpacked<S> unpacked_others = p.gated() ? Unpacked<S>(others, of.columns, room + size) : unpacked;
                for (int64_t tile = 0; tile < tiles.count(); ++tile) run(unpacked, unpacked_others, tile);
            }
        }
#if HAS_TILES
        if (tiles.wide > 0) TILE_RELEASE();
#endif
    });
}

}  // namespace

void multiply_quantized(const Product& p, int kind) { WITH_FORMAT(kind, F, product<F>(p)) }

}  // namespace octavo
