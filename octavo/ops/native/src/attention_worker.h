// What one thread does of attention: rows of queries over the keys that they see, tile by tile.
#pragma once

#include <algorithm>
#include <limits>

#include "attention_tile.h"

namespace octavo {

// What a row has summed: [the highest score, the weights' sum lane by lane, the values' sums], a vector each and more.
constexpr int PEAK = 0, TOTAL = LANES, SUMS = 2 * LANES;

inline int64_t state_floats(const Attention& a) { return SUMS + round_up(a.value_dim, LANES); }

// The sums of a row over more keys join those over the keys before them.
INLINE void join(float* sums, const float* more, int64_t floats) {
    const float peak = std::max(sums[PEAK], more[PEAK]);
    const vec shrink = power_of_2(broadcast(sums[PEAK] - peak)), by = power_of_2(broadcast(more[PEAK] - peak));
    sums[PEAK] = peak;
    for (int64_t i = TOTAL; i < floats; i += LANES) store(sums + i, fmadd(load(more + i), by, load(sums + i) * shrink));
}

// What one thread does, and its room for it.
template <typename C>
class Worker : protected Tile<C> {
public:
    explicit Worker(const Attention& a) : Tile<C>(a), state_floats_(static_cast<int>(state_floats(a))) {
        static thread_local Scratch scratch;
        // Tiles of rows go past the last, whose products are anything, and which nobody reads.
        constexpr int ROOM = MAX_ROWS + (TILES ? TILE_ROWS : 0);
        const int64_t queries = ROOM * this->key_floats_, states = ROOM * state_floats_;
        queries_ = reinterpret_cast<float*>(scratch.get((queries + 2 * states) * 4));
        states_ = queries_ + queries;
        before_ = states_ + states;
    }

    void run(const Task& task) {
#if HAS_TILES
        if (this->by_tiles_) shape_attention_tiles(std::min(task.rows, TILE_ROWS));
#endif
        sum_up(task);
#if HAS_TILES
        if (this->by_tiles_) TILE_RELEASE();
#endif
    }

    // The result of a task whose spans are summed, one after the other in `partials`.
    void finish_spans(const Task& task, float* partials) {
        place(task);
        const int64_t spans = KeyRange(a_, task).spans();
        for (int64_t i = 1; i < spans; ++i) join_rows(partials, partials + i * task.rows * state_floats_, task.rows);
        finish(task, partials);
    }

protected:
    using typename Tile<C>::Products;
    using Tile<C>::a_, Tile<C>::blocks_, Tile<C>::list_, Tile<C>::wide_, Tile<C>::key_scales_, Tile<C>::value_scales_;
    using Tile<C>::CODES, Tile<C>::PAIRS, Tile<C>::STEP, Tile<C>::TILES;

    static constexpr float LOWEST = -1e30f;  // below every score, and finite: its difference to itself is zero

    // The sums of a task's rows, over all their keys or over a span's.
    void sum_up(const Task& task) {
        const KeyRange seen(a_, task);
        place(task);
        for (int r = 0; r < task.rows; ++r) lay_query(r, a_.scale * LOG2_E);
        if (task.partial != nullptr) {
            add_span(task, seen, task.span);
            std::memcpy(task.partial, states_, static_cast<size_t>(task.rows) * state_floats_ * sizeof(float));
            return;
        }
        add_span(task, seen, seen.first_span());
        std::swap(states_, before_);
        for (int64_t i = 1; i < seen.spans(); ++i) {
            add_span(task, seen, seen.first_span() + i);
            join_rows(before_, states_, task.rows);
        }
        finish(task, before_);
    }

    // Where the task's rows stand.
    void place(const Task& task) {
        const int group = a_.num_heads / a_.num_kv_heads;
        blocks_ = a_.block_table + task.run->table_row * a_.table_width;
        for (int r = 0; r < task.rows; ++r) {
            const int64_t row = task.first + r;
            position_[r] = task.run->start + row / group;
            first_key_[r] = first_seen(a_, *task.run, position_[r]);
            last_key_[r] = last_seen(*task.run, position_[r]);
            head_[r] = task.kv_head * group + static_cast<int>(row % group);
            batch_row_[r] = task.run->first_row + row / group;
        }
        if (a_.key_lists == nullptr) return;
        const KeyList list(a_, batch_row_[0]);  // all rows are of one token
        list_ = list.keys;
        std::fill_n(first_key_, task.rows, 0);
        std::fill_n(last_key_, task.rows, list.count - 1);
    }

    float* state(int r) { return states_ + static_cast<int64_t>(r) * state_floats_; }

    // Sums over the span's keys alone.
    void add_span(const Task& task, const KeyRange& seen, int64_t span) {
        std::fill(states_, state(task.rows), 0.0f);
        for (int r = 0; r < task.rows; ++r) state(r)[PEAK] = LOWEST;
        const int64_t last = std::min(seen.end, (span + 1) * SPAN);
        for (int64_t begin = std::max(seen.begin, span * SPAN); begin < last; begin += KEYS) {
            this->prefetch(task.kv_head, begin + KEYS, last);
            tile(task, begin, seen.end);
        }
    }

    void join_rows(float* sums, const float* more, int rows) const {
        for (int64_t r = 0; r < rows; ++r) join(sums + r * state_floats_, more + r * state_floats_, state_floats_);
    }

    void finish(const Task& task, const float* states) {
        for (int r = 0; r < task.rows; ++r) {
            const float* row = states + static_cast<int64_t>(r) * state_floats_;
            WITH_TYPE(a_.out_dtype, Out, put<Out>(r, row))
        }
    }

    template <typename Out>
    void put(int r, const float* row) {
        Out* out = static_cast<Out*>(a_.out) + (batch_row_[r] * a_.num_heads + head_[r]) * a_.value_dim;
        float total = sum(load(row + TOTAL));
        // What a sink adds is infinite where it is far above all scores: then there is nothing left of the values.
        if (a_.sinks != nullptr) total += std::exp2(a_.sinks[head_[r]] * LOG2_E - row[PEAK]);
        for (int i = 0; i < a_.value_dim; i += LANES) {
            const int some = std::min(LANES, a_.value_dim - i);
            const vec value = load(row + SUMS + i) / total;
            some == LANES ? store(out + i, value) : store_some(out + i, value, some);
        }
    }

    void lay_query(int r, float scale) {
        float* to = queries_ + static_cast<int64_t>(r) * this->key_floats_;
        float* wide = STEP > 1 ? wide_ : to;
        const int64_t from = batch_row_[r] * a_.query_stride + static_cast<int64_t>(head_[r]) * a_.key_dim;
        WITH_TYPE(a_.query_dtype, Q, {
            const auto* query = reinterpret_cast<const Q*>(a_.query) + from;
            widen_row<Q>(reinterpret_cast<const char*>(query), wide, a_.key_dim, this->key_room_);
        })
        row_scales_[r] = scale;
        if constexpr (PAIRS) {
            for (int i = 0; i < this->key_room_; i += LANES) store(reinterpret_cast<bf16*>(to) + i, load(wide + i));
        } else if constexpr (CODES) {
            const float factor = word_factor(largest(wide, this->key_room_), a_.key_dim);
            auto* words = reinterpret_cast<int16_t*>(to);
            store_words(words, wide, factor, this->key_room_);
            if (!a_.paired) {  // as codes are widened
                for (int i = 0; i < this->key_room_; i += 4) std::swap(words[i + 1], words[i + 2]);
            }
            row_scales_[r] = factor > 0.0f ? scale / factor : largest(wide, this->key_room_);  // zero, or not a number
        }
    }

    // The largest size of `count` numbers, a multiple of a vector; not a number where one of them is none.
    static float largest(const float* x, int count) {
        vec peaks = {};
        for (int i = 0; i < count; i += LANES) peaks = larger(absolute(load(x + i)), peaks);
        return highest(peaks) + nothing_or_nan(x, count);
    }

    void tile(const Task& task, int64_t begin, int64_t end) {
        const int count = static_cast<int>(std::min<int64_t>(KEYS, end - begin));
        if (!any_sees(0, task.rows, begin)) return;
        this->lay(task.kv_head, begin, end);
        int r = 0;
        while (last_key_[r] < begin) ++r;  // these rows see no key of the tile
        for (int rows; r < task.rows; r += rows) {
            rows = this->by_tiles_ ? std::min(task.rows - r, TILE_ROWS) : next_rows(task.rows - r, ROWS);
            if (!any_sees(r, rows, begin)) continue;
            // Keys that come after would get the weight zero.
            const int seen = static_cast<int>(std::min<int64_t>(count, last_key_[r + rows - 1] - begin + 1));
            const int of_seen = static_cast<int>(round_up(seen, LANES) / LANES);
#if HAS_TILES
            if constexpr (TILES) {
                if (this->by_tiles_) {
                    score_tile(r, rows, of_seen);
                    for (int i = 0; i < rows; ++i) weigh(r + i, begin, scores_ + i * KEYS, of_seen);
                    add_tile(r, rows, of_seen);
                    continue;
                }
            }
#endif
            with_rows<ROWS>(rows, [&](auto of) { score_rows<decltype(of)::value>(r, of_seen); });
            for (int i = 0; i < rows; ++i) weigh(r + i, begin, scores_ + i * KEYS, of_seen);
            with_rows<ROWS>(rows, [&](auto of) { add_rows<decltype(of)::value>(r, seen); });
        }
    }

#if HAS_TILES
    // score_rows and add_rows by the processor's tiles, of up to 16 rows.
    void score_tile(int r, int rows, int vectors) {
        const float* queries = queries_ + static_cast<int64_t>(r) * this->key_floats_;
        // Of a key that is laid out there are zeros up to 16 pairs, of one in the cache not.
        const int64_t steps = a_.paired ? this->steps_ : round_up(this->steps_, LANES);
        by_vectors<KEY_VECTORS>(vectors, [&](auto of, int v) {
            score_by_tiles<decltype(of)::value>(queries, this->key_floats_, this->key_vectors_ + v, steps,
                                                scores_ + v * LANES);
        });
        for (int i = 0; i < rows; ++i) {
            for (int v = 0; v < vectors; ++v) {
                float* scores = scores_ + i * KEYS + v * LANES;
                store(scores, load(scores) * row_scales_[r + i]);
            }
        }
    }

    void add_tile(int r, int rows, int parts) {
        for (int i = 0; i < rows; ++i) {
            float* weights = scores_ + i * KEYS;
            for (int v = 0; v < parts * LANES; v += LANES) store(reinterpret_cast<bf16*>(weights) + v, load(weights + v));
        }
        by_vectors<4>(this->value_room_ / LANES, [&](auto of, int v) {
            add_values_by_tiles<decltype(of)::value>(scores_, this->laid_values_ + v * LANES, this->value_room_, parts,
                                                     state(r) + SUMS + v * LANES, state_floats_);
        });
    }
#endif

    // Whether any of `count` rows sees a block of the tile.
    bool any_sees(int r, int count, int64_t begin) const {
        if (a_.sparse_block == 0) return true;
        const int64_t first = begin / a_.sparse_block, last = (begin + KEYS - 1) / a_.sparse_block;
        for (int i = r; i < r + count; ++i) {
            for (int64_t block = first; block <= last; ++block) {
                if (sees_block(a_, position_[i], head_[i], block)) return true;
            }
        }
        return false;
    }

    template <int R>
    void score_rows(int r, int vectors) {
        const float* queries = queries_ + static_cast<int64_t>(r) * this->key_floats_;
        with_products([&](auto products) {
            by_vectors<VECTORS<R>>(vectors, [&](auto of, int v) {
                score<decltype(products), R, decltype(of)::value>(queries, this->key_floats_, this->key_vectors_ + v,
                                                                  this->steps_, row_scales_ + r, key_scales_ + v * LANES,
                                                                  scores_ + v * LANES);
            });
        });
    }

    // f(how the cache's numbers are multiplied).
    template <typename Body>
    void with_products(const Body& body) const {
        if constexpr (CODES) {
            if (a_.paired) return body(PairedCodes());
        }
        body(Products());
    }

    // f(std::integral_constant, first) for V vectors at a time, and for the rest one by one.
    template <int V, typename Body>
    static void by_vectors(int vectors, const Body& body) {
        int v = 0;
        for (; v + V <= vectors; v += V) body(std::integral_constant<int, V>(), v);
        if (V > 1) {
            for (; v < vectors; ++v) body(std::integral_constant<int, 1>(), v);
        }
    }

    // A row's scores to weights; what the row has summed so far is scaled to the new peak. Scores are in units in which
    // a weight is a power of 2.
    void weigh(int r, int64_t begin, float* scores, int vectors) {
        const int64_t first = first_key_[r] - begin, last = last_key_[r] - begin;  // that it sees
        if (a_.softcap > 0 || a_.alibi_slopes != nullptr) cap_and_slope(r, position_[r] - begin, scores, vectors);
        if (a_.vector_numbers != nullptr) add_positions(r, begin, scores, vectors);
        if (a_.distance_bias != nullptr) add_bias(r, begin - position_[r], scores, vectors);
        if (last < KEYS - 1 || first > 0) mask(first, last, scores, vectors);
        if (a_.sparse_block) hide_blocks(r, begin, scores, vectors);
        float* row = state(r);
        vec peaks = broadcast(row[PEAK]);
        for (int v = 0; v < vectors; ++v) peaks = larger(peaks, load(scores + v * LANES));
        const float peak = highest(peaks);
        vec sums = {};
        for (int v = 0; v < vectors; ++v) {
            const vec weight = power_of_2(load(scores + v * LANES) - peak);
            store(scores + v * LANES, weight);
            sums += weight;
        }
        if (peak != row[PEAK]) {
            const float shrink = power_of_2(broadcast(row[PEAK] - peak))[0];
            for (int i = SUMS; i < state_floats_; i += LANES) store(row + i, load(row + i) * shrink);
            row[PEAK] = peak;
            store(row + TOTAL, fmadd(load(row + TOTAL), broadcast(shrink), sums));
        } else {
            store(row + TOTAL, load(row + TOTAL) + sums);
        }
    }

    void cap_and_slope(int r, int64_t position, float* scores, int vectors) {
        for (int v = 0; v < vectors; ++v) {
            vec s = load(scores + v * LANES) * (1.0f / LOG2_E);
            if (a_.softcap > 0) s = hyperbolic_tangent(s / a_.softcap) * a_.softcap;
            if (a_.alibi_slopes != nullptr) {
                const ivec distance = lane_numbers() + (v * LANES - static_cast<int32_t>(position));
                s = fmadd(to_float(distance), broadcast(a_.alibi_slopes[head_[r]]), s);
            }
            store(scores + v * LANES, s * LOG2_E);
        }
    }

    // Of each key the products of the query and of the key with the vector of their distance.
    void add_positions(int r, int64_t begin, float* scores, int vectors) {
        const int64_t step = a_.num_heads * a_.num_vectors, head = head_[r] * a_.num_vectors;
        const float* query = a_.query_vectors == nullptr ? nullptr : a_.query_vectors + batch_row_[r] * step + head;
        const float* key = a_.key_vectors == nullptr ? nullptr : a_.key_vectors + (blocks_[0] + begin) * step + head;
        const int64_t first = begin - position_[r] + a_.bias_origin, last = a_.num_distances - 1;
        const int64_t count = std::min<int64_t>(vectors * LANES, last_key_[r] - begin + 1);
        for (int64_t k = 0; k < count; ++k) {
            const int64_t number = a_.vector_numbers[std::clamp<int64_t>(first + k, 0, last)];
            const float by_query = query == nullptr ? 0.0f : query[number];
            scores[k] += ((key == nullptr ? 0.0f : key[k * step + number]) + by_query) * (a_.scale * LOG2_E);
        }
    }

    // Of each key the bias at its distance, `distance` that of the first.
    void add_bias(int r, int64_t distance, float* scores, int vectors) {
        const float* biases = a_.distance_bias + head_[r] * a_.num_distances;
        const int64_t last = a_.num_distances - 1;
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = distance + v * LANES + a_.bias_origin;
            vec bias;
            if (at >= 0 && at + LANES - 1 <= last) {
                bias = load(biases + at);
            } else if (at >= last) {
                bias = broadcast(biases[last]);
            } else if (at + LANES - 1 <= 0) {
                bias = broadcast(biases[0]);
            } else {
                for (int k = 0; k < LANES; ++k) wide_[k] = biases[std::clamp<int64_t>(at + k, 0, last)];
                bias = load(wide_);
            }
            store(scores + v * LANES, fmadd(bias, broadcast(LOG2_E), load(scores + v * LANES)));
        }
    }

    // Leaves the scores of keys `first_seen` to `last_seen` of the tile.
    void mask(int64_t first_seen, int64_t last_seen, float* scores, int vectors) {
        const auto last = static_cast<int32_t>(std::min<int64_t>(last_seen, KEYS));
        const auto first = static_cast<int32_t>(std::clamp<int64_t>(first_seen, 0, KEYS));
        const vec unseen = broadcast(-std::numeric_limits<float>::infinity());
        for (int v = 0; v < vectors; ++v) {
            const ivec key = lane_numbers() + v * LANES;
            const vec s = load(scores + v * LANES);
            store(scores + v * LANES, select((key > last) | (key < first), unseen, s));
        }
    }

    void hide_blocks(int r, int64_t begin, float* scores, int vectors) {
        bool seen = true;
        for (int64_t key = begin; key < begin + vectors * LANES; ++key) {
            if (key == begin || key % a_.sparse_block == 0) {
                seen = sees_block(a_, position_[r], head_[r], key / a_.sparse_block);
            }
            if (!seen) scores[key - begin] = -std::numeric_limits<float>::infinity();
        }
    }

    template <int R>
    void add_rows(int r, int count) {
        const int steps = (count + STEP - 1) / STEP;
        float back[R] = {};  // from words to weights
        for (int i = 0; i < R; ++i) {
            float* weights = scores_ + i * KEYS;
            if constexpr (PAIRS) {
                for (int v = 0; v < KEYS; v += LANES) store(reinterpret_cast<bf16*>(weights) + v, load(weights + v));
            } else if constexpr (CODES) {
                back[i] = weights_to_words(weights, count);
            }
        }
        with_products([&](auto products) {
            by_vectors<VECTORS<R>>(this->value_room_ / LANES, [&](auto of, int v) {
                add_values<decltype(products), R, decltype(of)::value>(scores_, this->value_parts_, v * LANES, this->value_room_,
                                                                       steps, back, state(r) + SUMS + v * LANES, state_floats_);
            });
        });
    }

    // A row's weights times the values' scales to words, in their place. Returns what a word's one stands for.
    float weights_to_words(float* weights, int count) {
        vec peaks = {};
        for (int v = 0; v < count; v += LANES) {  // to the vector's end, where weights are zero
            const vec scaled = load(weights + v) * load(value_scales_ + v);
            store(weights + v, scaled);
            peaks = larger(scaled, peaks);
        }
        const float factor = word_factor(highest(peaks), KEYS), none = nothing_or_nan(weights, count);
        store_words(reinterpret_cast<int16_t*>(weights), weights, factor, static_cast<int>(round_up(count, LANES)));
        return (factor > 0.0f ? 1.0f / factor : 0.0f) + none;
    }

    const int state_floats_;
    float *queries_, *states_, *before_;  // the task's queries; sums over a span, and over all before it
    alignas(64) float scores_[std::max(ROWS, TILES ? TILE_ROWS : 0) * KEYS] = {};
    float row_scales_[MAX_ROWS];  // of a query's products: the attention's scale and, of words, the query's own
    int64_t position_[MAX_ROWS], first_key_[MAX_ROWS], last_key_[MAX_ROWS], batch_row_[MAX_ROWS];
    int head_[MAX_ROWS];
};

}  // namespace octavo
