// The gated delta rule (Yang et al. 2024) and its kin: a memory [key_dim, value_dim] a head, token after token.
//
// A column of the memory needs none of the others. So columns go through time by themselves, as many as fit the nearest
// cache together, for a tile of tokens whose keys, queries and decays have been made ready.
#include <cmath>

#include "activation.h"
#include "call.h"
#include "numbers.h"
#include "rows.h"
#include "scratch.h"

namespace octavo {
namespace {

constexpr int TILE = 16;             // tokens
constexpr int COLUMNS = 2 * LANES;   // of the memory
using Delta = arguments::delta_rule;

// What a tile's tokens do to one head's memory: a row of `padded` numbers each.
struct Tile {
    float *query, *key, *decay;
    float* sought;  // the keys times the decays: what they find in the memory as it was before
    float beta[TILE];
};

// Of a query or key: `factor`, or what makes it of length `factor`.
template <typename T>
float length_factor(const T* x, int count, float eps, float factor) {
    if (eps == 0.0f) return factor;
    vec squares = {};
    for_vectors(count, [&](int64_t i, int n) {
        const vec v = take(x + i, n);
        squares = fmadd(v, v, squares);
    });
    return factor / std::sqrt(sum(squares) + eps);
}

template <typename T>
void prepare(const Delta& d, int64_t row, int head, Tile& tile, int token, int64_t padded) {
    const int dim = d.key_dim;
    const int key_head = d.in_turn ? head % d.num_key_heads : head / (d.num_heads / d.num_key_heads);
    const T* query = row_of<T>(d.query, row, d.query_stride) + static_cast<int64_t>(key_head) * dim;
    const T* key = row_of<T>(d.key, row, d.key_stride) + static_cast<int64_t>(key_head) * dim;
    const float query_factor = length_factor(query, dim, d.norm_eps, d.scale);
    const float key_factor = length_factor(key, dim, d.norm_eps, 1.0f);
    const int64_t at = token * padded, first = d.by_channel ? static_cast<int64_t>(head) * dim : head;
    const T* decay = d.decay == nullptr ? nullptr : row_of<T>(d.decay, row, d.decay_stride) + first;
    const float* bias = d.bias == nullptr ? nullptr : d.bias + first;
    vec kept = broadcast(d.rate[head]);
    if (decay != nullptr && !d.by_channel) kept = kept * softplus(broadcast(as_float(*decay) + (bias ? *bias : 0.0f)));
    kept = exponential(kept);
    for_vectors(dim, [&](int64_t i, int n) {
        if (d.by_channel) {
            const vec added = bias == nullptr ? vec{} : take(bias + i, n);
            kept = exponential(softplus(take(decay + i, n) + added) * d.rate[head]);
        }
        const vec own = take(key + i, n) * key_factor;
        store(tile.query + at + i, take(query + i, n) * query_factor);
        store(tile.key + at + i, own);
        store(tile.decay + at + i, kept);
        store(tile.sought + at + i, own * kept);
    });
    if (d.beta != nullptr) {
        const vec beta = broadcast(as_float(row_of<T>(d.beta, row, d.beta_stride)[head]));
        tile.beta[token] = activate<Activation::SIGMOID>(beta)[0] * d.beta_scale;
    }
}

// A token through COLUMNS columns of `keys` rows, an even number: what its query reads, to `out`. `value` is changed.
template <bool BY_CHANNEL>
void advance(float* memory, const Tile& tile, int token, int64_t keys, int64_t padded, bool corrects, vec* value) {
    const int64_t at = token * padded;
    const float *query = tile.query + at, *key = tile.key + at, *decay = tile.decay + at, *sought = tile.sought + at;
    vec first = value[0], second = value[1];
    if (corrects) {
        vec found[2][2];
        clear(found);
#pragma GCC unroll 1
        for (int64_t i = 0; i < keys; i += 2) {
#pragma GCC unroll 2
            for (int j = 0; j < 2; ++j) {
                const float* row = memory + (i + j) * COLUMNS;
                const vec by = broadcast(sought[i + j]);
                found[j][0] = fmadd(load(row), by, found[j][0]);
                found[j][1] = fmadd(load(row + LANES), by, found[j][1]);
            }
        }
        first = (first - (found[0][0] + found[1][0])) * tile.beta[token];
        second = (second - (found[0][1] + found[1][1])) * tile.beta[token];
    }
    vec read[2][2], kept = broadcast(decay[0]);
    clear(read);
#pragma GCC unroll 1
    for (int64_t i = 0; i < keys; i += 2) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            float* row = memory + (i + j) * COLUMNS;
            if (BY_CHANNEL) kept = broadcast(decay[i + j]);
            const vec own = broadcast(key[i + j]), by = broadcast(query[i + j]);
            const vec a = fmadd(own, first, load(row) * kept), b = fmadd(own, second, load(row + LANES) * kept);
            store(row, a);
            store(row + LANES, b);
            read[j][0] = fmadd(a, by, read[j][0]);
            read[j][1] = fmadd(b, by, read[j][1]);
        }
    }
    value[0] = read[0][0] + read[1][0];
    value[1] = read[0][1] + read[1][1];
}

template <typename T>
INLINE vec take_column(const T* p, int64_t count) {
    return count <= 0 ? vec{} : take(p, static_cast<int>(std::min<int64_t>(LANES, count)));
}
template <typename T>
INLINE void put_column(T* p, vec v, int64_t count) {
    if (count > 0) put(p, v, static_cast<int>(std::min<int64_t>(LANES, count)));
}

// Between a head's memory as it is kept and as it is computed with: COLUMNS columns after the other, rows padded.
template <bool TO_KEEP>
void move_memory(const Delta& d, float* kept, float* memory, int64_t keys) {
    for (int64_t column = 0; column < d.value_dim; column += LANES) {
        float* part = memory + column / COLUMNS * COLUMNS * keys + column % COLUMNS;
        for (int64_t i = 0; i < keys; ++i) {
            float *own = kept + i * d.value_dim + column, *computed = part + i * COLUMNS;
            if (TO_KEEP && i < d.key_dim) put_column(own, load(computed), d.value_dim - column);
            if (!TO_KEEP) store(computed, i < d.key_dim ? take_column(own, d.value_dim - column) : vec{});
        }
    }
}

template <typename T>
void run_head(const Delta& d, const ScanRun& run, int head) {
    const int64_t keys = round_up(d.key_dim, 2), padded = round_up(d.key_dim, LANES);
    const int64_t columns = round_up(d.value_dim, COLUMNS), tile_size = TILE * padded;
    static thread_local Scratch scratch;
    float* memory = reinterpret_cast<float*>(scratch.get((columns * keys + 4 * tile_size) * sizeof(float)));
    float* rows = memory + columns * keys;
    std::fill_n(memory, columns * keys + 4 * tile_size, 0.0f);
    Tile tile{rows, rows + tile_size, rows + 2 * tile_size, rows + 3 * tile_size, {}};
    float* kept = d.state + run.slot * d.state_stride + static_cast<int64_t>(head) * d.key_dim * d.value_dim;
    move_memory<false>(d, kept, memory, keys);
    const int64_t end = run.first_row + run.num_tokens, first_value = static_cast<int64_t>(head) * d.value_dim;
    const auto through = d.by_channel ? advance<true> : advance<false>;
    for (int64_t first = run.first_row; first < end; first += TILE) {
        const int tokens = static_cast<int>(std::min<int64_t>(TILE, end - first));
        for (int t = 0; t < tokens; ++t) prepare<T>(d, first + t, head, tile, t, padded);
        for (int64_t column = 0; column < d.value_dim; column += COLUMNS) {
            const int64_t count = d.value_dim - column, at = first_value + column;
            for (int t = 0; t < tokens; ++t) {
                const T* value = row_of<T>(d.value, first + t, d.value_stride) + at;
                T* out = row_of<T>(d.out, first + t, static_cast<int64_t>(d.num_heads) * d.value_dim) + at;
                vec both[2] = {take_column(value, count), take_column(value + LANES, count - LANES)};
                through(memory + column * keys, tile, t, keys, padded, d.beta != nullptr, both);
                put_column(out, both[0], count);
                put_column(out + LANES, both[1], count - LANES);
            }
        }
    }
    move_memory<true>(d, kept, memory, keys);
}

template <typename T>
void run_heads(const Delta& d) {
    const int64_t size = static_cast<int64_t>(d.key_dim) * d.value_dim;
    parallel(d.num_runs * d.num_heads, std::max<int64_t>(1, SMALL / size), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) run_head<T>(d, d.runs[i / d.num_heads], static_cast<int>(i % d.num_heads));
    });
}

}  // namespace

OPERATION(delta_rule) { WITH_TYPE(a.dtype, T, run_heads<T>(a)) }

}  // namespace octavo
