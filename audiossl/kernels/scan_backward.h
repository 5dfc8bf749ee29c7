// The selective scan, backward. Included by set.h.
//
// Tile by tile from the last token to the first, each from the states saved before it; everything
// else is computed anew. The gradient of h_t is dh_t = g_t C_t + a_(t+1) dh_(t+1).

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
