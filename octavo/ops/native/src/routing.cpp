// Which experts a row goes to, and how much each counts.
#include <algorithm>
#include <cmath>
#include <vector>

#include "call.h"
#include "functions.h"
#include "rows.h"

namespace octavo {
namespace {

constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// The first of the largest of `count` numbers.
int64_t largest(const float* x, int64_t count) { return std::max_element(x, x + count) - x; }

// `x = exp(x - the largest)`, whose sum is returned. `room` numbers of x are a multiple of a vector.
float exponentials(float* x, int64_t count, int64_t room) {
    const float peak = x[largest(x, count)];
    std::fill(x + count, x + room, NOTHING);
    vec total = {};
    for (int64_t i = 0; i < room; i += LANES) {
        const vec v = exponential(load(x + i) - peak);
        store(x + i, v);
        total += v;
    }
    return sum(total);
}

// Leaves nothing of groups but those with the largest scores.
void keep_groups(float* scores, const arguments::route& a) {
    const int64_t size = a.num_experts / a.num_groups;
    std::vector<float> peaks(a.num_groups);
    for (int64_t g = 0; g < a.num_groups; ++g) peaks[g] = scores[g * size + largest(scores + g * size, size)];
    for (int64_t k = 0; k < a.top_groups; ++k) peaks[largest(peaks.data(), a.num_groups)] = NOTHING;
    for (int64_t g = 0; g < a.num_groups; ++g) {
        if (peaks[g] != NOTHING) std::fill_n(scores + g * size, size, 0.0f);
    }
}

void choose(const float* logits, const arguments::route& a, float* scores, int64_t room, float* weights, int64_t* experts) {
    std::copy_n(logits, a.num_experts, scores);
    const float total = exponentials(scores, a.num_experts, room);
    for (int64_t i = 0; i < a.num_experts; ++i) scores[i] /= total;
    if (a.num_groups > 1) keep_groups(scores, a);
    float norm = 0.0f;
    for (int64_t k = 0; k < a.top_k; ++k) {
        const int64_t best = experts[k] = largest(scores, a.num_experts);
        weights[k] = scores[best];
        scores[best] = NOTHING;
        norm += a.norm == 1.0f ? weights[k] : std::pow(weights[k], a.norm);
    }
    if (a.norm == 0.0f) norm = 1.0f;
    else if (a.norm != 1.0f) norm = std::pow(norm, 1.0f / a.norm);
    for (int64_t k = 0; k < a.top_k; ++k) weights[k] = weights[k] / (norm + a.eps) * a.factor;
}

// Each choice among those that are left is weighed against the ones that are not much worse.
void choose_sparsely(const float* logits, const arguments::route& a, float* left, float* near, int64_t room,
                     float* weights, int64_t* experts) {
    std::copy_n(logits, a.num_experts, left);
    for (int64_t k = 0; k < a.top_k; ++k) {
        const int64_t best = experts[k] = largest(left, a.num_experts);
        const float peak = left[best];
        for (int64_t i = 0; i < a.num_experts; ++i) {
            const bool worse = (peak - logits[i]) / std::max(std::fabs(logits[i]), peak) > 2 * a.noise;
            near[i] = worse ? NOTHING : left[i];
        }
        const float total = exponentials(near, a.num_experts, room);
        weights[k] = near[best] / total;
        left[best] = NOTHING;
    }
}

}  // namespace

OPERATION(route) {
    const int64_t room = (a.num_experts + LANES - 1) / LANES * LANES;
    parallel(a.rows, std::max<int64_t>(1, SMALL / a.num_experts), [&](int64_t first, int64_t last) {
        std::vector<float> scores(2 * room);
        for (int64_t r = first; r < last; ++r) {
            const float* logits = a.logits + r * a.num_experts;
            float* weights = a.weights + r * a.top_k;
            int64_t* experts = a.experts + r * a.top_k;
            if (a.noise > 0.0f) {
                choose_sparsely(logits, a, scores.data(), scores.data() + room, room, weights, experts);
            } else {
                choose(logits, a, scores.data(), room, weights, experts);
            }
        }
    });
}

}  // namespace octavo
