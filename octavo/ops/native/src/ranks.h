// Ranks on one machine: what they share, how they wait for each other, and what ends it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "description.h"

namespace octavo {

constexpr int MAX_TENSOR_RANKS = 256, MAX_LEAST = 64;

// Whether an operation could not be done: no other is, until ranks are joined anew.
extern std::atomic<bool> ranks_have_stopped;
inline bool ranks_stopped() { return ranks_have_stopped.load(std::memory_order_relaxed); }

// A number that one rank counts up and others wait for.
struct Signal {
    std::atomic<uint32_t> value, sleeping;
    void set(uint32_t now);
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(Signal) == 8);

// What a rank comes with, which must be what the others come with.
struct Meeting {
    int32_t operation, unused;
    int64_t rows, bytes;
    bool operator==(const Meeting&) const = default;
};

// The head of a rank's part of the memory. Each line of the processor's cache is written by one rank.
struct RankHead {
    alignas(64) Signal arrived;  // how often it has met the other tensor ranks, and with what the last two times
    Meeting meetings[2];
    alignas(64) Signal counted;  // how often it has met all ranks
    int64_t counts[2];
    alignas(64) Signal sent;   // bytes to the next stage
    alignas(64) Signal taken;  // bytes from the previous stage
    alignas(64) std::atomic<int32_t> operation;
    std::atomic<int32_t> missing;
    std::atomic<int32_t> is_locked;  // whether a lock in the file says that its process lives
    alignas(64) int64_t least[2][MAX_LEAST];
};
static_assert(sizeof(RankHead) <= RANK_HEAD && offsetof(RankHead, operation) == WAITING_AT);

struct RankGroup {
    uint8_t* memory;
    size_t bytes;
    int file, rank, size, tensor_size, processors;
    double timeout;
    int64_t* status;
    uint32_t meetings, buffers, counts, sent, taken;

    int first() const { return rank - rank % tensor_size; }
    uint8_t* part(int of) const { return memory + RANK_HEAD + static_cast<size_t>(of) * RANK_BYTES; }
    RankHead& head(int of) const { return *reinterpret_cast<RankHead*>(part(of)); }
    uint8_t* buffer(int of) const { return part(of) + RANK_HEAD + (buffers & 1) * RANK_BUFFER; }
    uint8_t* ring(int of) const { return part(of) + RANK_HEAD + 2 * RANK_BUFFER; }

    // Wait until the signal of `of` is `ready`; false where that fails.
    template <typename Ready>
    bool wait(RankOperation operation, int of, Signal& signal, const Ready& ready) {
        const auto is_ready = [&] { return ready(signal.value.load(std::memory_order_acquire)); };
        if (is_ready()) return true;
        for (Wait wait(*this, operation, of, signal);;) {
            const uint32_t seen = signal.value.load();
            if (ready(seen)) return true;
            if (!wait.go_on(seen)) return false;
        }
    }

    // Have all tensor ranks come with the same; false where that fails.
    bool meet(RankOperation operation, int64_t rows, int64_t bytes);
    // `least`, in rounds that its numbers fit into.
    bool meet_all(RankOperation operation, int64_t* values, int64_t count);
    void fail(RankFailure failure, RankOperation operation, int missing);
    bool is_gone(int of) const;

    // Spins first, then lets others compute, and then sleeps.
    struct Wait {
        RankGroup& group;
        const RankOperation operation;
        const int of;
        Signal& signal;
        const int64_t start;
        int64_t rounds = 0;
        bool sleeps = false;

        Wait(RankGroup& group, RankOperation operation, int of, Signal& signal);
        ~Wait();
        bool go_on(uint32_t seen);
    };
};

}  // namespace octavo
