// The selective scan of Mamba and the convolution before it, forward and backward, for CPUs.
// selective_scan.py says what is computed; native.py calls this. Plain C interface: no Python, no
// torch, no OpenMP.
//
// Channels go through a register side by side, tile by tile of TILE tokens, so that a tile's rows
// stay in the cache while all channels pass over them. For four states of a channel the decays
// exp(step A) are computed for the whole tile first: they do not hang on each other, so the
// arithmetic units stay busy; only then comes the recurrence. The backward pass starts each tile
// from the state saved before it and computes the rest anew.
//
// The arithmetic, in selective_scan.h, is compiled twice: for AVX2 and FMA, taken where the
// processor has them, and with four lanes for whatever the compiler was told.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#define X86 1
#include <immintrin.h>
#endif

namespace {

constexpr int TILE = 16;   // tokens; native.py has the number too
constexpr int FOUR = 4;    // states of a channel, or tokens, that are worked on at once
constexpr int PADDED = 16; // channels: parts begin at multiples, saved states are stored for whole ones
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

// An array (batch, tokens, n) by its first row in the order of the scan; distances in floats, that
// of tokens negative for a scan from the last to the first. `data` may be null where that is said.
struct Rows {
    float* data;
    int64_t batch, token;
};

struct Scan {
    int64_t batch, tokens, channels, states;
    int64_t softplus;         // of delta + bias, or not
    int64_t accumulate;       // add to y
    Rows u, delta, B, C;
    Rows z, y;                // z may be null: no gate
    const float *A, *D, *bias;  // (channels, states), (channels), (channels); D, bias may be null
    const float* first;       // (batch, channels, states), may be null: zeros
    float* last;              // (batch, channels, states)
    float* saved;             // null, or (batch, tiles, states, channels padded)
};

struct ScanGradient {
    Rows dy;
    Rows du, ddelta, dz;          // dz is null when z is
    float *dB, *dC;               // (parts, batch, tokens, states) in the order of the scan
    float *dA, *dD, *dbias;       // (batch, channels, states), (batch, channels) twice
    const float* dlast;           // (batch, channels, states), may be null
    float* dfirst;                // (batch, channels, states)
};

struct Conv {
    int64_t batch, tokens, channels, taps;
    int64_t before;               // rows that stand before the first one of x, at most taps - 1
    Rows x, y;
    const float *weight, *bias;   // (channels, taps), (channels)
};

struct ConvGradient {
    Rows dy, dx;
    float *dweight, *dbias;       // (batch, channels, taps), (batch, channels)
};

static inline float* row(const Rows& rows, int64_t batch, int64_t token) {
    return rows.data + batch * rows.batch + token * rows.token;
}

// Part of the work: one clip's channels from `from` to before `to`, whole vectors but for the last.
struct Part {
    int64_t batch, number, from, to;
};

#define SET portable
#define LANES 4
#define TARGET
#include "selective_scan.h"
#undef SET
#undef LANES
#undef TARGET

#ifdef X86
#define SET avx2
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#include "selective_scan.h"
#undef SET
#undef LANES
#undef TARGET

#define SET avx512
#define LANES 16
#define TARGET __attribute__((target("avx512f,prefer-vector-width=512")))
#include "selective_scan.h"
#endif

// The widest of these that the processor has, and that is no wider than `most` lanes.
int lanes(int64_t most) {
#ifdef X86
    if (most >= 16 && __builtin_cpu_supports("avx512f")) return 16;
    if (most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

// Do `work(part)` for each clip and each of `parts` ranges of its channels, on up to `threads`
// threads. False when memory ran out.
template <class Work>
bool spread(int64_t batch, int64_t channels, int64_t parts, int64_t threads, const Work& work) {
    const int64_t groups = (channels + PADDED - 1) / PADDED, items = batch * parts;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto run = [&] {
        for (int64_t item; (item = next++) < items;) {
            const int64_t number = item % parts;
            const int64_t to = std::min(groups * (number + 1) / parts * PADDED, channels);
            const Part part{item / parts, number, groups * number / parts * PADDED, to};
            try {
                work(part);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
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

}  // namespace

// `name` compiled for so many lanes.
#ifdef X86
#define CHOSEN(name, lanes) \
    (lanes == 16 ? avx512::name : lanes == 8 ? avx2::name : portable::name)
#else
#define CHOSEN(name, lanes) (portable::name)
#endif

// Each returns 0, or 1 when memory ran out. `most`: lanes at most.
extern "C" {

int audiossl_lanes(int64_t most) { return lanes(most); }

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

}  // extern "C"
