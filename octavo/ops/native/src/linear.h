// What the products with float and with quantized weights share: rows in tiles, panels of outputs, how results leave.
//
// Each output of a row is a sum in a fixed order, the same whatever tile the row falls into, so that a row's result does
// not depend on its neighbours.
#pragma once

#include "call.h"
#include "formats.h"
#include "numbers.h"
#include "pool.h"
#include "scaled.h"
#include "scratch.h"

namespace octavo {

// Rows that share each vector of weights that is loaded: as many as leave their sums in registers.
constexpr int TILE = std::min(8, REGISTERS * REGISTER / 128);
constexpr int WIDE_TILE = 16;
constexpr int GROUP = 128;    // columns that are summed before the sum joins the others
constexpr int AHEAD = 8192;   // bytes of weights asked for before they are needed, of all panels read together

// What a thread does in a nanosecond, about: multiplications with floats and with codes, and bytes of weights read.
constexpr double FLOAT_PRODUCTS = 60.0, CODE_PRODUCTS = 250.0, BYTES_READ = 15.0;

// A product, of all rows or of those of one expert.
struct Product : arguments::linear {
    // Where rows of x come from and where their results go, or null for one after the other.
    const int64_t *sources = nullptr, *targets = nullptr;

    bool gated() const { return activation != Activation::NONE; }
    // Panels of 16 results.
    int64_t panels() const { return (gated() ? outputs / 2 : outputs + PANEL - 1) / PANEL; }

    // One thread's time for `rows` of them, by what it multiplies in a nanosecond and the bytes of a panel.
    double nanoseconds(int64_t rows, double products, int64_t panel_bytes) const {
        const auto all = static_cast<double>(rows * outputs * inputs);
        return all / products + static_cast<double>(panels() * (gated() ? 2 : 1) * panel_bytes) / BYTES_READ;
    }

    INLINE int64_t source(int64_t row) const { return sources == nullptr ? row : sources[row]; }
    INLINE int64_t target(int64_t row) const { return targets == nullptr ? row : targets[row]; }
};

// Rows in tiles of TILE, the last one of 1, 2, 4 or TILE; or all in tiles of 16, where there are products for those.
struct Tiles {
    int64_t rows, wide, whole;
    int last;

    explicit Tiles(int64_t rows, bool is_wide = false)
        : rows(rows), wide(is_wide ? (rows + WIDE_TILE - 1) / WIDE_TILE : 0), whole(is_wide ? 0 : rows / TILE) {
        const int rest = is_wide ? 0 : static_cast<int>(rows % TILE);
        last = rest <= 1 ? rest : std::min(TILE, rest == 2 ? 2 : rest <= 4 ? 4 : 8);
    }
    int64_t count() const { return wide + whole + (last != 0); }
    int64_t padded_rows() const { return wide * WIDE_TILE + whole * TILE + last; }
    INLINE int64_t first_row(int64_t tile) const { return tile * (wide > 0 ? WIDE_TILE : TILE); }
    INLINE int size(int64_t tile) const { return wide > 0 ? WIDE_TILE : tile < whole ? TILE : last; }
};

// f(std::integral_constant) with the tile's size as a constant.
template <typename Body>
INLINE void with_size(int size, const Body& body) {
    switch (size) {
        case 1: return body(std::integral_constant<int, 1>());
        case 2: return body(std::integral_constant<int, 2>());
        case 4: return body(std::integral_constant<int, std::min(4, TILE)>());
        default: return body(std::integral_constant<int, TILE>());
    }
}

// The weights of one column of a panel of floats, 16 outputs. Panels are `[columns][16]`, but of bfloat16 they are
// `[columns / 2][16][2]`, as the processor's own product of pairs wants them.
template <typename T>
INLINE vec column(const uint8_t* panel, int64_t k) {
    return load(reinterpret_cast<const T*>(panel) + k * PANEL);
}
template <>
INLINE vec column<bf16>(const uint8_t* panel, int64_t k) {
    const uvec pair = load_as<uvec>(panel + k / 2 * 64);
    return bit_cast<vec>(k % 2 ? pair & 0xffff0000u : pair << 16);
}
// Columns that such a panel has.
template <typename T>
INLINE int64_t padded(int64_t columns) {
    return std::is_same_v<T, bf16> ? round_up(columns, 2) : columns;
}

vec activate_any(Activation activation, vec x);

// Results of row `row` in panel `panel`: its outputs, or activation(outputs) * others where there is a gate.
INLINE void emit(const Product& p, int64_t row, int64_t panel, vec value, vec others) {
    const int64_t first = panel * PANEL, results = p.gated() ? p.outputs / 2 : p.outputs;
    const int count = static_cast<int>(std::min<int64_t>(PANEL, results - first));
    if (p.bias != nullptr) value += count == PANEL ? load(p.bias + first) : load_some(p.bias + first, count);
    if (p.gated()) {
        if (p.bias != nullptr) others += load(p.bias + results + first);
        value = activate_any(p.activation, value) * others;
    }
    WITH_TYPE(p.out_dtype, T, {
        T* out = static_cast<T*>(p.out) + p.target(row) * p.out_stride + first;
        count == PANEL ? store(out, value) : store_some(out, value, count);
    })
}

// Row `row` of x as floats, in the weight's order; zero up to `room`.
INLINE void read_row(const Product& p, int64_t row, float* to, int64_t room) {
    WITH_TYPE(p.x_dtype, T, {
        const T* x = static_cast<const T*>(p.x) + p.source(row) * p.x_stride;
        int64_t i = 0;
        if (p.order != nullptr) {
            for (; i < p.inputs; ++i) to[i] = as_float(x[p.order[i]]);
        }
        for (; i + LANES <= p.inputs; i += LANES) store(to + i, load(x + i));
        if (i < p.inputs) {
            const int rest = static_cast<int>(p.inputs - i);
            store_some(to + i, load_some(x + i, rest), rest);
        }
        for (i = p.inputs; i < room; ++i) to[i] = 0.0f;
    })
}

void multiply_float(const Product& p);
void multiply_quantized(const Product& p);

inline bool is_float(WeightKind kind) {
    WITH_SCALED(kind, S, return true)
    return kind == WeightKind::F32 || kind == WeightKind::F16 || kind == WeightKind::BF16;
}

inline void multiply(const Product& p) { is_float(p.kind) ? multiply_float(p) : multiply_quantized(p); }

}  // namespace octavo
