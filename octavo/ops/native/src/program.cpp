// A recorded step, run again: a list of operations with their arguments, of which only the number of rows changes.
#include <cstring>

#include "call.h"
#include "ranks.h"

namespace {

constexpr int64_t MAX_SIZE = 256;  // bytes of an operation's arguments

}  // namespace

FUNCTION(run) {
    alignas(8) uint8_t arguments[MAX_SIZE];
    const uint8_t* program = a.program;
    for (int64_t i = 0; i < a.steps; ++i) {
        octavo::ProgramStep step;
        std::memcpy(&step, program, sizeof step);
        if (step.size < 8 || step.size > MAX_SIZE) return -1;
        std::memcpy(arguments, program + sizeof step, static_cast<size_t>(step.size));
        auto* rows = reinterpret_cast<int64_t*>(arguments);  // the first of every operation's arguments
        *rows = *rows / a.recorded_rows * a.rows;
        reinterpret_cast<void (*)(const void*)>(const_cast<void*>(step.function))(arguments);
        if (octavo::ranks_stopped()) return 1;
        program += sizeof step + step.size;
    }
    return 0;
}

// What this library was compiled from: Python refuses those that it would misunderstand.
API const char* octavo_description() { return OCTAVO_DESCRIPTION; }
