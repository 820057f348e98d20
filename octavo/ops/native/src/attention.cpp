// Attention over a paged cache, causal or both ways within a run, in one pass over the keys (online softmax: Milakov & Gimelshein 2018, Dao et al.
// 2022).
//
// Keys are taken 64 at a time, cut at absolute positions, in ascending order, and 512 of them make a span, whose sum
// joins those of the spans before it. What a row of the result adds up depends on the keys that it sees alone: tiles that a
// row does not see change no bit of it, and are left out where that is cheap; and whether threads share a long context
// by spans, as they do where there is little else to share, changes nothing either.
// With a bfloat16 cache, on processors that multiply pairs of it, queries and weights are rounded to bfloat16 too; and
// where tiles of it are multiplied (AMX), they are for every number of queries.
// With int8, on processors that add up products of words, queries and weights become words, whose sums with codes are exact.
#include "attention_worker.h"

namespace octavo {
namespace {

constexpr double PRODUCTS = 50.0;    // that a thread is through with in a nanosecond, about
constexpr double ALONE_BELOW = 2e5;  // multiplications that are done before other threads have woken up

// Multiplications in all.
double count_products(const Attention& a) {
    double products = 0;
    for (const AttentionRun* run = a.runs; run < a.runs + a.num_runs; ++run) {
        const int64_t middle = run->start + run->num_tokens / 2;
        int64_t keys = last_seen(*run, middle) - first_seen(a, *run, middle) + 1;
        if (a.key_lists != nullptr) keys = std::min<int64_t>(keys, a.list_size);
        products += static_cast<double>(run->num_tokens) * a.num_heads * (a.key_dim + a.value_dim) *
                    static_cast<double>(keys);
    }
    return products;
}

// Enough tasks for all threads, also where one head of keys serves many of queries. Where keys are listed, a task is of
// one token.
std::vector<Task> make_tasks(const Attention& a) {
    const int group = a.num_heads / a.num_kv_heads;
    int64_t rows_in_all = 0;
    for (int64_t i = 0; i < a.num_runs; ++i) rows_in_all += a.runs[i].num_tokens * group;
    const int64_t fair = round_up(rows_in_all * a.num_kv_heads / (2 * thread_count()) + 1, ROWS);
    const int64_t most = std::min<int64_t>(MAX_ROWS, std::max<int64_t>(fair, 4 * ROWS));
    std::vector<Task> tasks;
    for (const AttentionRun* run = a.runs; run < a.runs + a.num_runs; ++run) {
        const int64_t rows = run->num_tokens * group, together = a.key_lists != nullptr ? group : rows;
        // Last queries first: they have the most keys, and short work at the end keeps threads even.
        for (int64_t from = rows - together; from >= 0; from -= together) {
            for (int64_t first = (together - 1) / most * most; first >= 0; first -= most) {
                for (int h = 0; h < a.num_kv_heads; ++h) {
                    tasks.push_back({run, h, static_cast<int>(std::min(most, together - first)), from + first});
                }
            }
        }
    }
    return tasks;
}

// The tasks by spans of keys, whose sums are put into `partials`: where there are too few for all threads.
std::vector<Task> split_spans(const Attention& a, std::vector<Task>& tasks, std::vector<float>& partials) {
    int64_t room = 0;
    for (const Task& task : tasks) room += KeyRange(a, task).spans() * task.rows * state_floats(a);
    partials.resize(room);
    float* to = partials.data();
    std::vector<Task> by_span;
    for (Task& task : tasks) {
        const KeyRange seen(a, task);
        if (seen.spans() == 1) {
            by_span.push_back(task);
            continue;
        }
        task.partial = to;
        for (int64_t i = 0; i < seen.spans(); ++i, to += task.rows * state_floats(a)) {
            by_span.push_back({task.run, task.kv_head, task.rows, task.first, seen.first_span() + i, to});
        }
    }
    return by_span;
}

constexpr int64_t JOINED_ALONE = 16384;  // numbers of partial sums that one thread has joined before others would

template <typename C>
void attend(const Attention& a) {
    const double products = count_products(a);
    const auto each = [&](const std::vector<Task>& tasks, const auto& body) {
        const auto count = static_cast<int64_t>(tasks.size());
        parallel(count, products < ALONE_BELOW ? count : 1, products / PRODUCTS, [&](int64_t first, int64_t last) {
            Worker<C> worker(a);
            for (int64_t i = first; i < last; ++i) body(worker, tasks[i]);
        });
    };
    const auto run = [](Worker<C>& worker, const Task& task) { worker.run(task); };
    std::vector<Task> tasks = make_tasks(a);
    if (static_cast<int64_t>(tasks.size()) >= 4 * thread_count() || products < ALONE_BELOW) return each(tasks, run);
    std::vector<float> partials;
    each(split_spans(a, tasks, partials), run);
    const auto finish = [](Worker<C>& worker, const Task& task) {
        if (task.partial != nullptr) worker.finish_spans(task, task.partial);
    };
    if (partials.size() > JOINED_ALONE) return each(tasks, finish);
    Worker<C> worker(a);
    for (const Task& task : tasks) finish(worker, task);
}

constexpr int64_t ALL_KEYS = int64_t{1} << 40;  // a block size that no run reaches

}  // namespace

OPERATION(attention) { WITH_CACHE(a.cache_dtype, C, attend<C>(Attention(a));) }

// A run's keys are a block, which begins with its first key; its queries are the block's last, so that they see all.
OPERATION(full_attention) {
    std::vector<AttentionRun> runs;
    std::vector<int64_t> first_keys;
    for (const FullAttentionRun* run = a.runs; run < a.runs + a.num_runs; ++run) {
        runs.push_back({run->first_row, run->num_rows, run->num_keys - run->num_rows, run - a.runs, 1, 0});
        first_keys.push_back(run->first_key);
    }
    arguments::attention paged = {};
    paged.num_runs = a.num_runs;
    paged.query = static_cast<const float*>(a.query);
    paged.key_cache = a.key;
    paged.value_cache = a.value;
    paged.out = a.out;
    paged.runs = runs.data();
    paged.block_table = first_keys.data();
    paged.table_width = 1;
    paged.block_size = ALL_KEYS;
    paged.num_heads = a.num_heads;
    paged.num_kv_heads = a.num_kv_heads;
    paged.key_dim = a.key_dim;
    paged.value_dim = a.value_dim;
    paged.scale = a.scale;
    paged.distance_bias = a.distance_bias;
    paged.num_distances = a.num_distances;
    paged.bias_origin = a.bias_origin;
    paged.out_dtype = a.dtype;
    Attention all(paged);
    all.query_dtype = a.dtype;
    all.query_stride = a.query_stride;
    all.key_stride = a.key_stride;
    all.value_stride = a.value_stride;
    all.query_vectors = a.query_vectors;
    all.key_vectors = a.key_vectors;
    all.vector_numbers = a.vector_numbers;
    all.num_vectors = a.num_vectors;
    WITH_TYPE(a.dtype, C, attend<C>(all);)
}

}  // namespace octavo
