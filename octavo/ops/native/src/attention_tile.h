// A tile of keys and values as attention's products read them: where it is, or laid out.
#pragma once

#include <vector>

#include "attention_products.h"
#include "attention_tiles.h"
#include "attention_task.h"
#include "scratch.h"

namespace octavo {

template <typename C>
class Tile {
protected:
    using Products = typename ProductsOf<C>::type;
    static constexpr bool PAIRS = std::is_same_v<Products, Pairs>, CODES = std::is_same_v<Products, Words>;
    // Whether products read what the cache has: what else there is becomes numbers first.
    static constexpr bool AS_IT_IS = CODES || std::is_same_v<C, float> || (std::is_same_v<C, bf16> && PAIRS);
    static constexpr bool IS_INT4 = std::is_same_v<C, int4_row>;
    static constexpr int STEP = Products::STEP;  // of a key's numbers, or of keys whose values are added
    static constexpr bool TILES = HAS_TILES && PAIRS;

    explicit Tile(const Attention& a)
        : a_(a),
          key_room_(static_cast<int>(round_up(a.key_dim, (CODES ? 4 : 2) * LANES))),
          value_room_(static_cast<int>(round_up(a.value_dim, LANES))),
          key_floats_(key_room_ / STEP),
          values_in_place_((a.paired && !IS_INT4) ||
                           (std::is_same_v<C, float> && a.value_dim == value_room_ && a.block_size % LANES == 0 &&
                            a.value_stride == 0 && a.key_lists == nullptr)),
          vector_floats_(LANES * (a.paired ? a.key_dim / 2 : key_floats_)),
          steps_(CODES ? (a.key_dim + 3) / 4 * 2 : (a.key_dim + STEP - 1) / STEP),
          in_a_row_(a.key_stride || a.key_lists != nullptr || a.ratio > 1 ? 1 : std::min<int64_t>(a.block_size, LANES)),
          at_key_(places(a.key_cache, a.key_dim, a.key_stride)),
          at_value_(places(a.value_cache, a.value_dim, a.value_stride)) {
        static thread_local Scratch scratch;
        const int64_t keys = KEYS * key_floats_, values = KEYS / STEP * value_room_;
        keys_ = reinterpret_cast<float*>(scratch.get((keys + values + LANES * std::max(key_room_, value_room_)) * 4));
        values_ = keys_ + keys;
        wide_ = values_ + values;
        for (int v = 0; v < KEY_VECTORS; ++v) {
            key_vectors_[v] = keys_ + v * vector_floats_;
            value_parts_[v] = values_ + v * LANES / STEP * value_room_;
        }
    }

    // Makes key_vectors_ and value_parts_ those of up to KEYS keys from `begin` on: in the cache, where it is as products
    // read it, else laid out.
    void lay(int kv_head, int64_t begin, int64_t end) {
        const int vectors = static_cast<int>(round_up(std::min<int64_t>(KEYS, end - begin), LANES) / LANES);
        if (IS_INT4 && a_.paired) unpack_keys(kv_head, begin, vectors);
        else if (a_.paired) point(key_vectors_, at_key_, kv_head, begin, vectors);
        else lay_keys(kv_head, begin, end);
        if (values_in_place_) point(value_parts_, at_value_, kv_head, begin, vectors);
        else lay_values(kv_head, begin, end);
        if constexpr (TILES) {
            if (by_tiles_) join_values(static_cast<int>(std::min<int64_t>(KEYS, end - begin)), vectors);
        }
        if (CODES && a_.paired) take_scales(vectors, end - begin);
    }

    // Where keys or values are: the first of all, and the bytes between blocks, heads and rows.
    struct Places {
        const char* first;
        int64_t block, head, row;
    };

    Places places(const void* first, int dim, int64_t stride) const {
        const int64_t bytes = row_bytes<C>(dim), row = stride * static_cast<int64_t>(sizeof(C));
        if (stride) return {static_cast<const char*>(first), row, bytes, row};
        const int64_t rows = (a_.block_size + a_.ratio - 1) / a_.ratio;  // of a block
        return {static_cast<const char*>(first), a_.num_kv_heads * rows * bytes, rows * bytes, bytes};
    }

    const char* cached(const Places& at, int64_t position, int kv_head) const {
        if (list_ != nullptr) position = list_[position];
        int64_t block = position / a_.block_size, offset = position % a_.block_size;
        if (a_.ratio > 1) {
            const int64_t last = (position + 1) * a_.ratio - 1;
            block = last / a_.block_size;
            offset = last % a_.block_size / a_.ratio;
        }
        return at.first + blocks_[block] * at.block + kv_head * at.head + offset * at.row;
    }

    // Where each of a tile's rows is, up to `end`; past it the last one stands in. The block of a key takes divisions to
    // find, and is found once for all of its keys.
    void find_rows(const Places& at, int kv_head, int64_t begin, int64_t end, const char** rows) const {
        const int64_t last = std::min(begin + KEYS, end);
        const bool apart = list_ != nullptr || a_.ratio > 1;
        for (int64_t position = begin; position < last;) {
            const char* row = cached(at, position, kv_head);
            const int64_t left = apart ? 1 : std::min(a_.block_size - position % a_.block_size, last - position);
            for (const int64_t to = position + left; position < to; ++position, row += at.row) *rows++ = row;
        }
        for (int64_t position = last; position < begin + KEYS; ++position, ++rows) *rows = rows[-1];
    }

    // Brings a tile into the cache while the one before it is computed: no processor foresees the order of blocks.
    void prefetch(int kv_head, int64_t begin, int64_t end) const {
        const int64_t key_bytes = row_bytes<C>(a_.key_dim), value_bytes = row_bytes<C>(a_.value_dim);
        const int64_t last = std::min(end, begin + KEYS);
        for (int64_t at = begin; at < last; at += in_a_row_) {
            const char *keys = cached(at_key_, at, kv_head), *values = cached(at_value_, at, kv_head);
            for (int64_t b = 0; b < in_a_row_ * key_bytes; b += 64) __builtin_prefetch(keys + b, 0, 2);
            for (int64_t b = 0; b < in_a_row_ * value_bytes; b += 64) __builtin_prefetch(values + b, 0, 2);
        }
    }

    // What is as the products read it is left where it is: 16 tokens in a row. What lies past the end is finite, and
    // is masked.
    void point(const float** to, const Places& at, int kv_head, int64_t begin, int vectors) {
        for (int v = 0; v < vectors; ++v) {
            to[v] = reinterpret_cast<const float*>(cached(at, begin + v * LANES, kv_head));
        }
    }

    // Keys of int4 that lie in pairs, to pairs of bfloat16. What lies past the end is masked.
    void unpack_keys(int kv_head, int64_t begin, int vectors) {
        for (int v = 0; v < vectors; ++v) {
            const auto* from = reinterpret_cast<const uint8_t*>(cached(at_key_, begin + v * LANES, kv_head));
            float* to = keys_ + v * vector_floats_;
            for (int i = 0; i < a_.key_dim; i += INT4_GROUP, from += INT4_BYTES * LANES) {
                const vec scale = halves_at(from + INT4_CODES * LANES);
                const vec low = halves_at(from + (INT4_CODES + sizeof(f16)) * LANES);
#pragma GCC unroll 4
                for (int pair = 0; pair < INT4_CODES; ++pair, to += LANES) {
                    const ivec codes = unsigned_numbers(from + pair * LANES);
                    store(to, paired(fmadd(to_float(codes & 15), scale, low), fmadd(to_float(codes >> 4), scale, low)));
                }
            }
        }
    }

    // Of codes that are left where they are, the scales, which lie behind those of each 16 tokens. A value past the end
    // has the weight zero, and so must have a scale that is a number.
    void take_scales(int vectors, int64_t count) {
        constexpr int CODES_IN_FLOAT = sizeof(float);
        for (int v = 0; v < vectors; ++v) {
            store(key_scales_ + v * LANES, load(key_vectors_[v] + a_.key_dim / CODES_IN_FLOAT * LANES));
            store(value_scales_ + v * LANES, load(value_parts_[v] + a_.value_dim / CODES_IN_FLOAT * LANES));
        }
        if (count < KEYS) std::fill(value_scales_ + count, value_scales_ + KEYS, 0.0f);
    }

    // The tile's keys, into [vectors][steps][16 keys]; of codes the scales too. The scores of what stands in past the end
    // are masked.
    void lay_keys(int kv_head, int64_t begin, int64_t end) {
        constexpr int64_t SIZE = CODES ? 1 : sizeof(C);  // bytes of a number that is transposed as it is
        alignas(64) float turned[LANES * LANES];
        const char* at[KEYS];
        find_rows(at_key_, kv_head, begin, end, at);
        for (int v = 0; v < KEY_VECTORS; ++v) {
            if (begin + v * LANES >= end) break;
            const float* rows[LANES];
            for (int k = 0; k < LANES; ++k) {
                const char* from = at[v * LANES + k];
                if constexpr (CODES) std::memcpy(key_scales_ + v * LANES + k, from + a_.key_dim, sizeof(float));
                if (AS_IT_IS && a_.key_dim == key_room_) {
                    rows[k] = reinterpret_cast<const float*>(from);
                    continue;
                }
                float* wide = wide_ + k * key_room_;
                if constexpr (AS_IT_IS) {
                    std::memset(wide, 0, key_room_ * SIZE);
                    std::memcpy(wide, from, a_.key_dim * SIZE);
                } else {
                    as_number(from, wide, a_.key_dim, key_room_);
                }
                rows[k] = wide;
            }
            float* to = keys_ + v * vector_floats_;
            for (int i = 0; i < steps_; i += CODES ? 2 * LANES : LANES) {
                transpose(rows, CODES ? turned : to + i * LANES);
                if constexpr (CODES) widen_codes(turned, to + i * LANES);
                for (auto& row : rows) row += LANES;
            }
        }
    }

    // The tile's values, into [keys][value_room], or in pairs of keys; of codes the scales too.
    void lay_values(int kv_head, int64_t begin, int64_t end) {
        const int count = static_cast<int>(std::min<int64_t>(KEYS, end - begin));
        const char* rows[KEYS];
        find_rows(at_value_, kv_head, begin, end, rows);
        if constexpr (CODES) {
            std::fill(value_scales_ + count, value_scales_ + KEYS, 0.0f);
            for (int k = 0; k < count; ++k) std::memcpy(value_scales_ + k, rows[k] + a_.value_dim, sizeof(float));
            lay_pairs<int8_t, int16_t>(rows, count);
        } else if constexpr (PAIRS && IS_INT4) {
            unpack_values(rows, count);
        } else if constexpr (PAIRS) {
            lay_pairs<uint16_t, uint16_t>(rows, count);
        } else {
            for (int k = 0; k < count; ++k) {
                widen_row<C>(rows[k], values_ + static_cast<int64_t>(k) * value_room_, a_.value_dim, value_room_);
            }
        }
    }

    // Makes values lie one part behind the other, with zeros past the last of `count` keys: a weight of zero makes nothing
    // of a number alone.
    void join_values(int count, int parts) {
        constexpr int PAIRS_OF_PART = LANES / 2;
        const int64_t floats = PAIRS_OF_PART * value_room_;
        bool joined = count % LANES == 0;
        for (int p = 1; p < parts; ++p) joined &= value_parts_[p] == value_parts_[0] + p * floats;
        laid_values_ = value_parts_[0];
        if (joined) return;
        for (int p = 0; p < parts && values_in_place_; ++p) std::memcpy(values_ + p * floats, value_parts_[p], floats * 4);
        auto* to = reinterpret_cast<uint16_t*>(values_ + count / 2 * value_room_);
        if (count % 2 != 0) {
            for (int i = 0; i < value_room_; ++i) to[2 * i + 1] = 0;
            to += 2 * value_room_;
        }
        std::fill(to, reinterpret_cast<uint16_t*>(values_ + parts * floats), uint16_t{0});
        laid_values_ = values_;
    }

    // Pairs of int4 rows to pairs of bfloat16, beside the last one of an odd count zeros. Past value_dim is what fills up
    // the last group, whose sums nobody reads.
    void unpack_values(const char* const* rows, int count) {
        static const std::vector<char> zeros(row_bytes<int4_row>(MAX_HEAD_DIM), 0);
        for (int k = 0; k < count; k += 2) {
            const char *one = rows[k], *other = k + 1 < count ? rows[k + 1] : zeros.data();
            float* to = values_ + static_cast<int64_t>(k / 2) * value_room_;
            for (int i = 0; i < value_room_; i += INT4_GROUP, one += INT4_BYTES, other += INT4_BYTES) {
                const Int4Numbers a(one), b(other);
                store(to + i, paired(a.first, b.first));
                if (i + LANES < value_room_) store(to + i + LANES, paired(a.last, b.last));
            }
        }
    }

    // A row of the cache as the numbers that are multiplied, zero up to `room`.
    static void as_number(const char* from, float* to, int dim, int room) {
        widen_row<C>(from, to, dim, room);
        if constexpr (PAIRS) {
            for (int i = 0; i < room; i += LANES) store(reinterpret_cast<bf16*>(to) + i, load(to + i));
        }
    }

    // Pairs of rows of numbers, beside the last one of an odd count zeros.
    template <typename From, typename To>
    void lay_pairs(const char* const* rows, int count) {
        static const std::vector<From> zeros(MAX_HEAD_DIM, 0);
        for (int k = 0; k < count; k += 2) {
            const From* two[2] = {zeros.data(), zeros.data()};
            for (int i = 0; i < 2 && k + i < count; ++i) {
                two[i] = reinterpret_cast<const From*>(rows[k + i]);
                if constexpr (!AS_IT_IS) {
                    float* wide = wide_ + i * value_room_;
                    as_number(rows[k + i], wide, a_.value_dim, value_room_);
                    two[i] = reinterpret_cast<const From*>(wide);
                }
            }
            auto* to = reinterpret_cast<To*>(values_ + static_cast<int64_t>(k / 2) * value_room_);
            interleave(two[0], two[1], to, a_.value_dim);
            std::fill(to + 2 * a_.value_dim, to + 2 * value_room_, To{0});
        }
    }

    const Attention& a_;
    const int key_room_, value_room_;  // numbers of a row, and zeros
    const int key_floats_;             // of a key or a query, as it is multiplied
    const bool values_in_place_;
    const int vector_floats_, steps_;  // of 16 keys, and of a score
    const int64_t in_a_row_;  // keys that lie one after the other, at least
    const Places at_key_, at_value_;
    const int64_t* blocks_ = nullptr;
    const int32_t* list_ = nullptr;  // of keys, whose places in it stand for positions
    float *keys_, *values_, *wide_;  // as they are multiplied; a row or a few, widened
    const float *key_vectors_[KEY_VECTORS], *value_parts_[KEY_VECTORS];  // of 16 keys each, laid out or in the cache
    const float* laid_values_ = nullptr;  // all of them, one part behind the other, where tiles serve
    const bool by_tiles_ = TILES && tiles_serve.attention;
    alignas(64) float key_scales_[KEYS] = {}, value_scales_[KEYS] = {};  // of codes
};

}  // namespace octavo
