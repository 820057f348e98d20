// Attention of each token over keys that are listed for it: its window's, and entries of several tokens each.
//
// The list is the token's own, and it is taken in its order, 64 keys at a time from its first one on. To the workers it
// is a block table of blocks of one key, counted from address 0 in units of a cache's numbers.
#include "attention_worker.h"
#include "tokens.h"

namespace octavo {
namespace {

using Pooled = arguments::attend_pooled;

// What all of it is to the workers, but for the table: one token's heads are rows under one head of keys.
Attention as_attention(const Pooled& a) {
    arguments::attention paged = {};
    paged.query = a.query;
    paged.out = a.out;
    paged.block_size = 1;
    paged.num_heads = a.num_heads;
    paged.num_kv_heads = 1;
    paged.key_dim = paged.value_dim = a.dim;
    paged.scale = a.scale;
    paged.sinks = a.sinks;
    paged.cache_dtype = a.cache_dtype;
    paged.out_dtype = DType::F32;
    Attention made(paged);
    made.key_stride = made.value_stride = 1;
    return made;
}

// Where the keys lie that a token sees.
template <typename C>
void list_keys(const Pooled& a, const Token& token, std::vector<int64_t>& keys) {
    const int64_t bytes = row_bytes<C>(a.dim), unit = sizeof(C);
    const auto add = [&](const Entries& entries, const void* cache, int64_t number) {
        const char* key = static_cast<const char*>(cache) + entries.slot(token.table_row, number) * bytes;
        keys.push_back(static_cast<int64_t>(reinterpret_cast<uintptr_t>(key) / unit));
    };
    keys.clear();
    const Entries near{a.block_table, a.table_width, a.block_size, 1};
    const int64_t first = a.window ? std::max<int64_t>(0, token.position + 1 - a.window) : 0;
    for (int64_t at = first; at <= token.position; ++at) add(near, a.cache, at);
    if (a.pooled_cache == nullptr) return;
    const Entries far{a.pooled_table, a.pooled_width, a.block_size, a.ratio};
    if (a.selected == nullptr) {
        for (int64_t i = 0; i < (token.position + 1) / a.ratio; ++i) add(far, a.pooled_cache, i);
        return;
    }
    const int32_t* selected = a.selected + token.row * a.top_k;
    for (int64_t i = 0; i < a.top_k && selected[i] >= 0; ++i) add(far, a.pooled_cache, selected[i]);
}

template <typename C>
void attend(const Pooled& a) {
    const std::vector<Token> tokens = tokens_of(a.runs, a.num_runs);
    const auto count = static_cast<int64_t>(tokens.size());
    // Enough tasks for all threads, each of as many heads as share the work of laying keys out.
    const int64_t fair = round_up(count * a.num_heads / (2 * thread_count()) + 1, ROWS);
    const int64_t heads = std::min<int64_t>({MAX_ROWS, a.num_heads, std::max<int64_t>(fair, 2 * ROWS)});
    const int64_t parts = (a.num_heads + heads - 1) / heads;
    parallel(count * parts, 1, [&](int64_t first, int64_t last) {
        Attention own = as_attention(a);
        std::vector<int64_t> keys;
        Worker<C> worker(own);
        int64_t listed = -1;
        for (int64_t i = first; i < last; ++i) {
            const Token& token = tokens[i / parts];
            const int64_t head = i % parts * heads;
            if (listed != i / parts) list_keys<C>(a, token, keys);
            listed = i / parts;
            own.block_table = keys.data();
            const AttentionRun run{token.row, 1, static_cast<int64_t>(keys.size()) - 1, 0, 0, 0};
            worker.run({&run, 0, static_cast<int>(std::min<int64_t>(heads, a.num_heads - head)), head});
        }
    });
}

}  // namespace

OPERATION(attend_pooled) { WITH_CACHE(a.cache_dtype, C, attend<C>(a);) }

}  // namespace octavo
