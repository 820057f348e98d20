// Products with weights in float32, float16 and bfloat16, and in few bits that are widened to these.
//
// Blocks of rows meet blocks of panels, SLICE columns at a time: that slice of a panel stays in the first level of the
// cache while all tiles of the block's rows pass, and theirs in the second while the panels do.
#include "float_tiles.h"
#include "linear.h"
#include "rows.h"

namespace octavo {
namespace {

constexpr int MOST = std::min(16, HELD - 1);  // rows of a tile
constexpr int64_t SLICE = 2 * GROUP;
constexpr int64_t BLOCK_ROWS = 96, BLOCK_PANELS = 8;
constexpr int64_t ROWS_AT_ONCE = 1024;  // rows that are laid out before they are multiplied
constexpr int64_t FEW = 32;             // rows of which reading the weights takes the time
constexpr int MOST_PANELS = 4;          // that one pass through the columns multiplies
constexpr int GROUPS_AHEAD = 4;         // whose scales are asked for before they are needed

// What all kinds of steps are unless they say otherwise.
struct Step {
    static constexpr bool PAIRS = false, SCALED = false, TILES = false;
    static constexpr int COLUMNS = 1, GROUPED = GROUP, STEPS_OF_LINE = 1;
    static const float* scales(const uint8_t*, int64_t) { return nullptr; }
};

// What one step multiplies: a column, 4 bytes of a row of x.
template <typename T>
struct Columns : Step {
    static constexpr bool WIDENED = !std::is_same_v<T, float>;
    static int64_t step_bytes(int64_t steps) { return steps * PANEL * sizeof(T); }
    static int64_t panel_bytes(int64_t columns) { return step_bytes(columns); }
    static INLINE vec weights(const uint8_t* panel, int64_t step) { return column<T>(panel, step); }
    static INLINE vec add(vec total, vec w, float x) { return fmadd(w, broadcast(x), total); }
    static int64_t padded(int64_t width) { return octavo::padded<T>(width); }
};

#if defined(__AVX512BF16__)
#define HAS_PAIRS 1
// Two columns of bfloat16, by the processor's product of pairs.
struct Pairs : Step {
    static constexpr bool PAIRS = true, WIDENED = false;
    static constexpr int COLUMNS = 2;
    static int64_t step_bytes(int64_t steps) { return steps * 64; }
    static int64_t panel_bytes(int64_t columns) { return columns * 32; }
    static INLINE vec weights(const uint8_t* panel, int64_t step) { return load_as<vec>(panel + step * 64); }
    static INLINE vec add(vec total, vec w, float x) {
        return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)w, (__m512bh)_mm512_set1_ps(x));
    }
    static int64_t padded(int64_t width) { return round_up(width, 2); }
};
#else
#define HAS_PAIRS 0
using Pairs = Columns<bf16>;
#endif

// The same pairs, by tiles.
struct TiledPairs : Pairs {
    static constexpr bool TILES = true;
};

// A column of codes of few bits, of which each group has a scale.
template <typename F>
struct ScaledColumns : Columns<float> {
    static constexpr bool WIDENED = true, SCALED = true;
    static constexpr int GROUPED = F::GROUPED, STEPS_OF_LINE = 64 / F::code_bytes(1);
    static int64_t step_bytes(int64_t steps) { return F::code_bytes(steps); }
    static int64_t panel_bytes(int64_t columns) { return F::panel_bytes(columns); }
    static INLINE const float* scales(const uint8_t* panel, int64_t columns) { return F::scales(panel, columns); }
    static INLINE vec weights(const uint8_t* panel, int64_t step) { return F::weights(panel, step); }
    static int64_t padded(int64_t width) { return F::padded(width); }
};

#if HAS_PAIRS
// Two such columns, of codes that bfloat16 has too.
template <typename F>
struct ScaledPairs : Pairs {
    static constexpr bool WIDENED = true, SCALED = true;
    static constexpr int GROUPED = F::GROUPED, STEPS_OF_LINE = 64 / F::code_bytes(2);
    static int64_t step_bytes(int64_t steps) { return F::code_bytes(2 * steps); }
    static int64_t panel_bytes(int64_t columns) { return F::panel_bytes(columns); }
    static INLINE const float* scales(const uint8_t* panel, int64_t columns) { return F::scales(panel, columns); }
    static INLINE vec weights(const uint8_t* panel, int64_t step) { return F::pairs(panel, 2 * step); }
    static int64_t padded(int64_t width) { return F::padded(width); }
};
#else
template <typename F>
using ScaledPairs = ScaledColumns<F>;
#endif

// Columns that have been widened to what is multiplied, with the scales that they have otherwise.
template <typename S>
struct Wide : std::conditional_t<S::PAIRS, Pairs, Columns<float>> {
    static constexpr bool SCALED = S::SCALED;
    static constexpr int GROUPED = S::GROUPED;
};

template <typename S>
constexpr int64_t STEPS = SLICE / S::COLUMNS;

// Where slices of some panels begin, of which the results stand side by side; how far ahead of what is multiplied is
// asked for, and how much farther what comes behind a panel's end.
struct Slices {
    const uint8_t* codes[MOST_PANELS];
    const float* scales[MOST_PANELS];
    int64_t ahead = 0, skip = 0;
};

// Panels that R rows meet together: sums that do not wait for each other, where few rows have too few.
constexpr int panels_for(int rows) {
    for (int panels = MOST_PANELS; panels > 1; panels /= 2) {
        if (rows * panels <= std::min(8, MOST)) return panels;
    }
    return 1;
}

// R rows, STEPS apart, with slices of P panels: `sums` gets each group's sum in turn, times its scale where there are
// any, a panel's `apart` from the next one's.
template <typename S, int R, int P>
void multiply(const Slices& of, const float* x, int64_t steps, vec* sums, int64_t apart) {
    constexpr int64_t group = S::GROUPED / S::COLUMNS;
    for (int64_t first = 0; first < steps; first += group) {
        const int64_t last = std::min(first + group, steps);
        const int64_t each = of.ahead / P;
        const int64_t ahead = S::step_bytes(first) + each < S::step_bytes(steps) ? each : each + of.skip;
        vec total[P][R];
        clear(total);
        const auto step = [&](int64_t k, int p) {
            const vec w = S::weights(of.codes[p], k);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) total[p][r] = S::add(total[p][r], w, x[r * STEPS<S> + k]);
        };
        if constexpr (S::STEPS_OF_LINE == 1) {
#pragma GCC unroll 4
            for (int64_t k = first; k < last; ++k) {
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) {
                    __builtin_prefetch(of.codes[p] + ahead + S::step_bytes(k));
                    step(k, p);
                }
            }
        } else {
            for (int64_t k = first; k < last; k += S::STEPS_OF_LINE) {
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) __builtin_prefetch(of.codes[p] + ahead + S::step_bytes(k));
#pragma GCC unroll 8
                for (int i = 0; i < S::STEPS_OF_LINE; ++i) {
#pragma GCC unroll 4
                    for (int p = 0; p < P; ++p) step(k + i, p);
                }
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            vec* to = sums + p * apart;
            if constexpr (S::SCALED) {
                const float* scales = of.scales[p] + first / group * PANEL;
                __builtin_prefetch(scales + GROUPS_AHEAD * PANEL);
                const vec scale = load(scales);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) to[r] = fmadd(total[p][r], scale, to[r]);
            } else {
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) to[r] += total[p][r];
            }
        }
    }
}

template <typename S>
class FloatProduct {
public:
    explicit FloatProduct(const Product& p)
        : p_(p),
          columns_(S::padded(p.inputs)),
          panels_(p.panels()),
          steps_(columns_ / S::COLUMNS),
          laid_steps_(S::TILES ? round_up(steps_, PAIR_STEPS) : steps_) {}

    // Of `rows` rows from `first` on.
    void run(int64_t first, int64_t rows) {
        static thread_local Scratch scratch;
        first_ = first;
        rows_ = rows;
        tile_rows_ = S::TILES ? static_cast<int>(std::min<int64_t>(TILE_ROWS, rows)) : 1;
        laid_rows_ = round_up(rows, tile_rows_);
        x_ = reinterpret_cast<float*>(scratch.get(laid_rows_ * round_up(steps_, STEPS<S>) * 4));
        parallel(rows, std::max<int64_t>(1, 16384 / columns_), [&](int64_t from, int64_t to) {
            for (int64_t row = from; row < to; ++row) lay_out(row);
        });
        const int64_t together = panels_together(rows), across = (panels_ + together - 1) / together;
        const int64_t blocks = across * ((rows + BLOCK_ROWS - 1) / BLOCK_ROWS);
        const double time = p_.nanoseconds(rows, FLOAT_PRODUCTS, S::panel_bytes(columns_));
        parallel(blocks, even_grain(blocks, rows <= MOST ? 4 : 32), time, [&](int64_t from, int64_t to) {
#if HAS_TILES
            if constexpr (S::TILES) shape_float_tiles(tile_rows_);
#endif
            for (int64_t i = from; i < to; ++i) {
                const int64_t row = i / across * BLOCK_ROWS, panel = i % across * together;
                block(row, std::min(BLOCK_ROWS, rows - row), panel, std::min(together, panels_ - panel));
            }
#if HAS_TILES
            if constexpr (S::TILES) TILE_RELEASE();
#endif
        });
    }

private:
    // Panels of a block of rows: of few rows fewer, where threads would have too little to share otherwise.
    int64_t panels_together(int64_t rows) const {
        if (rows > FEW) return BLOCK_PANELS;
        const int64_t most = std::max(1, MOST_PANELS / (p_.gated() ? 2 : 1));
        int64_t best = most;
        for (int64_t fewer = most / 2; fewer > 0; fewer /= 2) {
            if (most_of_a_thread(panels_, fewer) * 8 <= most_of_a_thread(panels_, best) * 7) best = fewer;
        }
        return best;
    }

    // A row into [slices][rows][STEPS].
    void lay_out(int64_t row) {
        static thread_local Scratch scratch;
        auto* x = reinterpret_cast<float*>(scratch.get(std::max(columns_, laid_steps_) * 4));
        if (S::PAIRS) {
            const auto* from = static_cast<const bf16*>(p_.x) + p_.source(first_ + row) * p_.x_stride;
            for (int64_t i = p_.inputs / 2; i < laid_steps_; ++i) x[i] = 0.0f;
            std::memcpy(x, from, p_.inputs * sizeof(bf16));
        } else {
            read_row(p_, first_ + row, x, columns_);
        }
        for (int64_t step = 0; step < steps_; step += STEPS<S>) {
            std::memcpy(x_ + step * laid_rows_ + row * STEPS<S>, x + step, std::min(STEPS<S>, laid_steps_ - step) * 4);
        }
    }

    void block(int64_t row, int64_t rows, int64_t panel, int64_t panels) {
        static thread_local Scratch scratch;
        const int64_t halves = p_.gated() ? 2 : 1, count = panels * halves;
        const int64_t laid = round_up(rows, tile_rows_);  // rows past the last are anything, and nobody reads their results
        auto* sums = reinterpret_cast<vec*>(scratch.get(BLOCK_PANELS * 2 * BLOCK_ROWS * sizeof(vec)));
        for (int64_t i = 0; i < count * laid; ++i) sums[i] = vec{};
        const int64_t slice = rows_ == 1 ? steps_ : STEPS<S>;  // one row has nothing to share
        for (int64_t step = 0; step < steps_; step += slice) {
            const float* x = x_ + step * laid_rows_ + row * STEPS<S>;
            const int64_t most = rows_ <= FEW ? count : S::TILES ? 2 : 1;
            for (int64_t i = 0, wide; i < count; i += wide) {
                wide = std::min(most, count - i);
                Slices of{.ahead = AHEAD};
                // Behind these panels' ends are others of this pass: the next pass's come first.
                if (step + slice >= steps_) of.skip = panels * S::panel_bytes(columns_) - S::step_bytes(steps_);
                for (int64_t j = 0; j < wide; ++j) {
                    const int64_t at = panel + (i + j) / halves + (i + j) % halves * panels_;
                    const uint8_t* begin = p_.weight + at * S::panel_bytes(columns_);
                    of.codes[j] = begin + S::step_bytes(step);
                    of.scales[j] = S::scales(begin, columns_) + (S::SCALED ? step / S::GROUPED * PANEL : 0);
                }
                tiles(of, wide, x, laid, std::min(slice, steps_ - step), sums + i * laid);
            }
        }
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t i = 0; i < panels; ++i) {
                const vec* out = sums + i * halves * laid + r;
                emit(p_, first_ + row + r, panel + i, out[0], halves == 2 ? out[laid] : vec{});
            }
        }
    }

    // All rows of a block with slices of panels, of several where rows are few.
    static void tiles(const Slices& of, int64_t panels, const float* x, int64_t rows, int64_t steps, vec* sums) {
        if constexpr (S::TILES) {
            by_tiles(of, panels, x, rows, steps, sums);
        } else if (S::WIDENED && rows > 2 * MOST) {
            // Once for all tiles.
            alignas(64) float wide[SLICE * PANEL];
            for (int64_t p = 0; p < panels; ++p) {
                for (int64_t k = 0; k < steps; ++k) {
                    __builtin_prefetch(of.codes[p] + S::step_bytes(k) + AHEAD);
                    store(wide + k * PANEL, S::weights(of.codes[p], k));
                }
                const Slices widened{{reinterpret_cast<const uint8_t*>(wide)}, {of.scales[p]}};
                pass<Wide<S>>(widened, 1, x, rows, steps, sums + p * rows);
            }
        } else {
            pass<S>(of, panels, x, rows, steps, sums);
        }
    }

    template <typename Step>
    static void pass(const Slices& of, int64_t panels, const float* x, int64_t rows, int64_t steps, vec* sums) {
        for (int64_t r = 0, size; r < rows; r += size) {
            size = next_rows(rows - r, MOST);
            with_rows<MOST>(static_cast<int>(size), [&](auto number) {
                constexpr int R = decltype(number)::value, P = panels_for(R);
                int64_t p = 0;
                const auto next = [&](auto together) {
                    constexpr int T = decltype(together)::value;
                    Slices some{.ahead = r == 0 ? of.ahead : 0, .skip = r == 0 ? of.skip : 0};
                    std::copy_n(of.codes + p, T, some.codes);
                    std::copy_n(of.scales + p, T, some.scales);
                    multiply<Step, R, T>(some, x + r * STEPS<Step>, steps, sums + p * rows + r, rows);
                };
                for (; p + P <= panels; p += P) next(std::integral_constant<int, P>());
                for (; p < panels; ++p) next(std::integral_constant<int, 1>());
            });
        }
    }

    // The same by the processor's tiles: rows are a tile of their own, or whole ones of TILE_ROWS.
    static void by_tiles(const Slices& of, int64_t panels, const float* x, int64_t rows, int64_t steps, vec* sums) {
#if HAS_TILES
        constexpr int64_t X_BYTES = STEPS<S> * 4;
        const auto multiply = [&](auto tiles, auto together, int64_t p, int64_t r) {
            constexpr int P = decltype(together)::value;
            const auto ahead = [&, each = of.ahead / P](int64_t step) -> int64_t {
                if (r > 0) return 0;
                return S::step_bytes(step) + each < S::step_bytes(steps) ? each : each + of.skip;
            };
            add_tile_products<decltype(tiles)::value, P>(of.codes + p, x + r * STEPS<S>, X_BYTES, steps,
                                                         sums + p * rows + r, rows, ahead);
        };
        const std::integral_constant<int, 1> one;
        const std::integral_constant<int, 2> two;
        const std::integral_constant<int, 4> four;
        for (int64_t p = 0, some; p < panels; p += some) {
            some = rows <= TILE_ROWS && panels - p >= 4 ? 4 : std::min<int64_t>(2, panels - p);
            int64_t r = 0;
            for (; r + 2 * TILE_ROWS <= rows; r += 2 * TILE_ROWS) some == 2 ? multiply(two, two, p, r) : multiply(two, one, p, r);
            if (r < rows) {
                some == 4 ? multiply(one, four, p, r) : some == 2 ? multiply(one, two, p, r) : multiply(one, one, p, r);
            }
        }
#endif
    }

    const Product& p_;
    const int64_t columns_, panels_, steps_, laid_steps_;
    int64_t first_ = 0, rows_ = 0, laid_rows_ = 0;  // laid_rows_: up to a whole tile
    int tile_rows_ = 1;
    float* x_ = nullptr;
};

template <typename S>
void product(const Product& p) {
    FloatProduct<S> of(p);
    for (int64_t row = 0; row < p.rows; row += ROWS_AT_ONCE) of.run(row, std::min(ROWS_AT_ONCE, p.rows - row));
}

}  // namespace

void multiply_float(const Product& p) {
    if (p.kind == WeightKind::E4M3 && p.x_dtype == DType::BF16 && p.order == nullptr) {
        return product<ScaledPairs<E4M3>>(p);
    }
    WITH_SCALED(p.kind, F, return product<ScaledColumns<F>>(p))
    switch (p.kind) {
        case WeightKind::F16: return product<Columns<f16>>(p);
        case WeightKind::BF16:
#if HAS_TILES
            if (p.x_dtype == DType::BF16 && tiles_serve.bf16) return product<TiledPairs>(p);
#endif
            return HAS_PAIRS && p.x_dtype == DType::BF16 ? product<Pairs>(p) : product<Columns<bf16>>(p);
        default: return product<Columns<float>>(p);
    }
}

}  // namespace octavo
