// Which experts a row goes to, and how much each counts.
#include <algorithm>
#include <cmath>
#include <vector>

#include "activation.h"
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

// `x` becomes scores. `room` numbers of it are a multiple of a vector.
void make_scores(float* x, const arguments::route& a, int64_t room) {
    if (a.scores == RouterScores::SOFTMAX) {
        const float total = exponentials(x, a.num_experts, room);
        for (int64_t i = 0; i < a.num_experts; ++i) x[i] /= total;
    } else if (a.scores == RouterScores::SIGMOID) {
        for (int64_t i = 0; i < room; i += LANES) store(x + i, 1.0f / (exponential(-load(x + i)) + 1.0f));
    } else if (a.scores == RouterScores::SQRT_SOFTPLUS) {
        for (int64_t i = 0; i < room; i += LANES) store(x + i, softplus(load(x + i)));
        for (int64_t i = 0; i < room; ++i) x[i] = std::sqrt(x[i]);
    }
}

// The sum of the largest `best` of `count` numbers.
float sum_of_best(const float* x, int64_t count, int64_t best) {
    if (best == 1) return x[largest(x, count)];
    std::vector<float> left(x, x + count);
    float total = 0.0f;
    for (int64_t k = 0; k < std::min(best, count); ++k) {
        float& peak = left[largest(left.data(), count)];
        total += peak;
        peak = NOTHING;
    }
    return total;
}

// Leaves nothing of groups but those with the largest scores.
void keep_groups(float* scores, const arguments::route& a) {
    const int64_t size = a.num_experts / a.num_groups;
    std::vector<float> ranks(a.num_groups);
    for (int64_t g = 0; g < a.num_groups; ++g) ranks[g] = sum_of_best(scores + g * size, size, a.group_best);
    std::vector<bool> kept(a.num_groups);
    for (int64_t k = 0; k < a.top_groups; ++k) {
        const int64_t best = largest(ranks.data(), a.num_groups);
        kept[best] = true;
        ranks[best] = NOTHING;
    }
    for (int64_t g = 0; g < a.num_groups; ++g) {
        if (!kept[g]) std::fill_n(scores + g * size, size, NOTHING);
    }
}

// `scores` and `choice` have room for `room` numbers each.
void choose(const float* logits, const arguments::route& a, float* scores, float* choice, int64_t room, float* weights,
            int64_t* experts) {
    std::copy_n(logits, a.num_experts, scores);
    make_scores(scores, a, room);
    for (int64_t i = 0; i < a.num_experts; ++i) choice[i] = a.bias ? scores[i] + a.bias[i] : scores[i];
    if (a.num_groups > 1) keep_groups(choice, a);
    float norm = 0.0f;
    for (int64_t k = 0; k < a.top_k; ++k) {
        if (!a.chosen) experts[k] = largest(choice, a.num_experts);
        const int64_t best = experts[k];
        weights[k] = choice[best] == NOTHING ? 0.0f : scores[best];
        if (!a.chosen) choice[best] = NOTHING;
        norm += a.norm == 1.0f ? weights[k] : std::pow(weights[k], a.norm);
    }
    if (a.norm == 0.0f) norm = 1.0f;
    else if (a.norm != 1.0f) norm = std::pow(norm, 1.0f / a.norm);
    norm = std::max(norm, a.min_norm);
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
                choose(logits, a, scores.data(), scores.data() + room, room, weights, experts);
            }
        }
    });
}

}  // namespace octavo
