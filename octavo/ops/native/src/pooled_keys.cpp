// Keys that are pooled of several tokens each: making and storing them.
#include "cache.h"
#include "functions.h"
#include "rows.h"
#include "tokens.h"

namespace octavo {
namespace {

// ---- rope on the last numbers of a head ------------------------------------------------------------------------------

template <typename X, typename Out>
void rotate_tail(const arguments::rotate_tail& a) {
    const int64_t first = a.dim - 2 * a.pairs, step = a.interleaved ? 1 : a.pairs;
    over_rows(a.rows, a.num_heads * a.dim, [&](int64_t r) {
        const float *cos = a.cos + r * a.pairs, *sin = a.sin + r * a.pairs;
        for (int64_t h = 0; h < a.num_heads; ++h) {
            const X* x = row_of<X>(a.x, r, a.x_stride) + h * a.x_head_stride;
            Out* out = row_of<Out>(a.out, r * a.num_heads + h, a.dim);
            for_vectors(first, [&](int64_t i, int n) { put(out + i, take(x + i, n), n); });
            for (int64_t i = 0; i < a.pairs; ++i) {
                const int64_t at = first + (a.interleaved ? 2 * i : i);
                const float one = as_float(x[at]), other = as_float(x[at + step]), by = a.backwards ? -sin[i] : sin[i];
                set(out + at, one * cos[i] - other * by);
                set(out + at + step, other * cos[i] + one * by);
            }
        }
    });
}

// ---- entries ---------------------------------------------------------------------------------------------------------

// The entry of the group that ends with a token. Of tokens before the sequence's first there is no row.
void pool(const arguments::pool_keys& a, const std::vector<const float*>& rows, float* out) {
    const int64_t width = a.overlapping ? 2 * a.dim : a.dim, reach = static_cast<int64_t>(rows.size());
    for_vectors(a.dim, [&](int64_t i, int n) {
        const auto column = [&](int64_t j) { return i + (a.overlapping && j >= a.ratio ? a.dim : 0); };
        const auto gate = [&](int64_t j) {
            return take(rows[j] + width + column(j), n) + take(a.bias + j % a.ratio * width + column(j), n);
        };
        vec peak = gate(reach - 1), total = {}, mean = {};
        for (int64_t j = 0; j < reach; ++j) {
            if (rows[j] != nullptr) peak = larger(gate(j), peak);
        }
        for (int64_t j = 0; j < reach; ++j) {
            if (rows[j] == nullptr) continue;
            const vec weight = exponential(gate(j) - peak);
            total += weight;
            mean = fmadd(weight, take(rows[j] + column(j), n), mean);
        }
        put(out + i, mean / total, n);
    });
}

template <typename C>
void store_pooled(const arguments::store_pooled& a) {
    const Entries entries{a.block_table, a.table_width, a.block_size, a.ratio};
    const CacheWriter<C> cache{a.cache, entries.in_a_block(), 1, a.dim};
    const std::vector<Token> tokens = tokens_of(a.runs, a.num_runs);
    over_rows(static_cast<int64_t>(tokens.size()), a.dim, [&](int64_t t) {
        const Token& token = tokens[t];
        if ((token.position + 1) % a.ratio) return;
        cache.write(entries.slot(token.table_row, token.position / a.ratio), 0, a.x + token.row * a.dim);
    });
}

}  // namespace

OPERATION(rotate_tail) { WITH_TYPE(a.x_dtype, X, WITH_TYPE(a.out_dtype, Out, (rotate_tail<X, Out>(a)))) }

OPERATION(pool_keys) {
    const Entries rows{a.block_table, a.table_width, a.block_size, 1};
    const int64_t width = a.overlapping ? 2 * a.dim : a.dim, reach = a.overlapping ? 2 * a.ratio : a.ratio;
    const std::vector<Token> tokens = tokens_of(a.runs, a.num_runs);
    over_rows(static_cast<int64_t>(tokens.size()), 8 * a.dim, [&](int64_t t) {
        const Token& token = tokens[t];
        float* out = a.out + token.row * a.dim;
        if ((token.position + 1) % a.ratio) return std::fill_n(out, a.dim, 0.0f), void();
        std::vector<const float*> group(reach);
        for (int64_t j = 0; j < reach; ++j) {
            const int64_t at = token.position + 1 - reach + j;
            group[j] = at < 0 ? nullptr : a.cache + rows.slot(token.table_row, at) * 2 * width;
        }
        pool(a, group, out);
    });
}

OPERATION(store_pooled) { WITH_CACHE(a.cache_dtype, C, store_pooled<C>(a);) }

}  // namespace octavo
