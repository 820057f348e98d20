// Mamba (Gu & Dao 2023): the short convolution, and the selective scan after it.
#include "activation.h"
#include "call.h"
#include "numbers.h"
#include "rows.h"

namespace octavo {
namespace {

// ---- convolution ---------------------------------------------------------------------------------------------------

struct Convolution {
    const void* x;
    int64_t x_stride;
    float* history;
    int64_t slot_stride;
    const float *weight, *bias;
    void* out;
    const int64_t* runs;  // [runs][3]: first row, tokens, slot
    int64_t num_runs, channels;
    int activation;
};

template <int TAPS, typename T>
void convolve(const Convolution& c) {
    const int64_t blocks = (c.channels + LANES - 1) / LANES;
    parallel(blocks, 8, [&](int64_t begin, int64_t end) {
        for (int64_t first = begin * LANES; first < std::min(end * LANES, c.channels); first += LANES) {
            const int count = static_cast<int>(std::min<int64_t>(LANES, c.channels - first));
            vec weight[TAPS], past[TAPS];
            for (int k = 0; k < TAPS; ++k) {
                float of_tap[LANES] = {};
                for (int i = 0; i < count; ++i) of_tap[i] = c.weight[(first + i) * TAPS + k];
                weight[k] = load(of_tap);
            }
            const vec bias = c.bias == nullptr ? vec{} : take(c.bias + first, count);
            for (const int64_t* run = c.runs; run < c.runs + 3 * c.num_runs; run += 3) {
                float* history = c.history + run[2] * c.slot_stride + first;
                for (int k = 0; k + 1 < TAPS; ++k) past[k] = take(history + k * c.channels, count);
                for (int64_t row = run[0]; row < run[0] + run[1]; ++row) {
                    past[TAPS - 1] = take(static_cast<const T*>(c.x) + row * c.x_stride + first, count);
                    vec total = past[0] * weight[0];
                    for (int k = 1; k < TAPS; ++k) total = fmadd(past[k], weight[k], total);
                    put(static_cast<T*>(c.out) + row * c.channels + first, activate(c.activation, total + bias), count);
                    for (int k = 0; k + 1 < TAPS; ++k) past[k] = past[k + 1];
                }
                for (int k = 0; k + 1 < TAPS; ++k) put(history + k * c.channels, past[k], count);
            }
        }
    });
}

// ---- scan ----------------------------------------------------------------------------------------------------------

constexpr int SCAN_CHANNELS = 8;  // channels of one sequence that go through time together
constexpr int MAX_WIDTH = 128;    // values of state a channel, as Python knows

struct Scan {
    const void *x, *dt;  // [rows][channels]
    const float* a;
    const void *b, *c;  // [rows][width], `b_stride` and `c_stride` numbers apart
    int64_t b_stride, c_stride;
    const float* d;
    const void* gate;  // [rows][channels], `gate_stride` numbers apart
    int64_t gate_stride;
    void* y;
    float* state;
    const int64_t* runs;  // [runs][3]: first row, tokens, slot
    int64_t num_runs, slot_stride;
    int channels, width;  // width: values of state a channel
    int activation;       // of the gate
};

// One sequence's run through `count` channels from `channel` on. A channel's state and decay take `vectors` vectors.
template <typename T>
void scan_channels(const Scan& s, const int64_t* run, int channel, int count) {
    const int vectors = (s.width + LANES - 1) / LANES, room = vectors * LANES;
    float* state = s.state + run[2] * s.slot_stride + static_cast<int64_t>(channel) * s.width;
    const float* a = s.a + static_cast<int64_t>(channel) * s.width;
    alignas(64) float h[SCAN_CHANNELS * MAX_WIDTH] = {}, decay[SCAN_CHANNELS * MAX_WIDTH] = {};
    alignas(64) float in[MAX_WIDTH] = {}, out[MAX_WIDTH] = {};
    for (int i = 0; i < count; ++i) {
        std::copy_n(state + i * s.width, s.width, h + i * room);
        std::copy_n(a + i * s.width, s.width, decay + i * room);
    }
    const vec skip = load_some(s.d + channel, count);
    for (int64_t row = run[0]; row < run[0] + run[1]; ++row) {
        const int64_t at = row * s.channels + channel;
        for_vectors(s.width, [&](int64_t i, int n) {
            put(in + i, take(static_cast<const T*>(s.b) + row * s.b_stride + i, n), n);
            put(out + i, take(static_cast<const T*>(s.c) + row * s.c_stride + i, n), n);
        });
        const vec x = load_some(static_cast<const T*>(s.x) + at, count);
        alignas(64) float step[LANES], input[LANES], y[LANES] = {};
        const vec steps = softplus(load_some(static_cast<const T*>(s.dt) + at, count));
        store(step, steps);
        store(input, steps * x);
#pragma GCC unroll 1
        for (int i = 0; i < count; ++i) {
            vec total = {};
#pragma GCC unroll 1
            for (int v = i * room; v < (i + 1) * room; v += LANES) {
                const vec shrunk = exponential(load(decay + v) * step[i]);
                const vec next = fmadd(shrunk, load(h + v), load(in + v - i * room) * input[i]);
                store(h + v, next);
                total = fmadd(next, load(out + v - i * room), total);
            }
            y[i] = sum(total);
        }
        const vec gate = load_some(static_cast<const T*>(s.gate) + row * s.gate_stride + channel, count);
        store_some(static_cast<T*>(s.y) + at, fmadd(x, skip, load(y)) * activate(s.activation, gate), count);
    }
    for (int i = 0; i < count; ++i) std::copy_n(h + i * room, s.width, state + i * s.width);
}

template <typename T>
void scan(const Scan& s) {
    const int64_t blocks = (s.channels + SCAN_CHANNELS - 1) / SCAN_CHANNELS;
    parallel(blocks * s.num_runs, 16, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int channel = static_cast<int>(i % blocks) * SCAN_CHANNELS;
            scan_channels<T>(s, s.runs + i / blocks * 3, channel, std::min(SCAN_CHANNELS, s.channels - channel));
        }
    });
}

}  // namespace

// runs, x, x stride, history, slot stride, weight, bias or null, out, table of runs, channels, taps, activation, type
OPERATION(causal_conv) {
    const Convolution c{a[1].p,         a[2].i, at<float>(a[3]),   a[4].i, at<float>(a[5]), at<float>(a[6]),
                        a[7].p, at<int64_t>(a[8]), a[0].i, a[9].i, static_cast<int>(a[11].i)};
    WITH_TYPE(a[12].i, T, switch (a[10].i) {
        case 2: return convolve<2, T>(c);
        case 3: return convolve<3, T>(c);
        case 4: return convolve<4, T>(c);
    })
}

// runs, x, dt, a, b, b stride, c, c stride, d, gate, gate stride, y, state, slot stride, table of runs, channels, width,
// activation, type
OPERATION(selective_scan) {
    const Scan s{a[1].p,  a[2].p, at<float>(a[3]),    a[4].p,           a[6].p,
                 a[5].i,  a[7].i, at<float>(a[8]),    a[9].p,           a[10].i,
                 a[11].p, at<float>(a[12]), at<int64_t>(a[14]), a[0].i, a[13].i,
                 static_cast<int>(a[15].i), static_cast<int>(a[16].i), static_cast<int>(a[17].i)};
    WITH_TYPE(a[18].i, T, scan<T>(s))
}

}  // namespace octavo
