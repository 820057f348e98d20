// How ranks on one machine join, wait for each other, and find that one is missing.
#include "ranks.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#define HAS_SHARED_MEMORY
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "call.h"
#include "pool.h"
#include "spin.h"

namespace octavo {

std::atomic<bool> ranks_have_stopped{false};

namespace {

constexpr int64_t SPIN = 50'000, YIELDING = 500'000;  // nanoseconds since a wait began
constexpr int64_t SLEEP = 10'000'000;                 // nanoseconds that a sleeping rank may miss an abort

int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

std::atomic<int32_t>& abort_word(const RankGroup& group) {
    return *reinterpret_cast<std::atomic<int32_t>*>(group.memory + ABORT_AT);
}

// Sleep while the word is as seen, but not long. Futexes work between processes whatever the address in each.
void sleep_on([[maybe_unused]] std::atomic<uint32_t>& word, [[maybe_unused]] uint32_t seen) {
#if defined(__linux__)
    const timespec time{0, SLEEP};
    syscall(SYS_futex, &word, FUTEX_WAIT, seen, &time, nullptr, 0);
#elif defined(HAS_SHARED_MEMORY)
    const timespec time{0, SPIN};
    nanosleep(&time, nullptr);
#endif
}

#if defined(HAS_SHARED_MEMORY)
// A lock that a process has on a byte of the file is gone with the process, however that ends.
struct flock lock_of(int rank, short type) {
    struct flock lock = {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = rank;
    lock.l_len = 1;
    return lock;
}
#endif

}  // namespace

void Signal::set(uint32_t now) {
    value.store(now);
#if defined(__linux__)
    if (sleeping.load() != 0) syscall(SYS_futex, &value, FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
#endif
}

void RankGroup::fail(RankFailure failure, RankOperation operation, int missing) {
    if (ranks_stopped()) return;
    int32_t none = 0;
    abort_word(*this).compare_exchange_strong(none, missing + 1);
    status[1] = static_cast<int64_t>(operation);
    status[2] = missing;
    status[0] = static_cast<int64_t>(failure);
    ranks_have_stopped.store(true);
}

bool RankGroup::is_gone([[maybe_unused]] int of) const {
#if defined(HAS_SHARED_MEMORY)
    if (head(of).is_locked.load() == 0) return false;
    struct flock lock = lock_of(of, F_WRLCK);
    return fcntl(file, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
#else
    return false;
#endif
}

RankGroup::Wait::Wait(RankGroup& group, RankOperation operation, int of, Signal& signal)
    : group(group), operation(operation), of(of), signal(signal), start(now()) {}

RankGroup::Wait::~Wait() {
    if (!sleeps) return;
    signal.sleeping.fetch_sub(1);
    group.head(group.rank).missing.store(0);
}

bool RankGroup::Wait::go_on(uint32_t seen) {
    if (ranks_stopped()) return false;
    if (const int32_t word = abort_word(group).load(std::memory_order_relaxed)) {
        group.fail(RankFailure::ABORTED, operation, word < 0 ? -1 : word - 1);
        return false;
    }
    if (!sleeps) {
        const bool crowded = static_cast<int64_t>(group.size) * thread_count() > group.processors;
        const int64_t waited = now() - start;
        if (waited < SPIN && !crowded) {
            for (int i = 0; i < 16; ++i) pause();
            return true;
        }
        if (waited < YIELDING) {
            YIELD();
            return true;
        }
        sleeps = true;  // the signal is looked at once more before that
        RankHead& own = group.head(group.rank);
        own.operation.store(static_cast<int32_t>(operation));
        own.missing.store(of + 1);
        signal.sleeping.fetch_add(1);
        return true;
    }
    sleep_on(signal.value, seen);
    if (signal.value.load() != seen) return true;
    const bool in_step = operation != RankOperation::JOIN && operation != RankOperation::LEAST;
    const double patience = group.timeout * 1e9 * (in_step ? 1 : LOADING_PATIENCE);
    const bool late = static_cast<double>(now() - start) > patience;
    if (late || group.is_gone(of)) {
        if (signal.value.load() != seen) return true;  // the last that it did
        group.fail(late ? RankFailure::LATE : RankFailure::GONE, operation, of);
        return false;
    }
    return true;
}

bool RankGroup::meet(RankOperation operation, int64_t rows, int64_t bytes) {
    const uint32_t count = ++meetings;
    RankHead& own = head(rank);
    const Meeting meeting{static_cast<int32_t>(operation), 0, rows, bytes};
    own.meetings[count & 1] = meeting;
    own.arrived.set(count);
    for (int other = first(); other < first() + tensor_size; ++other) {
        if (other == rank) continue;
        const auto has_come = [&](uint32_t value) { return static_cast<int32_t>(value - count) >= 0; };
        if (!wait(operation, other, head(other).arrived, has_come)) return false;
        if (!(head(other).meetings[count & 1] == meeting)) {
            fail(RankFailure::OUT_OF_STEP, operation, other);
            return false;
        }
    }
    return true;
}

bool RankGroup::meet_all(RankOperation operation, int64_t* values, int64_t count) {
    const int64_t part = std::min<int64_t>(count, MAX_LEAST);
    RankHead& own = head(rank);
    const uint32_t round = ++counts;
    std::copy(values, values + part, own.least[round & 1]);
    own.counts[round & 1] = count;
    own.counted.set(round);
    for (int other = 0; other < size; ++other) {
        if (other == rank) continue;
        const auto has_come = [&](uint32_t value) { return static_cast<int32_t>(value - round) >= 0; };
        if (!wait(operation, other, head(other).counted, has_come)) return false;
        if (head(other).counts[round & 1] != count) {
            fail(RankFailure::OUT_OF_STEP, operation, other);
            return false;
        }
        const int64_t* theirs = head(other).least[round & 1];
        for (int64_t i = 0; i < part; ++i) values[i] = std::min(values[i], theirs[i]);
    }
    return count <= MAX_LEAST || meet_all(operation, values + part, count - part);
}

}  // namespace octavo

FUNCTION(join_ranks) {
    using namespace octavo;
#if defined(HAS_SHARED_MEMORY)
    const size_t bytes = RANK_HEAD + static_cast<size_t>(a.size) * RANK_BYTES;
    struct stat file;
    if (a.tensor_size > MAX_TENSOR_RANKS || fstat(a.memory, &file) != 0 || file.st_size < static_cast<off_t>(bytes))
        return 0;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, a.memory, 0);
    if (memory == MAP_FAILED) return 0;
    ranks_have_stopped.store(false);
    auto* group = new RankGroup{static_cast<uint8_t*>(memory), bytes, a.memory, a.rank, a.size, a.tensor_size};
    group->timeout = a.timeout;
    group->status = a.status;
    group->processors = a.processors;
    struct flock lock = lock_of(a.rank, F_WRLCK);
    if (fcntl(a.memory, F_SETLK, &lock) == 0) group->head(a.rank).is_locked.store(1);
    int64_t nothing = 0;
    if (group->meet_all(RankOperation::JOIN, &nothing, 1)) return reinterpret_cast<int64_t>(group);
    munmap(memory, bytes);
    delete group;
    ranks_have_stopped.store(false);  // there are none: who computes alone is not concerned
#endif
    return 0;
}

FUNCTION(leave_ranks) {
    auto* group = static_cast<octavo::RankGroup*>(a.ranks);
#if defined(HAS_SHARED_MEMORY)
    munmap(group->memory, group->bytes);
    close(group->file);
#endif
    delete group;
    octavo::ranks_have_stopped.store(false);
    return 0;
}

FUNCTION(least) {
    using namespace octavo;
    auto* group = static_cast<RankGroup*>(a.ranks);
    return !ranks_stopped() && group->meet_all(RankOperation::LEAST, a.values, a.count) ? 0 : -1;
}
