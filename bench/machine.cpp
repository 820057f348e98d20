// What this machine can do at most: arithmetic of each kind, and bytes read from memory. JSON on stdout.
// Compiled by bench/machine.py for the processor that it runs on.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

int threads = static_cast<int>(std::thread::hardware_concurrency());

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <typename Body>
double seconds(const Body& body) {
    std::vector<std::thread> others;
    const double start = now();
    for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { body(t); });
    body(0);
    for (auto& other : others) other.join();
    return now() - start;
}

constexpr long ROUNDS = 20'000'000;

// Ten independent chains of one instruction.
#define PEAK(instruction, type, zero) \
    seconds([](int) {                                                                                         \
        type x = zero, a = zero, b = zero, c = zero, d = zero, e = zero, f = zero, g = zero, h = zero, i = zero, \
             j = zero;                                                                                        \
        for (long n = 0; n < ROUNDS; ++n) {                                                                   \
            asm volatile(instruction " %10, %10, %0\n" instruction " %10, %10, %1\n" instruction              \
                                     " %10, %10, %2\n" instruction " %10, %10, %3\n" instruction              \
                                     " %10, %10, %4\n" instruction " %10, %10, %5\n" instruction              \
                                     " %10, %10, %6\n" instruction " %10, %10, %7\n" instruction              \
                                     " %10, %10, %8\n" instruction " %10, %10, %9"                            \
                         : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h), "+v"(i), "+v"(j) \
                         : "v"(x));                                                                           \
        }                                                                                                     \
    })

double giga(double seconds, double each) { return 10.0 * ROUNDS * each * threads / seconds / 1e9; }

double read_speed(size_t bytes) {
    const size_t share = bytes / threads / 256 * 256;
    auto* memory = static_cast<char*>(std::aligned_alloc(1 << 21, ((share * threads >> 21) + 1) << 21));
    std::memset(memory, 1, share * threads);
    const int rounds = static_cast<int>(3'000'000'000 / bytes) + 1;
    typedef long vector __attribute__((vector_size(64)));
    const double taken = seconds([&](int t) {
        vector total[4] = {};
        for (int r = 0; r < rounds; ++r) {
            const auto* from = reinterpret_cast<const vector*>(memory + t * share);
            for (size_t i = 0; i < share / 64; i += 4)
                for (int k = 0; k < 4; ++k) total[k] += from[i + k];
            asm volatile("" ::: "memory");
        }
        volatile long sink = total[0][0] + total[1][1] + total[2][2] + total[3][3];
        (void)sink;
    });
    std::free(memory);
    return static_cast<double>(share) * threads * rounds / taken / 1e9;
}

}  // namespace

int main(int count, char** arguments) {
    if (count > 1) threads = std::atoi(arguments[1]);
    std::printf("{\"threads\": %d", threads);
#if defined(__AVX512F__)
    std::printf(", \"float32\": %.0f", giga(PEAK("vfmadd231ps", __m512, _mm512_set1_ps(1.0f)), 32));
#elif defined(__FMA__)
    std::printf(", \"float32\": %.0f", giga(PEAK("vfmadd231ps", __m256, _mm256_set1_ps(1.0f)), 16));
#endif
#if defined(__AVX512BF16__)
    std::printf(", \"bfloat16\": %.0f", giga(PEAK("vdpbf16ps", __m512, _mm512_set1_ps(1.0f)), 64));
#endif
#if defined(__AVX512VNNI__)
    std::printf(", \"int8\": %.0f", giga(PEAK("vpdpbusd", __m512i, _mm512_set1_epi8(1)), 128));
#elif defined(__AVX2__)  // its multiplications alone: widening and adding their sums takes as many instructions again
    std::printf(", \"int8\": %.0f", giga(PEAK("vpmaddubsw", __m256i, _mm256_set1_epi8(1)), 64));
#endif
    std::printf(", \"read 64 MB\": %.1f, \"read 1 GB\": %.1f}\n", read_speed(64 << 20), read_speed(1 << 30));
}
