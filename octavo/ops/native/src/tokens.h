// Tokens of a step one by one, and rows of caches that are of several tokens each.
#pragma once

#include <vector>

#include "call.h"

namespace octavo {

struct Token {
    int64_t row, position, table_row;
};

inline std::vector<Token> tokens_of(const AttentionRun* runs, int64_t num_runs) {
    std::vector<Token> tokens;
    for (const AttentionRun* run = runs; run < runs + num_runs; ++run) {
        for (int64_t t = 0; t < run->num_tokens; ++t) tokens.push_back({run->first_row + t, run->start + t, run->table_row});
    }
    return tokens;
}

// Where entries of `ratio` tokens lie: in the block of their last token.
struct Entries {
    const int64_t* table;
    int64_t table_width, block_size, ratio;

    int64_t in_a_block() const { return (block_size + ratio - 1) / ratio; }

    // The entry's place among all rows of the cache.
    int64_t slot(int64_t table_row, int64_t number) const {
        const int64_t last = (number + 1) * ratio - 1;
        const int64_t block = table[table_row * table_width + last / block_size];
        return block * in_a_block() + last % block_size / ratio;
    }
};

}  // namespace octavo
