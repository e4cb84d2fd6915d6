// Products of float32 matrices that lie row by row, x (N x K) with the rows of w (outputs x K): no copy in another order.
//
// A tile of R rows and O outputs is in registers, each of its sums in lanes along K; the same order for every R and O, so a
// result has the same bits in any company.
#pragma once
#include <algorithm>

#include "vector.h"

namespace f32 {

constexpr long PART = 32;  // outputs that `products` makes at most
constexpr long PANEL = 16;  // rows of w that lie transposed for `products_of_panels`
constexpr long AHEAD = 2048;  // numbers: 8 kB, without which 16 rows wait for the memory a third of their time
constexpr long MAX_CHANNELS = 256;

// found[i * O + j] = the product of row i of x with row j of w. Meanwhile what is needed soon is asked for, from `next` on,
// `step` numbers for each vector along K.
template <int R, int O>
static inline __attribute__((always_inline)) void tile(const float* x, long x_stride, const float* w, long w_stride, long K,
                                                       const float* next, long step, float* found) {
    Vec r[(R * O + 3) / 4 * 4] = {};
    for (long k = 0; k < K; k += LANES) {
        for (long line = 0; line < step; line += 16) __builtin_prefetch(next + line);
        next += step;
        if constexpr (R > O) {
            Vec right[O];
#pragma GCC unroll 8
            for (int j = 0; j < O; j++) right[j] = load(w + j * w_stride + k);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const Vec left = load(x + i * x_stride + k);
#pragma GCC unroll 8
                for (int j = 0; j < O; j++) r[i * O + j] += left * right[j];
            }
        } else {
            Vec left[R];
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) left[i] = load(x + i * x_stride + k);
#pragma GCC unroll 8
            for (int j = 0; j < O; j++) {
                const Vec right = load(w + j * w_stride + k);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) r[i * O + j] += left[i] * right;
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R * O; i += 4) {
        const Four four = sums(r[i], r[i + 1], r[i + 2], r[i + 3]);
        float some[4];
        store(some, four);
        for (int j = 0; j < 4 && i + j < R * O; j++) found[i + j] = some[j];
    }
}

// save(i, j, product) of R rows with `outputs` rows of w.
template <int R, class Save>
static inline void products_of(const float* x, long x_stride, const float* w, long w_stride, long outputs, long K, long step,
                               Save save) {
    constexpr int O = REGISTERS == 32 ? (R == 4 ? 6 : 8) : R == 4 ? 3 : R == 1 ? 8 : 4;
    long o = 0;
    float found[R * O];
    for (; o + O <= outputs; o += O) {
        tile<R, O>(x, x_stride, w + o * w_stride, w_stride, K, w + o * w_stride + AHEAD, step, found);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < O; j++) save(i, o + j, found[i * O + j]);
    }
    for (; o + 2 <= outputs; o += 2) {
        tile<R, 2>(x, x_stride, w + o * w_stride, w_stride, K, w + o * w_stride + AHEAD, step, found);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < 2; j++) save(i, o + j, found[i * 2 + j]);
    }
    if (o < outputs) {
        tile<R, 1>(x, x_stride, w + o * w_stride, w_stride, K, w + o * w_stride + AHEAD, step, found);
        for (int i = 0; i < R; i++) save(i, o, found[i]);
    }
}

// found[n * PART + o] = the products of N rows of x with at most PART rows of w.
static void products(const float* x, long N, long K, const float* w, long outputs, float* found) {
    const long whole = N / 4 * 4;
    constexpr long O = REGISTERS == 32 ? 6 : 3;
    float some[4 * O];
    long o = 0;
    for (; whole && o + O <= outputs; o += O) {  // rows of w once through the memory, those of x from the cache
        const float *right = w + o * K, *next = right + AHEAD;
        for (long n = 0; n < whole; n += 4, next += O * K / (whole / 4)) {
            tile<4, O>(x + n * K, K, right, K, K, next, O * LANES * 4 / whole, some);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < O; j++) found[(n + i) * PART + o + j] = some[i * O + j];
        }
    }
    for (long n = 0; n < whole; n += 4)
        products_of<4>(x + n * K, K, w + o * K, K, outputs - o, K, 0,
                       [&](long i, long j, float v) { found[(n + i) * PART + o + j] = v; });
    const auto save = [&](long i, long j, float v) { found[(whole + i) * PART + j] = v; };
    x += whole * K;
    switch (N - whole) {
        case 1: return products_of<1>(x, K, w, K, outputs, K, whole ? 0 : 8 * LANES, save);
        case 2: return products_of<2>(x, K, w, K, outputs, K, whole ? 0 : 4 * LANES, save);
        case 3: return products_of<3>(x, K, w, K, outputs, K, whole ? 0 : 4 * LANES, save);
    }
}

template <int R, int P>  // P panels at once
static inline void tiles_of_panels(const float* x, long N, long K, const float* w, float* found) {
    constexpr int LINES = P * PANEL / LANES;
    for (; N >= R; N -= R, x += R * K, found += R * PART) {
        Vec r[R][LINES] = {};
        for (long k = 0; k < K; k++) {
            Vec right[LINES];
#pragma GCC unroll 2
            for (int p = 0; p < LINES; p++) right[p] = load(w + p * LANES / PANEL * K * PANEL + k * PANEL + p * LANES % PANEL);
#pragma GCC unroll 12
            for (int i = 0; i < R; i++) {
                const Vec left = all(x[i * K + k]);
#pragma GCC unroll 2
                for (int p = 0; p < LINES; p++) r[i][p] += left * right[p];
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < R; i++)
            for (int p = 0; p < LINES; p++) store(found + i * PART + p * LANES, r[i][p]);
    }
    if constexpr (R > 1) {
        if (N) tiles_of_panels<R - 1, P>(x, N, K, w, found);
    }
}

// The same of panels, for many rows: each 16 rows of w lie as (K x 16), filled up where they are fewer. A sum is along K, not in
// lanes that must be added up: other last bits than those of `products`, and again the same in any company. Two vectors of a row
// at once, since each of its numbers is read for every one.
static void products_of_panels(const float* x, long N, long K, const float* w, long outputs, float* found) {
    constexpr int P = LANES / 8, R = LANES == 16 ? 12 : 6;
    long o = 0;
    for (; P > 1 && o + PANEL < outputs; o += P * PANEL) tiles_of_panels<R, P>(x, N, K, w + o * K, found + o);
    for (; o < outputs; o += PANEL) tiles_of_panels<R, 1>(x, N, K, w + o * K, found + o);
}

}  // namespace f32
