// Octavo's CPU kernels: plain pointers and shapes, no libtorch.
//
// The file is compiled once for each instruction set (setup.py says which), and Python loads the one that the processor
// has. Vectors are GCC's and Clang's own, 16 floats wide, so that the same source serves AVX-512, AVX2, SSE and NEON.
//
// Batch invariance: a row of a result depends on that row's inputs alone, by sums whose order is fixed by absolute
// positions. Threads share out whole rows, so their number does not matter either.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int LANES = 16;
typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

#define INLINE inline __attribute__((always_inline))

// ---- numbers -------------------------------------------------------------------------------------------------------

struct bf16 {
    uint16_t bits;
};

INLINE vec broadcast(float x) { return vec{} + x; }

INLINE vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

INLINE vec load(const bf16* p) {
    hvec h;
    std::memcpy(&h, p, sizeof h);
    const uvec wide = __builtin_convertvector(h, uvec) << 16;
    vec v;
    std::memcpy(&v, &wide, sizeof v);
    return v;
}

INLINE void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

// Round to nearest, ties to even, as PyTorch does. NaN stays NaN: its quiet bit is set.
INLINE void store(bf16* p, vec v) {
    uvec u;
    std::memcpy(&u, &v, sizeof u);
    const uvec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const uvec quiet = (u >> 16) | 0x40;
    const hvec h = __builtin_convertvector(v != v ? quiet : rounded, hvec);
    std::memcpy(p, &h, sizeof h);
}

// The ragged end of a row goes through a full vector too, so that its bits are those of any other place.
template <typename T>
INLINE vec load_some(const T* p, int count) {
    T buffer[LANES] = {};
    std::memcpy(buffer, p, count * sizeof(T));
    return load(buffer);
}

template <typename T>
INLINE void store_some(T* p, vec v, int count) {
    T buffer[LANES];
    store(buffer, v);
    std::memcpy(p, buffer, count * sizeof(T));
}

// The sixteen lanes added by halves to four.
INLINE vec4 halves(vec v) {
    vec8 a, b;
    std::memcpy(&a, &v, sizeof a);
    std::memcpy(&b, reinterpret_cast<const char*>(&v) + sizeof a, sizeof b);
    a += b;
    vec4 c, d;
    std::memcpy(&c, &a, sizeof c);
    std::memcpy(&d, reinterpret_cast<const char*>(&a) + sizeof c, sizeof d);
    return c + d;
}

INLINE float sum(vec v) {
    const vec4 c = halves(v);
    return (c[0] + c[2]) + (c[1] + c[3]);
}

// exp by 2^n times a polynomial on [-ln2/2, ln2/2]; relative error below 2e-7. Below -87 it is 0, above 88 infinity.
INLINE vec exponential(vec x) {
    const vec magic = broadcast(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
    const vec clamped = x < -87.0f ? broadcast(-87.0f) : (x > 88.0f ? broadcast(88.0f) : x);
    const vec n = (clamped * 1.44269504f + magic) - magic;
    const vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    const vec result = p * scale;
    const vec infinity = broadcast(std::numeric_limits<float>::infinity());
    const vec bounded = x < -87.0f ? vec{} : (x > 88.0f ? infinity : result);
    return x != x ? x : bounded;
}

INLINE vec hyperbolic_tangent(vec x) {
    // Beyond 10 it is 1 to the last bit, and the exponential would overflow further out.
    const vec bounded = x < -10.0f ? broadcast(-10.0f) : (x > 10.0f ? broadcast(10.0f) : x);
    return 1.0f - 2.0f / (exponential(bounded * 2.0f) + 1.0f);
}

// ---- threads -------------------------------------------------------------------------------------------------------

// The OpenMP runtime that torch uses (found by Python in this process), so that there is one pool of threads, not two
// that fight for the same processors. Without one, everything runs in the caller's thread.
typedef void (*parallel_fn)(void (*)(void*), void*, unsigned, unsigned);
parallel_fn gomp_parallel = nullptr;

template <typename Body>
struct Job {
    const Body* body;
    std::atomic<int64_t> next;
    int64_t count, grain;
};

template <typename Body>
void work(void* data) {
    auto* job = static_cast<Job<Body>*>(data);
    for (;;) {
        const int64_t first = job->next.fetch_add(job->grain, std::memory_order_relaxed);
        if (first >= job->count) return;
        (*job->body)(first, std::min(first + job->grain, job->count));
    }
}

// body(first, last) over 0..count, in pieces of `grain`, on up to `threads` threads.
template <typename Body>
void parallel(int64_t count, int64_t grain, int threads, const Body& body) {
    Job<Body> job{&body, {0}, count, std::max<int64_t>(1, grain)};
    const int64_t pieces = (count + job.grain - 1) / job.grain;
    const unsigned wanted = static_cast<unsigned>(std::min<int64_t>(threads, pieces));
    if (gomp_parallel == nullptr || wanted < 2) {
        work<Body>(&job);
    } else {
        gomp_parallel(work<Body>, &job, wanted, 0);
    }
}

// ---- norm ----------------------------------------------------------------------------------------------------------

template <typename T>
INLINE void rms_norm_row(const T* x, const float* weight, T* out, int64_t width, float eps) {
    vec squares = {};
    const int64_t whole = width / LANES * LANES;
    const int rest = static_cast<int>(width - whole);
    for (int64_t i = 0; i < whole; i += LANES) {
        const vec v = load(x + i);
        squares += v * v;
    }
    if (rest) {
        const vec v = load_some(x + whole, rest);
        squares += v * v;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
    for (int64_t i = 0; i < whole; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
    if (rest) store_some(out + whole, load_some(x + whole, rest) * scale * load_some(weight + whole, rest), rest);
}

template <typename T>
void rms_norm(const T* x, const float* weight, T* out, int64_t rows, int64_t width, float eps, int threads) {
    parallel(rows, std::max<int64_t>(1, 65536 / width), threads, [=](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) rms_norm_row(x + r * width, weight, out + r * width, width, eps);
    });
}

// ---- gated activation ----------------------------------------------------------------------------------------------

enum Activation { SILU = 0, GELU_TANH = 1 };

template <int activation>
INLINE vec activate(vec x) {
    if (activation == SILU) return x / (exponential(-x) + 1.0f);
    // (1 + tanh(y)) / 2 is 1 / (1 + exp(-2 y)), which loses nothing where tanh is near -1.
    const vec inner = (x * x * 0.044715f + 1.0f) * x * 0.7978845608028654f;
    return x / (exponential(inner * -2.0f) + 1.0f);
}

template <int activation, typename T>
INLINE void gate_row(const T* gate, const T* up, T* out, int64_t width) {
    const int64_t whole = width / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) store(out + i, activate<activation>(load(gate + i)) * load(up + i));
    if (const int rest = static_cast<int>(width - whole)) {
        const vec value = activate<activation>(load_some(gate + whole, rest)) * load_some(up + whole, rest);
        store_some(out + whole, value, rest);
    }
}

template <typename T>
void gated(const T* x, T* out, int64_t rows, int64_t width, int activation, int threads) {
    parallel(rows, std::max<int64_t>(1, 32768 / width), threads, [=](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
            const T* gate = x + r * 2 * width;
            if (activation == SILU) {
                gate_row<SILU>(gate, gate + width, out + r * width, width);
            } else {
                gate_row<GELU_TANH>(gate, gate + width, out + r * width, width);
            }
        }
    });
}

// ---- rotary and the cache ------------------------------------------------------------------------------------------

INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}
INLINE void from_float(float* p, float x) { *p = x; }
INLINE void from_float(bf16* p, float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    p->bits = static_cast<uint16_t>(x != x ? (u >> 16) | 0x40 : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// One head turned by its position.
template <typename T, typename Out>
INLINE void turn_head(const T* x, Out* out, const float* cos, const float* sin, int dim, int pairs, bool interleaved) {
    for (int i = 0; i < pairs; ++i) {
        const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + pairs;
        const float first = to_float(x[a]), second = to_float(x[b]);
        const float fc = first * cos[i], ss = second * sin[i], sc = second * cos[i], fs = first * sin[i];
        from_float(out + a, fc - ss);
        from_float(out + b, sc + fs);
    }
    for (int i = 2 * pairs; i < dim; ++i) from_float(out + i, to_float(x[i]));
}

struct Cache {
    void *keys, *values;
    const int64_t* slots;
    int64_t block_size;
};

template <typename T>
void rotate_store(const T* qkv, const float* cos, const float* sin, float* query, const Cache& cache, int64_t tokens,
                  int heads, int kv_heads, int dim, int pairs, bool interleaved, int threads) {
    T *keys = static_cast<T*>(cache.keys), *values = static_cast<T*>(cache.values);
    const int64_t width = static_cast<int64_t>(heads + 2 * kv_heads) * dim;
    parallel(tokens, std::max<int64_t>(1, 65536 / width), threads, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t) {
            const T* row = qkv + t * width;
            const float *c = cos + t * pairs, *s = sin + t * pairs;
            for (int h = 0; h < heads; ++h) {
                turn_head(row + h * dim, query + (t * heads + h) * dim, c, s, dim, pairs, interleaved);
            }
            const int64_t block = cache.slots[t] / cache.block_size, offset = cache.slots[t] % cache.block_size;
            for (int h = 0; h < kv_heads; ++h) {
                const int64_t at = ((block * kv_heads + h) * cache.block_size + offset) * dim;
                turn_head(row + (heads + h) * dim, keys + at, c, s, dim, pairs, interleaved);
                std::memcpy(values + at, row + (heads + kv_heads + h) * dim, dim * sizeof(T));
            }
        }
    });
}

// ---- paged attention -----------------------------------------------------------------------------------------------

constexpr int QUERY_TILE = 8;  // queries of one sequence that share each key and value that is read

constexpr double ALONE_BELOW = 1e6;  // multiplications that are done before other threads have woken up

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
};

struct Tile {
    int64_t first_row, start, table_row;
    int tokens;
};

// A row of `dim` numbers as floats, zero up to `room`, a multiple of a vector.
template <typename T>
INLINE void widen(const T* from, float* to, int dim, int room) {
    int i = 0;
    for (; i + LANES <= dim; i += LANES) store(to + i, load(from + i));
    if (i < dim) store(to + i, load_some(from + i, dim - i));
    for (i = (dim + LANES - 1) / LANES * LANES; i < room; i += LANES) store(to + i, vec{});
}

typedef int32_t ivec4 __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, ivec4{i, j, k, l})
#endif

constexpr int KEYS = 4;  // keys whose products with a query are summed side by side

// Products of ROWS queries with KEYS keys, all `room` wide. Each is summed lane by lane, then by halves.
template <int ROWS>
INLINE void products(const float* q, const float* k, int room, float* scores, int64_t stride, float scale) {
    vec total[ROWS][KEYS] = {};
    for (int i = 0; i < room; i += LANES) {
        vec key[KEYS];
        for (int j = 0; j < KEYS; ++j) key[j] = load(k + j * room + i);
        for (int r = 0; r < ROWS; ++r) {
            const vec query = load(q + r * room + i);
            for (int j = 0; j < KEYS; ++j) total[r][j] += query * key[j];
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        const vec4 a = halves(total[r][0]), b = halves(total[r][1]), c = halves(total[r][2]), d = halves(total[r][3]);
        const vec4 ab02 = SHUFFLE(a, b, 0, 4, 2, 6), ab13 = SHUFFLE(a, b, 1, 5, 3, 7);
        const vec4 cd02 = SHUFFLE(c, d, 0, 4, 2, 6), cd13 = SHUFFLE(c, d, 1, 5, 3, 7);
        const vec4 even = SHUFFLE(ab02, cd02, 0, 1, 4, 5) + SHUFFLE(ab02, cd02, 2, 3, 6, 7);
        const vec4 odd = SHUFFLE(ab13, cd13, 0, 1, 4, 5) + SHUFFLE(ab13, cd13, 2, 3, 6, 7);
        const vec4 sums = (even + odd) * scale;
        std::memcpy(scores + r * stride, &sums, sizeof sums);
    }
}

// acc[r] += weight[r][j] * value[j] for keys j in order; ROWS rows and STEPS vectors of a value at a time.
template <int ROWS, int STEPS>
INLINE void mix(const float* weights, int64_t stride, const float* value, int64_t count, float* acc, int room) {
    vec a[ROWS][STEPS];
    for (int r = 0; r < ROWS; ++r)
        for (int s = 0; s < STEPS; ++s) a[r][s] = load(acc + r * room + s * LANES);
    for (int64_t j = 0; j < count; ++j) {
        vec v[STEPS];
        for (int s = 0; s < STEPS; ++s) v[s] = load(value + j * room + s * LANES);
        for (int r = 0; r < ROWS; ++r) {
            const float w = weights[r * stride + j];
            for (int s = 0; s < STEPS; ++s) a[r][s] += v[s] * w;
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int s = 0; s < STEPS; ++s) store(acc + r * room + s * LANES, a[r][s]);
}

template <int STEPS>
INLINE void mix_rows(const float* w, int64_t stride, const float* v, int64_t count, float* acc, int rows, int room) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) mix<4, STEPS>(w + r * stride, stride, v, count, acc + r * room, room);
    for (; r < rows; ++r) mix<1, STEPS>(w + r * stride, stride, v, count, acc + r * room, room);
}

INLINE void mix_block(const float* w, int64_t stride, const float* v, int64_t count, float* acc, int rows, int room) {
    int i = 0;
    for (; i + 4 * LANES <= room; i += 4 * LANES) mix_rows<4>(w, stride, v + i, count, acc + i, rows, room);
    for (; i < room; i += LANES) mix_rows<1>(w, stride, v + i, count, acc + i, rows, room);
}

// Scores of one row to weights; keys past `last` or before `first` weigh nothing. The sum of the weights.
INLINE float softmax(float* scores, int64_t begin, int64_t span, int64_t first, int64_t last) {
    const float minus = -std::numeric_limits<float>::infinity();
    for (int64_t j = 0; begin + j < first; ++j) scores[j] = minus;
    for (int64_t j = last + 1 - begin; j < span; ++j) scores[j] = minus;
    vec high = broadcast(minus);
    for (int64_t j = 0; j < span; j += LANES) {
        const vec s = load(scores + j);
        high = s > high ? s : high;
    }
    float peak = high[0];
    for (int i = 1; i < LANES; ++i) peak = std::max(peak, high[i]);
    vec total = {};
    for (int64_t j = 0; j < span; j += LANES) {
        const vec weight = exponential(load(scores + j) - peak);
        store(scores + j, weight);
        total += weight;
    }
    return sum(total);
}

INLINE void cap(float* scores, int64_t span, float softcap) {
    for (int64_t j = 0; j < span; j += LANES) {
        store(scores + j, hyperbolic_tangent(load(scores + j) / softcap) * softcap);
    }
}

INLINE int64_t round_up(int64_t value, int64_t grain) { return (value + grain - 1) / grain * grain; }

// One tile of queries under one head of keys.
template <typename T, typename Out>
INLINE void attend(const Attention& a, const Tile& tile, int kv_head, std::vector<float>& scratch) {
    const int group = a.heads / a.kv_heads, rows = tile.tokens * group;
    const int64_t end = tile.start + tile.tokens;
    // Spans begin and end where vectors do, so that a key's lane in the sums is that of its absolute position.
    const int64_t begin = a.window ? std::max<int64_t>(0, tile.start - a.window + 1) / LANES * LANES : 0;
    const int64_t span = round_up(end - begin, LANES);
    const int key_room = static_cast<int>(round_up(a.key_dim, LANES));
    const int value_room = static_cast<int>(round_up(a.value_dim, LANES));
    const int64_t held = std::max<int64_t>(a.block_size * value_room, KEYS * key_room);
    scratch.assign(rows * (span + value_room + key_room) + held, 0.0f);
    float *scores = scratch.data(), *acc = scores + rows * span;
    float *queries = acc + rows * value_room, *wide = queries + rows * key_room;
    const int64_t* blocks = a.table + tile.table_row * a.table_width;
    const T *keys = static_cast<const T*>(a.keys), *values = static_cast<const T*>(a.values);
    auto query_row = [&](int r) { return (tile.first_row + r / group) * a.heads + kv_head * group + r % group; };
    auto slot = [&](int64_t position) {
        return (blocks[position / a.block_size] * a.kv_heads + kv_head) * a.block_size + position % a.block_size;
    };

    for (int r = 0; r < rows; ++r) widen(a.query + query_row(r) * a.key_dim, queries + r * key_room, a.key_dim, key_room);
    for (int64_t j = 0; j < end - begin; j += KEYS) {
        for (int k = 0; k < KEYS; ++k) {
            const int64_t position = std::min(begin + j + k, end - 1);  // those past the end are overwritten by softmax
            widen(keys + slot(position) * a.key_dim, wide + k * key_room, a.key_dim, key_room);
        }
        int r = 0;
        for (; r + 4 <= rows; r += 4) {
            products<4>(queries + r * key_room, wide, key_room, scores + r * span + j, span, a.scale);
        }
        for (; r < rows; ++r) products<1>(queries + r * key_room, wide, key_room, scores + r * span + j, span, a.scale);
    }
    float totals[QUERY_TILE * 256];
    for (int r = 0; r < rows; ++r) {
        float* row = scores + r * span;
        const int64_t position = tile.start + r / group;
        if (a.softcap > 0) cap(row, span, a.softcap);
        if (a.alibi != nullptr) {
            const float slope = a.alibi[kv_head * group + r % group];
            for (int64_t j = 0; j < span; ++j) row[j] += slope * static_cast<float>(begin + j - position);
        }
        const int64_t first = a.window ? std::max<int64_t>(0, position - a.window + 1) : 0;
        totals[r] = softmax(row, begin, span, first, position);
    }
    for (int64_t j = 0; j < end - begin;) {
        const int64_t position = begin + j;
        const int64_t count = std::min(a.block_size - position % a.block_size, end - position);
        const T* v = values + slot(position) * a.value_dim;
        for (int64_t k = 0; k < count; ++k) widen(v + k * a.value_dim, wide + k * value_room, a.value_dim, value_room);
        mix_block(scores + j, span, wide, count, acc, rows, value_room);
        j += count;
    }
    for (int r = 0; r < rows; ++r) {
        Out* out = static_cast<Out*>(a.out) + query_row(r) * a.value_dim;
        for (int i = 0; i < a.value_dim; i += LANES) {
            const vec value = load(acc + r * value_room + i) / totals[r];
            const int some = std::min(LANES, a.value_dim - i);
            if (some == LANES) {
                store(out + i, value);
            } else {
                store_some(out + i, value, some);
            }
        }
    }
}

template <typename T, typename Out>
void attention(const Attention& a, int threads) {
    const int group = a.heads / a.kv_heads;
    const int most = std::max(1, std::min<int>(QUERY_TILE, QUERY_TILE * 256 / group));
    std::vector<Tile> tiles;
    double products = 0;  // multiplications in all
    for (int64_t i = 0; i < a.num_runs; ++i) {
        const int64_t* run = a.runs + 4 * i;
        const int64_t seen = run[2] + run[1] / 2;
        products += static_cast<double>(run[1]) * a.heads * (a.key_dim + a.value_dim) *
                    static_cast<double>(a.window ? std::min<int64_t>(seen, a.window) : seen);
        // Last queries first: they have the most keys, and short work at the end keeps threads even.
        for (int64_t done = (run[1] - 1) / most * most; done >= 0; done -= most) {
            const int tokens = static_cast<int>(std::min<int64_t>(most, run[1] - done));
            tiles.push_back({run[0] + done, run[2] + done, run[3], tokens});
        }
    }
    if (products < ALONE_BELOW) threads = 1;
    parallel(static_cast<int64_t>(tiles.size()) * a.kv_heads, 1, threads, [&](int64_t first, int64_t last) {
        static thread_local std::vector<float> scratch;
        for (int64_t i = first; i < last; ++i) {
            attend<T, Out>(a, tiles[i / a.kv_heads], static_cast<int>(i % a.kv_heads), scratch);
        }
    });
}

// ---- selective scan ------------------------------------------------------------------------------------------------

constexpr int SCAN_CHANNELS = 8;  // channels of one sequence that go through time together

struct Scan {
    const float *x, *dt, *a, *b, *c, *d;
    float *y, *state;
    const int64_t* runs;  // [runs][3]: first row, tokens, slot
    int64_t num_runs, slot_stride;
    int channels, width;  // width: values of state a channel
};

// One sequence's run through `count` channels from `channel` on.
template <int VECTORS>
INLINE void scan_channels(const Scan& s, const int64_t* run, int channel, int count) {
    const int rest = s.width - (VECTORS - 1) * LANES;
    float* state = s.state + run[2] * s.slot_stride + static_cast<int64_t>(channel) * s.width;
    const float* a = s.a + static_cast<int64_t>(channel) * s.width;
    vec h[SCAN_CHANNELS][VECTORS], decay[SCAN_CHANNELS][VECTORS];
    auto take = [&](const float* p, int v) {
        return v + 1 < VECTORS || rest == LANES ? load(p + v * LANES) : load_some(p + v * LANES, rest);
    };
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < VECTORS; ++v) {
            h[i][v] = take(state + i * s.width, v);
            decay[i][v] = take(a + i * s.width, v);
        }
    }
    for (int64_t row = run[0]; row < run[0] + run[1]; ++row) {
        const int64_t at = row * s.channels + channel;
        vec in[VECTORS], out[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            in[v] = take(s.b + row * s.width, v);
            out[v] = take(s.c + row * s.width, v);
        }
        for (int i = 0; i < count; ++i) {
            const float step = s.dt[at + i], x = s.x[at + i];
            vec total = {};
            for (int v = 0; v < VECTORS; ++v) {
                h[i][v] = exponential(decay[i][v] * step) * h[i][v] + in[v] * (step * x);
                total += h[i][v] * out[v];
            }
            s.y[at + i] = sum(total) + x * s.d[channel + i];
        }
    }
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < VECTORS; ++v) {
            float* p = state + i * s.width + v * LANES;
            if (v + 1 < VECTORS || rest == LANES) {
                store(p, h[i][v]);
            } else {
                store_some(p, h[i][v], rest);
            }
        }
    }
}

template <int VECTORS>
void scan(const Scan& s, int threads) {
    const int64_t blocks = (s.channels + SCAN_CHANNELS - 1) / SCAN_CHANNELS;
    parallel(blocks * s.num_runs, 16, threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int channel = static_cast<int>(i % blocks) * SCAN_CHANNELS;
            scan_channels<VECTORS>(s, s.runs + i / blocks * 3, channel, std::min(SCAN_CHANNELS, s.channels - channel));
        }
    });
}

}  // namespace

// ---- what Python calls: dtype 0 is float32, 1 is bfloat16 ------------------------------------------------------------

API void octavo_set_parallel(void* function) { gomp_parallel = reinterpret_cast<parallel_fn>(function); }

API void octavo_rms_norm(const void* x, const float* weight, void* out, int64_t rows, int64_t width, float eps, int dtype,
                         int threads) {
    if (dtype == 0) {
        rms_norm(static_cast<const float*>(x), weight, static_cast<float*>(out), rows, width, eps, threads);
    } else {
        rms_norm(static_cast<const bf16*>(x), weight, static_cast<bf16*>(out), rows, width, eps, threads);
    }
}

API void octavo_gated(const void* x, void* out, int64_t rows, int64_t width, int activation, int dtype, int threads) {
    if (dtype == 0) {
        gated(static_cast<const float*>(x), static_cast<float*>(out), rows, width, activation, threads);
    } else {
        gated(static_cast<const bf16*>(x), static_cast<bf16*>(out), rows, width, activation, threads);
    }
}

API void octavo_rotate_store(const void* qkv, const float* cos, const float* sin, float* query, void* keys, void* values,
                             const int64_t* slots, int64_t block_size, int64_t tokens, int heads, int kv_heads, int dim,
                             int pairs, int interleaved, int dtype, int threads) {
    const Cache cache{keys, values, slots, block_size};
    if (dtype == 0) {
        rotate_store(static_cast<const float*>(qkv), cos, sin, query, cache, tokens, heads, kv_heads, dim, pairs,
                     interleaved != 0, threads);
    } else {
        rotate_store(static_cast<const bf16*>(qkv), cos, sin, query, cache, tokens, heads, kv_heads, dim, pairs,
                     interleaved != 0, threads);
    }
}

API void octavo_attention(const float* query, const void* keys, const void* values, void* out, const int64_t* runs,
                          int64_t num_runs, const int64_t* table, int64_t table_width, int64_t block_size, int heads,
                          int kv_heads, int key_dim, int value_dim, float scale, float softcap, const float* alibi,
                          int64_t window, int dtype, int out_dtype, int threads) {
    const Attention a{query,    keys,    values,    out,   runs,    table, table_width, block_size, num_runs, heads,
                      kv_heads, key_dim, value_dim, scale, softcap, alibi, window};
    if (dtype == 0) {
        out_dtype == 0 ? attention<float, float>(a, threads) : attention<float, bf16>(a, threads);
    } else {
        out_dtype == 0 ? attention<bf16, float>(a, threads) : attention<bf16, bf16>(a, threads);
    }
}

API void octavo_selective_scan(const float* x, const float* dt, const float* a, const float* b, const float* c,
                               const float* d, float* y, float* state, const int64_t* runs, int64_t num_runs,
                               int64_t slot_stride, int channels, int width, int threads) {
    const Scan s{x, dt, a, b, c, d, y, state, runs, num_runs, slot_stride, channels, width};
    switch ((width + LANES - 1) / LANES) {
        case 1: return scan<1>(s, threads);
        case 2: return scan<2>(s, threads);
        case 3: return scan<3>(s, threads);
        case 4: return scan<4>(s, threads);
        case 8: return scan<8>(s, threads);
    }
}
