// Recurrent layers: the short convolution, Mamba's selective scan (Gu & Dao 2023), Mamba-2's scan (Dao & Gu 2024), and
// Griffin's gated recurrence (De et al. 2024).
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
                    put(row_of<T>(a.out, row, channels) + first, activate_maybe(a.activation, total + bias), count);
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

// ---- scan of heads -------------------------------------------------------------------------------------------------

using HeadScan = arguments::head_scan;

// Tokens whose state stays in a register from one to the next: they have a sum each, and sums must not wait for another.
constexpr int TOGETHER = REGISTER == 64 ? 4 : 1;

// What LANES tokens of one head have in common for all its channels.
struct HeadSteps {
    float step[LANES], decay[LANES];
    alignas(64) float b[LANES][MAX_HEAD_STATE], c[LANES][MAX_HEAD_STATE];
};

// `N` tokens through the states of `count` channels, whose values of one number are `stride` apart.
template <int N>
INLINE void scan_tokens(
    const HeadSteps& of, int token, float* state, int64_t stride, int state_size, int count, const vec (&x)[N], vec (&y)[N]
) {
    vec decay[N], input[N];
    for (int t = 0; t < N; ++t) {
        decay[t] = broadcast(of.decay[token + t]);
        input[t] = x[t] * of.step[token + t];
        y[t] = vec{};
    }
#pragma GCC unroll 1
    for (int s = 0; s < state_size; ++s, state += stride) {
        vec h = take(state, count);
#pragma GCC unroll 4
        for (int t = 0; t < N; ++t) {
            h = fmadd(h, decay[t], input[t] * of.b[token + t][s]);
            y[t] = fmadd(h, broadcast(of.c[token + t][s]), y[t]);
        }
        put(state, h, count);
    }
}

// Mamba-2's outputs of `N` tokens from `row` on, of the channels from `column` on.
template <typename T, int N>
INLINE void scan_rows(
    const HeadScan& s, const HeadSteps& of, int token, int64_t row, int64_t column, float skip, float* state, int count
) {
    vec x[N], y[N];
    for (int t = 0; t < N; ++t) x[t] = take(row_of<T>(s.x, row + t, s.x_stride) + column, count);
    scan_tokens<N>(of, token, state, s.head_dim, s.state_size, count, x, y);
    for (int t = 0; t < N; ++t) {
        vec result = fmadd(x[t], broadcast(skip), y[t]);
        if (s.gate != nullptr) {
            result *= activate(s.activation, take(row_of<T>(s.gate, row + t, s.gate_stride) + column, count));
        }
        put(row_of<T>(s.out, row + t, static_cast<int64_t>(s.num_heads) * s.head_dim) + column, result, count);
    }
}

// The steps of one head's `count` tokens from `row` on.
template <typename T>
void prepare_steps(const HeadScan& s, int head, int64_t row, int count, HeadSteps& of) {
    const int64_t first = static_cast<int64_t>(head / (s.num_heads / s.num_groups)) * s.state_size;
    alignas(64) float raw[LANES] = {};
    for (int t = 0; t < count; ++t) {
        raw[t] = as_float(row_of<T>(s.dt, row + t, s.dt_stride)[head]);
        for_vectors(s.state_size, [&](int64_t i, int n) {
            put(of.b[t] + i, take(row_of<T>(s.b, row + t, s.b_stride) + first + i, n), n);
            put(of.c[t] + i, take(row_of<T>(s.c, row + t, s.c_stride) + first + i, n), n);
        });
    }
    const vec positive = softplus(load(raw) + s.dt_bias[head]);
    const vec steps = smaller(broadcast(s.dt_max), larger(broadcast(s.dt_min), positive));
    store(of.step, steps);
    store(of.decay, exponential(steps * s.a[head]));
}

template <typename T>
void scan_head(const HeadScan& s, const ScanRun& run, int head) {
    HeadSteps of;
    float* state = s.state + run.slot * s.state_stride + static_cast<int64_t>(head) * s.state_size * s.head_dim;
    for (int64_t begin = 0; begin < run.num_tokens; begin += LANES) {
        const int tokens = static_cast<int>(std::min<int64_t>(LANES, run.num_tokens - begin));
        const int64_t row = run.first_row + begin;
        prepare_steps<T>(s, head, row, tokens, of);
        for_vectors(s.head_dim, [&](int64_t i, int n) {
            const int64_t column = static_cast<int64_t>(head) * s.head_dim + i;
            int t = 0;
            for (; t + TOGETHER <= tokens; t += TOGETHER) {
                scan_rows<T, TOGETHER>(s, of, t, row + t, column, s.d[head], state + i, n);
            }
            for (; t < tokens; ++t) scan_rows<T, 1>(s, of, t, row + t, column, s.d[head], state + i, n);
        });
    }
}

template <typename T>
void scan_heads(const HeadScan& s) {
    const int64_t values = static_cast<int64_t>(s.state_size) * s.head_dim;
    parallel(s.num_runs * s.num_heads, std::max<int64_t>(1, SMALL / values), [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            scan_head<T>(s, s.runs[i / s.num_heads], static_cast<int>(i % s.num_heads));
        }
    });
}

// ---- gated recurrence ----------------------------------------------------------------------------------------------

template <typename T>
void recur(const arguments::gated_recurrence& g) {
    const int64_t channels = g.channels, blocks = (channels + LANES - 1) / LANES;
    parallel(blocks * g.num_runs, 8, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block % blocks * LANES;
            const int count = static_cast<int>(std::min<int64_t>(LANES, channels - first));
            const ScanRun& run = g.runs[block / blocks];
            float* state = g.state + run.slot * g.state_stride + first;
            const vec a = take(g.a + first, count), in_bias = take(g.input_bias + first, count);
            const vec again_bias = take(g.recurrent_bias + first, count);
            vec h = take(state, count);
            for (int64_t row = run.first_row; row < run.first_row + run.num_tokens; ++row) {
                const vec x = take(row_of<T>(g.x, row, channels) + first, count);
                const vec in = take(row_of<T>(g.input_gate, row, channels) + first, count) + in_bias;
                const vec again = take(row_of<T>(g.recurrent_gate, row, channels) + first, count) + again_bias;
                const vec logarithm = a * activate<Activation::SIGMOID>(again);
                const vec rest = square_root(larger(1.0f - exponential(logarithm * 2.0f), vec{}));
                const vec input = x * activate<Activation::SIGMOID>(in) * (g.positions[row] == 0 ? broadcast(1.0f) : rest);
                h = fmadd(exponential(logarithm), h, input);
                put(row_of<T>(g.out, row, channels) + first, h, count);
            }
            put(state, h, count);
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

OPERATION(head_scan) { WITH_TYPE(a.dtype, T, scan_heads<T>(a)) }
OPERATION(gated_recurrence) { WITH_TYPE(a.dtype, T, recur<T>(a)) }
OPERATION(selective_scan) { WITH_TYPE(a.dtype, T, scan<T>(a)) }

}  // namespace octavo
