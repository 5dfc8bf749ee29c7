// The selective scan of Mamba and what stands around it, for CPUs. selective_scan.py says what is
// computed; native.py calls this. Plain C interface: no Python, no torch, no OpenMP.
//
// The arithmetic, from set.h on, is compiled for several instruction sets: AVX-512 or AVX2, taken
// where the processor has them, and four lanes of whatever the compiler was told.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#define X86 1
#include <immintrin.h>
#endif

#include "arguments.h"

namespace {

constexpr int TILE = 16;    // tokens; native.py has the number too
constexpr int FOUR = 4;     // states of a channel, or tokens, that are worked on at once
constexpr int PADDED = 16;  // channels: parts begin at multiples of it
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

// Part of the work: one clip's channels from `from` to before `to`, whole vectors but for the last.
struct Part {
    int64_t batch, number, from, to;
};

// Do `work(item)` for each item, on up to `threads` threads. False when memory ran out.
template <class Work> bool spread(int64_t items, int64_t threads, const Work& work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto run = [&] {
        for (int64_t item; (item = next++) < items;) try {
                work(item);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min(threads, items); ++i) others.emplace_back(run);
    } catch (const std::system_error&) {  // no more threads to be had: those there are do it
    }
    run();
    for (auto& other : others) other.join();
    return !failed;
}

// Do `work(part)` for each clip and each of `parts` ranges of its channels.
template <class Work>
bool spread(int64_t batch, int64_t channels, int64_t parts, int64_t threads, const Work& work) {
    const int64_t groups = (channels + PADDED - 1) / PADDED;
    return spread(batch * parts, threads, [&](int64_t item) {
        const int64_t number = item % parts;
        const int64_t to = std::min(groups * (number + 1) / parts * PADDED, channels);
        work(Part{item / parts, number, groups * number / parts * PADDED, to});
    });
}

#define SET portable
#define LANES 4
#define TARGET
#include "set.h"
#undef SET
#undef LANES
#undef TARGET

#ifdef X86
#define SET avx2
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#include "set.h"
#undef SET
#undef LANES
#undef TARGET

#define SET avx512
#define LANES 16
#define TARGET __attribute__((target("avx512f")))
#include "set.h"
#endif

// The most lanes that the processor has, at most `most`.
int lanes(int64_t most) {
#ifdef X86
    if (most >= 16 && __builtin_cpu_supports("avx512f")) return 16;
    if (most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

}  // namespace

// `name` compiled for so many lanes.
#ifdef X86
#define CHOSEN(name, lanes) (lanes == 16 ? avx512::name : lanes == 8 ? avx2::name : portable::name)
#else
#define CHOSEN(name, lanes) (portable::name)
#endif

// Each returns 0, or 1 when memory ran out. `most`: lanes at most.
extern "C" {

int audiossl_lanes(int64_t most) { return lanes(most); }

// Bytes of all structures: native.py compares them with its own.
int audiossl_bytes() {
    return sizeof(Scan) + sizeof(ScanGradient) + sizeof(Conv) + sizeof(ConvGradient) + sizeof(Mixer);
}

int audiossl_scan(const Scan* s, int64_t parts, int64_t threads, int64_t most) {
    const auto work = CHOSEN(forward, lanes(most));
    return !spread(s->batch, s->channels, parts, threads, [&](const Part& p) { work(*s, p); });
}

int audiossl_scan_backward(const Scan* s, const ScanGradient* d, int64_t parts, int64_t threads,
                           int64_t most) {
    const auto work = CHOSEN(backward, lanes(most));
    return !spread(s->batch, s->channels, parts, threads, [&](const Part& p) { work(*s, *d, p); });
}

int audiossl_conv(const Conv* s, int64_t parts, int64_t threads, int64_t most) {
    const auto work = CHOSEN(convolve, lanes(most));
    return !spread(s->batch, s->channels, parts, threads, [&](const Part& p) { work(*s, p); });
}

int audiossl_conv_backward(const Conv* s, const ConvGradient* d, int64_t parts, int64_t threads,
                           int64_t most) {
    const auto work = CHOSEN(convolve_back, lanes(most));
    return !spread(s->batch, s->channels, parts, threads, [&](const Part& p) { work(*s, *d, p); });
}

int audiossl_mix(const Mixer* m, int64_t threads, int64_t most) {
    try {
        return !CHOSEN(mix, lanes(most))(*m, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"
