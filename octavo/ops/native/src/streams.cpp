// Several residual streams: weights to read, write and mix them by, and mixing.
#include <vector>

#include "activation.h"
#include "call.h"
#include "rows.h"

namespace octavo {
namespace {

float exponential_of(float x) { return exponential(broadcast(x))[0]; }
float sigmoid_of(float x) { return 1.0f / (exponential_of(-x) + 1.0f); }

// What each stream gives to each, `[from][to]`: a softmax over those that are given to, and then columns and rows
// divided by their sums in turn.
void balance(float* mix, int64_t count, float eps, int64_t iterations) {
    const auto divide = [&](int64_t step, int64_t across, float added) {
        for (int64_t i = 0; i < count; ++i) {
            float total = 0.0f;
            for (int64_t j = 0; j < count; ++j) total += mix[i * across + j * step];
            for (int64_t j = 0; j < count; ++j) mix[i * across + j * step] /= total + added;
        }
    };
    for (int64_t i = 0; i < count; ++i) {
        float* row = mix + i * count;
        const float peak = *std::max_element(row, row + count);
        for (int64_t j = 0; j < count; ++j) row[j] = exponential_of(row[j] - peak);
    }
    divide(1, count, 0.0f);
    for (int64_t i = 0; i < count * count; ++i) mix[i] += eps;
    divide(count, 1, eps);
    for (int64_t i = 1; i < iterations; ++i) {
        divide(1, count, eps);
        divide(count, 1, eps);
    }
}

template <typename T>
void mix_streams(const arguments::mix_streams& a) {
    const int64_t terms = 1 + a.count;
    over_rows(a.rows, a.count * terms * a.columns, [&](int64_t r) {
        const T *old = row_of<T>(a.x, r, a.count * a.columns), *given = row_of<T>(a.y, r, a.columns);
        T* out = row_of<T>(a.out, r, a.count * a.columns);
        for (int64_t k = 0; k < a.count; ++k) {
            const float* weights = a.weights + (r * a.count + k) * terms;
            for_vectors(a.columns, [&](int64_t i, int n) {
                vec total = take(given + i, n) * weights[0];
                for (int64_t j = 0; j < a.count; ++j) {
                    total = fmadd(take(old + j * a.columns + i, n), broadcast(weights[1 + j]), total);
                }
                put(out + k * a.columns + i, total, n);
            });
        }
    });
}

}  // namespace

OPERATION(stream_weights) {
    const int64_t count = a.count, columns = a.weights == nullptr ? count : count * (2 + count);
    over_rows(a.rows, 64 * columns, [&](int64_t r) {
        const float* products = a.products + r * columns;
        const auto scaled = [&](int64_t i, int64_t kind) { return products[i] * a.scale[kind] + a.bias[i]; };
        for (int64_t k = 0; k < count; ++k) a.read[r * count + k] = sigmoid_of(scaled(k, 0)) + a.eps;
        if (a.weights == nullptr) return;
        std::vector<float> mix(count * count);
        for (int64_t i = 0; i < count * count; ++i) mix[i] = scaled(2 * count + i, 2);
        balance(mix.data(), count, a.eps, a.iterations);
        float* weights = a.weights + r * count * (1 + count);
        for (int64_t k = 0; k < count; ++k, weights += 1 + count) {
            weights[0] = sigmoid_of(scaled(count + k, 1)) * 2.0f;
            for (int64_t j = 0; j < count; ++j) weights[1 + j] = mix[j * count + k];
        }
    });
}

OPERATION(mix_streams) { WITH_TYPE(a.dtype, T, mix_streams<T>(a)) }

}  // namespace octavo
