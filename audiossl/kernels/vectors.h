// Vectors of LANES floats, and functions of them; they are those of GCC and Clang, whose products and
// sums become fused ones where there are any. Included by set.h.

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

// Of a and b where b is no number, `larger` and `smaller` give b: what may be NaN stands second.
#if LANES == 16
INLINE V larger(V a, V b) { return _mm512_max_ps(a, b); }
INLINE V about_inverse(V x) { return _mm512_rcp14_ps(x); }
INLINE float sum(V x) { return _mm512_reduce_add_ps(x); }
#elif LANES == 8
INLINE V larger(V a, V b) { return _mm256_max_ps(a, b); }
INLINE V smaller(V a, V b) { return _mm256_min_ps(a, b); }
INLINE V about_inverse(V x) { return _mm256_rcp_ps(x); }
INLINE float sum(V x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#else
INLINE V larger(V a, V b) { return a > b ? a : b; }
INLINE V smaller(V a, V b) { return a < b ? a : b; }
INLINE V about_inverse(V x) { return 1.f / x; }
INLINE float sum(V x) { return (x[0] + x[2]) + (x[1] + x[3]); }
#endif

// Functions below work on W vectors at once, one operation after the other for all of them: each
// vector's own operations wait for each other, those of different vectors do not.

// 2^(step a). step a = n + f: adding MAGIC rounds to the whole number n and leaves it in the low
// bits; 2^f is a polynomial with 2^0 = 1 exactly (relative error 1e-7), and n goes into the
// exponent. From 128 on the result is infinite; below -126 it may be 2^-126, with 16 lanes NaN beyond
// -2^22.
template <int W>
INLINE void exp2_of_products(V step, const V (&a)[W], V (&y)[W]) {
    constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23
    V n[W], f[W];
#if LANES == 16
    for (int j = 0; j < W; ++j) n[j] = step * a[j] + MAGIC;
    for (int j = 0; j < W; ++j) n[j] = n[j] - MAGIC;
    for (int j = 0; j < W; ++j) f[j] = step * a[j] - n[j];
#else
    for (int j = 0; j < W; ++j) f[j] = smaller(all(128.f), larger(all(-126.f), step * a[j]));
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
    for (int j = 0; j < W; ++j) kept[j] = larger(all(-87.f), x[j]);
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
    for (int j = 0; j < W; ++j) out[j] = larger(V{}, x[j]) + p[j] * y[j];
}

// Vectors, aligned; memory that starts as zeros.
struct Array {
    explicit Array(size_t count)
        : data(static_cast<V*>(::operator new(count * BYTES, std::align_val_t(BYTES)))) {
        std::memset(static_cast<void*>(data), 0, count * BYTES);
    }
    ~Array() { ::operator delete(data, std::align_val_t(BYTES)); }
    float* floats() const { return reinterpret_cast<float*>(data); }
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
