// Products with quantized weights. Activations become int8, with a scale for each 32 of a row's values; products of
// codes are summed exactly, in integers, within a block of weights, and blocks in float32, in ascending order.
#include "quantized.h"
#include "rows.h"
#include "tile_products.h"

namespace octavo {
namespace {

// Whether codes are bytes, that need no unpacking.
template <typename Weights>
constexpr bool BYTES = false;
template <typename F>
constexpr bool BYTES<Packed<F>> = F::UNIT_BYTES >= F::UNIT * PANEL;
template <typename S>
constexpr bool BYTES<Unpacked<S>> = true;

// Panels that R rows meet together, so that each activation that is loaded is multiplied twice: where registers hold the
// sums of all rows, and the codes' of half of them at a time. Each half unpacks the codes, which has to cost nothing.
template <typename Weights, int R>
constexpr int TOGETHER = BYTES<Weights> && R == TILE && HELD >= 3 * TILE ? 2 : 1;

// The products of a block's codes, of P panels, with R rows of a tile of TOTAL, and what makes up for the codes' zero.
template <typename S, int TOTAL, typename Weights, int R, int P>
INLINE void block_products(const uint8_t* const (&chunk)[P], int block, const int8_t* x, const int32_t* sums,
                           ivec (&dots)[P][R]) {
    constexpr int STEPS = S::BLOCK / 4, SUMMED_STEPS = std::min(STEPS, STEPS_TOGETHER<S::CODE_BITS>);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) dots[p][r] = HAS_ZERO<S> ? broadcast(sums[r]) : ivec{};
    }
#pragma GCC unroll 8
    for (int first = 0; first < STEPS; first += SUMMED_STEPS) {
#if SUMS_PAIRS
        ivec pairs[P][R];
#pragma GCC unroll 8
        for (int s = first; s < first + SUMMED_STEPS; ++s) {
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p) {
                const uvec codes = Weights::step(chunk[p], block * STEPS + s);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const ivec products = pair_products<S::CODE_BITS>(codes, four_of(x + (s * TOTAL + r) * 4));
                    pairs[p][r] = s == first ? products : add_pairs(pairs[p][r], products);
                    if (s > first) settle(pairs[p][r]);
                }
            }
        }
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                dots[p][r] += sum_pairs(pairs[p][r]);
                settle(dots[p][r]);
            }
        }
#else
        uvec codes[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) codes[p] = Weights::step(chunk[p], block * STEPS + first);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const auto four = four_of(x + (first * TOTAL + r) * 4);
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p) {
                dots[p][r] = dot4<S::CODE_BITS>(dots[p][r], codes[p], four);
                settle(dots[p][r]);
            }
        }
#endif
    }
}

// R rows with P panels.
template <typename S, typename Weights, int R, int P>
__attribute__((noinline)) void multiply(const Weights* w, const Activations<S>& of, const uint8_t* tile, vec (*out)[R]) {
    constexpr int BLOCKS = CHUNK / S::BLOCK, H = R / P;
    const int8_t* x = of.codes(tile);
    const float* scales = of.scales(tile, R);
    const int32_t* sums = of.sums(tile, R);
    const int64_t chunks = of.columns / CHUNK;
    vec acc[P][R];
    clear(acc);
    for (int64_t c = 0; c < chunks; ++c, x += CHUNK * R, scales += R, sums += BLOCKS * R) {
        const uint8_t* chunk[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
            chunk[p] = w[p].chunk(c);
            w[p].prefetch(c);
        }
#pragma GCC unroll 2
        for (int h = 0; h < R; h += H) {
            vec total[P][H];
#pragma GCC unroll 2
            for (int b = 0; b < BLOCKS; ++b) {
                ivec dots[P][H];
                block_products<S, R, Weights>(chunk, b, x + b * S::BLOCK * R + 4 * h, sums + b * R + h, dots);
#pragma GCC unroll 2
                for (int p = 0; p < P; ++p) {
                    const vec scale = w[p].scale(c, b);
#pragma GCC unroll 8
                    for (int r = 0; r < H; ++r) {
                        const vec product = to_float(dots[p][r]);
                        total[p][r] = b == 0 ? product * scale : fmadd(product, scale, total[p][r]);
                        if (R > 1 && b + 1 < BLOCKS) settle_before(total[p][r], chunk[p]);
                    }
                }
            }
#pragma GCC unroll 2
            for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
                for (int r = 0; r < H; ++r) acc[p][h + r] = fmadd(total[p][r], broadcast(scales[h + r]), acc[p][h + r]);
            }
#pragma GCC unroll 2
            for (int b = 0; b < (S::HAS_MIN ? BLOCKS : 0); ++b) {
#pragma GCC unroll 2
                for (int p = 0; p < P; ++p) {
                    const vec min = w[p].min(c, b);
#pragma GCC unroll 8
                    for (int r = h; r < h + H; ++r) {
                        acc[p][r] = fmadd(min, broadcast(bit_cast<float>(sums[b * R + r])), acc[p][r]);
                    }
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) out[p][r] = acc[p][r];
    }
}

template <typename S>
void quantize_rows(const Product& p, const Activations<S>& of, const Tiles& tiles, uint8_t* activations) {
    parallel(tiles.count(), std::max<int64_t>(1, 8192 / (of.columns * TILE)), [&](int64_t first, int64_t last) {
        static thread_local Scratch scratch;
        uint8_t* room = scratch.get(of.columns * (sizeof(float) + std::max(TILE, WIDE_TILES ? WIDE_TILE : 0)));
        auto* x = reinterpret_cast<float*>(room);
        auto* codes = reinterpret_cast<int8_t*>(room + of.columns * sizeof(float));
        for (int64_t t = first; t < last; ++t) {
            const int64_t row = tiles.first_row(t);
            uint8_t* tile = activations + row * of.row_bytes();
            const int size = tiles.size(t);
            for (int r = 0; r < size; ++r) {
                if (p.fine && r % 2 != 0) {
                    of.subtract_codes(x, tile, r - 1, size, codes + (r - 1) * of.columns);
                } else {
                    // Rows past the last are the last once more, and nobody reads their results.
                    read_row(p, std::min((row + r) / (p.fine ? 2 : 1), p.rows - 1), x, of.columns);
                }
                of.quantize(x, tile, r, size, codes + r * of.columns);
            }
            if (size == WIDE_TILE) {
                of.interleave_wide(codes, tile);
            } else {
                with_size(size, [&](auto rows) { of.template interleave<decltype(rows)::value>(codes, tile); });
            }
        }
    });
}

// Formats that are unpacked once where rows are many: those whose scales take many instructions, and those whose codes
// are not bytes, where bytes let rows meet two panels together; with mins, two panels at a time are no faster than one.
template <typename F>
constexpr bool UNPACKS =
    F::UNIT > CHUNK || (!F::HAS_MIN && !BYTES<Packed<F>> && TOGETHER<Unpacked<ShapeOf<F>>, TILE> > 1);
constexpr int64_t MANY_TILES = 5;
constexpr int64_t MANY_ROWS = 64;  // with fewer, unpacking for wide tiles takes longer than these save

// Panels that all tiles of rows meet one after the other, so that a tile's rows are in the first level of the cache for all
// of them but one, and the panels in the second: of which this is their share.
constexpr int MOST_PANELS = 4;
constexpr int64_t PANEL_ROOM = 1 << 18;

template <typename F>
class QuantizedProduct {
    using S = ShapeOf<F>;

public:
    explicit QuantizedProduct(const Product& p)
        : p_(p),
          of_{round_up(p.inputs, F::UNIT), F::ZERO - (F::CODE_BITS == 8 ? TAKEN_OFF : 0)},
          rows_(p.rows * (p.fine ? 2 : 1)),
          tiles_(rows_, WIDE_TILES && tiles_serve.codes && rows_ >= (F::UNIT > CHUNK ? MANY_TILES * TILE : MANY_ROWS)),
          unpacks_(tiles_.wide > 0 || (UNPACKS<F> && tiles_.count() >= MANY_TILES)) {}

    void run() {
        static thread_local Scratch scratch;
        activations_ = scratch.get(tiles_.padded_rows() * of_.row_bytes());
        quantize_rows(p_, of_, tiles_, activations_);
        const int64_t panels = p_.panels(), together = panels_together(), blocks = (panels + together - 1) / together;
        const double time = p_.nanoseconds(rows_, CODE_PRODUCTS, panel_bytes<F>(of_.columns));
        parallel(blocks, even_grain(blocks, tiles_.count() == 1 ? 4 : 32), time, [&](int64_t first, int64_t last) {
#if HAS_TILES
            if (tiles_.wide > 0) shape_tiles<S>();
#endif
            for (int64_t i = first; i < last; ++i) block(i * together, std::min(together, panels - i * together));
#if HAS_TILES
            if (tiles_.wide > 0) TILE_RELEASE();
#endif
        });
    }

private:
    int halves() const { return p_.gated() ? 2 : 1; }

    // Whether rows are so many that products take longer than the weights' way from memory, which goes panel by panel.
    bool has_many() const { return rows_ > (MANY_TILES - 1) * TILE; }

    // One panel at a time where rows do not meet two together, or are few, so that weights come from memory; or where
    // threads would have too little to share.
    int64_t panels_together() const {
        constexpr bool PACKED = TOGETHER<Packed<F>, TILE> > 1, UNPACKED = TOGETHER<Unpacked<S>, TILE> > 1;
        if (!has_many() || !(tiles_.wide > 0 || (unpacks_ ? UNPACKED : PACKED))) return 1;
        const int64_t bytes = unpacks_ ? Unpacked<S>::bytes(of_.columns) : panel_bytes<F>(of_.columns);
        const int64_t fit = PANEL_ROOM / (bytes * halves()), fair = p_.panels() / (4 * thread_count());
        const int64_t together = std::clamp<int64_t>(std::min(fit, fair), 1, MOST_PANELS);
        return p_.gated() ? together : round_up(together, 2);  // of which two meet rows together
    }

    // All rows with `count` panels from `panel` on, each followed by what its results are gated with.
    void block(int64_t panel, int64_t count) {
        const int all = static_cast<int>(count) * halves();
        const auto packed = [&](int i) {
            const int64_t at = panel + i / halves() + i % halves() * p_.panels();
            return Packed<F>{p_.weight + at * panel_bytes<F>(of_.columns)};
        };
        if (!unpacks_) {
            Packed<F> weights[2 * MOST_PANELS];
            for (int i = 0; i < all; ++i) weights[i] = packed(i);
            return each_tile(weights, all, panel);
        }
        if constexpr (UNPACKS<F> || WIDE_TILES) {
            static thread_local Scratch scratch;
            const int64_t size = round_up(Unpacked<S>::bytes(of_.columns), 64);
            uint8_t* room = scratch.get(all * size);
            Unpacked<S> weights[2 * MOST_PANELS];
            for (int i = 0; i < all; ++i) {
                weights[i] = Unpacked<S>(packed(i), of_.columns, room + i * size, tiles_.wide > 0);
            }
            each_tile(weights, all, panel);
        }
    }

    template <typename Weights>
    void each_tile(const Weights* weights, int count, int64_t panel) {
#if HAS_TILES
        if constexpr (std::is_same_v<Weights, Unpacked<S>>) {
            for (int64_t tile = 0; tile < tiles_.wide; tile += PAIR) {
                for (int i = 0; i < count; i += PAIR) {
                    multiply_pairs(weights + i, std::min(PAIR, count - i), tile, panel + i / halves());
                }
            }
            if (tiles_.wide > 0) return;
        }
#endif
        for (int64_t tile = 0; tile < tiles_.count(); ++tile) {
            with_size(tiles_.size(tile), [&](auto size) { each_panel<decltype(size)::value>(weights, count, tile, panel); });
        }
    }

    template <int R, typename Weights>
    void each_panel(const Weights* weights, int count, int64_t tile, int64_t panel) {
        int i = 0;
        if constexpr (TOGETHER<Weights, R> > 1) {
            for (; has_many() && i + 2 <= count; i += 2) multiply_by<2, R>(weights + i, tile, panel + i / halves());
        }
        if (p_.gated()) {
            for (; i < count; i += 2) multiply_gated<R>(weights + i, tile, panel + i / 2);
        } else {
            for (; i < count; ++i) multiply_by<1, R>(weights + i, tile, panel + i);
        }
    }

    const uint8_t* activations(int64_t tile) const { return activations_ + tiles_.first_row(tile) * of_.row_bytes(); }

    // A tile with P panels: of two, the second is the next one, or gates the first one's results.
    template <int P, int R, typename Weights>
    void multiply_by(const Weights* weights, int64_t tile, int64_t panel) {
        vec out[P][R];
        multiply<S, Weights, R, P>(weights, of_, activations(tile), out);
        put(tiles_.first_row(tile), R, P, panel, out);
    }

    // The same by one panel after the other.
    template <int R, typename Weights>
    void multiply_gated(const Weights* weights, int64_t tile, int64_t panel) {
        vec out[2][R];
        multiply<S, Weights, R, 1>(weights, of_, activations(tile), out);
        multiply<S, Weights, R, 1>(weights + 1, of_, activations(tile), out + 1);
        put(tiles_.first_row(tile), R, 2, panel, out);
    }

#if HAS_TILES
    // Up to two tiles with up to two panels.
    void multiply_pairs(const Unpacked<S>* weights, int panels, int64_t tile, int64_t panel) {
        const int64_t apart = WIDE_TILE * of_.row_bytes();
        const int tiles = static_cast<int>(std::min<int64_t>(PAIR, tiles_.wide - tile));
        TileResults out;
        const uint8_t* x = activations(tile);
        if (tiles == 2) {
            panels == 2 ? multiply_tiles<S, 2, 2>(weights, of_, x, apart, out)
                        : multiply_tiles<S, 2, 1>(weights, of_, x, apart, out);
        } else {
            panels == 2 ? multiply_tiles<S, 1, 2>(weights, of_, x, 0, out)
                        : multiply_tiles<S, 1, 1>(weights, of_, x, 0, out);
        }
        for (int a = 0; a < tiles; ++a) put(tiles_.first_row(tile + a), WIDE_TILE, panels, panel, out[a]);
    }
#endif

    // Results of `count` rows from `row` on, of which the last may be none, from one or two panels.
    template <int R>
    INLINE void put(int64_t row, int count, int panels, int64_t panel, const vec (*out)[R]) {
        static const vec nothing[R] = {};
        const bool gated = p_.gated();
        for (int i = 0; i < (gated ? 1 : panels); ++i) {
            const vec *of = out[i], *more = gated ? out[1] : nothing;
            for (int r = 0; r + 1 < count && p_.fine && row + r < rows_; r += 2) {
                emit(p_, (row + r) / 2, panel + i, of[r] + of[r + 1], more[r] + more[r + 1]);
            }
            for (int r = 0; r < count && !p_.fine && row + r < rows_; ++r) emit(p_, row + r, panel + i, of[r], more[r]);
        }
    }

    const Product& p_;
    const Activations<S> of_;
    const int64_t rows_;
    const Tiles tiles_;
    const bool unpacks_;
    uint8_t* activations_ = nullptr;
};

}  // namespace

void multiply_quantized(const Product& p) { WITH_FORMAT(p.kind, F, QuantizedProduct<PackedAs<F>>(p).run()) }

}  // namespace octavo
