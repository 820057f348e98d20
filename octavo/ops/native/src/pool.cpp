// Threads that spin for a moment after their work, since the next operation follows within microseconds, and then
// sleep, so that they take nothing from PyTorch's threads or anybody else's.
#include "pool.h"

#include <atomic>
#include <chrono>
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

constexpr int SPIN_MICROSECONDS = 200;
constexpr uint32_t CLOSED = 1u << 31;

// Whether `ready` came true within the spinning time.
template <typename Ready>
bool spin(const Ready& ready, int microseconds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(microseconds);
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

struct Pool {
    std::mutex busy;
    std::vector<std::thread> workers;
    std::atomic<uint32_t> generation{0};  // counts jobs; workers wait for it to change
    std::atomic<int> sleeping{0};
    std::atomic<bool> ending{false};
    // How many threads are inside the job, and whether it still takes any: a worker that wakes late finds it closed
    // and is not waited for.
    std::atomic<uint32_t> inside{CLOSED};
    std::atomic<int64_t> next{0};
    int64_t count = 0, grain = 1;
    void (*body)(const void*, int64_t, int64_t) = nullptr;
    const void* context = nullptr;

    void work() {
        for (;;) {
            const int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
            if (first >= count) return;
            body(context, first, std::min(first + grain, count));
        }
    }

    void serve() {
        uint32_t seen = 0;
        for (;;) {
            const auto changed = [&] { return generation.load(std::memory_order_acquire) != seen; };
            if (!spin(changed, SPIN_MICROSECONDS)) {
                sleeping.fetch_add(1);
                generation.wait(seen);
                sleeping.fetch_sub(1);
            }
            seen = generation.load(std::memory_order_acquire);
            if (ending.load()) return;
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

    void run() {
        next.store(0);
        inside.store(0);
        generation.fetch_add(1);
        if (sleeping.load() > 0) generation.notify_all();
        work();
        inside.fetch_or(CLOSED);
        const auto empty = [&] { return inside.load(std::memory_order_acquire) == CLOSED; };
        while (!spin(empty, SPIN_MICROSECONDS)) YIELD();
    }

    void resize(int threads) {
        ending.store(true);
        generation.fetch_add(1);
        generation.notify_all();
        for (auto& worker : workers) worker.join();
        workers.clear();
        ending.store(false);
        generation.store(0);
        try {
            for (int i = 1; i < threads; ++i) workers.emplace_back([this] { serve(); });
        } catch (const std::system_error&) {
            // The system gives no more threads: those that there are serve.
        }
    }
};

// Never destroyed: its threads may outlive static objects. A child process starts without threads.
Pool* pool = new Pool;
std::atomic<int> threads{1};
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

void share(int64_t count, int64_t grain, void (*body)(const void*, int64_t, int64_t), const void* context) {
    if (inside_job || !pool->busy.try_lock()) {
        body(context, 0, count);
        return;
    }
    inside_job = true;
    pool->count = count;
    pool->grain = grain;
    pool->body = body;
    pool->context = context;
    pool->run();
    inside_job = false;
    pool->busy.unlock();
}

}  // namespace octavo

FUNCTION(set_threads) {
    using namespace octavo;
    std::lock_guard<std::mutex> lock(pool->busy);
    if (a.count != threads.load()) {
        pool->resize(static_cast<int>(a.count));
        threads.store(static_cast<int>(pool->workers.size()) + 1);
    }
    return threads.load();
}
