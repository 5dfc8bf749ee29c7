// The depthwise causal convolution and its SiLU. Included by set.h.

// bias + sum over `reach` taps for one vector. x: its place in the row of the token; the rows that
// came before lie `step` apart.
template <int FIXED = 0>
INLINE V convolve_vector(const float* x, int64_t step, int64_t reach, int width, const V* last_tap,
                         V bias) {
    V y = bias;
    for (int64_t k = 0; k < (FIXED ? FIXED : reach); ++k)
        y = load(x - k * step, width) * last_tap[-k] + y;
    return y;
}

// taps: [vector of channels][tap], three more vectors than there are channels for.
INLINE void convolve_part(const Conv& s, const Part& part, const V* taps) {
    const int64_t vectors = (part.to - part.from + LANES - 1) / LANES;
    for (int64_t t = 0; t < s.tokens; ++t) {
        const float* x = row(s.x, part.batch, t);
        float* out = row(s.y, part.batch, t);
        const int64_t reach = std::min(s.taps, t + s.before + 1);  // there are no more rows
        for (int64_t v = 0; v < vectors; v += FOUR) {
            V y[FOUR], gate[FOUR];
            for (int j = 0; j < FOUR; ++j) {
                const int64_t c = part.from + std::min(v + j, vectors - 1) * LANES;
                const int width = static_cast<int>(std::min<int64_t>(LANES, part.to - c));
                const V* tap = taps + (v + j + 1) * s.taps - 1;
                const V bias = load(s.bias + c, width);
                y[j] = reach == FOUR
                           ? convolve_vector<FOUR>(x + c, s.x.token, reach, width, tap, bias)
                           : convolve_vector<>(x + c, s.x.token, reach, width, tap, bias);
            }
            sigmoid<FOUR>(y, gate);
            for (int j = 0; j < FOUR && v + j < vectors; ++j) {
                const int64_t c = part.from + (v + j) * LANES;
                const int width = static_cast<int>(std::min<int64_t>(LANES, part.to - c));
                store(out + c, y[j] * gate[j], width);
            }
        }
    }
}

TARGET void convolve(const Conv& s, const Part& part) {
    const int64_t vectors = (part.to - part.from + LANES - 1) / LANES;
    Array taps((vectors + FOUR) * s.taps);
    gather(taps.data, s.weight, s.taps, part, 1.f);
    convolve_part(s, part, taps.data);
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
                const float* x = row(s.x, part.batch, t) + c;
                const V bias = load(s.bias + c, width);
                V y[1] = {convolve_vector<>(x, s.x.token, std::min(K, t + 1), width, w + K - 1, bias)};
                V gate[1];
                sigmoid<1>(y, gate);
                g = load(row(d.dy, part.batch, t) + c, width) *
                    (gate[0] * (1.f + y[0] * (1.f - gate[0])));
                for (int64_t k = 0; k < K && k <= t; ++k)
                    dw[K - 1 - k] = g * load(x - k * s.x.token, width) + dw[K - 1 - k];
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
