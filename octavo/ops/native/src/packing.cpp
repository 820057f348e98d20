// Laying weights out in panels, taking rows out of them again, and rounding weights to fewer bits.
#include <vector>

#include "linear.h"
#include "rows.h"

namespace octavo {
namespace {

// Words of up to 16 rows, `stride` bytes apart, to [words][16]: 16 of each row at a time, whose lines the cache holds.
template <typename Word>
void lay_side_by_side(const uint8_t* row, int64_t stride, int64_t rows, int64_t words, uint8_t* to) {
    for (int64_t first = 0; first < words; first += PANEL) {
        const int64_t last = std::min<int64_t>(first + PANEL, words);
        for (int64_t o = 0; o < rows; ++o) {
            const uint8_t* from = row + o * stride;
            for (int64_t k = first; k < last; ++k) {
                std::memcpy(to + (k * PANEL + o) * sizeof(Word), from + k * sizeof(Word), sizeof(Word));
            }
        }
    }
}

// Rows [rows][width] of floats into panels.
template <typename T>
void pack_float(const T* source, int64_t rows, int64_t width, uint8_t* packed) {
    constexpr bool PAIRS = std::is_same_v<T, bf16>;
    constexpr int TOGETHER = PAIRS ? 2 : 1;
    using Word = std::conditional_t<sizeof(T) * TOGETHER == 4, uint32_t, uint16_t>;
    const int64_t columns = PAIRS ? round_up(width, 2) : width, panels = (rows + PANEL - 1) / PANEL;
    parallel(panels, even_grain(panels, 4), [&](int64_t first, int64_t last) {
        for (int64_t panel = first; panel < last; ++panel) {
            T* to = reinterpret_cast<T*>(packed) + panel * columns * PANEL;
            const T* row = source + panel * PANEL * width;
            const int64_t outputs = std::min<int64_t>(PANEL, rows - panel * PANEL);
            if (outputs < PANEL || columns != width) std::memset(to, 0, columns * PANEL * sizeof(T));
            lay_side_by_side<Word>(reinterpret_cast<const uint8_t*>(row), width * sizeof(T), outputs, width / TOGETHER,
                                   reinterpret_cast<uint8_t*>(to));
            for (int64_t o = 0; o < outputs && columns != width; ++o) {
                to[(width - 1) * PANEL + 2 * o] = row[(o + 1) * width - 1];
            }
        }
    });
}

// Rows as a GGUF file stores them into panels.
template <typename F>
void pack_quantized(const uint8_t* source, const uint8_t* grid, int64_t rows, int64_t width, uint8_t* packed) {
    const int64_t units = width / F::UNIT, bytes = panel_bytes<F>(width), panels = (rows + PANEL - 1) / PANEL;
    parallel(panels, even_grain(panels, 4), [&](int64_t first, int64_t last) {
        Stored stored;
        stored.grid = grid;
        for (int64_t panel = first; panel < last; ++panel) {
            uint8_t* to = packed + panel * bytes;
            std::memset(to, 0, bytes);
            const int64_t outputs = std::min<int64_t>(PANEL, rows - panel * PANEL);
            for (int64_t o = 0; o < outputs; ++o) {
                const uint8_t* row = source + (panel * PANEL + o) * file_row_bytes<F>(width);
                for (int64_t u = 0; u < units; ++u) {
                    F::read(row + u * F::FILE_BYTES, stored);
                    uint8_t* unit = to + u * F::UNIT_BYTES;
                    F::header(unit, static_cast<int>(o), stored);
                    for (int c = 0; c < F::UNIT / CHUNK; ++c) {
                        auto* chunk = const_cast<uint8_t*>(F::chunk(unit, c));
                        F::Bits::put(chunk, static_cast<int>(o), stored.codes + c * CHUNK);
                    }
                }
            }
        }
    });
}

// Rows of units into panels of codes and scales.
template <typename F>
void pack_scaled(const uint8_t* source, int64_t rows, int64_t columns, uint8_t* packed) {
    using Word = typename F::Word;
    const int64_t panels = (rows + PANEL - 1) / PANEL, bytes = F::panel_bytes(columns), units = columns / F::GROUPED;
    parallel(panels, even_grain(panels, 4), [&](int64_t first, int64_t last) {
        for (int64_t panel = first; panel < last; ++panel) {
            uint8_t* to = packed + panel * bytes;
            std::memset(to, 0, bytes);
            auto* scales = const_cast<float*>(F::scales(to, columns));
            const int64_t outputs = std::min<int64_t>(PANEL, rows - panel * PANEL), row_bytes = units * F::UNIT_BYTES;
            const uint8_t* unit = source + panel * PANEL * row_bytes;
            for (int64_t u = 0; u < units; ++u, unit += F::UNIT_BYTES) {
                for (int64_t o = 0; o < outputs; ++o) {
                    float scale;
                    std::memcpy(&scale, unit + o * row_bytes, 4);
                    scales[u * PANEL + o] = scale * F::FACTOR;
                }
                constexpr int64_t CODES = F::UNIT_BYTES - 4;
                lay_side_by_side<Word>(unit + 4, row_bytes, outputs, CODES / sizeof(Word), to + u * CODES * PANEL);
            }
        }
    });
}

template <typename F>
void unpack_scaled_row(const uint8_t* packed, int64_t row, int64_t columns, float* out) {
    const uint8_t* panel = packed + row / PANEL * F::panel_bytes(columns);
    const float* scales = F::scales(panel, columns) + row % PANEL;
    for (int64_t k = 0; k < columns; ++k) {
        out[k] = F::weights(panel, k)[static_cast<int>(row % PANEL)] * scales[k / F::GROUPED * PANEL];
    }
}

// One row of a packed weight as floats, `columns` of them.
template <typename F>
void unpack_row(const uint8_t* packed, int64_t row, int64_t columns, float* out) {
    const uint8_t* panel = packed + row / PANEL * panel_bytes<F>(columns);
    const int lane = static_cast<int>(row % PANEL);
    constexpr int CHUNKS = F::UNIT / CHUNK, BLOCKS = CHUNK / F::BLOCK;
    for (int64_t c = 0; c < columns / CHUNK; ++c) {
        const uint8_t* unit = panel + c / CHUNKS * F::UNIT_BYTES;
        const int part = static_cast<int>(c % CHUNKS);
        for (int s = 0; s < CHUNK_STEPS; ++s) {
            uint8_t codes[4 * PANEL];
            store_as(codes, F::step(F::chunk(unit, part), s));
            const int block = part * BLOCKS + 4 * s / F::BLOCK;
            const float scale = F::scale(unit, block)[lane], min = F::min(unit, block)[lane];
            for (int i = 0; i < 4; ++i) {
                out[c * CHUNK + 4 * s + i] =
                    F::HAS_MIN ? scale * codes[4 * lane + i] + min : scale * (codes[4 * lane + i] - F::ZERO);
            }
        }
    }
}

template <typename T>
void unpack_float_row(const uint8_t* packed, int64_t row, int64_t width, float* out) {
    constexpr bool PAIRS = std::is_same_v<T, bf16>;
    const int64_t columns = PAIRS ? round_up(width, 2) : width, lane = row % PANEL;
    const T* panel = reinterpret_cast<const T*>(packed) + row / PANEL * columns * PANEL;
    for (int64_t k = 0; k < width; ++k) {
        out[k] = as_float(PAIRS ? panel[(k / 2 * PANEL + lane) * 2 + k % 2] : panel[k * PANEL + lane]);
    }
}

void unpack_any(WeightKind kind, const uint8_t* packed, int64_t row, int64_t width, std::vector<float>& out) {
    WITH_SCALED(kind, F, return unpack_scaled_row<F>(packed, row, F::padded(width), out.data()))
    switch (kind) {
        case WeightKind::F32: return unpack_float_row<float>(packed, row, width, out.data());
        case WeightKind::F16: return unpack_float_row<f16>(packed, row, width, out.data());
        case WeightKind::BF16: return unpack_float_row<bf16>(packed, row, width, out.data());
        default: WITH_FORMAT(kind, F, unpack_row<PackedAs<F>>(packed, row, round_up(width, F::UNIT), out.data()))
    }
}

INLINE vec load_within(const float* x, int64_t width, int64_t first) {
    return load_some(x + first, static_cast<int>(std::clamp<int64_t>(width - first, 0, LANES)));
}

// A row of floats to Q8_0: each block's codes are multiples of a 127th of its largest value.
void round_q8(const float* x, int64_t width, int64_t columns, uint8_t* out) {
    for (int64_t first = 0; first < columns; first += 32, out += 34) {
        const vec half[2] = {load_within(x, width, first), load_within(x, width, first + LANES)};
        f16 stored;
        set(&stored, highest(larger(absolute(half[0]), absolute(half[1]))) / 127.0f);
        const float scale = as_float(stored), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        std::memcpy(out, &stored, 2);
        for (int h = 0; h < 2; ++h) {
            const vec code = smaller(broadcast(127.0f), larger(broadcast(-127.0f), half[h] * inverse));
            store_bytes(reinterpret_cast<int8_t*>(out + 2 + h * LANES), rounded(code));
        }
    }
}

// A row of floats to Q4_1: 16 steps from a block's least value to its largest.
void round_q4(const float* x, int64_t width, int64_t columns, uint8_t* out) {
    for (int64_t first = 0; first < columns; first += 32, out += 20) {
        const vec half[2] = {load_within(x, width, first), load_within(x, width, first + LANES)};
        const float min = -highest(larger(-half[0], -half[1])), max = highest(larger(half[0], half[1]));
        f16 stored[2];
        set(stored, (max - min) / 15.0f);
        set(stored + 1, min);
        const float step = as_float(stored[0]), inverse = step > 0.0f ? 1.0f / step : 0.0f, base = as_float(stored[1]);
        std::memcpy(out, stored, 4);
        const auto code = [&](vec values) {
            const vec positive = larger((values - base) * inverse, vec{});
            return rounded(smaller(positive, broadcast(15.0f)));
        };
        const ivec both = code(half[0]) | code(half[1]) << 4;
        store_bytes(reinterpret_cast<int8_t*>(out + 4), both << 24 >> 24);  // as numbers with a sign
    }
}

int64_t columns_of(WeightKind kind, int64_t width) {
    WITH_SCALED(kind, F, return F::padded(width))
    WITH_FORMAT(kind, F, return round_up(width, F::UNIT))
    return kind == WeightKind::BF16 ? round_up(width, 2) : width;
}

int64_t stored_row_bytes(WeightKind kind, int64_t width) {
    WITH_SCALED(kind, F, return F::padded(width) / F::GROUPED * F::UNIT_BYTES)
    WITH_FORMAT(kind, F, return file_row_bytes<F>(round_up(width, F::UNIT)))
    return width * (kind == WeightKind::F32 ? 4 : 2);
}

}  // namespace

OPERATION(weight_rows) {
    parallel(a.rows, std::max<int64_t>(1, 2048 / a.inputs), [&](int64_t first, int64_t last) {
        std::vector<float> row(round_up(columns_of(a.kind, a.inputs), LANES));
        for (int64_t r = first; r < last; ++r) {
            const int64_t id = a.ids[r] - a.first;
            if (id < 0 || id >= a.count) {
                std::fill(row.begin(), row.end(), 0.0f);
            } else {
                unpack_any(a.kind, a.weight, id, a.inputs, row);
                if (a.order != nullptr) {
                    const std::vector<float> ordered = row;
                    for (int64_t i = 0; i < a.inputs; ++i) row[a.order[i]] = ordered[i];
                }
            }
            WITH_TYPE(a.out_dtype, T, {
                T* out = row_of<T>(a.out, r, a.inputs);
                for_vectors(a.inputs, [&](int64_t i, int n) { put(out + i, load(row.data() + i) * a.scale, n); });
            })
        }
    });
}

OPERATION(table_rows) {
    for (int64_t r = 0; r < a.rows; ++r) {
        uint8_t* out = a.out + r * a.row_bytes;
        const int64_t id = a.ids[r] - a.first;
        if (id < 0 || id >= a.count) {
            std::memset(out, 0, static_cast<size_t>(a.row_bytes));
        } else {
            std::memcpy(out, a.table + id * a.row_bytes, static_cast<size_t>(a.row_bytes));
        }
    }
}

FUNCTION(packed_bytes) {
    const int64_t panels = (a.rows + PANEL - 1) / PANEL, columns = columns_of(a.kind, a.inputs);
    WITH_FORMAT(a.kind, F, return panels * panel_bytes<F>(columns))
    WITH_SCALED(a.kind, F, return panels * F::panel_bytes(columns))
    return panels * columns * PANEL * (a.kind == WeightKind::F32 ? 4 : 2);
}

FUNCTION(row_bytes) { return stored_row_bytes(a.kind, a.inputs); }

OPERATION(pack) {
    switch (a.kind) {
        case WeightKind::F32: return pack_float(static_cast<const float*>(a.source), a.rows, a.inputs, a.packed);
        case WeightKind::F16: return pack_float(static_cast<const f16*>(a.source), a.rows, a.inputs, a.packed);
        case WeightKind::BF16: return pack_float(static_cast<const bf16*>(a.source), a.rows, a.inputs, a.packed);
        default: {
            const auto* source = static_cast<const uint8_t*>(a.source);
            const int64_t columns = columns_of(a.kind, a.inputs);
            WITH_FORMAT(a.kind, F, pack_quantized<F>(source, a.grid, a.rows, columns, a.packed))
            WITH_SCALED(a.kind, F, pack_scaled<F>(source, a.rows, columns, a.packed))
        }
    }
}

OPERATION(quantize) {
    const int64_t columns = columns_of(a.kind, a.inputs), bytes = stored_row_bytes(a.kind, a.inputs);
    Product p{};  // what read_row takes
    p.x = a.source;
    p.x_dtype = a.source_dtype;
    p.x_stride = p.inputs = a.inputs;
    parallel(a.rows, std::max<int64_t>(1, 65536 / a.inputs), [&](int64_t first, int64_t last) {
        std::vector<float> row(round_up(a.inputs, LANES));
        for (int64_t r = first; r < last; ++r) {
            read_row(p, r, row.data(), a.inputs);
            (a.kind == WeightKind::Q8_0 ? round_q8 : round_q4)(row.data(), a.inputs, columns, a.out + r * bytes);
        }
    });
}

}  // namespace octavo
