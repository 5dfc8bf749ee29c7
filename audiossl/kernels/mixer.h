// Vision Mamba's bidirectional mixer as a whole, for inference. Included by set.h.
//
// Two sweeps go over the tokens chunk by chunk, one from each end. The first to come to a chunk
// computes its x and z and leaves them with its own y; the second adds its y and writes the output.
// Until they meet each is the first, afterwards the second, so each half of the way needs nothing
// from the other sweep's same half. A chunk's arrays stay in the cache from the first linear layer
// to the last; three numbers a channel and token go to memory.

constexpr int CHUNK = 64;                    // tokens
constexpr int PANEL = 3;                     // vectors of outputs that are summed at once,
constexpr int HEIGHT = LANES == 16 ? 8 : 4;  // for so many tokens: all fit in the registers

// A linear layer's weight (n, k), packed as [panel][k][PANEL] vectors of outputs; zeros at the end.
struct Matrix {
    TARGET Matrix(const float* weight, int64_t n, int64_t k, float scale = 1.f)
        : n(n), k(k), packed((n + WIDE - 1) / WIDE * k * PANEL) {
        float* to = packed.floats();
        for (int64_t row = 0; row < n; ++row)
            for (int64_t i = 0; i < k; ++i)
                to[(row / WIDE * k + i) * WIDE + row % WIDE] = weight[row * k + i] * scale;
    }
    static constexpr int64_t WIDE = PANEL * LANES;
    int64_t n, k;
    Array packed;
};

// to = (to +) from weight^T for `count` rows.
INLINE void multiply(const Matrix& matrix, const float* from, int64_t from_step, int64_t count,
                     float* to, int64_t to_step, bool add = false) {
    const int64_t k = matrix.k, n = matrix.n;
    for (int64_t c = 0; c < n; c += Matrix::WIDE) {
        const V* weight = matrix.packed.data + c / LANES * k;
        for (int64_t first = 0; first < count; first += HEIGHT) {
            const float* rows[HEIGHT];
            V sums[HEIGHT][PANEL];
            for (int i = 0; i < HEIGHT; ++i) {
                rows[i] = from + std::min(first + i, count - 1) * from_step;
                for (int j = 0; j < PANEL; ++j) sums[i][j] = V{};
            }
            for (int64_t at = 0; at < k; ++at) {
                V w[PANEL];
                for (int j = 0; j < PANEL; ++j) w[j] = weight[at * PANEL + j];
                for (int i = 0; i < HEIGHT; ++i) {
                    const V x = all(rows[i][at]);
                    for (int j = 0; j < PANEL; ++j) sums[i][j] = x * w[j] + sums[i][j];
                }
            }
            for (int i = 0; i < HEIGHT && first + i < count; ++i)
                for (int j = 0; j < PANEL && c + j * LANES < n; ++j) {
                    float* place = to + (first + i) * to_step + c + j * LANES;
                    const int width = static_cast<int>(std::min<int64_t>(LANES, n - c - j * LANES));
                    store(place, add ? sums[i][j] + load(place, width) : sums[i][j], width);
                }
        }
    }
}

// One direction over one clip; `run` goes on where the last one ended.
struct Sweep {
    TARGET Sweep(const Mixer& m, bool reverse)
        : way(reverse ? m.back : m.ahead),
          reverse(reverse),
          x_proj(way.x_proj, m.rank + 2 * m.states, m.channels),
          dt_proj(way.dt_proj, m.channels, m.rank),
          taps((m.channels + LANES * FOUR) / LANES * m.taps),
          decays((m.channels + LANES - 1) / LANES * m.states),
          states((m.channels + LANES - 1) / LANES * m.states),
          u(CHUNK * m.channels / LANES + 1),
          delta(CHUNK * m.channels / LANES + 1),
          numbers(CHUNK * (m.rank + 2 * m.states) / LANES + 1) {
        const Part part{0, 0, 0, m.channels};
        gather(taps.data, way.conv_weight, m.taps, part, 1.f);
        gather(decays.data, way.A, m.states, part, LOG2E);
    }
    const Direction& way;
    const bool reverse;
    const Matrix x_proj, dt_proj;
    Array taps, decays, states, u, delta, numbers;
};

// What both sweeps over the clips share.
struct Layers {
    TARGET explicit Layers(const Mixer& m)
        : x(m.in_proj, m.channels, m.dim),
          z(m.in_proj + m.channels * m.dim, m.channels, m.dim),
          out(m.out_proj, m.dim, m.channels, 0.5f) {}  // of the mean of both directions
    const Matrix x, z, out;
};

// Chunk `chunk` of clip `clip`, which is number `place` in the scratch.
INLINE void sweep_chunk(const Mixer& m, const Layers& layers, Sweep& sweep, int64_t clip,
                        int64_t place, int64_t chunk, bool second) {
    const int64_t E = m.channels, numbers_wide = m.rank + 2 * m.states, start = chunk * CHUNK;
    const int64_t count = std::min<int64_t>(CHUNK, m.tokens - start), end = start + count;
    const int64_t first = sweep.reverse ? end - 1 : start, step = sweep.reverse ? -E : E;
    float *x = m.scratch + place * 3 * m.tokens * E, *z = x + m.tokens * E, *y = z + m.tokens * E;
    if (!second) {
        const float* in = row(m.in, clip, start);
        multiply(layers.x, in, m.in.token, count, x + start * E, E);
        multiply(layers.z, in, m.in.token, count, z + start * E, E);
    }
    const Part part{0, 0, 0, E};
    const Conv conv{1, count, E, m.taps, sweep.reverse ? m.tokens - end : start,
                    {x + first * E, 0, step}, {sweep.u.floats(), 0, E}, nullptr,
                    sweep.way.conv_bias};
    convolve_part(conv, part, sweep.taps.data);
    float *u = sweep.u.floats(), *numbers = sweep.numbers.floats(), *delta = sweep.delta.floats();
    multiply(sweep.x_proj, u, E, count, numbers, numbers_wide);
    multiply(sweep.dt_proj, numbers, numbers_wide, count, delta, E);
    // The second sweep's y goes over its u, row by row, and from there to the output.
    Scan scan{1, count, E, m.states, 1, {u, 0, E}, {delta, 0, E},
              {numbers + m.rank, 0, numbers_wide},
              {numbers + m.rank + m.states, 0, numbers_wide}, {z + first * E, 0, step}, {},
              {y + first * E, 0, step}, nullptr, sweep.way.D, sweep.way.dt_bias, nullptr, nullptr,
              nullptr};
    if (second) {
        scan.more = scan.y;
        scan.y = scan.u;
    }
    forward_part(scan, part, sweep.decays.data, sweep.states.data);
    if (!second) return;
    const int64_t out_step = sweep.reverse ? -m.out.token : m.out.token;
    multiply(layers.out, u, E, count, row(m.out, clip, first), out_step, m.accumulate);
}

// One half of a sweep's way.
TARGET void sweep_half(const Mixer& m, const Layers& layers, Sweep& sweep, int64_t clip,
                       int64_t place, bool second) {
    const int64_t chunks = (m.tokens + CHUNK - 1) / CHUNK, middle = (chunks + 1) / 2;
    const bool later = sweep.reverse != second;  // `back` begins with the later chunks
    const int64_t from = later ? middle : 0, to = later ? chunks : middle;
    for (int64_t i = from; i < to; ++i)
        sweep_chunk(m, layers, sweep, clip, place, sweep.reverse ? from + to - 1 - i : i, second);
}

bool mix(const Mixer& m, int64_t threads) {
    const Layers layers(m);
    const int64_t together = std::max<int64_t>(1, threads / 2);  // clips
    for (int64_t first = 0; first < m.batch; first += together) {
        const int64_t clips = std::min(together, m.batch - first);
        std::vector<std::unique_ptr<Sweep>> sweeps(2 * clips);
        for (const bool second : {false, true})
            if (!spread(2 * clips, threads, [&](int64_t item) {
                    auto& sweep = sweeps[item];
                    if (!sweep) sweep.reset(new Sweep(m, item % 2));
                    sweep_half(m, layers, *sweep, first + item / 2, item / 2, second);
                }))
                return false;
    }
    return true;
}
