// What the functions of selective_scan.cpp are given; native.py has the same structures. Numbers
// are float32, distances are counted in them.

#pragma once

#include <cstdint>

// An array (batch, tokens, n) by its first row in the order of the scan; rows of one clip lie `token`
// apart, which is negative for a scan from the last token to the first. Each row is contiguous.
struct Rows {
    float* data;
    int64_t batch, token;
};

static inline float* row(const Rows& rows, int64_t batch, int64_t token) {
    return rows.data + batch * rows.batch + token * rows.token;
}

struct Scan {
    int64_t batch, tokens, channels, states;
    int64_t softplus;    // 0: steps are delta + bias as they are
    Rows u, delta, B, C;
    Rows z;              // its data may be null: no gate
    Rows more;           // its data may be null; is added to y
    Rows y;
    const float* A;      // (channels, states)
    const float *D, *bias;  // (channels), may be null
    const float* first;  // (batch, channels, states), may be null: zeros
    float* last;         // (batch, channels, states)
    float* saved;        // may be null; (batch, tiles, channels padded, states), states before tiles
};

struct ScanGradient {
    Rows dy, du, ddelta;
    Rows dz;               // its data is null when z's is
    float *dB, *dC;        // (parts, batch, tokens, states) in the order of the scan
    float* dA;             // (batch, channels, states)
    float *dD, *dbias;     // (batch, channels)
    const float* dlast;    // (batch, channels, states)
    float* dfirst;         // (batch, channels, states)
};

struct Conv {
    int64_t batch, tokens, channels, taps;
    int64_t before;        // rows that lie before the first one of x and belong to it
    Rows x, y;
    const float* weight;   // (channels, taps)
    const float* bias;     // (channels)
};

struct ConvGradient {
    Rows dy, dx;
    float* dweight;        // (batch, channels, taps)
    float* dbias;          // (batch, channels)
};

// One direction of a mixer; linear layers (out, in) as torch has them.
struct Direction {
    const float *conv_weight, *conv_bias;  // (channels, taps), (channels)
    const float* x_proj;                   // (rank + 2 states, channels)
    const float *dt_proj, *dt_bias;        // (channels, rank), (channels)
    const float *A, *D;                    // (channels, states), (channels)
};

struct Mixer {
    int64_t batch, tokens, dim, channels, states, rank, taps;
    int64_t accumulate;    // 1: add to out
    Rows in, out;          // (batch, tokens, dim)
    const float* in_proj;  // (2 channels, dim): x, then z
    const float* out_proj; // (dim, channels)
    Direction ahead, back;
    float* scratch;        // (clips at once, 3, tokens, channels)
};
