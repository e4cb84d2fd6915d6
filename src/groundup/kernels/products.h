// Products x w^T of row-major float32 matrices, x (N x K) and w (outputs x K), without packing.
//
// A tile of R rows and O outputs is in registers, each of its sums in lanes along K. The order of additions is the same for every
// R and O, so a result has the same bits whatever is computed with it.
#pragma once
#include <algorithm>

#include "vector.h"

namespace f32 {

constexpr long OUTPUT_BLOCK = 32;  // the most outputs of a call of `gemm`, and the stride of its result
constexpr long PANEL = 16;  // rows of w that are transposed together for `gemm_panels`
constexpr long PREFETCH_DISTANCE = 2048;  // numbers: 8 kB; without it 16 rows wait for memory a third of their time
constexpr long MAX_CHANNELS = 256;

// out[i * O + j] = the dot product of row i of x and row j of w. For each vector along K, `prefetch_step` numbers are prefetched,
// from `prefetch` on.
template <int R, int O>
static inline __attribute__((always_inline)) void micro_kernel(const float* x, long x_stride, const float* w, long w_stride, long K,
                                                               const float* prefetch, long prefetch_step, float* out) {
    Vec acc[(R * O + 3) / 4 * 4] = {};
    for (long k = 0; k < K; k += LANES) {
        for (long offset = 0; offset < prefetch_step; offset += 16) __builtin_prefetch(prefetch + offset);
        prefetch += prefetch_step;
        if constexpr (R > O) {
            Vec w_vec[O];
#pragma GCC unroll 8
            for (int j = 0; j < O; j++) w_vec[j] = load(w + j * w_stride + k);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                const Vec x_vec = load(x + i * x_stride + k);
#pragma GCC unroll 8
                for (int j = 0; j < O; j++) acc[i * O + j] += x_vec * w_vec[j];
            }
        } else {
            Vec x_vec[R];
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) x_vec[i] = load(x + i * x_stride + k);
#pragma GCC unroll 8
            for (int j = 0; j < O; j++) {
                const Vec w_vec = load(w + j * w_stride + k);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) acc[i * O + j] += x_vec[i] * w_vec;
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R * O; i += 4) {
        const Vec4 reduced = sums(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);
        float partial[4];
        store(partial, reduced);
        for (int j = 0; j < 4 && i + j < R * O; j++) out[i + j] = partial[j];
    }
}

// Calls save(i, j, product) for R rows of x and `outputs` rows of w.
template <int R, class Save>
static inline void gemm_rows(const float* x, long x_stride, const float* w, long w_stride, long outputs, long K, long prefetch_step,
                             Save save) {
    constexpr int O = REGISTERS == 32 ? (R == 4 ? 6 : 8) : R == 4 ? 3 : R == 1 ? 8 : 4;
    long o = 0;
    float out[R * O];
    for (; o + O <= outputs; o += O) {
        micro_kernel<R, O>(x, x_stride, w + o * w_stride, w_stride, K, w + o * w_stride + PREFETCH_DISTANCE, prefetch_step, out);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < O; j++) save(i, o + j, out[i * O + j]);
    }
    for (; o + 2 <= outputs; o += 2) {
        micro_kernel<R, 2>(x, x_stride, w + o * w_stride, w_stride, K, w + o * w_stride + PREFETCH_DISTANCE, prefetch_step, out);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < 2; j++) save(i, o + j, out[i * 2 + j]);
    }
    if (o < outputs) {
        micro_kernel<R, 1>(x, x_stride, w + o * w_stride, w_stride, K, w + o * w_stride + PREFETCH_DISTANCE, prefetch_step, out);
        for (int i = 0; i < R; i++) save(i, o, out[i]);
    }
}

// out[n * OUTPUT_BLOCK + o] = the products of N rows of x with at most OUTPUT_BLOCK rows of w.
static void gemm(const float* x, long N, long K, const float* w, long outputs, float* out) {
    const long full_rows = N / 4 * 4;
    constexpr long O = REGISTERS == 32 ? 6 : 3;
    float block[4 * O];
    long o = 0;
    for (; full_rows && o + O <= outputs; o += O) {  // w is read once from memory, x from the cache
        const float *w_rows = w + o * K, *prefetch = w_rows + PREFETCH_DISTANCE;
        for (long n = 0; n < full_rows; n += 4, prefetch += O * K / (full_rows / 4)) {
            micro_kernel<4, O>(x + n * K, K, w_rows, K, K, prefetch, O * LANES * 4 / full_rows, block);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < O; j++) out[(n + i) * OUTPUT_BLOCK + o + j] = block[i * O + j];
        }
    }
    for (long n = 0; n < full_rows; n += 4)
        gemm_rows<4>(x + n * K, K, w + o * K, K, outputs - o, K, 0,
                     [&](long i, long j, float product) { out[(n + i) * OUTPUT_BLOCK + o + j] = product; });
    const auto save = [&](long i, long j, float product) { out[(full_rows + i) * OUTPUT_BLOCK + j] = product; };
    x += full_rows * K;
    switch (N - full_rows) {
        case 1: return gemm_rows<1>(x, K, w, K, outputs, K, full_rows ? 0 : 8 * LANES, save);
        case 2: return gemm_rows<2>(x, K, w, K, outputs, K, full_rows ? 0 : 4 * LANES, save);
        case 3: return gemm_rows<3>(x, K, w, K, outputs, K, full_rows ? 0 : 4 * LANES, save);
    }
}

template <int R, int P>  // P panels at once
static inline void panel_micro_kernels(const float* x, long N, long K, const float* w, float* out) {
    constexpr int VECTORS = P * PANEL / LANES;
    for (; N >= R; N -= R, x += R * K, out += R * OUTPUT_BLOCK) {
        Vec acc[R][VECTORS] = {};
        for (long k = 0; k < K; k++) {
            Vec w_vec[VECTORS];
#pragma GCC unroll 2
            for (int p = 0; p < VECTORS; p++) w_vec[p] = load(w + p * LANES / PANEL * K * PANEL + k * PANEL + p * LANES % PANEL);
#pragma GCC unroll 12
            for (int i = 0; i < R; i++) {
                const Vec x_value = set1(x[i * K + k]);
#pragma GCC unroll 2
                for (int p = 0; p < VECTORS; p++) acc[i][p] += x_value * w_vec[p];
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < R; i++)
            for (int p = 0; p < VECTORS; p++) store(out + i * OUTPUT_BLOCK + p * LANES, acc[i][p]);
    }
    if constexpr (R > 1) {
        if (N) panel_micro_kernels<R - 1, P>(x, N, K, w, out);
    }
}

// The same for many rows and packed w: panels (K x 16) of 16 rows each, the last one padded. A lane is one output's sum along K, so
// there is no horizontal sum: the last bits differ from those of `gemm`, but again do not depend on what is computed with them.
// Two vectors of outputs at once, since each number of x is broadcast for every vector.
static void gemm_panels(const float* x, long N, long K, const float* w, long outputs, float* out) {
    constexpr int P = LANES / 8, R = LANES == 16 ? 12 : 6;
    long o = 0;
    for (; P > 1 && o + PANEL < outputs; o += P * PANEL) panel_micro_kernels<R, P>(x, N, K, w + o * K, out + o);
    for (; o < outputs; o += PANEL) panel_micro_kernels<R, 1>(x, N, K, w + o * K, out + o);
}

}  // namespace f32
