// How Python calls the core: every operation takes an array of 8-byte arguments, of which the first is the number of
// rows. So a recorded step can be run again from the arguments alone, with another number of rows (program.cpp).
#pragma once

#include <cstdint>

#define API extern "C" __attribute__((visibility("default")))

namespace octavo {

union Arg {
    int64_t i;
    double f;
    void* p;
};

template <typename T>
inline T* at(const Arg& a) {
    return static_cast<T*>(a.p);
}

typedef void (*Operation)(const Arg*);

#define OPERATION(name) API void octavo_##name(const octavo::Arg* a)

}  // namespace octavo

// `f(pointer)` with the pointer's type chosen by a Type that is only known when called.
#define WITH_TYPE(type, T, ...)                          \
    switch (type) {                                      \
        case octavo::F32: { using T = float; __VA_ARGS__; break; }       \
        case octavo::BF16: { using T = octavo::bf16; __VA_ARGS__; break; } \
        case octavo::F16: { using T = octavo::f16; __VA_ARGS__; break; }   \
    }
