// A recorded step, run again: a list of operations with their arguments, of which only the number of rows changes.
#include <cstring>

#include "call.h"

namespace {

constexpr int64_t MOST_ARGUMENTS = 32;

}  // namespace

// `program` holds `count` operations, each as: its function, the number of its arguments, the arguments. They were
// recorded for `recorded` rows in a step and are run for `rows`: the first argument, a multiple of the number of rows,
// is scaled. Buffers are those of the recording, so `rows` is at most `recorded`. Returns 0, or -1 for a program that is
// not one.
API int64_t octavo_run(const octavo::Arg* program, int64_t count, int64_t recorded, int64_t rows) {
    octavo::Arg arguments[MOST_ARGUMENTS];
    for (int64_t i = 0; i < count; ++i) {
        const auto function = reinterpret_cast<octavo::Operation>(program[0].p);
        const int64_t length = program[1].i;
        if (length < 1 || length > MOST_ARGUMENTS) return -1;
        std::memcpy(arguments, program + 2, length * sizeof(octavo::Arg));
        arguments[0].i = arguments[0].i / recorded * rows;
        function(arguments);
        program += 2 + length;
    }
    return 0;
}
