// Threads that spin for a moment after their work, since the next operation follows within microseconds, and then
// sleep, so that they take nothing from PyTorch's threads or anybody else's. Where there are more of them than
// processors, who waits would keep a processor from who is waited for: they let others have it between two looks.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "call.h"
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

struct Pool {
    std::mutex busy;
    std::vector<std::thread> workers;
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

    void work() {
        for (;;) {
            const int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
            if (first >= count) return;
            body(context, first, std::min(first + grain, count));
        }
    }

    // What worker `number` does, from 1 on.
    void serve(int number) {
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
                    work();
                    inside.fetch_sub(1);
                    break;
                }
            }
        }
    }

    void run(int threads) {
        next.store(0);
        wanted.store(threads, std::memory_order_relaxed);
        inside.store(0);
        generation.fetch_add(1);
        if (sleeping.load() > 0) generation.notify_all();
        work();
        inside.fetch_or(CLOSED);
        const auto empty = [&] { return inside.load(std::memory_order_acquire) == CLOSED; };
        while (!wait_awake(empty)) YIELD();
    }

    void resize(int threads) {
        crowded.store(threads > processors());
        ending.store(true);
        generation.fetch_add(1);
        generation.notify_all();
        for (auto& worker : workers) worker.join();
        workers.clear();
        ending.store(false);
        generation.store(0);
        try {
            for (int i = 1; i < threads; ++i) workers.emplace_back([this, i] { serve(i); });
        } catch (const std::system_error&) {
            // The system gives no more threads: those that there are serve.
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
    pool->run(wanted);
    inside_job = false;
    pool->busy.unlock();
}

namespace {

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
        if (a.count == threads.load()) return a.count;
        pool->resize(static_cast<int>(a.count));
        threads.store(static_cast<int>(pool->workers.size()) + 1);
    }
    measure_meeting();
    return threads.load();
}
