// What ranks on one machine do together, through the memory that they share.
//
// A rank shows the others a piece of its rows in a buffer, and they meet; once they have met again, the one buffer of
// its two that it fills next is one that nobody reads any more.
#include <algorithm>
#include <cstring>

#include "call.h"
#include "ranks.h"
#include "rows.h"

namespace octavo {
namespace {

constexpr int64_t SMALL_SUM = 64 << 10;    // bytes that each rank had rather sum up by itself than meet a second time for
constexpr int64_t SEGMENT = 256 << 10;     // bytes of a stream that the next stage may take while more are written
constexpr int64_t COPY_GRAIN = 128 << 10;  // bytes that one thread copies

void copy_bytes(void* to, const void* from, int64_t bytes) {
    parallel(bytes, COPY_GRAIN, [&](int64_t first, int64_t last) {
        std::memcpy(static_cast<uint8_t*>(to) + first, static_cast<const uint8_t*>(from) + first, last - first);
    });
}

// ---- sums ----------------------------------------------------------------------------------------------------------

// One rank's numbers, as all see them.
template <typename T>
struct Parts {
    const T* of[MAX_TENSOR_RANKS];
    int count;

    // The numbers' sums in the order of ranks, to `out`, and to `also` where it is not null.
    void sum(int64_t first, int64_t last, T* out, T* also) const {
        parallel(last - first, SMALL, [&](int64_t begin, int64_t end) {
            begin += first;
            for_vectors(end + first - begin, [&](int64_t i, int n) {
                vec total = take(of[0] + begin + i, n);
                for (int rank = 1; rank < count; ++rank) total += take(of[rank] + begin + i, n);
                put(out + begin + i, total, n);
                if (also != nullptr) put(also + begin + i, total, n);
            });
        });
    }
};

// Of `count` numbers that fit into a buffer. Each rank sums them up, or a part of them that it then shows the others:
// in the same order, so that the bits are the same.
template <typename T>
bool sum_piece(RankGroup& group, T* x, int64_t count, int64_t rows, int64_t bytes) {
    ++group.buffers;
    const int size = group.tensor_size, first = group.first();
    const auto shown = [&](int rank) { return reinterpret_cast<T*>(group.buffer(first + rank)); };
    const int own = group.rank - first;
    Parts<T> parts = {{}, size};
    for (int rank = 0; rank < size; ++rank) parts.of[rank] = rank == own ? x : shown(rank);
    if (count * static_cast<int64_t>(sizeof(T)) * (size - 1) <= SMALL_SUM) {
        std::memcpy(shown(own), x, count * sizeof(T));
        if (!group.meet(RankOperation::ALL_REDUCE, rows, bytes)) return false;
        parts.sum(0, count, x, nullptr);
        return true;
    }
    const int64_t share = (count + size * LANES - 1) / (size * LANES) * LANES;
    const auto begin = [&](int rank) { return std::min(count, rank * share); };
    const auto copy = [&](T* to, const T* from, int64_t start, int64_t end) {
        copy_bytes(to + start, from + start, (end - start) * sizeof(T));
    };
    copy(shown(own), x, 0, begin(own));
    copy(shown(own), x, begin(own + 1), count);
    if (!group.meet(RankOperation::ALL_REDUCE, rows, bytes)) return false;
    parts.sum(begin(own), begin(own + 1), x, shown(own));
    if (!group.meet(RankOperation::ALL_REDUCE, rows, bytes)) return false;
    for (int rank = 0; rank < size; ++rank)
        if (rank != own) copy(x, shown(rank), begin(rank), begin(rank + 1));
    return true;
}

template <typename T>
void sum_rows(RankGroup& group, T* x, int64_t rows, int64_t columns) {
    constexpr int64_t most = RANK_BUFFER / sizeof(T);
    const int64_t count = rows * columns;
    for (int64_t done = 0; done < count; done += most)
        if (!sum_piece(group, x + done, std::min(most, count - done), rows, columns * sizeof(T))) return;
}

// ---- rows side by side ---------------------------------------------------------------------------------------------

// Bytes `first` to `last` of rows that follow one another, to where rows are `stride` apart.
void spread(const uint8_t* from, int64_t row_bytes, int64_t first, int64_t last, uint8_t* to, int64_t stride) {
    while (first < last) {
        const int64_t row = first / row_bytes, start = first % row_bytes;
        const int64_t bytes = std::min(row_bytes - start, last - first);
        std::memcpy(to + row * stride + start, from, bytes);
        from += bytes;
        first += bytes;
    }
}

// ---- between stages ------------------------------------------------------------------------------------------------

struct Message {
    int64_t rows, row_bytes;
};

// The next stage's rank takes bytes from a ring, as many as there are while more are written.
bool write_ring(RankGroup& group, const uint8_t* x, int64_t bytes) {
    RankHead& own = group.head(group.rank);
    const int next = group.rank + group.tensor_size;
    Signal& taken = group.head(next).taken;
    while (bytes > 0) {
        const auto room = [&](uint32_t value) { return RANK_RING - static_cast<uint32_t>(group.sent - value); };
        if (room(taken.value.load(std::memory_order_acquire)) == 0) {
            own.sent.set(group.sent);
            if (!group.wait(RankOperation::SEND, next, taken, [&](uint32_t value) { return room(value) > 0; }))
                return false;
        }
        const int64_t place = group.sent % RANK_RING, free = room(taken.value.load(std::memory_order_acquire));
        const int64_t part = std::min({bytes, free, RANK_RING - place, SEGMENT});
        copy_bytes(group.ring(group.rank) + place, x, part);
        group.sent += static_cast<uint32_t>(part);
        if (part == SEGMENT) own.sent.set(group.sent);
        x += part;
        bytes -= part;
    }
    return true;
}

bool read_ring(RankGroup& group, uint8_t* out, int64_t bytes) {
    RankHead& own = group.head(group.rank);
    const int before = group.rank - group.tensor_size;
    Signal& sent = group.head(before).sent;
    while (bytes > 0) {
        const auto waiting = [&](uint32_t value) { return static_cast<uint32_t>(value - group.taken); };
        if (!group.wait(RankOperation::RECEIVE, before, sent, [&](uint32_t value) { return waiting(value) > 0; }))
            return false;
        const int64_t place = group.taken % RANK_RING, there = waiting(sent.value.load(std::memory_order_acquire));
        const int64_t part = std::min({bytes, there, RANK_RING - place, SEGMENT});
        copy_bytes(out, group.ring(before) + place, part);
        group.taken += static_cast<uint32_t>(part);
        own.taken.set(group.taken);
        out += part;
        bytes -= part;
    }
    return true;
}

}  // namespace
}  // namespace octavo

OPERATION(all_reduce) {
    using namespace octavo;
    if (ranks_stopped()) return;
    WITH_TYPE(a.dtype, T, sum_rows(*static_cast<RankGroup*>(a.ranks), static_cast<T*>(a.x), a.rows, a.columns))
}

OPERATION(all_gather) {
    using namespace octavo;
    if (ranks_stopped()) return;
    auto& group = *static_cast<RankGroup*>(a.ranks);
    const int size = group.tensor_size, first = group.first(), own = group.rank - first;
    int64_t total = 0, most = 0;
    for (int rank = 0; rank < size; ++rank) {
        total += a.row_bytes[rank];
        most = std::max(most, a.rows * a.row_bytes[rank]);
    }
    for (int64_t done = 0; done < most; done += RANK_BUFFER) {
        ++group.buffers;
        const auto end = [&](int rank) { return std::min(a.rows * a.row_bytes[rank], done + RANK_BUFFER); };
        if (end(own) > done) copy_bytes(group.buffer(group.rank), a.x + done, end(own) - done);
        if (!group.meet(RankOperation::ALL_GATHER, a.rows, total)) return;
        uint8_t* out = a.out;
        for (int rank = 0; rank < size; ++rank) {
            const uint8_t* from = rank == own ? a.x + done : group.buffer(first + rank);
            if (end(rank) > done) spread(from, a.row_bytes[rank], done, end(rank), out, total);
            out += a.row_bytes[rank];
        }
    }
}

OPERATION(send) {
    using namespace octavo;
    if (ranks_stopped()) return;
    auto& group = *static_cast<RankGroup*>(a.ranks);
    const Message message{a.rows, a.row_bytes};
    if (!write_ring(group, reinterpret_cast<const uint8_t*>(&message), sizeof message)) return;
    if (!write_ring(group, a.x, a.rows * a.row_bytes)) return;
    group.head(group.rank).sent.set(group.sent);
}

OPERATION(receive) {
    using namespace octavo;
    if (ranks_stopped()) return;
    auto& group = *static_cast<RankGroup*>(a.ranks);
    Message message;
    if (!read_ring(group, reinterpret_cast<uint8_t*>(&message), sizeof message)) return;
    if (message.rows == a.rows && message.row_bytes == a.row_bytes)
        read_ring(group, a.out, a.rows * a.row_bytes);
    else
        group.fail(RankFailure::OUT_OF_STEP, RankOperation::RECEIVE, group.rank - group.tensor_size);
}
