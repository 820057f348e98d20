// How Python calls the core: a function takes a struct of its arguments, which octavo/ops/native/description.py declares.
// An operation's first argument counts rows, so that a recorded step can be run again from the structs alone, with
// another number of rows (program.cpp).
#pragma once

#include <cstdint>

#include "description.h"
#include "numbers.h"

#define API extern "C" __attribute__((visibility("default")))
#define FUNCTION(name) API int64_t octavo_##name(const octavo::arguments::name& a)
#define OPERATION(name) API void octavo_##name(const octavo::arguments::name& a)

namespace octavo {

// Row `row` of rows of `columns` numbers.
template <typename T>
inline const T* row_of(const void* rows, int64_t row, int64_t columns) {
    return static_cast<const T*>(rows) + row * columns;
}
template <typename T>
inline T* row_of(void* rows, int64_t row, int64_t columns) {
    return static_cast<T*>(rows) + row * columns;
}

}  // namespace octavo

// Its last argument with T as the type of a DType that is only known when called.
#define WITH_TYPE(dtype, T, ...)                                                  \
    switch (dtype) {                                                              \
        case octavo::DType::F32: { using T = float; __VA_ARGS__; break; }         \
        case octavo::DType::BF16: { using T = octavo::bf16; __VA_ARGS__; break; } \
        case octavo::DType::F16: { using T = octavo::f16; __VA_ARGS__; break; }   \
    }
