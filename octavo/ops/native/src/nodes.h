// Which processors are near which memory (NUMA nodes), and which of the core's threads compute there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace octavo {

// Processors as the system takes them, as many as there may be.
using ProcessorMask = std::vector<unsigned long>;

inline ProcessorMask bound_to() {
    ProcessorMask mask(1024 / (8 * sizeof(unsigned long)));
#if defined(__linux__)
    while (sched_getaffinity(0, mask.size() * sizeof mask[0], reinterpret_cast<cpu_set_t*>(mask.data())) != 0) {
        if (mask.size() > 4096) return {};
        mask.resize(2 * mask.size());
    }
#endif
    return mask;
}

// Bind this thread. Where the system does not let it, it computes wherever it is.
inline void bind_to(const ProcessorMask& mask) {
#if defined(__linux__)
    sched_setaffinity(0, mask.size() * sizeof mask[0], reinterpret_cast<const cpu_set_t*>(mask.data()));
#else
    (void)mask;
#endif
}

class Nodes {
public:
    Nodes() = default;

    // homes: each thread's node. processors: those of each node follow one another, up to its end.
    Nodes(std::vector<int> homes, const int32_t* processors, const int32_t* ends, int count) : homes_(std::move(homes)) {
        constexpr int BITS = 8 * sizeof(unsigned long);
        for (int node = 0, at = 0; node < count; ++node) {
            ProcessorMask mask;
            for (; at < ends[node]; ++at) {
                const auto processor = static_cast<size_t>(processors[at]);
                mask.resize(std::max(mask.size(), processor / BITS + 1));
                mask[processor / BITS] |= 1ul << processor % BITS;
                node_of_.resize(std::max(node_of_.size(), processor + 1));
                node_of_[processor] = node;
            }
            masks_.push_back(std::move(mask));
        }
        keep(static_cast<int>(homes_.size()));
    }

    bool operator==(const Nodes&) const = default;

    bool several() const { return masks_.size() > 1; }
    int count() const { return static_cast<int>(masks_.size()); }
    int home(int thread) const { return homes_[thread]; }

    // The node of the processor that this thread is on.
    int here() const {
#if defined(__linux__)
        const int processor = sched_getcpu();
        if (processor >= 0 && static_cast<size_t>(processor) < node_of_.size()) return node_of_[processor];
#endif
        return 0;
    }

    void bind(int node) const {
        if (!masks_[node].empty()) bind_to(masks_[node]);
    }

    // There are only so many threads.
    void keep(int threads) {
        if (!several()) return;
        homes_.resize(threads);
        before_.assign(masks_.size() + 1, 0);
        for (const int home : homes_) ++before_[home + 1];
        for (size_t node = 0; node < masks_.size(); ++node) before_[node + 1] += before_[node];
    }

    // The first of `pieces` that is not any more of a node's part, which is as its threads are of all threads.
    int64_t end(int node, int64_t pieces) const { return pieces * before_[node + 1] / before_.back(); }

private:
    std::vector<int> homes_;
    std::vector<ProcessorMask> masks_;
    std::vector<int> node_of_;     // of each processor
    std::vector<int64_t> before_;  // threads of the nodes before each, and of all
};

}  // namespace octavo
