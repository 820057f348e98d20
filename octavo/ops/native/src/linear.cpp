// Products with one weight, and with the weights of experts.
#include "linear.h"

#include <vector>

#include "activation.h"
#include "mapped.h"
#include "tiles.h"

namespace octavo {

vec activate_any(Activation activation, vec x) { return activate(activation, x); }

OPERATION(linear) {
    if (a.rows > 0) multiply(Product{a});
}

FUNCTION(set_tiles) {
    tiles_serve.codes = a.codes != 0;
    tiles_serve.bf16 = a.bf16 != 0;
    tiles_serve.attention = a.attention != 0;
    return HAS_TILES;
}

FUNCTION(packed_bytes);

namespace {

// Rows of an expert up to which experts are computed side by side, and panels that a thread takes of one at least: what
// it does for them again, rounding rows, is little then.
constexpr int64_t FEW_ROWS = TILE, FEW_PANELS = 4;

// Products of experts that have few rows each. One after the other, threads would meet at each of them.
void multiply_side_by_side(const std::vector<Product>& experts) {
    const Product& any = experts.front();
    const int64_t bytes = octavo_packed_bytes({.kind = any.kind, .rows = PANEL, .inputs = any.inputs});
    const int64_t panels = any.panels(), count = static_cast<int64_t>(experts.size());
    const int64_t least = (panels + FEW_PANELS - 1) / FEW_PANELS;
    const int64_t slices = std::clamp<int64_t>((4 * thread_count() + count - 1) / count, 1, least);
    double time = 0.0;
    for (const Product& p : experts) time += p.nanoseconds(p.rows, is_float(p.kind) ? FLOAT_PRODUCTS : CODE_PRODUCTS, bytes);
    // The same panels of all experts follow each other: they lie on one NUMA node.
    parallel(slices * count, 1, time, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t from = i / count * panels / slices, to = (i / count + 1) * panels / slices;
            Product p = experts[i % count];
            p.weight += from * bytes;
            p.outputs = std::min(to * PANEL, p.outputs) - from * PANEL;
            WITH_TYPE(p.out_dtype, T, p.out = static_cast<T*>(p.out) + from * PANEL;)
            multiply(p);
        }
    });
}

}  // namespace

// Rows of one expert are multiplied together.
OPERATION(expert_linear) {
    static thread_local std::vector<int64_t> ends, sources, targets;
    static thread_local std::vector<Product> few;
    few.clear();
    const auto valid = [&](int64_t i) { return a.experts[i] >= 0 && a.experts[i] < a.num_experts; };
    ends.assign(a.num_experts + 1, 0);
    sources.resize(a.rows);
    targets.resize(a.rows);
    for (int64_t i = 0; i < a.rows; ++i) {
        if (valid(i)) ++ends[a.experts[i] + 1];
    }
    for (int64_t e = 0; e < a.num_experts; ++e) ends[e + 1] += ends[e];  // now where each expert's rows begin
    for (int64_t i = 0; i < a.rows; ++i) {
        if (!valid(i)) continue;
        const int64_t place = ends[a.experts[i]]++;
        sources[place] = i / a.top_k;
        targets[place] = i;
    }
    Product p{};
    p.x = a.x;
    p.x_dtype = a.x_dtype;
    p.x_stride = a.x_stride;
    p.inputs = a.inputs;
    p.kind = a.kind;
    p.outputs = a.outputs;
    p.out = a.out;
    p.out_dtype = a.out_dtype;
    p.out_stride = a.out_stride;
    p.activation = Activation::NONE;
    // Whose weights are on disk are asked for together, which a disk answers sooner than one after the other.
    int64_t next = 0, asked = 0;
    const auto ask = [&] {
        for (; next < a.num_experts && asked < ASKED_MOST; ++next) {
            if (ends[next] == (next == 0 ? 0 : ends[next - 1])) continue;
            will_need(a.weights[next], a.bytes_on_disk);
            asked += a.bytes_on_disk;
        }
    };
    for (int64_t e = 0, first = 0; e < a.num_experts; first = ends[e++]) {
        if (ends[e] == first) continue;
        if (a.bytes_on_disk > 0) ask();
        asked -= a.bytes_on_disk;
        p.rows = ends[e] - first;
        p.weight = a.weights[e];
        p.order = a.orders[e];
        p.sources = sources.data() + first;
        p.targets = targets.data() + first;
        p.rows <= FEW_ROWS && thread_count() > 1 && a.bytes_on_disk == 0 ? few.push_back(p) : multiply(p);
    }
    if (few.size() == 1) multiply(few.front());
    if (few.size() > 1) multiply_side_by_side(few);
}

}  // namespace octavo
