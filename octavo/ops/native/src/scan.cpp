// Mamba (Gu & Dao 2023): the short convolution, and the selective scan after it.
#include "activation.h"
#include "call.h"
#include "numbers.h"
#include "rows.h"

namespace octavo {
namespace {

// ---- convolution ---------------------------------------------------------------------------------------------------

template <int TAPS, typename T>
void convolve(const arguments::causal_conv& a) {
    const int64_t channels = a.channels, blocks = (channels + LANES - 1) / LANES;
    parallel(blocks, 8, [&](int64_t begin, int64_t end) {
        for (int64_t first = begin * LANES; first < std::min(end * LANES, channels); first += LANES) {
            const int count = static_cast<int>(std::min<int64_t>(LANES, channels - first));
            vec weight[TAPS], past[TAPS];
            for (int k = 0; k < TAPS; ++k) {
                float of_tap[LANES] = {};
                for (int i = 0; i < count; ++i) of_tap[i] = a.weight[(first + i) * TAPS + k];
                weight[k] = load(of_tap);
            }
            const vec bias = a.bias == nullptr ? vec{} : take(a.bias + first, count);
            for (const ScanRun* run = a.runs; run < a.runs + a.num_runs; ++run) {
                float* history = a.history + run->slot * a.history_stride + first;
                for (int k = 0; k + 1 < TAPS; ++k) past[k] = take(history + k * channels, count);
                for (int64_t row = run->first_row; row < run->first_row + run->num_tokens; ++row) {
                    past[TAPS - 1] = take(row_of<T>(a.x, row, a.x_stride) + first, count);
                    vec total = past[0] * weight[0];
                    for (int k = 1; k < TAPS; ++k) total = fmadd(past[k], weight[k], total);
                    put(row_of<T>(a.out, row, channels) + first, activate(a.activation, total + bias), count);
                    for (int k = 0; k + 1 < TAPS; ++k) past[k] = past[k + 1];
                }
                for (int k = 0; k + 1 < TAPS; ++k) put(history + k * channels, past[k], count);
            }
        }
    });
}

// ---- scan ----------------------------------------------------------------------------------------------------------

constexpr int SCAN_CHANNELS = 8;  // channels of one sequence that go through time together

using Scan = arguments::selective_scan;

// One sequence's run through `count` channels from `channel` on. A channel's state and decay take `vectors` vectors.
template <typename T>
void scan_channels(const Scan& s, const ScanRun& run, int channel, int count) {
    const int vectors = (s.state_size + LANES - 1) / LANES, room = vectors * LANES;
    float* state = s.state + run.slot * s.state_stride + static_cast<int64_t>(channel) * s.state_size;
    const float* a = s.a + static_cast<int64_t>(channel) * s.state_size;
    alignas(64) float h[SCAN_CHANNELS * MAX_STATE] = {}, decay[SCAN_CHANNELS * MAX_STATE] = {};
    alignas(64) float in[MAX_STATE] = {}, out[MAX_STATE] = {};
    for (int i = 0; i < count; ++i) {
        std::copy_n(state + i * s.state_size, s.state_size, h + i * room);
        std::copy_n(a + i * s.state_size, s.state_size, decay + i * room);
    }
    const vec skip = load_some(s.d + channel, count);
    for (int64_t row = run.first_row; row < run.first_row + run.num_tokens; ++row) {
        const int64_t at = row * s.channels + channel;
        for_vectors(s.state_size, [&](int64_t i, int n) {
            put(in + i, take(row_of<T>(s.b, row, s.b_stride) + i, n), n);
            put(out + i, take(row_of<T>(s.c, row, s.c_stride) + i, n), n);
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
        const vec gate = load_some(row_of<T>(s.gate, row, s.gate_stride) + channel, count);
        store_some(static_cast<T*>(s.out) + at, fmadd(x, skip, load(y)) * activate(s.activation, gate), count);
    }
    for (int i = 0; i < count; ++i) std::copy_n(h + i * room, s.state_size, state + i * s.state_size);
}

template <typename T>
void scan(const Scan& s) {
    const int64_t blocks = (s.channels + SCAN_CHANNELS - 1) / SCAN_CHANNELS;
    parallel(blocks * s.num_runs, 16, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int channel = static_cast<int>(i % blocks) * SCAN_CHANNELS;
            scan_channels<T>(s, s.runs[i / blocks], channel, std::min(SCAN_CHANNELS, s.channels - channel));
        }
    });
}

}  // namespace

static_assert(MIN_TAPS == 2 && MAX_TAPS == 4);
OPERATION(causal_conv) {
    WITH_TYPE(a.dtype, T, switch (a.taps) {
        case 2: return convolve<2, T>(a);
        case 3: return convolve<3, T>(a);
        case 4: return convolve<4, T>(a);
    })
}

OPERATION(selective_scan) { WITH_TYPE(a.dtype, T, scan<T>(a)) }

}  // namespace octavo
