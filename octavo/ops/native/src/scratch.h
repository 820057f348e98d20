// Room for what an operation works with.
#pragma once

#include <cstdint>
#include <memory>

namespace octavo {

// Memory of a thread's own that only grows, aligned to vectors.
class Scratch {
public:
    uint8_t* get(int64_t bytes) {
        if (bytes > size_) {
            memory_.reset(new uint8_t[bytes + 64]);
            size_ = bytes;
        }
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        return reinterpret_cast<uint8_t*>((address + 63) / 64 * 64);
    }

private:
    std::unique_ptr<uint8_t[]> memory_;
    int64_t size_ = 0;
};

}  // namespace octavo
