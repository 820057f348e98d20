// Products with one weight, and with the weights of experts.
#include "linear.h"

#include <vector>

#include "activation.h"

namespace octavo {

vec activate_any(int activation, vec x) { return activate(activation, x); }

// rows, x, x type, x stride, width, kind, weights, outputs, bias or null, out, out type, out stride, activation of the
// first half of outputs that gates the second, or -1, whether rows are taken in two parts
OPERATION(linear) {
    Product p{a[0].i,          a[1].p,  static_cast<int>(a[2].i),  a[3].i, a[4].i, at<uint8_t>(a[6]), a[7].i,
              at<float>(a[8]), a[9].p, static_cast<int>(a[10].i), a[11].i};
    p.activation = static_cast<int>(a[12].i);
    p.fine = a[13].i != 0;
    if (p.rows > 0) multiply(p, static_cast<int>(a[5].i));
}

// choices, x, x type, x stride, width, kind, choices a row of x, chosen experts, number of experts, their weights,
// outputs, out, out type, out stride: a row of the result for each choice. Rows of one expert are multiplied together.
OPERATION(expert_linear) {
    static thread_local std::vector<int64_t> ends, sources, targets;
    const int64_t choices = a[0].i, share = a[6].i, experts = a[8].i;
    const int64_t* chosen = at<int64_t>(a[7]);
    const auto valid = [&](int64_t i) { return chosen[i] >= 0 && chosen[i] < experts; };
    ends.assign(experts + 1, 0);
    sources.resize(choices);
    targets.resize(choices);
    for (int64_t i = 0; i < choices; ++i) {
        if (valid(i)) ++ends[chosen[i] + 1];
    }
    for (int64_t e = 0; e < experts; ++e) ends[e + 1] += ends[e];  // now where each expert's choices begin
    for (int64_t i = 0; i < choices; ++i) {
        if (!valid(i)) continue;
        const int64_t place = ends[chosen[i]]++;
        sources[place] = i / share;
        targets[place] = i;
    }
    for (int64_t e = 0, first = 0; e < experts; first = ends[e++]) {
        if (ends[e] == first) continue;
        const Product p{ends[e] - first, a[1].p, static_cast<int>(a[2].i),  a[3].i,  a[4].i,
                        static_cast<const uint8_t* const*>(a[9].p)[e],      a[10].i, nullptr, a[11].p,
                        static_cast<int>(a[12].i), a[13].i, sources.data() + first, targets.data() + first};
        multiply(p, static_cast<int>(a[5].i));
    }
}

}  // namespace octavo
