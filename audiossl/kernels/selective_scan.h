// The arithmetic of selective_scan.cpp, which includes this once for each instruction set, with
//   SET      name of the namespace
//   LANES    floats side by side in a register
//   TARGET   attribute that lets the compiler use the instruction set
// Vectors are those of GCC and Clang. Their products and sums become fused ones where there are any.

#define INLINE static inline __attribute__((always_inline)) TARGET

namespace SET {

constexpr size_t BYTES = 4 * LANES;  // also the alignment, which GCC else takes from the default target
typedef float V __attribute__((vector_size(BYTES), aligned(BYTES)));
typedef int32_t I __attribute__((vector_size(BYTES), aligned(BYTES)));

INLINE V all(float x) { return x - V{}; }

INLINE V load(const float* from, int width = LANES) {
    V x{};
    if (width == LANES) std::memcpy(&x, from, sizeof x);
    else std::memcpy(&x, from, width * sizeof(float));
    return x;
}

INLINE void store(float* to, V x, int width = LANES) {
    if (width == LANES) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &x, width * sizeof(float));
}

#if LANES == 16
INLINE V larger(V a, V b) { return _mm512_max_ps(a, b); }
INLINE V about_inverse(V x) { return _mm512_rcp14_ps(x); }
INLINE float sum(V x) { return _mm512_reduce_add_ps(x); }
#elif LANES == 8
INLINE V larger(V a, V b) { return _mm256_max_ps(a, b); }
INLINE V about_inverse(V x) { return _mm256_rcp_ps(x); }
INLINE float sum(V x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#else
INLINE V larger(V a, V b) { return a > b ? a : b; }
INLINE V about_inverse(V x) { return 1.f / x; }
INLINE float sum(V x) { return (x[0] + x[2]) + (x[1] + x[3]); }
#endif

// Functions below work on W vectors at once, one operation after the other for all of them: each
// vector's own operations wait for each other, those of different vectors do not.

// 2^(step a). step a = n + f: adding MAGIC rounds to the whole number n and leaves it in the low
// bits; 2^f is a polynomial with 2^0 = 1 exactly (relative error 1e-7), and n goes into the
// exponent. step a must be at most 126; below -126 the result may be 2^-126.
template <int W>
INLINE void exp2_of_products(V step, const V (&a)[W], V (&y)[W]) {
    constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23
    V n[W], f[W];
#if LANES == 16
    for (int j = 0; j < W; ++j) n[j] = step * a[j] + MAGIC;
    for (int j = 0; j < W; ++j) n[j] = n[j] - MAGIC;
    for (int j = 0; j < W; ++j) f[j] = step * a[j] - n[j];
#else
    for (int j = 0; j < W; ++j) f[j] = larger(step * a[j], all(-126.f));
    for (int j = 0; j < W; ++j) n[j] = f[j] + MAGIC;
    for (int j = 0; j < W; ++j) f[j] = f[j] - (n[j] - MAGIC);
#endif
    for (int j = 0; j < W; ++j) y[j] = 1.3264727e-3f * f[j] + 9.671513e-3f;
    for (int j = 0; j < W; ++j) y[j] = y[j] * f[j] + 5.5507336e-2f;
    for (int j = 0; j < W; ++j) y[j] = y[j] * f[j] + 2.4022242e-1f;
    for (int j = 0; j < W; ++j) y[j] = y[j] * f[j] + 6.93147e-1f;
    for (int j = 0; j < W; ++j) y[j] = y[j] * f[j] + 1.f;
#if LANES == 16
    for (int j = 0; j < W; ++j) y[j] = _mm512_scalef_ps(y[j], n[j]);
#else
    for (int j = 0; j < W; ++j) y[j] = (V)((I)y[j] + ((I)n[j] << 23));
#endif
}

// e^-x, at most e^87
template <int W> INLINE void exp_of_minus(const V (&x)[W], V (&y)[W]) {
    V kept[W];
    for (int j = 0; j < W; ++j) kept[j] = larger(x[j], all(-87.f));
    exp2_of_products<W>(all(-LOG2E), kept, y);
}

template <int W> INLINE void sigmoid(const V (&x)[W], V (&y)[W]) {
    exp_of_minus<W>(x, y);
    for (int j = 0; j < W; ++j) {
        const V below = 1.f + y[j], guess = about_inverse(below);
        y[j] = guess * (2.f - below * guess);  // one step of Newton's
    }
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|); log1p(y) / y is a polynomial on [0, 1] (error 3e-8)
template <int W> INLINE void softplus(const V (&x)[W], V (&out)[W]) {
    V y[W], p[W];
    for (int j = 0; j < W; ++j) p[j] = larger(x[j], -x[j]);
    exp_of_minus<W>(p, y);
    for (int j = 0; j < W; ++j) p[j] = 5.2326797e-3f * y[j] - 2.9505178e-2f;
    for (int j = 0; j < W; ++j) p[j] = p[j] * y[j] + 7.8225851e-2f;
    for (int j = 0; j < W; ++j) p[j] = p[j] * y[j] - 1.3663237e-1f;
    for (int j = 0; j < W; ++j) p[j] = p[j] * y[j] + 1.9106002e-1f;
    for (int j = 0; j < W; ++j) p[j] = p[j] * y[j] - 2.4842981e-1f;
    for (int j = 0; j < W; ++j) p[j] = p[j] * y[j] + 3.3319098e-1f;
    for (int j = 0; j < W; ++j) p[j] = p[j] * y[j] - 4.9999493e-1f;
    for (int j = 0; j < W; ++j) p[j] = p[j] * y[j] + 9.9999994e-1f;
    for (int j = 0; j < W; ++j) out[j] = larger(x[j], V{}) + p[j] * y[j];
}

// Vectors, aligned; memory that starts as zeros.
struct Array {
    explicit Array(size_t count)
        : data(static_cast<V*>(::operator new(count * BYTES, std::align_val_t(BYTES)))) {
        std::memset(static_cast<void*>(data), 0, count * BYTES);
    }
    ~Array() { ::operator delete(data, std::align_val_t(BYTES)); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    V* data;
};

// (channels, states) in memory and [vector of channels][state] in work, here and back.
INLINE void gather(V* to, const float* from, int64_t states, const Part& part, float scale) {
    for (int64_t c = part.from; c < part.to; ++c)
        for (int64_t n = 0; n < states; ++n)
            to[(c - part.from) / LANES * states + n][(c - part.from) % LANES] =
                from[c * states + n] * scale;
}

INLINE void scatter(float* to, const V* from, int64_t states, const Part& part, float scale) {
    for (int64_t c = part.from; c < part.to; ++c)
        for (int64_t n = 0; n < states; ++n)
            to[c * states + n] =
                from[(c - part.from) / LANES * states + n][(c - part.from) % LANES] *
                scale;
}

// --- scan ----------------------------------------------------------------------------------------

// One vector of channels over the tokens of a tile. Fields that are filled four tokens at a time
// hold repetitions of the last token beyond `count`.
struct Tile {
    int64_t batch, first, channel;  // the clip, the tile's first token, the vector's first channel
    int count, width;               // tokens, channels
    V step[TILE], into[TILE], y[TILE];  // step u; the sum over states
    V decay[TILE * FOUR], add[TILE * FOUR];

    // The place of this vector in row `k`, or in the last one there is.
    const float* at(const Rows& rows, int k) const {
        return row(rows, batch, first + std::min(k, count - 1)) + channel;
    }
};

// Put `x` into row `k`; the next vector's place there is fetched meanwhile.
INLINE void put(const Tile& tile, const Rows& rows, int k, V x) {
    float* to = row(rows, tile.batch, tile.first + k) + tile.channel;
    __builtin_prefetch(to + LANES, 1);
    store(to, x, tile.width);
}

INLINE void load_four(const Tile& tile, const Rows& rows, int k, V (&x)[FOUR]) {
    for (int j = 0; j < FOUR; ++j) {
        const float* from = tile.at(rows, k + j);
        x[j] = load(from, tile.width);
        __builtin_prefetch(from + LANES);  // the next vector's
    }
}

INLINE void prepare(const Scan& s, Tile& tile) {
    const V bias = s.bias ? load(s.bias + tile.channel, tile.width) : V{};
    const V D = s.D ? load(s.D + tile.channel, tile.width) : V{};
    for (int k = 0; k < tile.count; k += FOUR) {
        V raw[FOUR], u[FOUR], step[FOUR];
        load_four(tile, s.delta, k, raw);
        load_four(tile, s.u, k, u);
        for (int j = 0; j < FOUR; ++j) step[j] = raw[j] = raw[j] + bias;
        if (s.softplus) softplus<FOUR>(raw, step);
        for (int j = 0; j < FOUR; ++j) tile.step[k + j] = step[j];
        for (int j = 0; j < FOUR; ++j) tile.into[k + j] = step[j] * u[j];
        for (int j = 0; j < FOUR; ++j) tile.y[k + j] = D * u[j];
    }
}

// Decays and additions of W states from n on, for all tokens of a tile.
template <int W> INLINE void expand(const Scan& s, int64_t n, const V* A, Tile& tile) {
    V a[W];
    for (int j = 0; j < W; ++j) a[j] = A[j];
    for (int k = 0; k < tile.count; ++k) {
        const float* B = row(s.B, tile.batch, tile.first + k) + n;
        V decay[W];
        exp2_of_products<W>(tile.step[k], a, decay);
        for (int j = 0; j < W; ++j) tile.decay[k * W + j] = decay[j];
        for (int j = 0; j < W; ++j) tile.add[k * W + j] = tile.into[k] * B[j];
    }
}

template <int W> INLINE void advance(const Scan& s, int64_t n, const V* A, V* h, Tile& tile) {
    expand<W>(s, n, A, tile);
    V state[W];
    for (int j = 0; j < W; ++j) state[j] = h[j];
    for (int k = 0; k < tile.count; ++k) {
        const float* C = row(s.C, tile.batch, tile.first + k) + n;
        V y = tile.y[k];
        for (int j = 0; j < W; ++j) {
            state[j] = tile.decay[k * W + j] * state[j] + tile.add[k * W + j];
            y = state[j] * C[j] + y;
        }
        tile.y[k] = y;
    }
    for (int j = 0; j < W; ++j) h[j] = state[j];
}

INLINE void finish(const Scan& s, const Tile& tile) {
    for (int k = 0; k < tile.count; k += FOUR) {
        V y[FOUR];
        for (int j = 0; j < FOUR; ++j) y[j] = tile.y[k + j];
        if (s.z.data) {
            V z[FOUR], gate[FOUR];
            load_four(tile, s.z, k, z);
            sigmoid<FOUR>(z, gate);
            for (int j = 0; j < FOUR; ++j) y[j] = y[j] * (z[j] * gate[j]);
        }
        if (s.accumulate) {
            V before[FOUR];
            load_four(tile, s.y, k, before);
            for (int j = 0; j < FOUR; ++j) y[j] = y[j] + before[j];
        }
        for (int j = 0; j < FOUR && k + j < tile.count; ++j) put(tile, s.y, k + j, y[j]);
    }
}

// Where the states of the tile's channels before its first token are saved.
INLINE float* saved(const Scan& s, const Tile& tile) {
    const int64_t tiles = (s.tokens + TILE - 1) / TILE;
    const int64_t padded = (s.channels + PADDED - 1) / PADDED * PADDED;
    const int64_t before = (tile.batch * tiles + tile.first / TILE) * padded + tile.channel;
    return s.saved + before * s.states;
}

INLINE void place(Tile& tile, const Scan& s, const Part& part, int64_t first, int64_t vector) {
    tile.batch = part.batch;
    tile.first = first;
    tile.channel = part.from + vector * LANES;
    tile.count = static_cast<int>(std::min<int64_t>(TILE, s.tokens - first));
    tile.width = static_cast<int>(std::min<int64_t>(LANES, part.to - tile.channel));
}

TARGET void forward(const Scan& s, const Part& part) {
    const int64_t N = s.states, vectors = (part.to - part.from + LANES - 1) / LANES;
    Array decays(vectors * N), states(vectors * N);
    Tile tile;
    gather(decays.data, s.A, N, part, LOG2E);
    const int64_t clip = part.batch * s.channels * N;
    if (s.first) gather(states.data, s.first + clip, N, part, 1.f);
    for (int64_t first = 0; first < s.tokens; first += TILE) {
        for (int64_t v = 0; v < vectors; ++v) {
            const V* A = decays.data + v * N;
            V* h = states.data + v * N;
            place(tile, s, part, first, v);
            if (s.saved) std::memcpy(saved(s, tile), h, N * BYTES);
            prepare(s, tile);
            int64_t n = 0;
            for (; n + FOUR <= N; n += FOUR) advance<FOUR>(s, n, A + n, h + n, tile);
            for (; n < N; ++n) advance<1>(s, n, A + n, h + n, tile);
            finish(s, tile);
        }
    }
    scatter(s.last + clip, states.data, N, part, 1.f);
}

// --- gradient of the scan ------------------------------------------------------------------------

struct BackTile : Tile {
    V u[TILE], slope[TILE], g[TILE];  // d step / d delta; gradient of y before the gate
    V toA[TILE], toB[TILE];           // sums over states
    V h[(TILE + 1) * FOUR];
};

INLINE void prepare_back(const Scan& s, const ScanGradient& d, BackTile& tile) {
    const V bias = s.bias ? load(s.bias + tile.channel, tile.width) : V{};
    for (int k = 0; k < tile.count; k += FOUR) {
        V g[FOUR], raw[FOUR], u[FOUR], slope[FOUR];
        load_four(tile, d.dy, k, g);
        load_four(tile, s.delta, k, raw);
        load_four(tile, s.u, k, u);
        if (s.z.data) {
            V z[FOUR], gate[FOUR];
            load_four(tile, s.z, k, z);
            sigmoid<FOUR>(z, gate);
            for (int j = 0; j < FOUR; ++j) g[j] = g[j] * (z[j] * gate[j]);
        }
        for (int j = 0; j < FOUR; ++j) raw[j] = raw[j] + bias;
        for (int j = 0; j < FOUR; ++j) slope[j] = all(1.f);
        if (s.softplus) sigmoid<FOUR>(raw, slope);
        for (int j = 0; j < FOUR; ++j) tile.u[k + j] = u[j];
        for (int j = 0; j < FOUR; ++j) tile.g[k + j] = g[j];
        for (int j = 0; j < FOUR; ++j) tile.slope[k + j] = slope[j];
        for (int j = 0; j < FOUR; ++j) tile.toA[k + j] = tile.toB[k + j] = V{};
    }
}

// W states from n on, forward once more and then from the last token of the tile to the first.
// start: states before the tile. carry: gradient of the state after it, then of that before.
// sums: [token][W][2], of the gradients of B and C over the channels of the part.
template <int W>
INLINE void retreat(const Scan& s, int64_t n, const V* A, const float* start, V* carry, V* dA,
                    V* sums, BackTile& tile) {
    expand<W>(s, n, A, tile);
    std::memcpy(tile.h, start, W * BYTES);
    for (int k = 0; k < tile.count; ++k) {
        const float* C = row(s.C, tile.batch, tile.first + k) + n;
        V y = tile.y[k];
        for (int j = 0; j < W; ++j) {
            const V h = tile.decay[k * W + j] * tile.h[k * W + j] + tile.add[k * W + j];
            tile.h[(k + 1) * W + j] = h;
            y = h * C[j] + y;
        }
        tile.y[k] = y;
    }
    V after[W], sumA[W];
    for (int j = 0; j < W; ++j) after[j] = carry[j];
    for (int j = 0; j < W; ++j) sumA[j] = dA[j];
    for (int k = tile.count - 1; k >= 0; --k) {
        const float* B = row(s.B, tile.batch, tile.first + k) + n;
        const float* C = row(s.C, tile.batch, tile.first + k) + n;
        const V g = tile.g[k], step = tile.step[k], into = tile.into[k];
        V toA = tile.toA[k], toB = tile.toB[k];
        for (int j = 0; j < W; ++j) {
            const V dh = g * C[j] + after[j];
            after[j] = dh * tile.decay[k * W + j];
            const V dx = after[j] * tile.h[k * W + j];  // of step A
            sumA[j] = dx * step + sumA[j];
            toA = dx * A[j] + toA;
            toB = dh * B[j] + toB;
            V* sum = sums + 2 * (k * W + j);
            sum[0] = dh * into + sum[0];
            sum[1] = g * tile.h[(k + 1) * W + j] + sum[1];
        }
        tile.toA[k] = toA;
        tile.toB[k] = toB;
    }
    for (int j = 0; j < W; ++j) carry[j] = after[j];
    for (int j = 0; j < W; ++j) dA[j] = sumA[j];
}

INLINE void finish_back(const Scan& s, const ScanGradient& d, const BackTile& tile, V& dD,
                        V& dbias) {
    const V D = s.D ? load(s.D + tile.channel, tile.width) : V{};
    for (int k = 0; k < tile.count; ++k) {
        const V u = tile.u[k], g = tile.g[k];
        const V ddelta = (tile.toA[k] * LN2 + tile.toB[k] * u) * tile.slope[k];
        put(tile, d.du, k, D * g + tile.step[k] * tile.toB[k]);
        put(tile, d.ddelta, k, ddelta);
        dD = g * u + dD;
        dbias = dbias + ddelta;
    }
    if (!s.z.data) return;
    for (int k = 0; k < tile.count; k += FOUR) {
        V dy[FOUR], z[FOUR], gate[FOUR];
        load_four(tile, d.dy, k, dy);
        load_four(tile, s.z, k, z);
        sigmoid<FOUR>(z, gate);
        for (int j = 0; j < FOUR && k + j < tile.count; ++j) {
            const V slope = gate[j] * (1.f + z[j] * (1.f - gate[j]));
            put(tile, d.dz, k + j, dy[j] * tile.y[k + j] * slope);
        }
    }
}

// Sums over lanes, [W states from n on][token][W][2] -> two arrays (tokens, states).
template <int W>
INLINE void reduce(float* dB, float* dC, const V* sums, int64_t states, int count, int64_t n) {
    for (int k = 0; k < count; ++k)
        for (int j = 0; j < W; ++j) {
            dB[k * states + n + j] = sum(sums[2 * (k * W + j)]);
            dC[k * states + n + j] = sum(sums[2 * (k * W + j) + 1]);
        }
}

TARGET void backward(const Scan& s, const ScanGradient& d, const Part& part) {
    const int64_t N = s.states, vectors = (part.to - part.from + LANES - 1) / LANES;
    Array decays(vectors * N), carries(vectors * N), dA(vectors * N);
    Array dD(vectors), dbias(vectors), sums(2 * TILE * N);
    BackTile tile;
    gather(decays.data, s.A, N, part, LOG2E);
    const int64_t clip = part.batch * s.channels * N;
    if (d.dlast) gather(carries.data, d.dlast + clip, N, part, 1.f);
    const int64_t rows = (part.number * s.batch + part.batch) * s.tokens * N;
    const int64_t tiles = (s.tokens + TILE - 1) / TILE;
    for (int64_t first = (tiles - 1) * TILE; first >= 0; first -= TILE) {
        std::memset(static_cast<void*>(sums.data), 0, 2 * TILE * N * BYTES);
        for (int64_t v = 0; v < vectors; ++v) {
            place(tile, s, part, first, v);
            prepare(s, tile);
            prepare_back(s, d, tile);
            const V* A = decays.data + v * N;
            V *carry = carries.data + v * N, *a = dA.data + v * N;
            const float* start = saved(s, tile);
            int64_t n = 0;
            for (; n + FOUR <= N; n += FOUR)
                retreat<FOUR>(s, n, A + n, start + n * LANES, carry + n, a + n,
                              sums.data + 2 * TILE * n, tile);
            for (; n < N; ++n)
                retreat<1>(s, n, A + n, start + n * LANES, carry + n, a + n,
                           sums.data + 2 * TILE * n, tile);
            finish_back(s, d, tile, dD.data[v], dbias.data[v]);
        }
        float *dB = d.dB + rows + first * N, *dC = d.dC + rows + first * N;
        int64_t n = 0;
        for (; n + FOUR <= N; n += FOUR)
            reduce<FOUR>(dB, dC, sums.data + 2 * TILE * n, N, tile.count, n);
        for (; n < N; ++n) reduce<1>(dB, dC, sums.data + 2 * TILE * n, N, tile.count, n);
    }
    scatter(d.dA + clip, dA.data, N, part, 1.f);
    scatter(d.dfirst + clip, carries.data, N, part, 1.f);
    scatter(d.dD + part.batch * s.channels, dD.data, 1, part, 1.f);
    scatter(d.dbias + part.batch * s.channels, dbias.data, 1, part, 1.f);
}

// --- convolution ---------------------------------------------------------------------------------

// bias + sum over the taps that reach no further back than there are rows, for one vector
INLINE V reach(const Conv& s, int64_t batch, int64_t t, int64_t c, int width, const V* taps) {
    V y = load(s.bias + c, width);
    for (int64_t k = 0; k < s.taps && k <= t + s.before; ++k)
        y = load(row(s.x, batch, t - k) + c, width) * taps[s.taps - 1 - k] + y;
    return y;
}

TARGET void convolve(const Conv& s, const Part& part) {
    const int64_t vectors = (part.to - part.from + LANES - 1) / LANES;
    Array taps((vectors + FOUR) * s.taps);
    gather(taps.data, s.weight, s.taps, part, 1.f);
    for (int64_t t = 0; t < s.tokens; ++t)
        for (int64_t v = 0; v < vectors; v += FOUR) {
            V y[FOUR], gate[FOUR];
            for (int j = 0; j < FOUR; ++j) {
                const int64_t c = part.from + std::min(v + j, vectors - 1) * LANES;
                const int width = static_cast<int>(std::min<int64_t>(LANES, part.to - c));
                y[j] = reach(s, part.batch, t, c, width, taps.data + (v + j) * s.taps);
            }
            sigmoid<FOUR>(y, gate);
            for (int j = 0; j < FOUR && v + j < vectors; ++j) {
                const int64_t c = part.from + (v + j) * LANES;
                const int width = static_cast<int>(std::min<int64_t>(LANES, part.to - c));
                store(row(s.y, part.batch, t) + c, y[j] * gate[j], width);
            }
        }
}

// dx_t = sum_k weight[-1 - k] g_(t + k) with g the gradient before the SiLU: the g of the last
// `taps` tokens are kept in a ring, and dx is complete when the last token it reaches was seen.
TARGET void convolve_back(const Conv& s, const ConvGradient& d, const Part& part) {
    const int64_t vectors = (part.to - part.from + LANES - 1) / LANES, K = s.taps;
    Array taps(vectors * K), dtaps(vectors * K), dbias(vectors), rings(vectors * K);
    gather(taps.data, s.weight, K, part, 1.f);
    for (int64_t t = 0; t < s.tokens + K - 1; ++t)
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t c = part.from + v * LANES;
            const int width = static_cast<int>(std::min<int64_t>(LANES, part.to - c));
            V *w = taps.data + v * K, *dw = dtaps.data + v * K, *ring = rings.data + v * K;
            V g{};
            if (t < s.tokens) {
                V y[1] = {reach(s, part.batch, t, c, width, w)}, gate[1];
                sigmoid<1>(y, gate);
                g = load(row(d.dy, part.batch, t) + c, width) *
                    (gate[0] * (1.f + y[0] * (1.f - gate[0])));
                for (int64_t k = 0; k < K && k <= t; ++k)
                    dw[K - 1 - k] = g * load(row(s.x, part.batch, t - k) + c, width) + dw[K - 1 - k];
                dbias.data[v] = dbias.data[v] + g;
            }
            ring[t % K] = g;
            if (t < K - 1) continue;
            V dx{};
            for (int64_t k = 0; k < K; ++k) dx = ring[(t - k) % K] * w[k] + dx;
            store(row(d.dx, part.batch, t - (K - 1)) + c, dx, width);
        }
    scatter(d.dweight + part.batch * s.channels * K, dtaps.data, K, part, 1.f);
    scatter(d.dbias + part.batch * s.channels, dbias.data, 1, part, 1.f);
}

}  // namespace SET

#undef INLINE
