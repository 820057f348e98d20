// What one thread does of attention: rows of queries over the keys that they see, tile by tile.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "attention_products.h"
#include "scratch.h"

namespace octavo {

constexpr int64_t SPAN = 512;   // keys that are summed by themselves
constexpr int MAX_ROWS = 128;   // queries, of all heads of a group, in one task
constexpr float LOG2_E = 1.44269504f;

// What is attended, and how its numbers lie.
struct Attention : arguments::attention {
    explicit Attention(const arguments::attention& a)
        : arguments::attention(a), query_stride(static_cast<int64_t>(a.num_heads) * a.key_dim) {}

    DType query_dtype = DType::F32;
    int64_t query_stride;                    // numbers from a row to the next, as of keys and values ...
    int64_t key_stride = 0, value_stride = 0;  // ... where these lie in rows of all heads; 0 for a paged cache
    int64_t ratio = 1;                       // tokens that a cached key is of, which lies in the block of their last
    // Products of queries and of keys with vectors, and which of these is a distance's.
    const float *query_vectors = nullptr, *key_vectors = nullptr;
    const int64_t* vector_numbers = nullptr;
    int64_t num_vectors = 0;
};

// Whether block-sparse attention lets a head's query see a block of keys.
inline bool sees_block(const Attention& a, int64_t position, int head, int64_t block) {
    if (position / a.sparse_block - block < a.local_blocks) return true;
    return (block + (a.first_head + head) * a.head_step + 1) % a.sparse_stride == 0;
}

// The first and the last key that a run's query sees: up to itself or, where it sees all of the run, to the run's end.
inline int64_t first_seen(const Attention& a, const AttentionRun& run, int64_t position) {
    int64_t first = a.window ? position - a.window + 1 : a.chunk ? position / a.chunk * a.chunk : 0;
    if (run.sees_all) first = std::min(first, run.start);
    return std::max(first, run.first_key);
}
inline int64_t last_seen(const AttentionRun& run, int64_t position) {
    return run.sees_all ? run.start + run.num_tokens - 1 : position;
}

// Rows `first` to `first + rows` of a run's [tokens * group] queries under one head of keys; of all its spans, or of one,
// whose sums go to `partial`.
struct Task {
    const AttentionRun* run;
    int kv_head, rows;
    int64_t first;
    int64_t span = -1;
    float* partial = nullptr;
};

// The keys that one row of the batch sees, where there are lists of them: positions in ascending order, and then -1.
struct KeyList {
    const int32_t* keys;
    int64_t count;

    KeyList(const Attention& a, int64_t batch_row) : keys(a.key_lists + batch_row * a.list_size) {
        count = std::partition_point(keys, keys + a.list_size, [](int32_t key) { return key >= 0; }) - keys;
    }
};

// The keys that a task's rows see, and the spans that these are in: positions or, of a list, places in it.
struct KeyRange {
    int64_t begin, end;

    KeyRange(const Attention& a, const Task& task) {
        const int64_t group = a.num_heads / a.num_kv_heads, start = task.run->start;
        if (a.key_lists != nullptr) {
            begin = 0;
            end = KeyList(a, task.run->first_row + task.first / group).count;
            return;
        }
        end = last_seen(*task.run, start + (task.first + task.rows - 1) / group) + 1;
        begin = first_seen(a, *task.run, start + task.first / group) / KEYS * KEYS;
    }
    int64_t first_span() const { return begin / SPAN; }
    int64_t spans() const { return (end - 1) / SPAN - first_span() + 1; }
};

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
class Worker {
public:
    explicit Worker(const Attention& a)
        : a_(a),
          key_room_(static_cast<int>(round_up(a.key_dim, 2 * LANES))),
          value_room_(static_cast<int>(round_up(a.value_dim, LANES))),
          query_floats_(PAIRS ? key_room_ / 2 : key_room_),
          state_floats_(static_cast<int>(state_floats(a))),
          values_in_place_(std::is_same_v<C, float> && a.value_dim == value_room_ && a.block_size % LANES == 0 &&
                           a.value_stride == 0 && a.key_lists == nullptr),
          vector_floats_(LANES * (a.paired ? a.key_dim / 2 : query_floats_)),
          steps_(PAIRS ? (a.key_dim + 1) / 2 : a.key_dim),
          in_a_row_(a.key_stride || a.key_lists != nullptr || a.ratio > 1 ? 1 : std::min<int64_t>(a.block_size, LANES)),
          at_key_(places(a.key_cache, a.key_dim, a.key_stride)),
          at_value_(places(a.value_cache, a.value_dim, a.value_stride)) {
        static thread_local Scratch scratch;
        const int64_t keys = KEYS * query_floats_, values = KEYS / STEP_KEYS * value_room_;
        const int64_t queries = MAX_ROWS * query_floats_, states = MAX_ROWS * state_floats_;
        const int64_t wide = LANES * std::max(key_room_, value_room_);
        keys_ = reinterpret_cast<float*>(scratch.get((keys + values + queries + 2 * states + wide) * 4));
        values_ = keys_ + keys;
        queries_ = values_ + values;
        states_ = queries_ + queries;
        before_ = states_ + states;
        wide_ = before_ + states;
        for (int v = 0; v < KEY_VECTORS; ++v) {
            key_vectors_[v] = keys_ + v * vector_floats_;
            value_parts_[v] = values_ + v * LANES / STEP_KEYS * value_room_;
        }
    }

    void run(const Task& task) {
        const KeyRange seen(a_, task);
        place(task);
        for (int r = 0; r < task.rows; ++r) lay_query(r);
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

    // The result of a task whose spans are summed, one after the other in `partials`.
    void finish_spans(const Task& task, float* partials) {
        place(task);
        const int64_t spans = KeyRange(a_, task).spans();
        for (int64_t i = 1; i < spans; ++i) join_rows(partials, partials + i * task.rows * state_floats_, task.rows);
        finish(task, partials);
    }

protected:
    static constexpr bool PAIRS = PAIRED<C>;
    static constexpr int STEP_KEYS = PAIRS ? 2 : 1;  // keys whose values are added in one step
    static constexpr float LOWEST = -1e30f;  // below every score, and finite: its difference to itself is zero

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
            prefetch(task.kv_head, begin + KEYS, last);
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

    // Where keys or values are: the first of all, and the bytes between blocks, heads and rows.
    struct Places {
        const char* first;
        int64_t block, head, row;
    };

    Places places(const void* first, int dim, int64_t stride) const {
        const int64_t bytes = row_bytes<C>(dim), row = stride * static_cast<int64_t>(sizeof(C));
        if (stride) return {static_cast<const char*>(first), row, bytes, row};
        const int64_t rows = (a_.block_size + a_.ratio - 1) / a_.ratio;  // of a block
        return {static_cast<const char*>(first), a_.num_kv_heads * rows * bytes, rows * bytes, bytes};
    }

    const char* cached(const Places& at, int64_t position, int kv_head) const {
        if (list_ != nullptr) position = list_[position];
        int64_t block = position / a_.block_size, offset = position % a_.block_size;
        if (a_.ratio > 1) {
            const int64_t last = (position + 1) * a_.ratio - 1;
            block = last / a_.block_size;
            offset = last % a_.block_size / a_.ratio;
        }
        return at.first + blocks_[block] * at.block + kv_head * at.head + offset * at.row;
    }

    void lay_query(int r) {
        float* to = queries_ + static_cast<int64_t>(r) * query_floats_;
        float* wide = PAIRS ? wide_ : to;
        const int64_t from = batch_row_[r] * a_.query_stride + static_cast<int64_t>(head_[r]) * a_.key_dim;
        WITH_TYPE(a_.query_dtype, Q, {
            const auto* query = reinterpret_cast<const Q*>(a_.query) + from;
            widen_row<Q>(reinterpret_cast<const char*>(query), wide, a_.key_dim, key_room_);
        })
        if (PAIRS) {
            for (int i = 0; i < key_room_; i += LANES) store(reinterpret_cast<bf16*>(to) + i, load(wide + i));
        }
    }

    // Brings a tile into the cache while the one before it is computed: no processor foresees the order of blocks.
    void prefetch(int kv_head, int64_t begin, int64_t end) const {
        const int64_t key_bytes = row_bytes<C>(a_.key_dim), value_bytes = row_bytes<C>(a_.value_dim);
        const int64_t last = std::min(end, begin + KEYS);
        for (int64_t at = begin; at < last; at += in_a_row_) {
            const char *keys = cached(at_key_, at, kv_head), *values = cached(at_value_, at, kv_head);
            for (int64_t b = 0; b < in_a_row_ * key_bytes; b += 64) __builtin_prefetch(keys + b, 0, 2);
            for (int64_t b = 0; b < in_a_row_ * value_bytes; b += 64) __builtin_prefetch(values + b, 0, 2);
        }
    }

    // What is as the products read it is left where it is: 16 tokens in a row. What lies past the end is finite, and
    // is masked.
    void point(const float** to, const Places& at, int kv_head, int64_t begin, int vectors) {
        for (int v = 0; v < vectors; ++v) {
            to[v] = reinterpret_cast<const float*>(cached(at, begin + v * LANES, kv_head));
        }
    }

    // The tile's keys, into [vectors][steps][16 keys].
    void lay_keys(int kv_head, int64_t begin, int64_t end) {
        for (int v = 0; v < KEY_VECTORS; ++v) {
            if (begin + v * LANES >= end) break;
            const float* rows[LANES];
            for (int k = 0; k < LANES; ++k) {
                // Past the end the last key stands in; its scores are masked.
                const int64_t position = std::min(begin + v * LANES + k, end - 1);
                const char* from = cached(at_key_, position, kv_head);
                if (a_.key_dim == key_room_ && (PAIRS || std::is_same_v<C, float>)) {
                    rows[k] = reinterpret_cast<const float*>(from);
                } else {
                    float* wide = wide_ + k * key_room_;
                    if (PAIRS) {
                        std::memset(wide, 0, key_room_ * sizeof(bf16));
                        std::memcpy(wide, from, a_.key_dim * sizeof(bf16));
                    } else {
                        widen_row<C>(from, wide, a_.key_dim, key_room_);
                    }
                    rows[k] = wide;
                }
            }
            float* to = keys_ + v * vector_floats_;
            for (int i = 0; i < steps_; i += LANES) {
                transpose(rows, to + i * LANES);
                for (auto& row : rows) row += LANES;
            }
        }
    }

    // The tile's values, into [keys][value_room], or in pairs of keys.
    void lay_values(int kv_head, int64_t begin, int64_t end) {
        const auto row = [&](int64_t position) { return cached(at_value_, position, kv_head); };
        if (PAIRS) {
            static const std::vector<uint16_t> zeros(MAX_HEAD_DIM, 0);
            for (int k = 0; k < KEYS && begin + k < end; k += 2) {
                const auto* a = reinterpret_cast<const uint16_t*>(row(begin + k));
                const auto* b = begin + k + 1 < end ? reinterpret_cast<const uint16_t*>(row(begin + k + 1)) : zeros.data();
                auto* to = reinterpret_cast<uint16_t*>(values_ + static_cast<int64_t>(k / 2) * value_room_);
                interleave(a, b, to, a_.value_dim);
                std::fill(to + 2 * a_.value_dim, to + 2 * value_room_, uint16_t{0});
            }
        } else {
            for (int k = 0; k < KEYS && begin + k < end; ++k) {
                widen_row<C>(row(begin + k), values_ + static_cast<int64_t>(k) * value_room_, a_.value_dim, value_room_);
            }
        }
    }

    void tile(const Task& task, int64_t begin, int64_t end) {
        const int count = static_cast<int>(std::min<int64_t>(KEYS, end - begin));
        const int vectors = static_cast<int>(round_up(count, LANES) / LANES);
        if (!any_sees(0, task.rows, begin)) return;
        const bool paired = PAIRS && a_.paired;
        if (paired) point(key_vectors_, at_key_, task.kv_head, begin, vectors);
        else lay_keys(task.kv_head, begin, end);
        if (paired || values_in_place_) point(value_parts_, at_value_, task.kv_head, begin, vectors);
        else lay_values(task.kv_head, begin, end);
        const float scale = a_.scale * LOG2_E;
        int r = 0;
        while (last_key_[r] < begin) ++r;  // these rows see no key of the tile
        for (int rows; r < task.rows; r += rows) {
            rows = next_rows(task.rows - r, ROWS);
            if (!any_sees(r, rows, begin)) continue;
            // Keys that come after would get the weight zero.
            const int seen = static_cast<int>(std::min<int64_t>(count, last_key_[r + rows - 1] - begin + 1));
            const int of_seen = static_cast<int>(round_up(seen, LANES) / LANES);
            with_rows<ROWS>(rows, [&](auto of) { score_rows<decltype(of)::value>(r, of_seen, scale); });
            for (int i = 0; i < rows; ++i) weigh(r + i, begin, scores_ + i * KEYS, of_seen);
            with_rows<ROWS>(rows, [&](auto of) { add_rows<decltype(of)::value>(r, seen); });
        }
    }

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
    void score_rows(int r, int vectors, float scale) {
        const float* queries = queries_ + static_cast<int64_t>(r) * query_floats_;
        const auto some = [&](auto of, int v) {
            score<PAIRS, R, decltype(of)::value>(queries, query_floats_, key_vectors_ + v, steps_, scale,
                                                 scores_ + v * LANES);
        };
        by_vectors<VECTORS<R>>(vectors, some);
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
        const int steps = (count + STEP_KEYS - 1) / STEP_KEYS;
        if (PAIRS) {
            for (int i = 0; i < R * KEYS; i += KEYS) {
                for (int v = 0; v < KEYS; v += LANES) {
                    store(reinterpret_cast<bf16*>(scores_ + i) + v, load(scores_ + i + v));
                }
            }
        }
        const auto some = [&](auto of, int v) {
            add_values<PAIRS, R, decltype(of)::value>(scores_, value_parts_, v * LANES, value_room_, steps,
                                               state(r) + SUMS + v * LANES, state_floats_);
        };
        by_vectors<VECTORS<R>>(value_room_ / LANES, some);
    }

    const Attention& a_;
    const int key_room_, value_room_, query_floats_, state_floats_;
    const bool values_in_place_;
    const int vector_floats_, steps_;  // of 16 keys, and of a score
    const int64_t in_a_row_;  // keys that lie one after the other, at least
    const Places at_key_, at_value_;
    const int64_t* blocks_ = nullptr;
    const int32_t* list_ = nullptr;  // of keys, whose places in it stand for positions
    float *keys_, *values_, *queries_;  // the tile's keys and values, the task's queries
    float *states_, *before_, *wide_;   // sums over a span, and over all before it; a row or a few, widened
    const float *key_vectors_[KEY_VECTORS], *value_parts_[KEY_VECTORS];  // of 16 keys each, laid out or in the cache
    alignas(64) float scores_[ROWS * KEYS] = {};
    int64_t position_[MAX_ROWS], first_key_[MAX_ROWS], last_key_[MAX_ROWS], batch_row_[MAX_ROWS];
    int head_[MAX_ROWS];
};

}  // namespace octavo
