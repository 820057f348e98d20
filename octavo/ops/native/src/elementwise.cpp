// Norms, activations, sums, and rotary positions with the cache's write.
#include <cmath>

#include "activation.h"
#include "cache.h"
#include "call.h"
#include "numbers.h"
#include "rows.h"

namespace octavo {
namespace {

// ---- norms ---------------------------------------------------------------------------------------------------------

template <typename T>
INLINE void rms_norm_row(const T* x, const float* weight, T* out, int64_t width, float eps) {
    vec squares = {};
    for_vectors(width, [&](int64_t i, int n) {
        const vec v = take(x + i, n);
        squares = fmadd(v, v, squares);
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
    for_vectors(width, [&](int64_t i, int n) { put(out + i, take(x + i, n) * scale * take(weight + i, n), n); });
}

template <typename T>
INLINE void layer_norm_row(const T* x, const float* weight, const float* bias, T* out, int64_t width, float eps) {
    vec total = {};
    for_vectors(width, [&](int64_t i, int n) { total += take(x + i, n); });
    const float mean = sum(total) / static_cast<float>(width);
    vec squares = {};
    for_vectors(width, [&](int64_t i, int n) {
        const vec v = select(lane_numbers() < n, take(x + i, n) - mean, vec{});
        squares = fmadd(v, v, squares);
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
    for_vectors(width, [&](int64_t i, int n) {
        vec v = (take(x + i, n) - mean) * scale;
        if (weight != nullptr) v = v * take(weight + i, n);
        if (bias != nullptr) v = v + take(bias + i, n);
        put(out + i, v, n);
    });
}

// ---- activations ---------------------------------------------------------------------------------------------------

// out = activation(x), or activation(x) * up where there is an `up`.
template <int activation, typename T>
INLINE void activate_row(const T* x, const T* up, T* out, int64_t width) {
    for_vectors(width, [&](int64_t i, int n) {
        const vec v = activate<activation>(take(x + i, n));
        put(out + i, up == nullptr ? v : v * take(up + i, n), n);
    });
}

template <typename T>
void activate_rows(const T* x, T* out, int64_t rows, int64_t width, int activation, bool gated) {
    over_rows(rows, width, [=](int64_t r) {
        const T* from = x + r * width * (gated ? 2 : 1);
        const T* up = gated ? from + width : nullptr;
        switch (activation) {
            case SILU: return activate_row<SILU>(from, up, out + r * width, width);
            case GELU_TANH: return activate_row<GELU_TANH>(from, up, out + r * width, width);
            case GELU: return activate_row<GELU>(from, up, out + r * width, width);
            case QUICK_GELU: return activate_row<QUICK_GELU>(from, up, out + r * width, width);
            case RELU: return activate_row<RELU>(from, up, out + r * width, width);
            case RELU_SQUARED: return activate_row<RELU_SQUARED>(from, up, out + r * width, width);
        }
    });
}

// ---- rotary and the cache ------------------------------------------------------------------------------------------

// One head turned by its position.
template <typename T>
INLINE void turn_head(const T* x, float* out, const float* cos, const float* sin, int dim, int pairs, bool interleaved) {
    if (interleaved) {
        for (int i = 0; i < pairs; ++i) {
            const float first = as_float(x[2 * i]), second = as_float(x[2 * i + 1]);
            out[2 * i] = first * cos[i] - second * sin[i];
            out[2 * i + 1] = second * cos[i] + first * sin[i];
        }
    } else {
        for_vectors(pairs, [&](int64_t i, int n) {
            const vec first = take(x + i, n), second = take(x + pairs + i, n), c = take(cos + i, n), s = take(sin + i, n);
            const vec fc = first * c, ss = second * s, sc = second * c, fs = first * s;
            put(out + i, fc - ss, n);
            put(out + pairs + i, sc + fs, n);
        });
    }
    for_vectors(dim - 2 * pairs, [&](int64_t i, int n) { put(out + 2 * pairs + i, take(x + 2 * pairs + i, n), n); });
}

struct Turn {
    const float *cos, *sin;
    int heads, kv_heads, dim, pairs;
    bool interleaved;
};

template <typename T, typename Cached>
void rotate_store(const T* qkv, const Turn& turn, float* query, const CacheWriter<Cached>& keys,
                  const CacheWriter<Cached>& values, const int64_t* slots, int64_t tokens) {
    const int dim = turn.dim;
    const int64_t width = static_cast<int64_t>(turn.heads + 2 * turn.kv_heads) * dim;
    over_rows(tokens, width, [&](int64_t t) {
        const T* row = qkv + t * width;
        const float *c = turn.cos + t * turn.pairs, *s = turn.sin + t * turn.pairs;
        for (int h = 0; h < turn.heads; ++h) {
            turn_head(row + h * dim, query + (t * turn.heads + h) * dim, c, s, dim, turn.pairs, turn.interleaved);
        }
        float head[MAX_DIM];
        for (int h = 0; h < turn.kv_heads; ++h) {
            turn_head(row + (turn.heads + h) * dim, head, c, s, dim, turn.pairs, turn.interleaved);
            keys.write(slots[t], h, head);
            const T* value = row + (turn.heads + turn.kv_heads + h) * dim;
            for_vectors(dim, [&](int64_t i, int n) { put(head + i, take(value + i, n), n); });
            values.write(slots[t], h, head);
        }
    });
}

}  // namespace

// rows, x, weight, out, width, eps, type
OPERATION(rms_norm) {
    const int64_t width = a[4].i;
    const float eps = static_cast<float>(a[5].f);
    WITH_TYPE(a[6].i, T, over_rows(a[0].i, width, [&](int64_t r) {
        rms_norm_row(at<T>(a[1]) + r * width, at<float>(a[2]), at<T>(a[3]) + r * width, width, eps);
    }))
}

// rows, x, weight or null, bias or null, out, width, eps, type
OPERATION(layer_norm) {
    const int64_t width = a[5].i;
    const float eps = static_cast<float>(a[6].f);
    WITH_TYPE(a[7].i, T, over_rows(a[0].i, width, [&](int64_t r) {
        layer_norm_row(at<T>(a[1]) + r * width, at<float>(a[2]), at<float>(a[3]), at<T>(a[4]) + r * width, width, eps);
    }))
}

// rows, x, out, width, type: out = x in float32
OPERATION(widen) {
    const int64_t width = a[3].i;
    WITH_TYPE(a[4].i, T, over_rows(a[0].i, width, [&](int64_t r) {
        const T* x = at<T>(a[1]) + r * width;
        float* out = at<float>(a[2]) + r * width;
        for_vectors(width, [&](int64_t i, int n) { put(out + i, take(x + i, n), n); });
    }))
}

// rows, x, width, type, out: 0, or not a number where a value is not finite
OPERATION(poison) {
    const int64_t width = a[2].i;
    vec total = {};
    WITH_TYPE(a[3].i, T, for (int64_t r = 0; r < a[0].i; ++r) {
        const T* x = at<T>(a[1]) + r * width;
        for_vectors(width, [&](int64_t i, int n) { total = fmadd(take(x + i, n), vec{}, total); });
    })
    *at<float>(a[4]) = sum(total);
}

// rows, x, y, out, width, scale, type: out = x + scale * y
OPERATION(add) {
    const int64_t width = a[4].i;
    const vec scale = broadcast(static_cast<float>(a[5].f));
    const bool plain = a[5].f == 1.0;
    WITH_TYPE(a[6].i, T, over_rows(a[0].i, width, [&](int64_t r) {
        const T *x = at<T>(a[1]) + r * width, *y = at<T>(a[2]) + r * width;
        T* out = at<T>(a[3]) + r * width;
        for_vectors(width, [&](int64_t i, int n) {
            const vec v = take(y + i, n);
            put(out + i, take(x + i, n) + (plain ? v : v * scale), n);
        });
    }))
}

// rows, x, y, sum, weight, normed, width, eps, type: sum = x + y, normed = its root mean square norm
OPERATION(add_norm) {
    const int64_t width = a[6].i;
    const float eps = static_cast<float>(a[7].f);
    WITH_TYPE(a[8].i, T, over_rows(a[0].i, width, [&](int64_t r) {
        const T *x = at<T>(a[1]) + r * width, *y = at<T>(a[2]) + r * width;
        T* total = at<T>(a[3]) + r * width;
        for_vectors(width, [&](int64_t i, int n) { put(total + i, take(x + i, n) + take(y + i, n), n); });
        rms_norm_row(total, at<float>(a[4]), at<T>(a[5]) + r * width, width, eps);
    }))
}

// rows, x, bytes between rows, bytes of a row, out: rows that lie apart, one after the other
OPERATION(copy_rows) {
    over_rows(a[0].i, a[3].i / 4, [&](int64_t r) {
        std::memcpy(at<char>(a[4]) + r * a[3].i, at<char>(a[1]) + r * a[2].i, static_cast<size_t>(a[3].i));
    });
}

// rows, y, weights, terms of a row, width, out, type: out[r] = the sum of weights[r][k] * y[r][k]
OPERATION(weighted_sum) {
    const int64_t terms = a[3].i, width = a[4].i;
    WITH_TYPE(a[6].i, T, over_rows(a[0].i, width * terms, [&](int64_t r) {
        const T* y = at<T>(a[1]) + r * terms * width;
        const float* weights = at<float>(a[2]) + r * terms;
        for_vectors(width, [&](int64_t i, int n) {
            vec total = take(y + i, n) * weights[0];
            for (int64_t k = 1; k < terms; ++k) total = fmadd(take(y + k * width + i, n), broadcast(weights[k]), total);
            put(at<T>(a[5]) + r * width + i, total, n);
        });
    }))
}

// rows, x, out, width, activation, gated, type
OPERATION(activate) {
    WITH_TYPE(a[6].i, T,
              activate_rows(at<T>(a[1]), at<T>(a[2]), a[0].i, a[3].i, static_cast<int>(a[4].i), a[5].i != 0))
}

// rows, positions, lengths, frequencies [one or two][pairs], pairs, cos, sin, scale, scale of the second frequencies, the
// length beyond which sequences take those
OPERATION(angles) {
    const int64_t pairs = a[4].i;
    over_rows(a[0].i, 8 * pairs, [&](int64_t r) {
        const bool second = at<int64_t>(a[2])[r] > a[9].i;
        const float* frequencies = at<float>(a[3]) + (second ? pairs : 0);
        const auto position = static_cast<float>(at<int64_t>(a[1])[r]);
        const vec scale = broadcast(static_cast<float>(second ? a[8].f : a[7].f));
        for_vectors(pairs, [&](int64_t i, int n) {
            vec sine, cosine;
            sine_cosine(take(frequencies + i, n) * position, &sine, &cosine);
            put(at<float>(a[5]) + r * pairs + i, cosine * scale, n);
            put(at<float>(a[6]) + r * pairs + i, sine * scale, n);
        });
    });
}

// tokens, qkv, cos, sin, query, keys, values, slots, block size, heads, kv heads, dim, pairs, interleaved, type,
// cache type, whether the cache is paired
OPERATION(rotate_store) {
    const Turn turn{at<float>(a[2]), at<float>(a[3]), static_cast<int>(a[9].i), static_cast<int>(a[10].i),
                    static_cast<int>(a[11].i), static_cast<int>(a[12].i), a[13].i != 0};
    WITH_CACHE(a[15].i, C, {
        const bool paired = a[16].i != 0;
        const CacheWriter<C> keys{a[5].p, a[8].i, turn.kv_heads, turn.dim, paired ? Layout::PAIRED_KEYS : Layout::ROWS};
        const CacheWriter<C> values{a[6].p, a[8].i, turn.kv_heads, turn.dim,
                                    paired ? Layout::PAIRED_VALUES : Layout::ROWS};
        WITH_TYPE(a[14].i, T, rotate_store(at<T>(a[1]), turn, at<float>(a[4]), keys, values, at<int64_t>(a[7]), a[0].i))
    })
}

// tokens, rows of float32, cache, slots, block size, heads, dim, cache type
OPERATION(store_rows) {
    const int heads = static_cast<int>(a[5].i), dim = static_cast<int>(a[6].i);
    WITH_CACHE(a[7].i, C, {
        const CacheWriter<C> cache{a[2].p, a[4].i, heads, dim};
        over_rows(a[0].i, static_cast<int64_t>(heads) * dim, [&](int64_t t) {
            for (int h = 0; h < heads; ++h) cache.write(at<int64_t>(a[3])[t], h, at<float>(a[1]) + (t * heads + h) * dim);
        });
    })
}

}  // namespace octavo
