// Float32: numbers, the one layout of matrices, and products of matrices in it. Where there is no bfloat16.
//
// A matrix lies in panels of 16 columns: row r, column c at [c / 16 * stride + r * 16 + c % 16]. As left operand a row gives
// one number at a time, as right one a row gives a line of 16, and transposed it is a left operand without being moved.
// Numbers of columns are multiples of 16. A sum runs along K in one order, whatever the numbers of rows and threads.
#pragma once
#include <algorithm>

#include "memory.h"
#include "vector.h"

namespace f32 {
namespace {

using f32::exponential, f32::highest, f32::max, f32::store, f32::sum;

constexpr long TILE = LANES == 16 ? 12 : 6;  // rows of a product in registers
constexpr long DEPTH = 256;                  // of a product at once: a panel of so many rows takes half of the nearest cache
constexpr long CHUNK = 96;                   // rows of a product
constexpr long WIDE = 256;                   // columns of a product whose sums are kept meanwhile
constexpr int PARTS = 16 / LANES;
#define INLINE static inline __attribute__((always_inline))

// --- lines of 16 numbers ---------------------------------------------------------------------------------------------

struct Line {
    Vec part[PARTS];
};
template <class F>
INLINE Line made(F f) {
    Line line;
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) line.part[i] = f(i);
    return line;
}
INLINE Line line(float v) { return made([=](int) { return all(v); }); }
INLINE Line line(const float* p) { return made([=](int i) { return load(p + i * LANES); }); }
INLINE void store(float* p, const Line& v) {
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) store(p + i * LANES, v.part[i]);
}
INLINE Line operator+(const Line& a, const Line& b) { return made([&](int i) { return a.part[i] + b.part[i]; }); }
INLINE Line operator-(const Line& a, const Line& b) { return made([&](int i) { return a.part[i] - b.part[i]; }); }
INLINE Line operator*(const Line& a, const Line& b) { return made([&](int i) { return a.part[i] * b.part[i]; }); }
INLINE Line operator*(const Line& a, float b) { return made([&](int i) { return a.part[i] * b; }); }
INLINE Line greater(const Line& a, const Line& b) { return made([&](int i) { return max(a.part[i], b.part[i]); }); }
INLINE Line exponential(const Line& x) { return made([&](int i) { return exponential(x.part[i]); }); }
INLINE Line sigmoid(const Line& x) { return made([&](int i) { return 1.f / (1.f + exponential(-x.part[i])); }); }
INLINE Vec added(const Line& a) { return PARTS == 1 ? a.part[0] : a.part[0] + a.part[PARTS - 1]; }
INLINE float sum(const Line& a) { return sum(added(a)); }
INLINE float highest(const Line& a) { return highest(max(a.part[0], a.part[PARTS - 1])); }

// --- products --------------------------------------------------------------------------------------------------------

struct Panels {
    float* at;
    long stride;  // numbers from panel to panel
    Panels row(long r) const { return {at + r * 16, stride}; }
    Panels column(long c) const { return {at + c / 16 * stride, stride}; }
    float* operator()(long r, long c) const { return at + c / 16 * stride + r * 16; }
};
// An odd number of lines: at a power of two all panels would compete for the same places of a cache.
INLINE long stride_of(long rows) { return (rows | 1) * 16; }

template <int R>
INLINE void add(const float* a, long stride, const float* b, long K, Line* c) {
    for (long k = 0; k < K; k += 16, a += stride, b += 256) {
#pragma GCC unroll 4
        for (long j = 0; j < 16; j++) {
            const Line right = line(b + j * 16);
#pragma GCC unroll 16
            for (int i = 0; i < R; i++) c[i] = c[i] + right * a[i * 16 + j];
        }
    }
}
template <int R>
INLINE void add_transposed(const float* a, const float* b, long K, Line* c) {
#pragma GCC unroll 4
    for (long k = 0; k < K; k++) {
        const Line right = line(b + k * 16);
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) c[i] = c[i] + right * a[k * 16 + i];
    }
}

constexpr long FAR = 1L << 40;
struct Causal {  // what is not seen, and so neither computed nor read: columns n, or numbers k, beyond m + this
    long columns = FAR, depth = FAR;
};

template <int R, class Save>
INLINE void tile(Panels a, const float* b, long m, long n, long k, long K, bool last, float* sums, Save save) {
    Line c[R];
    for (int i = 0; i < R; i++) c[i] = k ? line(sums + (m + i) * 16) : line(0.f);
    add<R>(a(m, k), a.stride, b + k * 16, K - k, c);
    for (int i = 0; i < R; i++)
        if (last)
            save(m + i, n, c[i]);
        else
            store(sums + (m + i) * 16, c[i]);
}
template <int R, class Save>
static inline void tile_of(long count, Panels a, const float* b, long m, long n, long k, long K, bool last, float* sums, Save save) {
    if constexpr (R > 1)
        if (count < R) return tile_of<R - 1>(count, a, b, m, n, k, K, last, sums, save);
    tile<R>(a, b, m, n, k, K, last, sums, save);
}
// A (M x K) times B (K x N); save(m, n, line) gets 16 numbers of the result. M is at most CHUNK. Of A, DEPTH columns are used for
// many of B before the next, so that they stay in the second cache.
template <class Save>
static void multiply(Panels a, Panels b, long M, long N, long K, Save save, Causal causal = {}) {
    alignas(64) float sums[CHUNK * WIDE];
    for (long first = 0; first < N; first += WIDE)
        for (long k = 0; k < K; k += DEPTH)
            for (long n = first; n < std::min(N, first + WIDE); n += 16)
                for (long m = std::max(0L, n - causal.columns) / TILE * TILE; m < M; m += TILE) {
                    const long count = std::min(TILE, M - m), end = std::min(K, (m + count + causal.depth + 15) & -16L);
                    if (k >= end) continue;
                    tile_of<TILE>(count, a, b.column(n).at, m, n, k, std::min(k + DEPTH, end), k + DEPTH >= end,
                                  sums + (n - first) * CHUNK, save);
                }
}

template <int R, class Place>
INLINE void tile_transposed(const float* a, const float* b, long m, long n, long K, bool fresh, Place place) {
    Line c[R];
    for (int i = 0; i < R; i++) c[i] = fresh ? line(0.f) : line(place(m + i, n));
    add_transposed<R>(a, b, K, c);
    for (int i = 0; i < R; i++) store(place(m + i, n), c[i]);
}
// The transpose of A (K x M) times B (K x N), added to or written where place(m, n) says that 16 numbers of the result are.
// `visible`: row k of A has nothing at columns beyond k + this.
template <class Place>
static void multiply_transposed(Panels a, Panels b, long M, long N, long K, bool fresh, Place place, long visible = FAR) {
    for (long n = 0; n < N; n += 16)
        for (long m = 0; m < M; m += 16) {
            const long k = std::clamp(m - visible, 0L, K);
            const float *left = a(k, m), *right = b(k, n);
            if constexpr (PARTS == 1) {
                tile_transposed<8>(left, right, m, n, K - k, fresh, place);
                tile_transposed<8>(left + 8, right, m + 8, n, K - k, fresh, place);
            } else {
                tile_transposed<6>(left, right, m, n, K - k, fresh, place);
                tile_transposed<5>(left + 6, right, m + 6, n, K - k, fresh, place);
                tile_transposed<5>(left + 11, right, m + 11, n, K - k, fresh, place);
            }
        }
}

INLINE void ask(const float* at, long lines) {
    for (; lines > 0; lines--, at += 16) __builtin_prefetch(at);
}

// The gradient of 16 to SIDE rows of a weight: the transpose of A (K x M) times B (K x N), where place(m, n) says, added to what is
// there unless `fresh`. Its sums lie together meanwhile: rows of a weight compete for the same places of a cache. While TOKENS of K
// are summed up the next are asked for: a panel of so many ends where the processor looks no further ahead by itself.
constexpr long SIDE = 128, TOKENS = 128;
template <class Place>
static void sum_up(Panels a, Panels b, long M, long N, long K, bool fresh, Place place) {
    alignas(64) float sums[SIDE * WIDE];
    for (long first = 0; first < N; first += WIDE) {
        const long wide = std::min(WIDE, N - first);
        const auto at = [&](long m, long n) { return sums + n * M + m * 16; };
        for (long k = 0; k == 0 || k < K; k += TOKENS) {
            const long next = std::clamp(K - k - TOKENS, 0L, TOKENS);
            for (long n = 0; n < wide; n += 16)
                for (long m = 0; m < M; m += 16) {
                    ask(b(k + TOKENS + m * next / M, first + n), (next * 16 + M - 1) / M);
                    ask(a(k + TOKENS + n * next / wide, m), (next * 16 + wide - 1) / wide);
                    multiply_transposed(a.row(k).column(m), b.row(k).column(first + n), 16, 16, std::min(TOKENS, K - k), k == 0,
                                        [&](long i, long) { return at(m + i, n); });
                }
        }
        for (long m = 0; m < M; m++)
            for (long n = 0; n < wide; n += 16) {
                float* to = place(m, first + n);
                store(to, fresh ? line(at(m, n)) : line(to) + line(at(m, n)));
            }
    }
}

// --- gated MLPs ------------------------------------------------------------------------------------------------------

// 16 rows of a weight (outputs x inputs), to multiply from the right what goes forwards, and what comes back.
static inline void pack_forward(const float* from, long inputs, float* to) {
    for (long k = 0; k < inputs; k += 8)
        for (long i = 0; i < 16; i++)
            for (long j = 0; j < 8; j++) to[(k + j) * 16 + i] = from[i * inputs + k + j];
}
static inline void pack_backward(const float* from, long inputs, long row, Panels to) {
    for (long n = 0; n < inputs; n += 16)
        for (long i = 0; i < 16; i++) store(to(row + i, n), line(from + i * inputs + n));
}

// Gates and what they gate lie beside each other, 16 by 16: where the 16 rows from `row` on are in their matrices.
template <class T>
INLINE T* gated_rows(long width, T* gate, T* up, long row) {
    return (row / 16 % 2 ? up : gate) + row / 32 * 16 * width;
}
// 16 numbers of the product that makes both, kept, and what comes of two such; and, from the gradient of that, theirs in place.
INLINE void open_gate(Panels gates, Panels gated, long i, long n, const Line& v) {
    store(gates(i, n), v);
    if (n & 16) {
        const Line gate = line(gates(i, n - 16));
        store(gated(i, n / 2 - 8), gate * sigmoid(gate) * v);
    }
}
INLINE void open_gate_backward(Panels gates, Panels gated, long i, long n, const Line& v) {
    float *at_gate = gates(i, 2 * n), *at_up = gates(i, 2 * n + 16);
    for (float* at : {at_gate, at_up}) __builtin_prefetch(at + 2 * gates.stride, 1);  // of the next columns
    const Line gate = line(at_gate), up = line(at_up), open = sigmoid(gate), silu = gate * open;
    store(at_gate, v * up * (open + silu - silu * open)), store(at_up, v * silu), store(gated(i, n), silu * up);
}

INLINE Panels take(Scratch& from, long rows, long columns) {
    return {from.take<float>(stride_of(rows) * (columns / 16)), stride_of(rows)};
}

}  // namespace
}  // namespace f32
