// Several residual streams that lie side by side in a row (AltUp: Baykal et al. 2023), and gates of which few stay.
#include <cmath>

#include "activation.h"
#include "call.h"
#include "rows.h"

namespace octavo {
namespace {

template <typename T>
float mean_square(const T* x, int64_t columns) {
    vec squares = {};
    for_vectors(columns, [&](int64_t i, int n) {
        const vec v = take(x + i, n);
        squares = fmadd(v, v, squares);
    });
    return sum(squares) / static_cast<float>(columns);
}

}  // namespace

OPERATION(predict_streams) {
    const int64_t streams = a.streams, columns = a.columns;
    WITH_TYPE(a.dtype, T, over_rows(a.rows, streams * streams * columns, [&](int64_t r) {
        const T* x = row_of<T>(a.x, r, streams * columns);
        const float* mix = a.mix + r * streams * streams;
        T* out = row_of<T>(a.out, r, streams * columns);
        for (int64_t i = 0; i < streams; ++i, mix += streams) {
            for_vectors(columns, [&](int64_t at, int n) {
                vec total = take(x + i * columns + at, n);
                for (int64_t j = 0; j < streams; ++j) {
                    total = fmadd(take(x + j * columns + at, n), broadcast(mix[j]), total);
                }
                put(out + i * columns + at, total, n);
            });
        }
    }))
}

OPERATION(correct_streams) {
    const int64_t streams = a.streams, columns = a.columns;
    WITH_TYPE(a.dtype, T, over_rows(a.rows, streams * columns, [&](int64_t r) {
        const T *x = row_of<T>(a.x, r, streams * columns), *y = row_of<T>(a.y, r, columns);
        T* out = row_of<T>(a.out, r, streams * columns);
        for (int64_t i = 0; i < streams; ++i) {
            const vec gain = broadcast(a.gains[r * streams + i] + 1.0f);
            for_vectors(columns, [&](int64_t at, int n) {
                const vec change = take(y + at, n) - take(x + a.active * columns + at, n);
                put(out + i * columns + at, fmadd(change, gain, take(x + i * columns + at, n)), n);
            });
        }
    }))
}

OPERATION(add_to_streams) {
    const int64_t streams = a.streams, columns = a.columns;
    WITH_TYPE(a.dtype, T, over_rows(a.rows, streams * columns, [&](int64_t r) {
        const T *x = row_of<T>(a.x, r, streams * columns), *y = row_of<T>(a.y, r, columns);
        T* out = row_of<T>(a.out, r, streams * columns);
        for_vectors(columns, [&](int64_t at, int n) { put(out + at, take(x + at, n), n); });
        for (int64_t i = 1; i < streams; ++i) {
            for_vectors(columns, [&](int64_t at, int n) {
                put(out + i * columns + at, take(x + i * columns + at, n) + take(y + at, n), n);
            });
        }
    }))
}

OPERATION(match_magnitude) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, 2 * a.columns, [&](int64_t r) {
        const T *x = row_of<T>(a.x, r, a.columns), *like = row_of<T>(a.like, r, a.columns);
        const float own = std::max(mean_square(x, a.columns), a.least);
        const vec factor = broadcast(std::sqrt(mean_square(like, a.columns) / own));
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) { put(out + i, take(x + i, n) * factor, n); });
    }))
}

OPERATION(row_cutoffs) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, 2 * a.columns, [&](int64_t r) {
        const T* x = row_of<T>(a.x, r, a.x_stride);
        vec total = {}, squares = {};
        for_vectors(a.columns, [&](int64_t i, int n) { total += take(x + i, n); });
        const float mean = sum(total) / static_cast<float>(a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            const vec v = select(lane_numbers() < n, take(x + i, n) - mean, vec{});
            squares = fmadd(v, v, squares);
        });
        a.out[r] = std::sqrt(sum(squares) / static_cast<float>(a.columns)) * a.deviations + mean;
    }))
}

OPERATION(gate_above) {
    WITH_TYPE(a.dtype, T, over_rows(a.rows, 2 * a.columns, [&](int64_t r) {
        const T *gate = row_of<T>(a.x, r, 2 * a.columns), *up = gate + a.columns;
        // What is not finite in a row is so in its cutoff, and must not be lost where the larger of it and 0 is taken.
        const vec cutoff = broadcast(a.cutoffs[r]), nothing = cutoff * 0.0f;
        T* out = row_of<T>(a.out, r, a.columns);
        for_vectors(a.columns, [&](int64_t i, int n) {
            const vec above = larger(take(gate + i, n) - cutoff, vec{}) + nothing;
            put(out + i, activate(a.activation, above) * take(up + i, n), n);
        });
    }))
}

}  // namespace octavo
