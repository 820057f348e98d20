// Products with quantized weights. Activations become int8, with a scale for each 32 of a row's values; products of
// codes are summed exactly, in integers, within a block of weights, and blocks in float32, in ascending order.
#include "quantized.h"
#include "tiles.h"

namespace octavo {
namespace {

// The products of a block's codes with R rows, and what makes up for the codes' zero.
template <typename S, int R, typename Weights>
INLINE void block_products(const uint8_t* chunk, int block, const int8_t* x, const int32_t* sums, ivec (&dots)[R]) {
    constexpr int STEPS = S::BLOCK / 4, TOGETHER = std::min(STEPS, STEPS_TOGETHER<S::CODE_BITS>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) dots[r] = HAS_ZERO<S> ? broadcast(sums[r]) : ivec{};
#pragma GCC unroll 8
    for (int first = 0; first < STEPS; first += TOGETHER) {
#if SUMS_PAIRS
        ivec pairs[R];
#pragma GCC unroll 8
        for (int s = first; s < first + TOGETHER; ++s) {
            const uvec codes = Weights::step(chunk, block * STEPS + s);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const ivec products = pair_products<S::CODE_BITS>(codes, four_of(x + (s * R + r) * 4));
                pairs[r] = s == first ? products : add_pairs(pairs[r], products);
                if (s > first) settle(pairs[r]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            dots[r] += sum_pairs(pairs[r]);
            settle(dots[r]);
        }
#else
        const uvec codes = Weights::step(chunk, block * STEPS + first);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            dots[r] = dot4<S::CODE_BITS>(dots[r], codes, four_of(x + (first * R + r) * 4));
            settle(dots[r]);
        }
#endif
    }
}

// R rows with one panel.
template <typename S, typename Weights, int R>
__attribute__((noinline)) void multiply(const Weights& w, const Activations<S>& of, const uint8_t* tile, vec* out) {
    constexpr int BLOCKS = CHUNK / S::BLOCK;
    const int8_t* x = of.codes(tile);
    const float* scales = of.scales(tile, R);
    const int32_t* sums = of.sums(tile, R);
    const int64_t chunks = of.columns / CHUNK;
    vec acc[R];
    clear(acc);
    for (int64_t c = 0; c < chunks; ++c, x += CHUNK * R, scales += R, sums += BLOCKS * R) {
        const uint8_t* chunk = w.chunk(c);
        w.prefetch(c);
        vec total[R];
#pragma GCC unroll 2
        for (int b = 0; b < BLOCKS; ++b) {
            ivec dots[R];
            block_products<S, R, Weights>(chunk, b, x + b * S::BLOCK * R, sums + b * R, dots);
            const vec scale = w.scale(c, b);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vec product = to_float(dots[r]);
                total[r] = b == 0 ? product * scale : fmadd(product, scale, total[r]);
                if (R > 1 && b + 1 < BLOCKS) settle_before(total[r], chunk);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r] = fmadd(total[r], broadcast(scales[r]), acc[r]);
#pragma GCC unroll 2
        for (int b = 0; b < (S::HAS_MIN ? BLOCKS : 0); ++b) {
            const vec min = w.min(c, b);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) acc[r] = fmadd(min, broadcast(bit_cast<float>(sums[b * R + r])), acc[r]);
        }
    }
#pragma GCC unroll 8
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
    constexpr int BLOCKS = CHUNK / S::BLOCK, AT_ONCE = 2;  // one's products are awaited while the other's run
    const int8_t* x = of.codes(tile);
    alignas(64) int32_t dots[AT_ONCE][R][PANEL];
    for (int r = 0; r < R; ++r) out[r] = vec{};
    const int64_t blocks = of.columns / S::BLOCK;
    vec total[R];
    for (int64_t first = 0; first < blocks; first += AT_ONCE) {
        TILE_ZERO(0);
        TILE_LOAD(1, x + first * S::BLOCK, of.columns);
        TILE_LOAD(2, w.codes + first * S::BLOCK * PANEL, 4 * PANEL);
        TILE_PRODUCT(0, 1, 2);
        if (first + 1 < blocks) {
            TILE_ZERO(3);
            TILE_LOAD(4, x + (first + 1) * S::BLOCK, of.columns);
            TILE_LOAD(5, w.codes + (first + 1) * S::BLOCK * PANEL, 4 * PANEL);
            TILE_PRODUCT(3, 4, 5);
            TILE_STORE(3, dots[1], 4 * PANEL);
        }
        TILE_STORE(0, dots[0], 4 * PANEL);
        for (int64_t block = first; block < std::min(first + AT_ONCE, blocks); ++block) {
            const float* scales = of.scales(tile, R) + block / BLOCKS * R;
            const int32_t* sums = of.sums(tile, R) + block * R;
            const vec scale = load(w.scales + block * PANEL);
            for (int r = 0; r < R; ++r) {
                const ivec with_zero = load_as<ivec>(dots[block - first][r]) + (HAS_ZERO<S> ? broadcast(sums[r]) : ivec{});
                const vec product = to_float(with_zero);
                total[r] = block % BLOCKS == 0 ? product * scale : fmadd(product, scale, total[r]);
                if (block % BLOCKS == BLOCKS - 1) out[r] = fmadd(total[r], broadcast(scales[r]), out[r]);
            }
            for (int r = 0; r < (S::HAS_MIN ? R : 0); ++r) {
                out[r] = fmadd(load(w.mins + block * PANEL), broadcast(bit_cast<float>(sums[r])), out[r]);
            }
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
                if (p.fine && r % 2 != 0) {
                    of.subtract_codes(x, tile, r - 1, size, to + (r - 1) * of.columns);
                } else {
                    // Rows past the last are the last once more, and nobody reads their results.
                    read_row(p, std::min((row + r) / (p.fine ? 2 : 1), p.rows - 1), x, of.columns);
                }
                of.quantize(x, tile, r, size, to + r * of.columns);
            }
            if (size == WIDE_TILE) {
                for (int r = 0; r < size; ++r) {
                    of.template add_up<1>(to + r * of.columns, of.scales(tile, size) + r, of.sums(tile, size) + r, size);
                }
            } else {
                with_size(size, [&](auto rows) { of.template interleave<decltype(rows)::value>(codes, tile); });
            }
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
    const Activations<S> of{round_up(p.inputs, F::UNIT), F::ZERO - (F::CODE_BITS == 8 ? TAKEN_OFF : 0)};
    const int64_t rows = p.rows * (p.fine ? 2 : 1);
    const Tiles tiles(rows, WIDE_TILES && rows >= MANY_ROWS ? rows / WIDE_TILE : 0);
    uint8_t* activations = scratch.get(tiles.padded_rows() * of.row_bytes());
    quantize_rows(p, of, tiles, activations);

    const int64_t panels = p.panels(), bytes = panel_bytes<F>(of.columns);
    parallel(panels, even_grain(panels, tiles.count() == 1 ? 4 : 32), [&](int64_t first, int64_t last) {
        static thread_local Scratch unpacking;
#if HAS_TILES
        if (tiles.wide > 0) shape_tiles<S>();
#endif
        for (int64_t panel = first; panel < last; ++panel) {
            const uint8_t* start = p.weight + panel * bytes;
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
                    for (int r = 0; r + 1 < R && p.fine && row + r < rows; r += 2) {
                        emit(p, (row + r) / 2, panel, out[r] + out[r + 1], more[r] + more[r + 1]);
                    }
                    for (int r = 0; r < R && !p.fine && row + r < rows; ++r) emit(p, row + r, panel, out[r], more[r]);
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
            const Packed<F> packed{start}, others{other};
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

void multiply_quantized(const Product& p) { WITH_FORMAT(p.kind, F, product<PackedAs<F>>(p)) }

}  // namespace octavo
