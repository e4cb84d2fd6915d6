// Training in float32, where there is no bfloat16: the layout of matrices, and their products.
//
// A matrix is in panels of 16 columns: row r, column c at [c / 16 * stride + r * 16 + c % 16]. As left operand its numbers are
// broadcast one by one; as right operand it is read in lines of 16; its transpose is a left operand without a copy. Numbers of
// columns are multiples of 16. A sum runs along K in one order, whatever the numbers of rows and threads.
#pragma once
#include <algorithm>

#include "memory.h"
#include "vector.h"

namespace f32 {
namespace {

using f32::exponential, f32::reduce_max, f32::max, f32::store, f32::sum;

constexpr long TILE_ROWS = LANES == 16 ? 12 : 6;  // rows of a product in registers
constexpr long K_BLOCK = 256;  // of a product at once: a panel of so many rows takes half of the first cache
constexpr long CHUNK = 96;  // rows of a product
constexpr long COLUMN_BLOCK = 256;  // columns of a product whose sums are kept between blocks of K
constexpr int PARTS = 16 / LANES;
#define INLINE static inline __attribute__((always_inline))

// --- lines of 16 numbers ---------------------------------------------------------------------------------------------

struct Line {
    Vec part[PARTS];
};
template <class F>
INLINE Line make_line(F f) {
    Line line;
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) line.part[i] = f(i);
    return line;
}
INLINE Line line(float v) { return make_line([=](int) { return set1(v); }); }
INLINE Line line(const float* p) { return make_line([=](int i) { return load(p + i * LANES); }); }
INLINE void store(float* p, const Line& v) {
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) store(p + i * LANES, v.part[i]);
}
INLINE Line operator+(const Line& a, const Line& b) { return make_line([&](int i) { return a.part[i] + b.part[i]; }); }
INLINE Line operator-(const Line& a, const Line& b) { return make_line([&](int i) { return a.part[i] - b.part[i]; }); }
INLINE Line operator*(const Line& a, const Line& b) { return make_line([&](int i) { return a.part[i] * b.part[i]; }); }
INLINE Line operator*(const Line& a, float b) { return make_line([&](int i) { return a.part[i] * b; }); }
INLINE Line greater(const Line& a, const Line& b) { return make_line([&](int i) { return max(a.part[i], b.part[i]); }); }
INLINE Line exponential(const Line& x) { return make_line([&](int i) { return exponential(x.part[i]); }); }
INLINE Line sigmoid(const Line& x) { return make_line([&](int i) { return 1.f / (1.f + exponential(-x.part[i])); }); }
INLINE Vec fold(const Line& a) { return PARTS == 1 ? a.part[0] : a.part[0] + a.part[PARTS - 1]; }
INLINE float sum(const Line& a) { return sum(fold(a)); }
INLINE float reduce_max(const Line& a) { return reduce_max(max(a.part[0], a.part[PARTS - 1])); }

// --- products --------------------------------------------------------------------------------------------------------

struct Panels {
    float* data;
    long stride;  // between panels, in numbers
    Panels row(long r) const { return {data + r * 16, stride}; }
    Panels column(long c) const { return {data + c / 16 * stride, stride}; }
    float* operator()(long r, long c) const { return data + c / 16 * stride + r * 16; }
};
// An odd number of lines: panels at a power of two would compete for the same sets of a cache.
INLINE long stride_of(long rows) { return (rows | 1) * 16; }

template <int R>
INLINE void accumulate(const float* a, long stride, const float* b, long K, Line* c) {
    for (long k = 0; k < K; k += 16, a += stride, b += 256) {
#pragma GCC unroll 4
        for (long j = 0; j < 16; j++) {
            const Line b_line = line(b + j * 16);
#pragma GCC unroll 16
            for (int i = 0; i < R; i++) c[i] = c[i] + b_line * a[i * 16 + j];
        }
    }
}
template <int R>
INLINE void accumulate_transposed(const float* a, const float* b, long K, Line* c) {
#pragma GCC unroll 4
    for (long k = 0; k < K; k++) {
        const Line b_line = line(b + k * 16);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) c[i] = c[i] + b_line * a[k * 16 + i];
    }
}

constexpr long UNBOUNDED = 1L << 40;
struct Causal {  // the mask: columns n, or numbers k, beyond m + this are neither computed nor read
    long columns = UNBOUNDED, depth = UNBOUNDED;
};

template <int R, class Save>
INLINE void tile(Panels a, const float* b, long m, long n, long k, long K, bool last_k, float* sums, Save save) {
    Line c[R];
    for (int i = 0; i < R; i++) c[i] = k ? line(sums + (m + i) * 16) : line(0.f);
    accumulate<R>(a(m, k), a.stride, b + k * 16, K - k, c);
    for (int i = 0; i < R; i++)
        if (last_k)
            save(m + i, n, c[i]);
        else
            store(sums + (m + i) * 16, c[i]);
}
template <int R, class Save>
static inline void tile_of_rows(long count, Panels a, const float* b, long m, long n, long k, long K, bool last_k, float* sums, Save save) {
    if constexpr (R > 1)
        if (count < R) return tile_of_rows<R - 1>(count, a, b, m, n, k, K, last_k, sums, save);
    tile<R>(a, b, m, n, k, K, last_k, sums, save);
}
// A (M x K) times B (K x N); save(m, n, line) gets 16 numbers of the result. M is at most CHUNK. K_BLOCK columns of A are
// multiplied with COLUMN_BLOCK of B before the next, so that they stay in the second cache.
template <class Save>
static void multiply(Panels a, Panels b, long M, long N, long K, Save save, Causal causal = {}) {
    alignas(64) float sums[CHUNK * COLUMN_BLOCK];
    for (long n0 = 0; n0 < N; n0 += COLUMN_BLOCK)
        for (long k = 0; k < K; k += K_BLOCK)
            for (long n = n0; n < std::min(N, n0 + COLUMN_BLOCK); n += 16)
                for (long m = std::max(0L, n - causal.columns) / TILE_ROWS * TILE_ROWS; m < M; m += TILE_ROWS) {
                    const long count = std::min(TILE_ROWS, M - m), end = std::min(K, (m + count + causal.depth + 15) & -16L);
                    if (k >= end) continue;
                    tile_of_rows<TILE_ROWS>(count, a, b.column(n).data, m, n, k, std::min(k + K_BLOCK, end), k + K_BLOCK >= end,
                                            sums + (n - n0) * CHUNK, save);
                }
}

template <int R, class Address>
INLINE void tile_transposed(const float* a, const float* b, long m, long n, long K, bool overwrite, Address address) {
    Line c[R];
    for (int i = 0; i < R; i++) c[i] = overwrite ? line(0.f) : line(address(m + i, n));
    accumulate_transposed<R>(a, b, K, c);
    for (int i = 0; i < R; i++) store(address(m + i, n), c[i]);
}
// The transpose of A (K x M) times B (K x N), written or added to the 16 numbers at each address(m, n).
// `visible`: row k of A is zero at columns beyond k + this.
template <class Address>
static void multiply_transposed(Panels a, Panels b, long M, long N, long K, bool overwrite, Address address, long visible = UNBOUNDED) {
    for (long n = 0; n < N; n += 16)
        for (long m = 0; m < M; m += 16) {
            const long k = std::clamp(m - visible, 0L, K);
            const float *left = a(k, m), *right = b(k, n);
            if constexpr (PARTS == 1) {
                tile_transposed<8>(left, right, m, n, K - k, overwrite, address);
                tile_transposed<8>(left + 8, right, m + 8, n, K - k, overwrite, address);
            } else {
                tile_transposed<6>(left, right, m, n, K - k, overwrite, address);
                tile_transposed<5>(left + 6, right, m + 6, n, K - k, overwrite, address);
                tile_transposed<5>(left + 11, right, m + 11, n, K - k, overwrite, address);
            }
        }
}

INLINE void prefetch(const float* p, long lines) {
    for (; lines > 0; lines--, p += 16) __builtin_prefetch(p);
}

// The gradient of 16 to WEIGHT_ROWS rows of a weight: the transpose of A (K x M) times B (K x N), written or added at address(m, n).
// Its sums are contiguous until the end: rows of a weight compete for the same sets of a cache. While TOKEN_BLOCK tokens of K are
// summed, the next are prefetched: the processor's own prefetcher stops at the end of such a panel.
constexpr long WEIGHT_ROWS = 128, TOKEN_BLOCK = 128;
template <class Address>
static void weight_gradient(Panels a, Panels b, long M, long N, long K, bool overwrite, Address address) {
    alignas(64) float sums[WEIGHT_ROWS * COLUMN_BLOCK];
    for (long n0 = 0; n0 < N; n0 += COLUMN_BLOCK) {
        const long columns = std::min(COLUMN_BLOCK, N - n0);
        const auto sum_line = [&](long m, long n) { return sums + n * M + m * 16; };
        for (long k = 0; k == 0 || k < K; k += TOKEN_BLOCK) {
            const long next_rows = std::clamp(K - k - TOKEN_BLOCK, 0L, TOKEN_BLOCK);
            for (long n = 0; n < columns; n += 16)
                for (long m = 0; m < M; m += 16) {
                    prefetch(b(k + TOKEN_BLOCK + m * next_rows / M, n0 + n), (next_rows * 16 + M - 1) / M);
                    prefetch(a(k + TOKEN_BLOCK + n * next_rows / columns, m), (next_rows * 16 + columns - 1) / columns);
                    multiply_transposed(a.row(k).column(m), b.row(k).column(n0 + n), 16, 16, std::min(TOKEN_BLOCK, K - k), k == 0,
                                        [&](long i, long) { return sum_line(m + i, n); });
                }
        }
        for (long m = 0; m < M; m++)
            for (long n = 0; n < columns; n += 16) {
                float* dst = address(m, n0 + n);
                store(dst, overwrite ? line(sum_line(m, n)) : line(dst) + line(sum_line(m, n)));
            }
    }
}

// --- gated MLPs ------------------------------------------------------------------------------------------------------

// 16 rows of a weight (outputs x inputs), packed as right operand of the forward and of the backward pass.
static inline void pack_forward(const float* src, long inputs, float* dst) {
    for (long k = 0; k < inputs; k += 8)
        for (long i = 0; i < 16; i++)
            for (long j = 0; j < 8; j++) dst[(k + j) * 16 + i] = src[i * inputs + k + j];
}
static inline void pack_backward(const float* src, long inputs, long row, Panels dst) {
    for (long n = 0; n < inputs; n += 16)
        for (long i = 0; i < 16; i++) store(dst(row + i, n), line(src + i * inputs + n));
}

// The rows of (gate, up) alternate, 16 of each: the address of the 16 rows from `row` on in their matrix.
template <class T>
INLINE T* gate_up_rows(long width, T* gate, T* up, long row) {
    return (row / 16 % 2 ? up : gate) + row / 32 * 16 * width;
}
// SwiGLU on 16 numbers of the (gate, up) product, which `gates` keeps; backward, their gradients replace them.
INLINE void swiglu(Panels gates, Panels gated, long i, long n, const Line& v) {
    store(gates(i, n), v);
    if (n & 16) {
        const Line gate = line(gates(i, n - 16));
        store(gated(i, n / 2 - 8), gate * sigmoid(gate) * v);
    }
}
INLINE void swiglu_backward(Panels gates, Panels gated, long i, long n, const Line& v) {
    float *gate_line = gates(i, 2 * n), *up_line = gates(i, 2 * n + 16);
    for (float* p : {gate_line, up_line}) __builtin_prefetch(p + 2 * gates.stride, 1);  // of the next columns
    const Line gate = line(gate_line), up = line(up_line), sigmoid_gate = sigmoid(gate), silu = gate * sigmoid_gate;
    store(gate_line, v * up * (sigmoid_gate + silu - silu * sigmoid_gate)), store(up_line, v * silu), store(gated(i, n), silu * up);
}

INLINE Panels alloc_panels(Scratch& arena, long rows, long columns) {
    return {arena.alloc<float>(stride_of(rows) * (columns / 16)), stride_of(rows)};
}

}  // namespace
}  // namespace f32
