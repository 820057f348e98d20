// Sampling tokens: the likeliest, or one drawn by temperature, min_p, top_k and top_p. The vocabulary is never sorted:
// a histogram of the scores finds where the likeliest end, and only the tokens of that bucket are put in order.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "call.h"
#include "functions.h"
#include "numbers.h"
#include "pool.h"
#include "scratch.h"

namespace octavo {
namespace {

constexpr int BUCKETS = 2048;
constexpr float BUCKETS_PER_NAT = 64.0f;  // the last bucket takes all that weighs less than exp(-32) of the likeliest
constexpr int64_t SPAN = 256;             // tokens in a partial sum when a draw is looked up

struct Token {
    float weight;
    int64_t id;
    // The order of the likeliest first; of equals, the lower id.
    bool operator<(const Token& other) const {
        return weight != other.weight ? weight > other.weight : id < other.id;
    }
};

class Row {
public:
    Row(const float* logits, int64_t vocab) : logits_(logits), vocab_(vocab) {
        static thread_local Scratch scratch;
        weights_ = reinterpret_cast<float*>(scratch.get(round_up(vocab, SPAN) * 4 + round_up(vocab, LANES) * 2));
        buckets_ = reinterpret_cast<uint16_t*>(weights_ + round_up(vocab, SPAN));
    }

    // -1 where the row has a value that is not a number, or an infinite one.
    int64_t sample(const Draw& by) {
        const float infinity = std::numeric_limits<float>::infinity();
        const int64_t likeliest = find_peak();
        if (likeliest < 0 || peak_ == infinity) return -1;
        if (by.temperature == 0.0 || peak_ == -infinity) return likeliest;
        weigh(static_cast<float>(1.0 / by.temperature), by.min_p);
        const auto top_k = static_cast<int64_t>(by.top_k);
        if ((top_k > 0 && top_k < vocab_) || by.top_p < 1.0) {
            keep(top_k > 0 && top_k < vocab_ ? top_k : vocab_, by.top_p);
        }
        return draw(by.draw);
    }

private:
    vec logits(int64_t i, float filler) const {
        if (i + LANES <= vocab_) return load(logits_ + i);
        float rest[LANES];
        std::fill(rest, rest + LANES, filler);
        std::memcpy(rest, logits_ + i, (vocab_ - i) * sizeof(float));
        return load(rest);
    }

    // The highest logit, and the first that has it; -1 where one is not a number.
    int64_t find_peak() {
        const float lowest = -std::numeric_limits<float>::infinity();
        vec peaks = broadcast(lowest);
        ivec places = {}, nan = {};  // where each lane's peak is: the first of its equals
        for (int64_t i = 0; i < vocab_; i += LANES) {
            const vec v = logits(i, lowest);
            const ivec higher = v > peaks;
            peaks = select(higher, v, peaks);
            places = select(higher, broadcast(static_cast<int32_t>(i / LANES)), places);
            nan |= v != v;
        }
        peak_ = highest(peaks);
        int64_t first = vocab_;
        for (int lane = 0; lane < LANES; ++lane) {
            if (nan[lane]) return -1;
            if (peaks[lane] == peak_) first = std::min<int64_t>(first, int64_t{places[lane]} * LANES + lane);
        }
        return first;
    }

    // Each token's probability, up to a common factor, and its bucket.
    void weigh(float sharpness, double min_p) {
        const float floor = min_p > 0.0 ? static_cast<float>(std::log(min_p)) : -std::numeric_limits<float>::infinity();
        for (int64_t i = 0; i < vocab_; i += LANES) {
            const vec nats = (logits(i, -std::numeric_limits<float>::infinity()) - peak_) * sharpness;
            const vec weight = select(nats < floor, vec{}, exponential(nats));
            store(weights_ + i, weight);
            const vec place = nats * -BUCKETS_PER_NAT;
            store_as(buckets_ + i, convert<uint16_t>(convert<int32_t>(smaller(place, broadcast(BUCKETS - 1.0f)))));
        }
        std::fill(weights_ + vocab_, weights_ + round_up(vocab_, SPAN), 0.0f);
    }

    // Takes the weight of all but the `top_k` likeliest, and of those all but the likeliest that make up `top_p`.
    void keep(int64_t top_k, double top_p) {
        std::vector<double> mass(BUCKETS, 0.0);
        std::vector<int64_t> count(BUCKETS, 0);
        for (int64_t i = 0; i < vocab_; ++i) {
            if (weights_[i] == 0.0f) continue;
            mass[buckets_[i]] += static_cast<double>(weights_[i]);
            ++count[buckets_[i]];
        }
        double whole = 0.0;
        Token last{-1.0f, 0};  // nobody comes after it
        if (top_k < vocab_) {
            int64_t before = 0;
            int b = 0;
            for (; b < BUCKETS && before + count[b] < top_k; ++b) {
                before += count[b];
                whole += mass[b];
            }
            if (b < BUCKETS) {
                std::vector<Token> border = tokens_of(b);
                const int64_t kept = top_k - before;
                std::partial_sort(border.begin(), border.begin() + kept, border.end());
                for (int64_t i = 0; i < kept; ++i) whole += static_cast<double>(border[i].weight);
                last = border[kept - 1];
            }
        } else {
            for (const double m : mass) whole += m;
        }
        if (top_p < 1.0) last = std::min(last, nucleus_end(mass, top_p * whole));
        for (int64_t i = 0; i < vocab_; ++i) {
            if (last < Token{weights_[i], i}) weights_[i] = 0.0f;
        }
    }

    // The first token with which the likeliest weigh `target`.
    Token nucleus_end(const std::vector<double>& mass, double target) const {
        double before = 0.0;
        for (int b = 0; b < BUCKETS; ++b) {
            if (before + mass[b] < target) {
                before += mass[b];
                continue;
            }
            std::vector<Token> border = tokens_of(b);
            std::sort(border.begin(), border.end());
            for (const Token& token : border) {
                before += static_cast<double>(token.weight);
                if (before >= target) return token;
            }
        }
        return Token{-1.0f, 0};
    }

    std::vector<Token> tokens_of(int bucket) const {
        std::vector<Token> found;
        for (int64_t i = 0; i < vocab_; ++i)
            if (buckets_[i] == bucket && weights_[i] != 0.0f) found.push_back({weights_[i], i});
        return found;
    }

    int64_t draw(double share) const {
        const int64_t spans = (vocab_ + SPAN - 1) / SPAN;
        std::vector<double> ends(spans);
        double total = 0.0;
        for (int64_t s = 0; s < spans; ++s) {
            double in_span = 0.0;
            for (int64_t i = s * SPAN; i < (s + 1) * SPAN; ++i) in_span += static_cast<double>(weights_[i]);
            ends[s] = total += in_span;
        }
        const double target = share * total;
        int64_t s = 0;
        while (s + 1 < spans && ends[s] <= target) ++s;
        double before = s > 0 ? ends[s - 1] : 0.0;
        // Rounding may leave a draw at the very end of its span: take the last token that has weight.
        int64_t found = 0;
        for (int64_t i = s * SPAN; i < (s + 1) * SPAN; ++i) {
            if (weights_[i] == 0.0f) continue;
            found = i;
            before += static_cast<double>(weights_[i]);
            if (before > target) break;
        }
        return found;
    }

    const float* logits_;
    int64_t vocab_;
    float peak_ = 0.0f;
    float* weights_;
    uint16_t* buckets_;
};

}  // namespace

OPERATION(sample) {
    static constexpr Draw GREEDY{0.0, 0.0, 0.0, 1.0, 0.0};
    parallel(a.rows, 1, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
            a.tokens[r] = Row(a.logits + r * a.stride, a.vocab_size).sample(a.draws ? a.draws[r] : GREEDY);
        }
    });
}

}  // namespace octavo
