// Norms, activations, sums, and rope with the cache's write.
#include <cmath>

#include "activation.h"
#include "cache.h"
#include "rows.h"

namespace octavo {
namespace {

// ---- norms ---------------------------------------------------------------------------------------------------------

template <typename T>
INLINE void rms_norm_row(const T* x, const float* weight, T* out, int64_t columns, float eps) {
    vec squares = {};
    for_vectors(columns, [&](int64_t i, int n) {
        const vec v = take(x + i, n);
        squares = fmadd(v, v, squares);
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + eps);
    for_vectors(columns, [&](int64_t i, int n) {
        const vec v = take(x + i, n) * scale;
        put(out + i, weight == nullptr ? v : v * take(weight + i, n), n);
    });
}

template <typename T>
void rms_norm_gated_row(const T* x, const T* gate, const arguments::rms_norm_gated& a, T* out) {
    vec squares = {};
    for_vectors(a.columns, [&](int64_t i, int n) {
        const vec v = take(x + i, n);
        squares = fmadd(v, v, squares);
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(a.columns) + a.eps);
    for_vectors(a.columns, [&](int64_t i, int n) {
        const vec v = take(x + i, n) * scale * take(a.weight + i, n);
        put(out + i, v * activate(a.activation, take(gate + i, n)), n);
    });
}

template <typename T>
INLINE void layer_norm_row(const T* x, const float* weight, const float* bias, T* out, int64_t columns, float eps) {
    vec total = {};
    for_vectors(columns, [&](int64_t i, int n) { total += take(x + i, n); });
    const float mean = sum(total) / static_cast<float>(columns);
    vec squares = {};
    for_vectors(columns, [&](int64_t i, int n) {
        const vec v = select(lane_numbers() < n, take(x + i, n) - mean, vec{});
        squares = fmadd(v, v, squares);
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(columns) + eps);
    for_vectors(columns, [&](int64_t i, int n) {
        vec v = (take(x + i, n) - mean) * scale;
        if (weight != nullptr) v = v * take(weight + i, n);
        if (bias != nullptr) v = v + take(bias + i, n);
        put(out + i, v, n);
    });
}

// ---- activations ---------------------------------------------------------------------------------------------------

// out = activation(x), or activation(x) * up where there is an `up`.
template <Activation activation, typename X, typename T>
INLINE void activate_row(const X* x, const X* up, T* out, int64_t columns) {
    for_vectors(columns, [&](int64_t i, int n) {
        const vec v = activate<activation>(take(x + i, n));
        put(out + i, up == nullptr ? v : v * take(up + i, n), n);
    });
}

template <typename T>
void activate_rows(const arguments::activate& a) {
    const int64_t columns = a.columns;
    with_activation(a.activation, [&](auto known) {
        over_rows(a.rows, columns, [&](int64_t r) {
            const T* x = row_of<T>(a.x, r, columns * (a.gated ? 2 : 1));
            activate_row<decltype(known)::value>(x, a.gated ? x + columns : nullptr, row_of<T>(a.out, r, columns), columns);
        });
    });
}

template <typename T>
void gate_float32_rows(const arguments::gate_float32& a) {
    const int64_t columns = a.columns;
    with_activation(a.activation, [&](auto known) {
        over_rows(a.rows, columns, [&](int64_t r) {
            const float* x = a.x + r * 2 * columns;
            activate_row<decltype(known)::value>(x, x + columns, row_of<T>(a.out, r, columns), columns);
        });
    });
}

template <typename T>
void gate_rows(const arguments::gate& a) {
    const vec above = broadcast(std::nextafter(a.threshold, INFINITY)), limit = broadcast(a.limit);
    over_rows(a.rows, a.columns, [&](int64_t r) {
        const T *gate = row_of<T>(a.x, r, 2 * a.columns), *up = gate + a.columns;
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            vec g = take(gate + i, n), u = take(up + i, n);
            g = select(g < above, vec{}, g);  // not a number stays one
            g = select(g > limit, limit, g);
            u = select(u > limit, limit, select(u < -limit, -limit, u));
            if (a.activation != Activation::NONE) g = activate(a.activation, g);
            put(out + i, g * (u + a.up_offset), n);
        });
    });
}

// ---- rope and the cache --------------------------------------------------------------------------------------------

// One head turned by its position's angles.
template <typename T>
INLINE void rotate_head(const T* x, float* out, const float* cos, const float* sin, int dim, int pairs, bool interleaved) {
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

template <typename T, typename C>
void rope_store(const arguments::rope_store& a) {
    const Layout key_layout = a.paired ? Layout::PAIRED_KEYS : Layout::ROWS;
    const Layout value_layout = a.paired ? Layout::PAIRED_VALUES : Layout::ROWS;
    const CacheWriter<C> keys{a.key_cache, a.block_size, a.num_kv_heads, a.head_dim, key_layout};
    const CacheWriter<C> values{a.value_cache, a.block_size, a.num_kv_heads, a.value_dim, value_layout};
    const int num_heads = a.num_heads, num_kv_heads = a.num_kv_heads, dim = a.head_dim, pairs = a.pairs;
    const int64_t first_value = static_cast<int64_t>(num_heads + num_kv_heads) * dim;
    const int64_t columns = first_value + static_cast<int64_t>(num_kv_heads) * a.value_dim;
    over_rows(a.rows, columns, [&](int64_t t) {
        const T* row = row_of<T>(a.qkv, t, columns);
        const float *cos = a.cos + t * pairs, *sin = a.sin + t * pairs;
        for (int h = 0; h < num_heads; ++h) {
            rotate_head(row + h * dim, a.query + (t * num_heads + h) * dim, cos, sin, dim, pairs, a.interleaved);
        }
        float head[MAX_HEAD_DIM];
        for (int h = 0; h < num_kv_heads; ++h) {
            rotate_head(row + (num_heads + h) * dim, head, cos, sin, dim, pairs, a.interleaved);
            keys.write(a.slot_mapping[t], h, head);
            const T* value = row + first_value + h * a.value_dim;
            for_vectors(a.value_dim, [&](int64_t i, int n) { put(head + i, take(value + i, n), n); });
            values.write(a.slot_mapping[t], h, head);
        }
    });
}

template <typename X, typename Y>
void join_rope(const arguments::join_rope& a) {
    const int64_t columns = a.columns, dim = columns + a.rope_dim;
    over_rows(a.rows, a.num_heads * dim, [&](int64_t r) {
        const float *cos = a.cos + r * a.pairs, *sin = a.sin + r * a.pairs;
        for (int64_t h = 0; h < a.num_heads; ++h) {
            const X* x = row_of<X>(a.x, r, a.x_stride) + h * a.x_head_stride;
            const Y* y = row_of<Y>(a.y, r, a.y_stride) + h * a.y_head_stride;
            float* out = a.out + (r * a.num_heads + h) * dim;
            for_vectors(columns, [&](int64_t i, int n) { put(out + i, take(x + i, n), n); });
            rotate_head(y, out + columns, cos, sin, a.rope_dim, a.pairs, a.interleaved);
        }
    });
}

}  // namespace

OPERATION(rms_norm) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        rms_norm_row(row_of<T>(a.x, r, a.columns), a.weight, row_of<T>(a.out, r, a.columns), a.columns, a.eps);
    }))
}

OPERATION(layer_norm) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        T* out = row_of<T>(a.out, r, a.columns);
        layer_norm_row(row_of<T>(a.x, r, a.columns), a.weight, a.bias, out, a.columns, a.eps);
    }))
}

OPERATION(rms_norm_gated) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows * a.heads, a.columns, [&](int64_t i) {
        const int64_t row = i / a.heads, first = i % a.heads * a.columns;
        const T* gate = row_of<T>(a.gate, row, a.gate_stride) + first;
        rms_norm_gated_row(row_of<T>(a.x, i, a.columns), gate, a, row_of<T>(a.out, i, a.columns));
    }))
}
OPERATION(head_norm) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows * a.heads, a.columns, [&](int64_t i) {
        T* x = row_of<T>(a.x, i / a.heads, a.stride) + i % a.heads * a.columns;
        const float* weight = a.weight == nullptr ? nullptr : a.weight + i % a.heads * a.weight_stride;
        if (a.is_rms) return rms_norm_row(x, weight, x, a.columns, a.eps);
        const float* bias = a.bias == nullptr ? nullptr : a.bias + i % a.heads * a.bias_stride;
        layer_norm_row(x, weight, bias, x, a.columns, a.eps);
    }))
}

OPERATION(to_float32) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const T* x = row_of<T>(a.x, r, a.columns);
        float* out = a.out + r * a.columns;
        for_vectors(a.columns, [&](int64_t i, int n) { put(out + i, take(x + i, n), n); });
    }))
}

OPERATION(non_finite) {
    vec total = {};
    WITH_TYPE(a.dtype, T, for (int64_t r = 0; r < a.rows; ++r) {
        const T* x = row_of<T>(a.x, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) { total = fmadd(take(x + i, n), vec{}, total); });
    })
    *a.out = sum(total);
}

OPERATION(add) {
    const vec scale = broadcast(a.scale);
    const bool plain = a.scale == 1.0f;
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const T *x = row_of<T>(a.x, r, a.columns), *y = row_of<T>(a.y, r, a.columns);
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            const vec v = take(y + i, n);
            put(out + i, take(x + i, n) + (plain ? v : v * scale), n);
        });
    }))
}

OPERATION(add_rms_norm) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const T *x = row_of<T>(a.x, r, a.columns), *y = row_of<T>(a.y, r, a.columns);
        T* total = row_of<T>(a.total, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) { put(total + i, take(x + i, n) + take(y + i, n), n); });
        rms_norm_row(total, a.weight, row_of<T>(a.out, r, a.columns), a.columns, a.eps);
    }))
}

OPERATION(scale) {
    WITH_TYPE(a.dtype, T, {
        T factor;
        store_some(&factor, broadcast(a.factor), 1);
        const float by = as_float(factor);
        over_rows(a.rows, a.columns, [&](int64_t r) {
            const T* x = row_of<T>(a.x, r, a.columns);
            T* out = row_of<T>(a.out, r, a.columns);
            for_vectors(a.columns, [&](int64_t i, int n) { put(out + i, take(x + i, n) * by, n); });
        });
    })
}

OPERATION(scale_rows) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const vec by = broadcast(a.factors[r]);
        const T* x = row_of<T>(a.x, r, a.columns);
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) { put(out + i, take(x + i, n) * by, n); });
    }))
}

OPERATION(xielu) {
    const vec above = broadcast(a.shape[0]), below = broadcast(a.shape[1]), beta = broadcast(a.shape[2]);
    const vec eps = broadcast(a.shape[3]);
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const T* x = row_of<T>(a.x, r, a.columns);
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            const vec v = take(x + i, n);
            const vec curve = select(v > 0.0f, v * v * above, (exponential(smaller(v, eps)) - 1.0f - v) * below);
            put(out + i, curve + v * beta, n);
        });
    }))
}

OPERATION(position_factors) {
    for (int64_t r = 0; r < a.rows; ++r) {
        const double periods = std::floor(static_cast<double>(a.positions[r] + a.offset) / a.period);
        a.out[r] = static_cast<float>(std::log1p(periods) * a.beta + 1.0);
    }
}

OPERATION(multiply) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const T *x = row_of<T>(a.x, r, a.x_stride), *y = row_of<T>(a.y, r, a.y_stride);
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            put(out + i, take(x + i, n) * activate_maybe(a.activation, take(y + i, n)), n);
        });
    }))
}

OPERATION(add_gated) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const T *x = row_of<T>(a.x, r, a.columns), *y = row_of<T>(a.y, r, a.columns);
        const vec gate = 1.0f / (exponential(broadcast(-as_float(*row_of<T>(a.gate, r, 1)))) + 1.0f);
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            T rounded[LANES];
            store(rounded, take(y + i, n) * gate);
            put(out + i, take(x + i, n) + load(rounded), n);
        });
    }))
}

OPERATION(scale_columns) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        const T* x = row_of<T>(a.x, r, a.x_stride);
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) { put(out + i, take(x + i, n) * take(a.factors + i, n), n); });
    }))
}

OPERATION(clip) {
    const vec limit = broadcast(a.limit);
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns, [&](int64_t r) {
        T* x = row_of<T>(a.x, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            const vec v = take(x + i, n);
            put(x + i, select(v > limit, limit, select(v < -limit, -limit, v)), n);
        });
    }))
}

OPERATION(copy_rows) {
    over_rows(a.rows, a.row_bytes / 4, [&](int64_t r) {
        std::memcpy(a.out + r * a.out_stride_bytes, a.x + r * a.stride_bytes, static_cast<size_t>(a.row_bytes));
    });
}

OPERATION(weighted_sum) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, a.columns * a.terms, [&](int64_t r) {
        const int64_t terms = a.terms, columns = a.columns;
        const T* y = row_of<T>(a.y, r, terms * columns);
        const float* weights = a.weights ? a.weights + r * terms : nullptr;
        T* out = row_of<T>(a.out, r, columns);
        for_vectors(columns, [&](int64_t i, int n) {
            vec total = weights ? take(y + i, n) * weights[0] : take(y + i, n);
            for (int64_t k = 1; k < terms; ++k) {
                const vec term = take(y + k * columns + i, n);
                total = weights ? fmadd(term, broadcast(weights[k]), total) : total + term;
            }
            put(out + i, total, n);
        });
    }))
}

OPERATION(gate) { WITH_TYPE(a.dtype, T, gate_rows<T>(a)) }

OPERATION(gate_float32) { WITH_TYPE(a.dtype, T, gate_float32_rows<T>(a)) }

OPERATION(activate) { WITH_TYPE(a.dtype, T, activate_rows<T>(a)) }

OPERATION(rope_angles) {
    over_rows(a.rows, 8 * a.pairs, [&](int64_t r) {
        const bool is_long = a.lengths[r] > a.long_threshold;
        const float* frequencies = a.frequencies + (is_long ? a.pairs : 0);
        const auto position = static_cast<float>(a.positions[r] + a.offset);
        const vec scale = broadcast(is_long ? a.long_scale : a.scale);
        for_vectors(a.pairs, [&](int64_t i, int n) {
            vec sine, cosine;
            sine_cosine(take(frequencies + i, n) * position, &sine, &cosine);
            put(a.cos + r * a.pairs + i, cosine * scale, n);
            put(a.sin + r * a.pairs + i, sine * scale, n);
        });
    });
}

OPERATION(rope_store) { WITH_CACHE(a.cache_dtype, C, WITH_TYPE(a.dtype, T, rope_store<T, C>(a))) }

OPERATION(join_rope) { WITH_TYPE(a.x_dtype, X, WITH_TYPE(a.y_dtype, Y, (join_rope<X, Y>(a)))) }

OPERATION(store_rows) {
    WITH_CACHE(a.cache_dtype, C, {
        const CacheWriter<C> cache{a.cache, a.block_size, a.num_heads, a.head_dim};
        const int64_t columns = static_cast<int64_t>(a.num_heads) * a.head_dim;
        over_rows(a.rows, columns, [&](int64_t t) {
            for (int h = 0; h < a.num_heads; ++h) cache.write(a.slot_mapping[t], h, a.x + t * columns + h * a.head_dim);
        });
    })
}

}  // namespace octavo
