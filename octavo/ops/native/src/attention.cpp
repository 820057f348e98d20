// Causal attention over a paged cache, in one pass over the keys (online softmax: Milakov & Gimelshein 2018, Dao et al.
// 2022).
//
// Keys are taken 64 at a time, cut at absolute positions, in ascending order, and 4,096 of them make a span, whose sum
// joins those of the spans before it. What a row of the result adds up depends on its own position alone: tiles that a
// row does not see change no bit of it, and are left out where that is cheap; and whether threads share a long context
// by spans, as they do where there is little else to share, changes nothing either.
// With a bfloat16 cache, on processors that multiply pairs of it, queries and weights are rounded to bfloat16 too.
#include <limits>
#include <vector>

#include "cache.h"
#include "call.h"
#include "functions.h"
#include "numbers.h"
#include "pool.h"
#include "rows.h"
#include "scratch.h"

namespace octavo {
namespace {

constexpr int KEYS = 64;           // in a tile
constexpr int KEY_VECTORS = KEYS / LANES;
constexpr int64_t SPAN = 4096;     // keys that are summed by themselves
constexpr int ROWS = std::min(6, HELD - 1);  // queries that share each vector of keys or values that is loaded
constexpr int MOST_ROWS = 128;     // queries, of all heads of a group, in one piece of work
constexpr float LOG2_E = 1.44269504f;
constexpr double ALONE_BELOW = 2e5;  // multiplications that are done before other threads have woken up

struct Attention {
    const float* query;
    const void *keys, *values;
    void* out;
    const int64_t* runs;  // [runs][4]: first row, tokens, start, table row
    const int64_t* table;
    int64_t table_width, block_size, num_runs;
    int heads, kv_heads, key_dim, value_dim;
    float scale, softcap;
    const float* alibi;
    int64_t window;
    bool paired;  // the cache's layout
    // Of block-sparse attention: a block's tokens (0: all keys are seen), how many of the last blocks are seen, and
    // every which one of those before; heads count these from places `head_step` apart.
    int64_t sparse_block, local_blocks, stride, head_step;

    bool sees_block(int64_t position, int head, int64_t block) const {
        return position / sparse_block - block < local_blocks || (block + head * head_step + 1) % stride == 0;
    }
};

// Rows `first` to `first + rows` of a run's [tokens * group] queries under one head of keys; of all its spans, or of one,
// whose sums go to `partial`.
struct Piece {
    const int64_t* run;
    int kv_head, rows;
    int64_t first;
    int64_t span = -1;
    float* partial = nullptr;
};

// The keys that a piece's rows see, and the spans that these are in.
struct Keys {
    int64_t begin, end;

    Keys(const Attention& a, const Piece& piece) {
        const int64_t group = a.heads / a.kv_heads, start = piece.run[2];
        end = start + (piece.first + piece.rows - 1) / group + 1;
        begin = a.window ? std::max<int64_t>(0, start + piece.first / group - a.window + 1) / KEYS * KEYS : 0;
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

#if defined(__AVX512BF16__)
template <typename C>
constexpr bool PAIRED = std::is_same_v<C, bf16>;
#else
template <typename C>
constexpr bool PAIRED = false;
#endif

INLINE vec pair_product(vec total, vec pairs, float pair) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)pairs, (__m512bh)_mm512_set1_ps(pair));
#else
    return total + pairs * pair;  // never called: PAIRED is false
#endif
}

// Vectors that R rows are multiplied with at a time.
template <int R>
constexpr int VECTORS = HELD >= 4 * (R + (R > 1)) ? 4 : HELD >= 2 * (R + (R > 1)) ? 2 : 1;

// total[r][v] += x[r] * vectors[v]: numbers, or two in a pair. Rows of x lie `x_stride` apart.
template <bool PAIRS, int R, int V>
INLINE void add_products(const float* x, int64_t x_stride, const vec (&vectors)[V], vec (&total)[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const float by = x[r * x_stride];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            total[r][v] =
                PAIRS ? pair_product(total[r][v], vectors[v], by) : fmadd(vectors[v], broadcast(by), total[r][v]);
        }
    }
}

// The scores of R rows of queries for V vectors of 16 keys, into rows of KEYS.
template <bool PAIRS, int R, int V>
void score(const float* queries, int64_t query_floats, const float* const* keys, int64_t steps, float scale, float* out) {
    vec total[R][V];
    clear(total);
#pragma GCC unroll 2
    for (int64_t i = 0; i < steps; ++i) {
        vec vectors[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) vectors[v] = load(keys[v] + i * LANES);
        add_products<PAIRS, R, V>(queries + i, query_floats, vectors, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(out + r * KEYS + v * LANES, total[r][v] * scale);
}

// Adds to V vectors of R rows of sums what `steps` steps of values, in parts of 16 keys, give with the rows' weights.
template <bool PAIRS, int R, int V>
void mix(const float* weights, const float* const* parts, int64_t at, int64_t value_floats, int steps, float* sums,
         int64_t stride) {
    constexpr int PART_STEPS = LANES / (PAIRS ? 2 : 1);
    vec total[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) total[r][v] = load(sums + r * stride + v * LANES);
    // One loop: compilers would move the sums to memory between the parts.
    for (int i = 0; i < steps; ++i) {
        const float* values = parts[i / PART_STEPS] + at + i % PART_STEPS * value_floats;
        vec vectors[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) vectors[v] = load(values + v * LANES);
        add_products<PAIRS, R, V>(weights + i, KEYS, vectors, total);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(sums + r * stride + v * LANES, total[r][v]);
}

// 16 rows of 16 four-byte values, `stride` bytes apart, to columns.
INLINE void transpose(const float* const* rows, float* out) {
#if defined(__AVX512F__)
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i]);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        _mm512_storeu_si512(out + i * 16, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(out + (i + 8) * 16, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_si512(out + (i + 4) * 16, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_si512(out + (i + 12) * 16, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
#elif defined(__AVX2__)
    for (int half = 0; half < 16; half += 8) {
        const float* const* of = rows + half;
        for (int c = 0; c < 16; c += 4) {
            const auto two = [&](int r) {  // columns c to c + 3 of rows r and r + 4
                return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(of[r] + c)), _mm_loadu_ps(of[r + 4] + c), 1);
            };
            const __m256 a = two(0), b = two(1), d = two(2), e = two(3);
            const __m256 ab = _mm256_unpacklo_ps(a, b), de = _mm256_unpacklo_ps(d, e);
            const __m256 ab2 = _mm256_unpackhi_ps(a, b), de2 = _mm256_unpackhi_ps(d, e);
            float* to = out + c * 16 + half;
            _mm256_storeu_ps(to, _mm256_shuffle_ps(ab, de, 0x44));
            _mm256_storeu_ps(to + 16, _mm256_shuffle_ps(ab, de, 0xee));
            _mm256_storeu_ps(to + 32, _mm256_shuffle_ps(ab2, de2, 0x44));
            _mm256_storeu_ps(to + 48, _mm256_shuffle_ps(ab2, de2, 0xee));
        }
    }
#else
    for (int c = 0; c < 16; ++c)
        for (int r = 0; r < 16; ++r) std::memcpy(out + c * 16 + r, rows[r] + c, 4);
#endif
}

// Two rows of `dim` bfloat16 to pairs.
INLINE void interleave(const uint16_t* a, const uint16_t* b, uint16_t* out, int dim) {
    int i = 0;
#if defined(__AVX512BW__)
    alignas(64) static constexpr uint16_t LOW[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(LOW), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (; i + 32 <= dim; i += 32) {
        const __m512i x = _mm512_loadu_si512(a + i), y = _mm512_loadu_si512(b + i);
        _mm512_storeu_si512(out + 2 * i, _mm512_permutex2var_epi16(x, low, y));
        _mm512_storeu_si512(out + 2 * i + 32, _mm512_permutex2var_epi16(x, high, y));
    }
#endif
    for (; i < dim; ++i) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

// What one thread does, and its room for it.
template <typename C>
class Worker {
public:
    Worker(const Attention& a, int out_type)
        : a_(a),
          out_type_(out_type),
          key_room_(static_cast<int>(round_up(a.key_dim, 2 * LANES))),
          value_room_(static_cast<int>(round_up(a.value_dim, LANES))),
          query_floats_(PAIRS ? key_room_ / 2 : key_room_),
          state_floats_(static_cast<int>(state_floats(a))),
          values_in_place_(std::is_same_v<C, float> && a.value_dim == value_room_ && a.block_size % LANES == 0),
          steps_(a.paired ? a.key_dim / 2 : query_floats_) {
        static thread_local Scratch scratch;
        const int64_t keys = KEYS * query_floats_, values = KEYS / STEP_KEYS * value_room_;
        const int64_t queries = MOST_ROWS * query_floats_, states = MOST_ROWS * state_floats_;
        const int64_t wide = LANES * std::max(key_room_, value_room_);
        keys_ = reinterpret_cast<float*>(scratch.get((keys + values + queries + 2 * states + wide) * 4));
        values_ = keys_ + keys;
        queries_ = values_ + values;
        states_ = queries_ + queries;
        before_ = states_ + states;
        wide_ = before_ + states;
        for (int v = 0; v < KEY_VECTORS; ++v) {
            key_vectors_[v] = keys_ + v * LANES * query_floats_;
            value_parts_[v] = values_ + v * LANES / STEP_KEYS * value_room_;
        }
    }

    void run(const Piece& piece) {
        const Keys seen(a_, piece);
        place(piece);
        for (int r = 0; r < piece.rows; ++r) lay_query(r);
        if (piece.partial != nullptr) {
            add_span(piece, seen, piece.span);
            std::memcpy(piece.partial, states_, static_cast<size_t>(piece.rows) * state_floats_ * sizeof(float));
            return;
        }
        add_span(piece, seen, seen.first_span());
        std::swap(states_, before_);
        for (int64_t i = 1; i < seen.spans(); ++i) {
            add_span(piece, seen, seen.first_span() + i);
            join_rows(before_, states_, piece.rows);
        }
        finish(piece, before_);
    }

    // The result of a piece whose spans are summed, one after the other in `partials`.
    void finish_spans(const Piece& piece, float* partials) {
        place(piece);
        const int64_t spans = Keys(a_, piece).spans();
        for (int64_t i = 1; i < spans; ++i) join_rows(partials, partials + i * piece.rows * state_floats_, piece.rows);
        finish(piece, partials);
    }

private:
    static constexpr bool PAIRS = PAIRED<C>;
    static constexpr int STEP_KEYS = PAIRS ? 2 : 1;  // keys whose values are added in one step
    static constexpr float LOWEST = -1e30f;  // below every score, and finite: its difference to itself is zero

    // Where the piece's rows stand.
    void place(const Piece& piece) {
        const int group = a_.heads / a_.kv_heads;
        blocks_ = a_.table + piece.run[3] * a_.table_width;
        for (int r = 0; r < piece.rows; ++r) {
            const int64_t row = piece.first + r;
            position_[r] = piece.run[2] + row / group;
            head_[r] = piece.kv_head * group + static_cast<int>(row % group);
            batch_row_[r] = piece.run[0] + row / group;
        }
    }

    float* state(int r) { return states_ + static_cast<int64_t>(r) * state_floats_; }

    // Sums over the span's keys alone.
    void add_span(const Piece& piece, const Keys& seen, int64_t span) {
        std::fill(states_, state(piece.rows), 0.0f);
        for (int r = 0; r < piece.rows; ++r) state(r)[PEAK] = LOWEST;
        const int64_t last = std::min(seen.end, (span + 1) * SPAN);
        for (int64_t begin = std::max(seen.begin, span * SPAN); begin < last; begin += KEYS) {
            ask_for(piece.kv_head, begin + KEYS, last);
            tile(piece, begin, seen.end);
        }
    }

    void join_rows(float* sums, const float* more, int rows) const {
        for (int64_t r = 0; r < rows; ++r) join(sums + r * state_floats_, more + r * state_floats_, state_floats_);
    }

    void finish(const Piece& piece, const float* states) {
        for (int r = 0; r < piece.rows; ++r) {
            const float* row = states + static_cast<int64_t>(r) * state_floats_;
            WITH_TYPE(out_type_, Out, put<Out>(r, row))
        }
    }

    template <typename Out>
    void put(int r, const float* row) {
        Out* out = static_cast<Out*>(a_.out) + (batch_row_[r] * a_.heads + head_[r]) * a_.value_dim;
        const float total = sum(load(row + TOTAL));
        for (int i = 0; i < a_.value_dim; i += LANES) {
            const int some = std::min(LANES, a_.value_dim - i);
            const vec value = load(row + SUMS + i) / total;
            some == LANES ? store(out + i, value) : store_some(out + i, value, some);
        }
    }

    const char* cached(const void* cache, int64_t position, int kv_head, int dim) const {
        const int64_t at = (blocks_[position / a_.block_size] * a_.kv_heads + kv_head) * a_.block_size;
        return static_cast<const char*>(cache) + (at + position % a_.block_size) * row_bytes<C>(dim);
    }

    void lay_query(int r) {
        const float* from = a_.query + (batch_row_[r] * a_.heads + head_[r]) * a_.key_dim;
        float* to = queries_ + static_cast<int64_t>(r) * query_floats_;
        float* wide = PAIRS ? wide_ : to;
        widen_row<float>(reinterpret_cast<const char*>(from), wide, a_.key_dim, key_room_);
        if (PAIRS) {
            for (int i = 0; i < key_room_; i += LANES) store(reinterpret_cast<bf16*>(to) + i, load(wide + i));
        }
    }

    // Brings a tile into the cache while the one before it is computed: no processor foresees the order of blocks.
    void ask_for(int kv_head, int64_t begin, int64_t end) const {
        const int64_t key_bytes = row_bytes<C>(a_.key_dim), value_bytes = row_bytes<C>(a_.value_dim);
        const int64_t last = std::min(end, begin + KEYS), together = std::min<int64_t>(a_.block_size, LANES);
        for (int64_t at = begin; at < last; at += together) {
            const char* keys = cached(a_.keys, at, kv_head, a_.key_dim);
            const char* values = cached(a_.values, at, kv_head, a_.value_dim);
            for (int64_t b = 0; b < together * key_bytes; b += 64) __builtin_prefetch(keys + b, 0, 2);
            for (int64_t b = 0; b < together * value_bytes; b += 64) __builtin_prefetch(values + b, 0, 2);
        }
    }

    // What is as the products read it is left where it is: 16 tokens in a row. What lies past the end is finite, and
    // is masked.
    void point(const float** to, const void* cache, int dim, int kv_head, int64_t begin, int vectors) {
        for (int v = 0; v < vectors; ++v) {
            to[v] = reinterpret_cast<const float*>(cached(cache, begin + v * LANES, kv_head, dim));
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
                const char* from = cached(a_.keys, position, kv_head, a_.key_dim);
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
            float* to = keys_ + v * LANES * steps_;
            for (int i = 0; i < steps_; i += LANES) {
                transpose(rows, to + i * LANES);
                for (auto& row : rows) row += LANES;
            }
        }
    }

    // The tile's values, into [keys][value_room], or in pairs of keys.
    void lay_values(int kv_head, int64_t begin, int64_t end) {
        const auto row = [&](int64_t position) { return cached(a_.values, position, kv_head, a_.value_dim); };
        if (PAIRS) {
            static const std::vector<uint16_t> zeros(MAX_DIM, 0);
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

    void tile(const Piece& piece, int64_t begin, int64_t end) {
        const int count = static_cast<int>(std::min<int64_t>(KEYS, end - begin));
        const int vectors = static_cast<int>(round_up(count, LANES) / LANES);
        if (!any_sees(0, piece.rows, begin)) return;
        const bool paired = PAIRS && a_.paired;
        if (paired) point(key_vectors_, a_.keys, a_.key_dim, piece.kv_head, begin, vectors);
        else lay_keys(piece.kv_head, begin, end);
        if (paired || values_in_place_) point(value_parts_, a_.values, a_.value_dim, piece.kv_head, begin, vectors);
        else lay_values(piece.kv_head, begin, end);
        int r = 0;
        while (position_[r] < begin) ++r;  // these rows come before the tile's first key
        for (int rows; r < piece.rows; r += rows) {
            rows = next_rows(piece.rows - r, ROWS);
            if (!any_sees(r, rows, begin)) continue;
            // Keys after the rows' own would get the weight zero.
            const int seen = static_cast<int>(std::min<int64_t>(count, position_[r + rows - 1] - begin + 1));
            const int of_seen = static_cast<int>(round_up(seen, LANES) / LANES);
            with_rows<ROWS>(rows, [&](auto of) { score_rows<decltype(of)::value>(r, of_seen); });
            for (int i = 0; i < rows; ++i) weigh(r + i, begin, scores_ + i * KEYS, of_seen);
            with_rows<ROWS>(rows, [&](auto of) { mix_rows<decltype(of)::value>(r, seen); });
        }
    }

    // Whether any of `count` rows sees a block of the tile.
    bool any_sees(int r, int count, int64_t begin) const {
        if (a_.sparse_block == 0) return true;
        const int64_t first = begin / a_.sparse_block, last = (begin + KEYS - 1) / a_.sparse_block;
        for (int i = r; i < r + count; ++i) {
            for (int64_t block = first; block <= last; ++block) {
                if (a_.sees_block(position_[i], head_[i], block)) return true;
            }
        }
        return false;
    }

    template <int R>
    void score_rows(int r, int vectors) {
        const float* queries = queries_ + static_cast<int64_t>(r) * query_floats_;
        const auto some = [&](auto of, int v) {
            score<PAIRS, R, decltype(of)::value>(queries, query_floats_, key_vectors_ + v, steps_, a_.scale * LOG2_E,
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
        const int64_t position = position_[r], seen = position - begin;  // the last key that it sees
        if (a_.softcap > 0 || a_.alibi != nullptr) adjust(r, seen, scores, vectors);
        if (seen < KEYS - 1 || a_.window) mask(seen, scores, vectors);
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

    void adjust(int r, int64_t seen, float* scores, int vectors) {
        for (int v = 0; v < vectors; ++v) {
            vec s = load(scores + v * LANES) * (1.0f / LOG2_E);
            if (a_.softcap > 0) s = hyperbolic_tangent(s / a_.softcap) * a_.softcap;
            if (a_.alibi != nullptr) {
                const ivec distance = lane_numbers() + (v * LANES - static_cast<int32_t>(seen));
                s = fmadd(to_float(distance), broadcast(a_.alibi[head_[r]]), s);
            }
            store(scores + v * LANES, s * LOG2_E);
        }
    }

    void mask(int64_t seen, float* scores, int vectors) {
        const auto last = static_cast<int32_t>(std::min<int64_t>(seen, KEYS));
        const auto first = a_.window ? static_cast<int32_t>(std::clamp<int64_t>(seen - a_.window + 1, 0, KEYS)) : 0;
        const vec hidden = broadcast(-std::numeric_limits<float>::infinity());
        for (int v = 0; v < vectors; ++v) {
            const ivec key = lane_numbers() + v * LANES;
            const vec s = load(scores + v * LANES);
            store(scores + v * LANES, select((key > last) | (key < first), hidden, s));
        }
    }

    void hide_blocks(int r, int64_t begin, float* scores, int vectors) {
        bool seen = true;
        for (int64_t key = begin; key < begin + vectors * LANES; ++key) {
            if (key == begin || key % a_.sparse_block == 0) {
                seen = a_.sees_block(position_[r], head_[r], key / a_.sparse_block);
            }
            if (!seen) scores[key - begin] = -std::numeric_limits<float>::infinity();
        }
    }

    template <int R>
    void mix_rows(int r, int count) {
        const int steps = (count + STEP_KEYS - 1) / STEP_KEYS;
        if (PAIRS) {
            for (int i = 0; i < R * KEYS; i += KEYS) {
                for (int v = 0; v < KEYS; v += LANES) {
                    store(reinterpret_cast<bf16*>(scores_ + i) + v, load(scores_ + i + v));
                }
            }
        }
        const auto some = [&](auto of, int v) {
            mix<PAIRS, R, decltype(of)::value>(scores_, value_parts_, v * LANES, value_room_, steps,
                                               state(r) + SUMS + v * LANES, state_floats_);
        };
        by_vectors<VECTORS<R>>(value_room_ / LANES, some);
    }

    const Attention& a_;
    const int out_type_, key_room_, value_room_, query_floats_, state_floats_;
    const bool values_in_place_;
    const int steps_;
    const int64_t* blocks_ = nullptr;
    float *keys_, *values_, *queries_;  // the tile's keys and values, the piece's queries
    float *states_, *before_, *wide_;   // sums over a span, and over all before it; a row or a few, widened
    const float *key_vectors_[KEY_VECTORS], *value_parts_[KEY_VECTORS];  // of 16 keys each, laid out or in the cache
    alignas(64) float scores_[ROWS * KEYS] = {};
    int64_t position_[MOST_ROWS], batch_row_[MOST_ROWS];
    int head_[MOST_ROWS];
};

template <typename C>
void attention(const Attention& a, int out_type) {
    const int group = a.heads / a.kv_heads;
    double products = 0;  // multiplications in all
    int64_t rows_in_all = 0;
    for (int64_t i = 0; i < a.num_runs; ++i) {
        const int64_t* run = a.runs + 4 * i;
        const int64_t seen = run[2] + run[1] / 2 + 1;
        products += static_cast<double>(run[1]) * a.heads * (a.key_dim + a.value_dim) *
                    static_cast<double>(a.window ? std::min<int64_t>(seen, a.window) : seen);
        rows_in_all += run[1] * group;
    }
    // Enough pieces for all threads, also where one head of keys serves many of queries.
    const int64_t threads = thread_count(), fair = round_up(rows_in_all * a.kv_heads / (2 * threads) + 1, ROWS);
    const int64_t most = std::min<int64_t>(MOST_ROWS, std::max<int64_t>(fair, 4 * ROWS));
    std::vector<Piece> pieces;
    for (int64_t i = 0; i < a.num_runs; ++i) {
        const int64_t *run = a.runs + 4 * i, rows = run[1] * group;
        // Last queries first: they have the most keys, and short work at the end keeps threads even.
        for (int64_t first = (rows - 1) / most * most; first >= 0; first -= most) {
            for (int h = 0; h < a.kv_heads; ++h) {
                pieces.push_back({run, h, static_cast<int>(std::min(most, rows - first)), first});
            }
        }
    }
    const auto each = [&](const std::vector<Piece>& work, const auto& body) {
        const auto count = static_cast<int64_t>(work.size());
        parallel(count, products < ALONE_BELOW ? count : 1, [&](int64_t first, int64_t last) {
            Worker<C> worker(a, out_type);
            for (int64_t i = first; i < last; ++i) body(worker, work[i]);
        });
    };
    std::vector<Piece> by_span;
    std::vector<float> partials;
    if (static_cast<int64_t>(pieces.size()) < 4 * threads && products >= ALONE_BELOW) {
        int64_t room = 0;
        for (const Piece& piece : pieces) room += Keys(a, piece).spans() * piece.rows * state_floats(a);
        partials.resize(room);
        float* to = partials.data();
        for (Piece& piece : pieces) {
            const Keys seen(a, piece);
            if (seen.spans() == 1) {
                by_span.push_back(piece);
                continue;
            }
            piece.partial = to;
            for (int64_t i = 0; i < seen.spans(); ++i, to += piece.rows * state_floats(a)) {
                by_span.push_back({piece.run, piece.kv_head, piece.rows, piece.first, seen.first_span() + i, to});
            }
        }
    }
    each(by_span.empty() ? pieces : by_span, [](Worker<C>& worker, const Piece& piece) { worker.run(piece); });
    if (!by_span.empty()) {
        each(pieces, [](Worker<C>& worker, const Piece& piece) {
            if (piece.partial != nullptr) worker.finish_spans(piece, piece.partial);
        });
    }
}

}  // namespace

// runs, query, keys, values, out, run table, block table, table width, block size, heads, kv heads, key dim, value dim,
// scale, softcap, alibi or null, window, cache type, out type, whether the cache is paired, a sparse block's
// tokens or 0, local blocks, stride, head step
OPERATION(attention) {
    const Attention attend{at<float>(a[1]),
                           a[2].p,
                           a[3].p,
                           a[4].p,
                           at<int64_t>(a[5]),
                           at<int64_t>(a[6]),
                           a[7].i,
                           a[8].i,
                           a[0].i,
                           static_cast<int>(a[9].i),
                           static_cast<int>(a[10].i),
                           static_cast<int>(a[11].i),
                           static_cast<int>(a[12].i),
                           static_cast<float>(a[13].f),
                           static_cast<float>(a[14].f),
                           at<float>(a[15]),
                           a[16].i,
                           a[19].i != 0,
                           a[20].i,
                           a[21].i,
                           a[22].i,
                           a[23].i};
    WITH_CACHE(a[17].i, C, attention<C>(attend, static_cast<int>(a[18].i));)
}

}  // namespace octavo
