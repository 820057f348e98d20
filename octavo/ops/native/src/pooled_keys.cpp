// Keys that are pooled of several tokens each: making and storing them, and finding the best for a token.
#include <numeric>

#include "attention_products.h"
#include "scratch.h"
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

// ---- the best keys of a token ----------------------------------------------------------------------------------------

constexpr int64_t PART = 1024;           // keys of a task
constexpr int64_t MOST_SCORES = 1 << 22;  // of tokens whose keys are scored together

struct Scored {
    const Token* token;
    int64_t first, end;  // keys of the task
    float* scores;       // of the token's first key on
};

// What one thread scores with.
template <typename C>
class Scorer {
public:
    explicit Scorer(const arguments::select_entries& a)
        : a_(a), entries_{a.block_table, a.table_width, a.block_size, a.ratio}, room_(round_up(a.dim, LANES)) {
        static thread_local Scratch scratch;
        keys_ = reinterpret_cast<float*>(scratch.get((KEYS + LANES) * room_ * sizeof(float)));
        wide_ = keys_ + KEYS * room_;
        for (int v = 0; v < KEY_VECTORS; ++v) vectors_[v] = keys_ + v * LANES * room_;
    }

    void run(const Scored& task) {
        for (int64_t begin = task.first; begin < task.end; begin += KEYS) {
            lay_keys(*task.token, begin, task.end);
            tile(*task.token);
            std::copy_n(totals_, std::min<int64_t>(KEYS, task.end - begin), task.scores + begin);
        }
    }

private:
    void lay_keys(const Token& token, int64_t begin, int64_t end) {
        for (int v = 0; v < KEY_VECTORS; ++v) {
            const float* rows[LANES];
            for (int k = 0; k < LANES; ++k) {
                const int64_t number = std::min(begin + v * LANES + k, end - 1);  // past the end the last one stands in
                const char* from = static_cast<const char*>(a_.cache) +
                                   entries_.slot(token.table_row, number) * row_bytes<C>(a_.dim);
                widen_row<C>(from, wide_ + k * room_, a_.dim, static_cast<int>(room_));
                rows[k] = wide_ + k * room_;
            }
            for (int64_t i = 0; i < room_; i += LANES) {
                transpose(rows, keys_ + v * LANES * room_ + i * LANES);
                for (auto& row : rows) row += LANES;
            }
        }
    }

    // Sums over heads, one after the other.
    void tile(const Token& token) {
        vec totals[KEY_VECTORS];
        clear(totals);
        const float* queries = a_.query + token.row * a_.num_heads * a_.dim;
        const float* weights = a_.weights + token.row * a_.num_heads;
        for (int h = 0, rows; h < a_.num_heads; h += rows) {
            rows = next_rows(a_.num_heads - h, ROWS);
            with_rows<ROWS>(rows, [&](auto of) { score_heads<decltype(of)::value>(queries + h * a_.dim); });
            for (int r = 0; r < rows; ++r) {
                const vec by = broadcast(weights[h + r]);
                for (int v = 0; v < KEY_VECTORS; ++v) {
                    totals[v] = fmadd(larger(load(products_ + r * KEYS + v * LANES), vec{}), by, totals[v]);
                }
            }
        }
        for (int v = 0; v < KEY_VECTORS; ++v) store(totals_ + v * LANES, totals[v]);
    }

    template <int R>
    void score_heads(const float* queries) {
        constexpr int V = VECTORS<R>;
        for (int v = 0; v < KEY_VECTORS; v += V) {
            score<false, R, V>(queries, a_.dim, vectors_ + v, a_.dim, 1.0f, products_ + v * LANES);
        }
    }

    const arguments::select_entries& a_;
    const Entries entries_;
    const int64_t room_;
    float *keys_, *wide_;
    const float* vectors_[KEY_VECTORS];
    alignas(64) float products_[ROWS * KEYS], totals_[KEYS];
};

// The numbers of the `top_k` largest of `count` scores, the first of equal ones, in order.
void best(const float* scores, int64_t count, int64_t top_k, int32_t* out) {
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    const auto value = [&](int32_t i) {
        return scores[i] == scores[i] ? scores[i] : -std::numeric_limits<float>::infinity();
    };
    std::nth_element(order.begin(), order.begin() + top_k, order.end(), [&](int32_t i, int32_t j) {
        return value(i) != value(j) ? value(i) > value(j) : i < j;
    });
    std::sort(order.begin(), order.begin() + top_k);
    std::copy_n(order.begin(), top_k, out);
}

template <typename C>
void select(const arguments::select_entries& a) {
    const std::vector<Token> tokens = tokens_of(a.runs, a.num_runs);
    std::vector<float> scores;
    std::vector<Scored> tasks;
    for (size_t first = 0, end; first < tokens.size(); first = end) {
        int64_t room = 0;
        for (end = first; end < tokens.size(); ++end) {
            const int64_t count = (tokens[end].position + 1) / a.ratio;
            if (end > first && room + count > MOST_SCORES) break;
            if (count > a.top_k) room += count;
        }
        scores.resize(room);
        tasks.clear();
        std::vector<const float*> scored(end - first);
        float* to = scores.data();
        for (size_t t = first; t < end; ++t) {
            const int64_t count = (tokens[t].position + 1) / a.ratio;
            scored[t - first] = to;
            if (count <= a.top_k) continue;
            for (int64_t key = 0; key < count; key += PART) {
                tasks.push_back({&tokens[t], key, std::min(count, key + PART), to});
            }
            to += count;
        }
        parallel(static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t last) {
            Scorer<C> scorer(a);
            for (int64_t i = begin; i < last; ++i) scorer.run(tasks[i]);
        });
        over_rows(static_cast<int64_t>(end - first), SMALL, [&](int64_t t) {
            const Token& token = tokens[first + t];
            const int64_t count = (token.position + 1) / a.ratio;
            int32_t* out = a.out + token.row * a.top_k;
            if (count > a.top_k) return best(scored[t], count, a.top_k, out);
            std::iota(out, out + count, 0);
            std::fill(out + count, out + a.top_k, -1);
        });
    }
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

OPERATION(select_entries) { WITH_CACHE(a.cache_dtype, C, select<C>(a);) }

}  // namespace octavo
