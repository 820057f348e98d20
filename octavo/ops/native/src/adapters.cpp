// What adapters (LoRA, Hu et al. 2021) make of a product's results: y becomes magnitude * y + bias + (x @ A^T) @ B^T.
//
// Results of one adapter are computed together, in blocks of rows: first x @ A^T, a slice of the columns at a time, and
// then what B makes of it for a range of panels of outputs. Both are shared out among threads, whether there are many
// adapters or one. All is float32, and summed in an order that depends on nothing but the adapter's shape: groups of
// columns, groups in slices, slices, and then the adapter's parts.
#include <vector>

#include "linear.h"
#include "rows.h"

namespace octavo {
namespace {

constexpr int MOST = std::min(16, HELD - 1);  // rows of a tile
constexpr int64_t GROUP_BYTES = ADAPTER_GROUP * sizeof(float);
constexpr int64_t SLICE = 4;         // groups of columns that are summed up at a time
constexpr int64_t BLOCK_ROWS = 32;
constexpr int64_t FEW_BYTES = 16384;  // of weights, which one thread has read before another has woken up

// How many groups are summed at a time with R rows: a sum alone would wait for each of its additions.
constexpr int together(int rows) { return rows == 1 && MOST >= 4 ? 4 : rows <= 2 && MOST >= 4 ? 2 : 1; }

// C groups of `steps` columns of a panel with R rows: `sums` gets each group's sum in turn. x is [groups][rows][group].
template <typename T, int R, int C>
__attribute__((noinline)) void multiply(const uint8_t* panel, const float* x, int64_t rows, int64_t steps, vec* sums) {
    constexpr int64_t group = ADAPTER_GROUP;
    vec total[C][R];
    clear(total);
#pragma GCC unroll 2
    for (int64_t k = 0; k < steps; ++k) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            const vec w = column<T>(panel + c * group * PANEL * sizeof(T), k);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                total[c][r] = fmadd(w, broadcast(x[(c * rows + r) * group + k]), total[c][r]);
            }
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sums[r] += total[c][r];
    }
}

// All rows of a block with `columns` columns of a panel; `sums` [rows] get them added.
template <typename T>
void multiply_rows(const uint8_t* panel, const float* x, int64_t rows, int64_t columns, vec* sums) {
    const int64_t groups = columns / ADAPTER_GROUP, rest = columns % ADAPTER_GROUP;
    for (int64_t r = 0, size; r < rows; r += size) {
        size = next_rows(rows - r, MOST);
        with_rows<MOST>(static_cast<int>(size), [&](auto of) {
            constexpr int R = decltype(of)::value, C = together(R);
            const float* from = x + r * ADAPTER_GROUP;
            const uint8_t* weights = panel;
            int64_t g = 0;
            const auto next = [&](auto count, int64_t steps) {
                constexpr int N = decltype(count)::value;
                multiply<T, R, N>(weights, from, rows, steps, sums + r);
                weights += N * ADAPTER_GROUP * PANEL * sizeof(T);
                from += N * rows * ADAPTER_GROUP;
                g += N;
            };
            while (C > 1 && g + C <= groups) next(std::integral_constant<int, C>(), ADAPTER_GROUP);
            while (g < groups) next(std::integral_constant<int, 1>(), ADAPTER_GROUP);
            if (rest > 0) next(std::integral_constant<int, 1>(), rest);
        });
    }
}

template <typename... Args>
void multiply_any(WeightKind kind, Args... args) {
    switch (kind) {
        case WeightKind::F16: return multiply_rows<f16>(args...);
        case WeightKind::BF16: return multiply_rows<bf16>(args...);
        default: return multiply_rows<float>(args...);
    }
}

// Bytes of a panel.
int64_t panel_bytes(WeightKind kind, int64_t columns) {
    if (kind == WeightKind::F32) return columns * PANEL * 4;
    return (kind == WeightKind::BF16 ? padded<bf16>(columns) : columns) * PANEL * 2;
}

// Results of one adapter.
struct Block {
    const Adapter* adapter;
    const int64_t* places;  // of its results in y
    int64_t rows;
    vec* values;  // [sums][panels of A][rows], what A makes of x
};

class Adapting {
public:
    explicit Adapting(const arguments::adapt& a)
        : a_(a),
          groups_((a.inputs + ADAPTER_GROUP - 1) / ADAPTER_GROUP),
          slices_((groups_ + SLICE - 1) / SLICE),
          panels_((a.outputs + PANEL - 1) / PANEL) {}

    void run() {
        static thread_local std::vector<Block> blocks;
        find(blocks);
        if (blocks.empty()) return;
        const auto count = static_cast<int64_t>(blocks.size()), threads = static_cast<int64_t>(thread_count());
        const bool many = count >= 4 * threads;
        sums_ = many ? 1 : slices_;
        int64_t vectors = 0, read = 0, written = 0;
        for (const Block& block : blocks) vectors += sums_ * block.adapter->panels * block.rows;
        static thread_local Scratch scratch;
        auto* values = reinterpret_cast<vec*>(scratch.get(vectors * sizeof(vec)));
        for (Block& block : blocks) {
            block.values = values;
            values += sums_ * block.adapter->panels * block.rows;
            read += block.adapter->panels * panel_bytes(block.adapter->kind, groups_ * ADAPTER_GROUP) * rounds(block);
            for (int64_t i = 0; i < block.adapter->num_parts; ++i) {
                const AdapterPart& part = block.adapter->parts[i];
                written += part.panels * (panel_bytes(block.adapter->kind, part.rank) * rounds(block) + block.rows * 64);
            }
        }
        const Block* of = blocks.data();
        const int64_t items = count * sums_;
        parallel(items, read <= FEW_BYTES ? items : 1, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) shrink(of[i / sums_], i % sums_);
        });
        const int64_t across = many ? 1 : std::min(panels_, 2 * threads), pieces = count * across;
        parallel(pieces, written <= FEW_BYTES ? pieces : 1, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) {
                const int64_t n = i % across;
                expand(of[i / across], n * panels_ / across, (n + 1) * panels_ / across);
            }
        });
    }

private:
    static int64_t rounds(const Block& block) { return (block.rows + MOST - 1) / MOST; }

    // The results that have adapters, those of one together.
    void find(std::vector<Block>& blocks) {
        static thread_local std::vector<int64_t> ends, places;
        blocks.clear();
        const int64_t results = a_.rows * a_.choices, adapters = a_.num_slots * a_.num_experts;
        const auto number = [&](int64_t i) -> int64_t {
            const int64_t slot = a_.slots[i / a_.choices], expert = a_.experts == nullptr ? 0 : a_.experts[i];
            if (slot < 0 || slot >= a_.num_slots || expert < 0 || expert >= a_.num_experts) return -1;
            const int64_t n = slot * a_.num_experts + expert;
            return a_.table[n] == nullptr ? -1 : n;
        };
        int64_t count = 0;
        for (int64_t i = 0; i < results; ++i) count += number(i) >= 0;
        if (count == 0) return;
        ends.assign(adapters + 1, 0);
        places.resize(count);
        for (int64_t i = 0; i < results; ++i) {
            if (const int64_t n = number(i); n >= 0) ++ends[n + 1];
        }
        for (int64_t n = 0; n < adapters; ++n) ends[n + 1] += ends[n];  // now where each adapter's results begin
        for (int64_t i = 0; i < results; ++i) {
            if (const int64_t n = number(i); n >= 0) places[ends[n]++] = i;
        }
        for (int64_t n = 0, first = 0; n < adapters; first = ends[n++]) {
            for (int64_t row = first; row < ends[n]; row += BLOCK_ROWS) {
                blocks.push_back({a_.table[n], places.data() + row, std::min(BLOCK_ROWS, ends[n] - row), nullptr});
            }
        }
    }

    // The sum number `part` of what A makes of a block's rows of x: of one slice, or of all.
    void shrink(const Block& block, int64_t part) {
        if (block.adapter->panels == 0) return;
        static thread_local Scratch scratch;
        auto* x = reinterpret_cast<float*>(scratch.get(SLICE * block.rows * GROUP_BYTES));
        vec sums[BLOCK_ROWS];
        vec* out = block.values + part * block.adapter->panels * block.rows;
        const int64_t bytes = panel_bytes(block.adapter->kind, groups_ * ADAPTER_GROUP);
        for (int64_t i = 0; i < block.adapter->panels * block.rows; ++i) out[i] = vec{};
        for (int64_t slice = part * slices_ / sums_; slice < (part + 1) * slices_ / sums_; ++slice) {
            const int64_t first = slice * groups_ / slices_, count = (slice + 1) * groups_ / slices_ - first;
            lay_out(block, first, count, x);
            const uint8_t* weights = block.adapter->a + panel_bytes(block.adapter->kind, first * ADAPTER_GROUP);
            for (int64_t p = 0; p < block.adapter->panels; ++p, weights += bytes) {
                for (int64_t r = 0; r < block.rows; ++r) sums[r] = vec{};
                multiply_any(block.adapter->kind, weights, x, block.rows, count * ADAPTER_GROUP, sums);
                for (int64_t r = 0; r < block.rows; ++r) out[p * block.rows + r] += sums[r];
            }
        }
    }

    // Groups of columns of a block's rows of x, as floats.
    void lay_out(const Block& block, int64_t first, int64_t count, float* out) {
        WITH_TYPE(a_.x_dtype, T, for (int64_t r = 0; r < block.rows; ++r) {
            const T* x = static_cast<const T*>(a_.x) + block.places[r] / a_.shared * a_.x_stride;
            for (int64_t g = 0; g < count; ++g) {
                const int64_t column = (first + g) * ADAPTER_GROUP, rest = a_.inputs - column;
                float* to = out + (g * block.rows + r) * ADAPTER_GROUP;
                for (int64_t k = 0; k < ADAPTER_GROUP; k += LANES) {
                    if (rest - k >= LANES) {
                        store(to + k, load(x + column + k));
                    } else {
                        store(to + k, rest > k ? load_some(x + column + k, static_cast<int>(rest - k)) : vec{});
                    }
                }
            }
        })
    }

    // Panels `first` to `last` of a block's results.
    void expand(const Block& block, int64_t first, int64_t last) {
        static thread_local Scratch scratch;
        const Adapter& adapter = *block.adapter;
        float* values = values_of(block, scratch);
        for (int64_t panel = first; panel < last; ++panel) {
            const int64_t column = panel * PANEL;
            const int count = static_cast<int>(std::min<int64_t>(PANEL, a_.outputs - column));
            vec results[BLOCK_ROWS], sums[BLOCK_ROWS];
            bool changed = adapter.magnitude != nullptr || adapter.bias != nullptr;
            for (int64_t r = 0; r < block.rows; ++r) {
                WITH_TYPE(a_.y_dtype, T, results[r] = take(result<T>(block, r) + column, count);)
                if (adapter.magnitude != nullptr) results[r] *= take(adapter.magnitude + column, count);
                if (adapter.bias != nullptr) results[r] += take(adapter.bias + column, count);
            }
            const float* x = values;
            for (int64_t i = 0; i < adapter.num_parts; ++i) {
                const AdapterPart& part = adapter.parts[i];
                const int64_t p = panel - part.first_panel;
                if (p >= 0 && p < part.panels) {
                    const uint8_t* weights = part.b + p * panel_bytes(adapter.kind, part.rank);
                    for (int64_t r = 0; r < block.rows; ++r) sums[r] = vec{};
                    multiply_any(adapter.kind, weights, x, block.rows, part.rank, sums);
                    for (int64_t r = 0; r < block.rows; ++r) results[r] += sums[r];
                    changed = true;
                }
                x += round_up(part.rank, ADAPTER_GROUP) * block.rows;
            }
            for (int64_t r = 0; r < (changed ? block.rows : 0); ++r) {
                WITH_TYPE(a_.y_dtype, T, put(result<T>(block, r) + column, results[r], count);)
            }
        }
    }

    // What A has made of a block's x, for each part of the adapter: [groups][rows][group].
    float* values_of(const Block& block, Scratch& scratch) {
        const Adapter& adapter = *block.adapter;
        int64_t columns = 0;
        for (int64_t i = 0; i < adapter.num_parts; ++i) columns += round_up(adapter.parts[i].rank, ADAPTER_GROUP);
        const int64_t own = adapter.panels * PANEL;
        auto* values = reinterpret_cast<float*>(scratch.get((columns * block.rows + own) * sizeof(float)));
        float* row = values + columns * block.rows;
        for (int64_t r = 0; r < block.rows; ++r) {
            for (int64_t p = 0; p < adapter.panels; ++p) {
                vec total = {};
                for (int64_t s = 0; s < sums_; ++s) total += block.values[(s * adapter.panels + p) * block.rows + r];
                store(row + p * PANEL, total);
            }
            float* to = values + r * ADAPTER_GROUP;
            for (int64_t i = 0; i < adapter.num_parts; ++i) {
                const AdapterPart& part = adapter.parts[i];
                for (int64_t k = 0; k < part.rank; k += ADAPTER_GROUP, to += block.rows * ADAPTER_GROUP) {
                    const int64_t some = std::min<int64_t>(ADAPTER_GROUP, part.rank - k);
                    std::memcpy(to, row + part.first_value + k, some * sizeof(float));
                }
            }
        }
        return values;
    }

    template <typename T>
    INLINE T* result(const Block& block, int64_t row) {
        return static_cast<T*>(a_.y) + block.places[row] * a_.y_stride;
    }

    const arguments::adapt& a_;
    const int64_t groups_, slices_, panels_;
    int64_t sums_ = 1;
};

}  // namespace

OPERATION(adapt) { Adapting(a).run(); }

}  // namespace octavo
