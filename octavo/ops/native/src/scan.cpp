// The selective scan of Mamba (Gu & Dao 2023), and the short convolution before it.
#include "call.h"
#include "numbers.h"
#include "pool.h"

namespace octavo {
namespace {

constexpr int SCAN_CHANNELS = 8;  // channels of one sequence that go through time together

struct Scan {
    const float *x, *dt, *a, *b, *c, *d;
    float *y, *state;
    const int64_t* runs;  // [runs][3]: first row, tokens, slot
    int64_t num_runs, slot_stride;
    int channels, width;  // width: values of state a channel
};

// One sequence's run through `count` channels from `channel` on.
template <int VECTORS>
INLINE void scan_channels(const Scan& s, const int64_t* run, int channel, int count) {
    const int rest = s.width - (VECTORS - 1) * LANES;
    float* state = s.state + run[2] * s.slot_stride + static_cast<int64_t>(channel) * s.width;
    const float* a = s.a + static_cast<int64_t>(channel) * s.width;
    vec h[SCAN_CHANNELS][VECTORS], decay[SCAN_CHANNELS][VECTORS];
    auto take = [&](const float* p, int v) {
        return v + 1 < VECTORS || rest == LANES ? load(p + v * LANES) : load_some(p + v * LANES, rest);
    };
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < VECTORS; ++v) {
            h[i][v] = take(state + i * s.width, v);
            decay[i][v] = take(a + i * s.width, v);
        }
    }
    for (int64_t row = run[0]; row < run[0] + run[1]; ++row) {
        const int64_t at = row * s.channels + channel;
        vec in[VECTORS], out[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            in[v] = take(s.b + row * s.width, v);
            out[v] = take(s.c + row * s.width, v);
        }
        for (int i = 0; i < count; ++i) {
            const float step = s.dt[at + i], x = s.x[at + i];
            vec total = {};
            for (int v = 0; v < VECTORS; ++v) {
                h[i][v] = fmadd(exponential(decay[i][v] * step), h[i][v], in[v] * (step * x));
                total = fmadd(h[i][v], out[v], total);
            }
            s.y[at + i] = sum(total) + x * s.d[channel + i];
        }
    }
    for (int i = 0; i < count; ++i) {
        for (int v = 0; v < VECTORS; ++v) {
            float* p = state + i * s.width + v * LANES;
            if (v + 1 < VECTORS || rest == LANES) {
                store(p, h[i][v]);
            } else {
                store_some(p, h[i][v], rest);
            }
        }
    }
}

template <int VECTORS>
void scan(const Scan& s) {
    const int64_t blocks = (s.channels + SCAN_CHANNELS - 1) / SCAN_CHANNELS;
    parallel(blocks * s.num_runs, 16, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int channel = static_cast<int>(i % blocks) * SCAN_CHANNELS;
            scan_channels<VECTORS>(s, s.runs + i / blocks * 3, channel, std::min(SCAN_CHANNELS, s.channels - channel));
        }
    });
}

}  // namespace

// runs, x, dt, a, b, c, d, y, state, table of runs, slot stride, channels, width
OPERATION(selective_scan) {
    const Scan s{at<float>(a[1]), at<float>(a[2]), at<float>(a[3]), at<float>(a[4]), at<float>(a[5]), at<float>(a[6]),
                 at<float>(a[7]), at<float>(a[8]), at<int64_t>(a[9]), a[0].i, a[10].i, static_cast<int>(a[11].i),
                 static_cast<int>(a[12].i)};
    switch ((s.width + LANES - 1) / LANES) {
        case 1: return scan<1>(s);
        case 2: return scan<2>(s);
        case 3: return scan<3>(s);
        case 4: return scan<4>(s);
        case 8: return scan<8>(s);
    }
}

}  // namespace octavo
