// Which keys a token attends to: the best by an indexer's scores (DeepSeek sparse attention, DeepSeek-AI 2025).
//
// A key's score is summed head by head, and so depends on its token and itself alone, however keys are shared out among
// threads. Queries are rounded where attention rounds them (attention.cpp).
#include "attention_worker.h"

namespace octavo {
namespace {

constexpr int64_t SCORES_AT_ONCE = int64_t{1} << 24;  // that are kept in memory
constexpr int64_t PIECE = 16 * KEYS;                  // keys of one token that are scored together
constexpr double ALONE_BELOW = 2e5;  // multiplications that are done before other threads have woken up

// A token that sees more keys than it may keep.
struct Token {
    const AttentionRun* run;
    int64_t number;       // in its run
    int64_t begin, end;   // the keys that it sees
    int64_t at;           // where its scores are, those of the tile that its first key is in
    int64_t first_piece;  // among all tokens'

    int64_t base() const { return begin / KEYS * KEYS; }
    int64_t row() const { return run->first_row + number; }
};

template <typename C>
class Scorer : Worker<C> {
public:
    Scorer(const Attention& a, const float* weights, float* scores)
        : Worker<C>(a), weights_(weights), scores_of_keys_(scores) {}

    // Scores of the keys from `begin` on, a multiple of a tile, to before `end`.
    void score(const Token& token, int64_t begin, int64_t end) {
        float* to = scores_of_keys_ + token.at - token.base();
        std::fill(to + begin, to + round_up(end, KEYS), 0.0f);
        const int heads = this->a_.num_heads;
        for (int first = 0; first < heads; first += MAX_ROWS) {
            const int count = std::min(MAX_ROWS, heads - first);
            this->place({token.run, 0, count, token.number * heads + first});
            for (int r = 0; r < count; ++r) this->lay_query(r, 1.0f);
            for (int64_t tile = begin; tile < end; tile += KEYS) {
                this->prefetch(0, tile + KEYS, end);
                this->lay_keys(0, tile, token.end);
                add_heads(count, weights_ + token.row() * heads + first, std::min<int64_t>(KEYS, end - tile), to + tile);
            }
        }
    }

private:
    void add_heads(int heads, const float* weights, int64_t keys, float* scores) {
        const int vectors = static_cast<int>(round_up(keys, LANES) / LANES);
        for (int r = 0, rows; r < heads; r += rows) {
            rows = next_rows(heads - r, ROWS);
            with_rows<ROWS>(rows, [&](auto of) { this->template score_rows<decltype(of)::value>(r, vectors); });
            for (int v = 0; v < vectors; ++v) {
                vec total = load(scores + v * LANES);
                for (int i = 0; i < rows; ++i) {
                    const vec product = larger(vec{}, load(this->scores_ + i * KEYS + v * LANES));
                    total = fmadd(product, broadcast(weights[r + i]), total);
                }
                store(scores + v * LANES, total);
            }
        }
    }

    const float* weights_;
    float* scores_of_keys_;
};

// Whole numbers in the order of the scores. Zeros of both signs are equal.
inline uint32_t in_order(float score) {
    const auto bits = bit_cast<uint32_t>(score);
    if (bits << 1 == 0) return 0x80000000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

void list_best(const Token& token, const float* scores, int64_t top_k, int32_t* list) {
    const int64_t count = token.end - token.begin;
    std::vector<uint32_t> order(count);
    for (int64_t i = 0; i < count; ++i) order[i] = in_order(scores[token.at + token.begin - token.base() + i]);
    std::vector<uint32_t> sorted = order;
    std::nth_element(sorted.begin(), sorted.begin() + (top_k - 1), sorted.end(), std::greater<uint32_t>());
    const uint32_t last = sorted[top_k - 1];
    int64_t equals = top_k - std::count_if(order.begin(), order.end(), [&](uint32_t o) { return o > last; });
    for (int64_t i = 0; i < count; ++i) {
        if (order[i] > last || (order[i] == last && equals-- > 0)) *list++ = static_cast<int32_t>(token.begin + i);
    }
}

// Makes the lists of an operation, of so many tokens at a time as there is memory for.
template <typename C>
class Selection {
public:
    Selection(const Attention& a, const arguments::select_keys& of) : a_(a), of_(of) {}

    void run() {
        for (const AttentionRun* run = a_.runs; run < a_.runs + a_.num_runs; ++run) {
            for (int64_t i = 0; i < run->num_tokens; ++i) {
                const int64_t position = run->start + i;
                const int64_t first = a_.ratio > 1 ? 0 : first_seen(a_, *run, position);
                add({run, i, first, (last_seen(*run, position) + 1) / a_.ratio, room_, pieces_});
            }
        }
        list_tokens();
    }

private:
    int32_t* list(const Token& token) const { return of_.out + token.row() * of_.top_k; }

    void add(Token token) {
        if (token.end - token.begin <= of_.top_k) {  // all keys
            int32_t* to = list(token);
            for (int64_t key = token.begin; key < token.end; ++key) *to++ = static_cast<int32_t>(key);
            std::fill(to, list(token) + of_.top_k, -1);
            return;
        }
        const int64_t keys = round_up(token.end, KEYS) - token.base();
        if (room_ + keys > SCORES_AT_ONCE) {
            list_tokens();
            token.at = token.first_piece = 0;
        }
        tokens_.push_back(token);
        room_ += keys;
        pieces_ += (keys + PIECE - 1) / PIECE;
    }

    void list_tokens() {
        if (tokens_.empty()) return;
        if (static_cast<int64_t>(scores_.size()) < room_) scores_.resize(room_);
        const bool is_small = static_cast<double>(room_) * a_.num_heads * a_.key_dim < ALONE_BELOW;
        parallel(pieces_, is_small ? pieces_ : 1, [&](int64_t first, int64_t last) {
            Scorer<C> scorer(a_, of_.weights, scores_.data());
            for (int64_t piece = first; piece < last; ++piece) {
                const Token& token = *(std::partition_point(tokens_.begin(), tokens_.end(), [&](const Token& t) {
                                           return t.first_piece <= piece;
                                       }) - 1);
                const int64_t begin = token.base() + (piece - token.first_piece) * PIECE;
                scorer.score(token, begin, std::min(token.end, begin + PIECE));
            }
        });
        const auto count = static_cast<int64_t>(tokens_.size());
        parallel(count, is_small ? count : 1, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) list_best(tokens_[i], scores_.data(), of_.top_k, list(tokens_[i]));
        });
        tokens_.clear();
        room_ = pieces_ = 0;
    }

    const Attention& a_;
    const arguments::select_keys& of_;
    std::vector<Token> tokens_;
    std::vector<float> scores_;
    int64_t room_ = 0, pieces_ = 0;
};

}  // namespace

OPERATION(select_keys) {
    arguments::attention keys = {};
    keys.num_runs = a.num_runs;
    keys.query = a.query;
    keys.key_cache = keys.value_cache = a.key_cache;
    keys.runs = a.runs;
    keys.block_table = a.block_table;
    keys.table_width = a.table_width;
    keys.block_size = a.block_size;
    keys.num_heads = a.num_heads;
    keys.num_kv_heads = 1;
    keys.key_dim = a.key_dim;
    Attention all(keys);
    all.ratio = a.ratio;
    WITH_CACHE(a.cache_dtype, C, Selection<C>(all, a).run();)
}

}  // namespace octavo
