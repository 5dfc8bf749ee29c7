// The selective scan, forward. Included by set.h.
//
// Channels go through a register side by side, tile by tile of TILE tokens, so that a tile's rows
// stay in the cache while all channels pass over them. For four states of a channel the decays
// exp(step A) are computed for the whole tile first: they do not hang on each other, so the
// arithmetic units stay busy; only then comes the recurrence.

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
        if (s.more.data) {
            V more[FOUR];
            load_four(tile, s.more, k, more);
            for (int j = 0; j < FOUR; ++j) y[j] = y[j] + more[j];
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

// All tokens, for the channels of a part. decays: A log2(e). states: those before the first token,
// then those after the last. Both [vector of channels][state].
INLINE void forward_part(const Scan& s, const Part& part, const V* decays, V* states) {
    const int64_t N = s.states;
    Tile tile;
    for (int64_t first = 0; first < s.tokens; first += TILE)
        for (int64_t v = 0; part.from + v * LANES < part.to; ++v) {
            const V* A = decays + v * N;
            V* h = states + v * N;
            place(tile, s, part, first, v);
            if (s.saved) std::memcpy(saved(s, tile), h, N * BYTES);
            prepare(s, tile);
            int64_t n = 0;
            for (; n + FOUR <= N; n += FOUR) advance<FOUR>(s, n, A + n, h + n, tile);
            for (; n < N; ++n) advance<1>(s, n, A + n, h + n, tile);
            finish(s, tile);
        }
}

TARGET void forward(const Scan& s, const Part& part) {
    const int64_t N = s.states, vectors = (part.to - part.from + LANES - 1) / LANES;
    const int64_t clip = part.batch * s.channels * N;
    Array decays(vectors * N), states(vectors * N);
    gather(decays.data, s.A, N, part, LOG2E);
    if (s.first) gather(states.data, s.first + clip, N, part, 1.f);
    forward_part(s, part, decays.data, states.data);
    scatter(s.last + clip, states.data, N, part, 1.f);
}
