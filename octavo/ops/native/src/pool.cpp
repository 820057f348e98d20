// Threads that spin for a moment after their work, since the next operation follows within microseconds, and then
// sleep, so that they take nothing from PyTorch's threads or anybody else's. Where there are more of them than
// processors, who waits would keep a processor from who is waited for: they let others have it between two looks.
// On a machine of several NUMA nodes each is bound to the processors of one. Work is cut there into a part a node, always
// at the same places, so that weights can lie beside the threads that read them; who is done with a node's helps others.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "call.h"
#include "nodes.h"
#include "spin.h"

namespace octavo {
namespace {

constexpr int AWAKE_MICROSECONDS = 200, CROWDED_MICROSECONDS = 5;
constexpr uint32_t CLOSED = 1u << 31;
constexpr int LINE = 128;  // bytes that processors pass to each other together

using Clock = std::chrono::steady_clock;

std::atomic<bool> crowded{false};  // whether there are more threads than processors

// Processors that this process may use.
int processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Whether `ready` came true within the time that a thread stays awake.
template <typename Ready>
bool wait_awake(const Ready& ready) {
    const int spinning = crowded.load(std::memory_order_relaxed) ? CROWDED_MICROSECONDS : AWAKE_MICROSECONDS;
    const auto begin = Clock::now(), spun = begin + std::chrono::microseconds(spinning);
    const auto end = begin + std::chrono::microseconds(AWAKE_MICROSECONDS);
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (Clock::now() < spun);
    do {
        if (ready()) return true;
        YIELD();
    } while (Clock::now() < end);
    return ready();
}

// What is left of a job for one node.
struct Part {
    alignas(LINE) std::atomic<int64_t> next{0};
    int64_t end = 0;
};

struct Pool {
    std::mutex busy;
    std::vector<std::thread> workers;
    Nodes nodes;
    std::unique_ptr<Part[]> parts;  // by node, where there are several
    bool apart = false;             // whether no thread helps another node's
    // What all look at while they wait lies apart from what those who work write to.
    alignas(LINE) std::atomic<uint32_t> generation{0};  // counts jobs; workers wait for it to change
    std::atomic<int> wanted{0};                         // threads that the job is worth
    std::atomic<bool> ending{false};
    std::atomic<int> sleeping{0};
    int64_t count = 0, grain = 1;
    void (*body)(const void*, int64_t, int64_t) = nullptr;
    const void* context = nullptr;
    // How many threads are inside the job, and whether it still takes any: a worker that wakes late finds it closed
    // and is not waited for.
    alignas(LINE) std::atomic<uint32_t> inside{CLOSED};
    std::atomic<int64_t> next{0};

    void take(std::atomic<int64_t>& from, int64_t end) {
        for (;;) {
            const int64_t first = from.fetch_add(grain, std::memory_order_relaxed);
            if (first >= end) return;
            body(context, first, std::min(first + grain, end));
        }
    }

    void work(int node) {
        if (!nodes.several()) return take(next, count);
        take(parts[node].next, parts[node].end);
        for (int i = 1; i < nodes.count() && !apart; ++i) {
            Part& other = parts[(node + i) % nodes.count()];
            if (!is_taken(other)) take(other.next, other.end);
        }
    }

    static bool is_taken(const Part& part) { return part.next.load(std::memory_order_relaxed) >= part.end; }

    void cut() {
        const int64_t pieces = (count + grain - 1) / grain;
        for (int64_t node = 0, first = 0; node < nodes.count(); ++node) {
            parts[node].next.store(first, std::memory_order_relaxed);
            first = parts[node].end = std::min(count, nodes.end(static_cast<int>(node), pieces) * grain);
        }
    }

    // What worker `number` does, from 1 on.
    void serve(int number, int node) {
        if (nodes.several()) nodes.bind(node);
        uint32_t seen = 0;
        for (;;) {
            const auto changed = [&] { return generation.load(std::memory_order_acquire) != seen; };
            if (!wait_awake(changed)) {
                sleeping.fetch_add(1);
                generation.wait(seen);
                sleeping.fetch_sub(1);
            }
            seen = generation.load(std::memory_order_acquire);
            if (ending.load()) return;
            if (number >= wanted.load(std::memory_order_relaxed)) continue;
            uint32_t now = inside.load();
            while (!(now & CLOSED)) {
                if (inside.compare_exchange_weak(now, now + 1)) {
                    work(node);
                    inside.fetch_sub(1);
                    break;
                }
            }
        }
    }

    // The caller computes as a thread of `node`.
    void run(int threads, int node) {
        next.store(0);
        if (nodes.several()) cut();
        wanted.store(threads, std::memory_order_relaxed);
        inside.store(0);
        generation.fetch_add(1);
        if (sleeping.load() > 0) generation.notify_all();
        work(node);
        if (apart) wait_for([&] { return std::all_of(parts.get(), parts.get() + nodes.count(), is_taken); });
        inside.fetch_or(CLOSED);
        wait_for([&] { return inside.load(std::memory_order_acquire) == CLOSED; });
    }

    // As run, where each node's threads do what is theirs and nothing else, the caller as one of its own node.
    void run_apart() {
        const ProcessorMask before = bound_to();
        nodes.bind(nodes.home(0));
        apart = true;
        run(static_cast<int>(workers.size()) + 1, nodes.home(0));
        apart = false;
        bind_to(before);
    }

    template <typename Ready>
    static void wait_for(const Ready& ready) {
        while (!wait_awake(ready)) YIELD();
    }

    void resize(int threads, Nodes placed) {
        crowded.store(threads > processors());
        ending.store(true);
        generation.fetch_add(1);
        generation.notify_all();
        for (auto& worker : workers) worker.join();
        workers.clear();
        ending.store(false);
        generation.store(0);
        nodes = std::move(placed);
        parts.reset(nodes.several() ? new Part[nodes.count()] : nullptr);
        try {
            for (int i = 1; i < threads; ++i) {
                const int node = nodes.several() ? nodes.home(i) : 0;
                workers.emplace_back([this, i, node] { serve(i, node); });
            }
        } catch (const std::system_error&) {
            // The system gives no more threads: those that there are serve.
            nodes.keep(static_cast<int>(workers.size()) + 1);
        }
    }
};

// Never destroyed: its threads may outlive static objects. A child process starts without threads.
Pool* pool = new Pool;
std::atomic<int> threads{1};
std::atomic<double> meeting{0.0};  // nanoseconds that it takes all threads to begin a job together and to end it
thread_local bool inside_job = false;

struct ForkHandler {
    ForkHandler() {
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr, [] {
            pool = new Pool;
            threads.store(1);
        });
#endif
    }
} fork_handler;

}  // namespace

int thread_count() { return threads.load(std::memory_order_relaxed); }

// With n threads the work takes 1 / n of its time, and to meet takes longer by as much with each of them: least in sum
// where both are alike.
int threads_worth(double nanoseconds) {
    const int all = thread_count();
    const double each = meeting.load(std::memory_order_relaxed) / all;
    return nanoseconds >= each * all * all ? all : std::max(1, static_cast<int>(std::sqrt(nanoseconds / each)));
}

void share(int64_t count, int64_t grain, int wanted, void (*body)(const void*, int64_t, int64_t), const void* context) {
    if (inside_job || !pool->busy.try_lock()) {
        body(context, 0, count);
        return;
    }
    inside_job = true;
    pool->count = count;
    pool->grain = grain;
    pool->body = body;
    pool->context = context;
    pool->run(wanted, pool->nodes.several() ? pool->nodes.here() : 0);
    inside_job = false;
    pool->busy.unlock();
}

namespace {

constexpr int64_t COPIED = 64 << 10;  // bytes

// Copy what lies in `parts` alike parts, one after the other, so that of each part every node's threads write what
// they will read of it: the system takes memory near who writes it first.
struct Copy {
    const uint8_t* source;
    uint8_t* target;
    int64_t bytes, parts;  // of a part

    void operator()(int64_t first, int64_t last) const {
        const int64_t begin = first * COPIED, end = std::min(bytes, last * COPIED);
        for (int64_t part = 0; part < parts; ++part) {
            std::memcpy(target + part * bytes + begin, source + part * bytes + begin, static_cast<size_t>(end - begin));
        }
    }
};

// Measures a meeting: the shortest of some in which each thread waits for all others, for at most as long as processors
// need to tell each other: what else the machine does at this moment is not to count.
void measure_meeting() {
    constexpr int ROUNDS = 24;
    constexpr auto PATIENCE = std::chrono::microseconds(50);
    constexpr double MOST_EACH = 500.0;
    const int all = thread_count();
    double shortest = MOST_EACH * all;
    for (int i = 0; i < ROUNDS && all > 1; ++i) {
        alignas(LINE) std::atomic<int> arrived{0};
        const auto begin = Clock::now();
        parallel(all, 1, [&](int64_t, int64_t) {
            arrived.fetch_add(1);
            while (arrived.load() < all && Clock::now() - begin < PATIENCE) pause();
        });
        const auto took = std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
        if (arrived.load() == all) shortest = std::min(shortest, took);
    }
    meeting.store(shortest);
}

}  // namespace
}  // namespace octavo

FUNCTION(set_threads) {
    using namespace octavo;
    {
        std::lock_guard<std::mutex> lock(pool->busy);
        Nodes nodes;
        if (a.num_nodes > 1) {
            nodes = Nodes({a.homes, a.homes + a.count}, a.processors, a.ends, static_cast<int>(a.num_nodes));
        }
        if (a.count == threads.load() && nodes == pool->nodes) return a.count;
        pool->resize(static_cast<int>(a.count), std::move(nodes));
        threads.store(static_cast<int>(pool->workers.size()) + 1);
    }
    measure_meeting();
    return threads.load();
}

FUNCTION(place) {
    using namespace octavo;
    const Copy copy{a.source, a.target, a.size / a.parts, a.parts};
    const int64_t count = (copy.bytes + COPIED - 1) / COPIED;
    std::lock_guard<std::mutex> lock(pool->busy);
    if (!pool->nodes.several()) {
        copy(0, count);
        return 0;
    }
    inside_job = true;
    pool->count = count;
    pool->grain = 1;
    pool->body = [](const void* context, int64_t first, int64_t last) {
        (*static_cast<const Copy*>(context))(first, last);
    };
    pool->context = &copy;
    pool->run_apart();
    inside_job = false;
    return 0;
}
