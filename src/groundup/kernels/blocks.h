// The parts of all bfloat16 kernels: vectors, products of blocks, packing of operands, and gradients of weights.
//
// A product C = A B takes tiles of 16 x 32 of A and 32 x 16 of B. A is row-major, or tile by tile ("tiled"). B is "packed"
// (VNNI): panels of 16 columns with rows in pairs: b[panel][k / 2][column][k % 2]. Sizes are multiples of 32.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "team.h"

using bf16 = uint16_t;
using Vec = __m512;  // 16 numbers
constexpr long LANES = 16, BLOCK = 32;

// --- numbers ---------------------------------------------------------------------------------------------------------

static inline Vec load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline void store(bf16* p, Vec v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
static inline void store(bf16* p, Vec low, Vec high) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low)); }
// The same past the caches, for what is not read soon; and to both.
static inline void stream_store(bf16* p, Vec low, Vec high) {
    _mm512_stream_si512((__m512i*)p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
static inline void store_and_stream(bf16* dst, bf16* streamed, Vec low, Vec high) {
    __m512i v = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(dst, v), _mm512_stream_si512((__m512i*)streamed, v);
}
static inline Vec set1(float v) { return _mm512_set1_ps(v); }
static inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
// The horizontal sums of 16 vectors.
static inline Vec sums(Vec r[16]) {
    for (int i = 0; i < 8; i++)
        r[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]), _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    // r[i]: in each 128 bits a0 b0 a1 b1 of rows 2i (a) and 2i + 1 (b)
    for (int i = 0; i < 4; i++)
        r[i] = _mm512_add_ps(_mm512_shuffle_ps(r[2 * i], r[2 * i + 1], 0x44), _mm512_shuffle_ps(r[2 * i], r[2 * i + 1], 0xee));
    // r[i]: in each 128 bits rows 4i to 4i + 3
    for (int i = 0; i < 2; i++)
        r[i] = _mm512_add_ps(_mm512_shuffle_f32x4(r[2 * i], r[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(r[2 * i], r[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(r[0], r[1], 0x88), _mm512_shuffle_f32x4(r[0], r[1], 0xdd));
}

// 2^x and e^x to 2e-4, finer than bfloat16 (4e-3) resolves; 0 far below zero, and NaN stays NaN.
static inline Vec power_of_two(Vec x) {
    Vec exponent = _mm512_roundscale_ps(x, 0), remainder = _mm512_sub_ps(x, exponent);
    Vec y = _mm512_fmadd_ps(set1(0.0558263f), remainder, set1(0.2401397f));
    y = _mm512_fmadd_ps(_mm512_fmadd_ps(y, remainder, set1(0.6931472f)), remainder, set1(1.f));
    return _mm512_scalef_ps(y, exponent);
}
static inline Vec exponential(Vec x) { return power_of_two(_mm512_mul_ps(x, set1(1.44269504f))); }
static inline Vec logarithm_to_two(Vec x) {  // to 1e-5, of positive numbers
    Vec m = _mm512_sub_ps(_mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), set1(1.f));
    Vec y = _mm512_fmadd_ps(set1(-0.03459521f), m, set1(0.14643361f));
    for (float c : {-0.30338967f, 0.46930169f, -0.72044237f, 1.44268325f}) y = _mm512_fmadd_ps(y, m, set1(c));
    return _mm512_fmadd_ps(y, m, _mm512_getexp_ps(x));
}
static inline Vec sigmoid(Vec x) {
    return _mm512_rcp14_ps(_mm512_add_ps(set1(1.f), exponential(_mm512_sub_ps(set1(0.f), x))));
}

// --- blocks ----------------------------------------------------------------------------------------------------------

// The stride between panels of an operand of which a few `rows` are read at a time: at a power of two all panels would
// compete for the same sets of a cache.
static inline long padded_stride(long rows) { return ((rows + 127) / 128 | 1) * 128; }

struct OperandA {  // strides between rows of a tile, between tiles in a column of A, and between tiles along K
    const bf16* data;
    long row_stride, tile_stride, k_stride;
    OperandA from_row(long m) const { return {data + m / 16 * tile_stride, row_stride, tile_stride, k_stride}; }
};
static inline OperandA rows(const bf16* data, long stride) { return {data, stride, 16 * stride, 32}; }
static inline OperandA tiled(const bf16* data, long K) { return {data, 32, 16 * K, 512}; }

struct Block {  // 32 x 32 accumulators: stride of rows in each quarter of 16 x 16, offsets to the quarters right and below
    float* data;
    long row_stride, right, below;
};
static inline Block row_major_block(float* data, long stride) { return {data, stride, 16, 16 * stride}; }
static inline Block quarter_block(float* data) { return {data, 16, 256, 512}; }

#ifdef __AMX_BF16__

struct TileConfig {  // a thread's tiles, all eight of 16 x 64 bytes; the configuration before is restored at the end
    alignas(64) uint8_t saved[64], config[64] = {};
    TileConfig() {
        _tile_storeconfig(saved);
        config[0] = 1;
        for (int t = 0; t < 8; t++) config[16 + 2 * t] = 64, config[48 + t] = 16;
        _tile_loadconfig(config);
    }
    ~TileConfig() {
        if (saved[0])
            _tile_loadconfig(saved);
        else
            _tile_release();
    }
};

// sums += A B, or = where `overwrite`, for two panels of B; interleaved() runs between the steps of 32 along K, since the
// tile unit and the vector units work at the same time.
template <class Interleaved>
static inline void add_block(OperandA a, const bf16* b, long panel, long K, bool overwrite, Block sums, Interleaved interleaved) {
    if (overwrite) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums.data, sums.row_stride * 4);
        _tile_loadd(1, sums.data + sums.right, sums.row_stride * 4);
        _tile_loadd(2, sums.data + sums.below, sums.row_stride * 4);
        _tile_loadd(3, sums.data + sums.below + sums.right, sums.row_stride * 4);
    }
    const bf16 *a0 = a.data, *a1 = a.data + a.tile_stride, *b0 = b, *b1 = b + panel;
    __asm__ volatile("" ::: "memory");  // g++ does not know that tiles read memory
    for (long k = 0; k < K; k += 32) {
        _tile_loadd(4, a0, a.row_stride * 2);
        _tile_loadd(6, b0, 64);
        _tile_loadd(7, b1, 64);
        _tile_loadd(5, a1, a.row_stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a0 += a.k_stride, a1 += a.k_stride, b0 += 512, b1 += 512;
        interleaved();
    }
    _tile_stored(0, sums.data, sums.row_stride * 4);
    _tile_stored(1, sums.data + sums.right, sums.row_stride * 4);
    _tile_stored(2, sums.data + sums.below, sums.row_stride * 4);
    _tile_stored(3, sums.data + sums.below + sums.right, sums.row_stride * 4);
}

#else

struct TileConfig {
    TileConfig() {}  // so that g++ does not call it unused
};

// The same by vectors: 8 rows of the block in registers at a time.
template <class Interleaved>
static inline void add_block(OperandA a, const bf16* b, long panel, long K, bool overwrite, Block sums, Interleaved interleaved) {
    for (long m = 0; m < BLOCK; m += 8) {
        const bf16* a_rows = a.data + m / 16 * a.tile_stride + m % 16 * a.row_stride;
        float* c_rows = sums.data + m / 16 * sums.below + m % 16 * sums.row_stride;
        Vec c[8][2];
        for (long i = 0; i < 8; i++)
            for (long h = 0; h < 2; h++) c[i][h] = overwrite ? set1(0.f) : _mm512_loadu_ps(c_rows + i * sums.row_stride + h * sums.right);
        for (long k = 0; k < K; k += 32, a_rows += a.k_stride) {
            const bf16* b_rows = b + k * 16;
#pragma GCC unroll 4
            for (long j = 0; j < 32; j += 2, b_rows += 32) {
                const __m512bh b_pairs[] = {(__m512bh)_mm512_loadu_si512(b_rows), (__m512bh)_mm512_loadu_si512(b_rows + panel)};
#pragma GCC unroll 8
                for (long i = 0; i < 8; i++) {
                    int pair;
                    std::memcpy(&pair, a_rows + i * a.row_stride + j, 4);
                    const __m512bh a_pair = (__m512bh)_mm512_set1_epi32(pair);
                    c[i][0] = _mm512_dpbf16_ps(c[i][0], a_pair, b_pairs[0]), c[i][1] = _mm512_dpbf16_ps(c[i][1], a_pair, b_pairs[1]);
                }
            }
            if (k / 32 % 4 == m / 8) interleaved();
        }
        for (long i = 0; i < 8; i++)
            for (long h = 0; h < 2; h++) _mm512_storeu_ps(c_rows + i * sums.row_stride + h * sums.right, c[i][h]);
    }
}

#endif

struct Prefetch {  // of memory that is needed soon: in even parts, one per step
    const char *next = nullptr, *end = nullptr;
    long lines = 0;
    void issue() {
        for (long i = 0; i < lines && next < end; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    }
};
// Prefetches the part at `next` of two panels of B; M / 32 blocks prefetch all of both.
static inline void prefetch_panels(const bf16*& next, long panel, long M) {
    for (long i = 0; i < (16 * 32 + M - 1) / M; i++, next += 32) {
        _mm_prefetch((const char*)next, _MM_HINT_T1);
        _mm_prefetch((const char*)(next + panel), _MM_HINT_T1);
    }
}

// sums += A B, or = where `overwrite`: blocks of 32 x 32, in order of columns.
static void accumulate(OperandA a, const bf16* b, long panel, long M, long N, long K, bool overwrite, float* sums) {
    for (long n = 0; n < N; n += BLOCK)
        for (long m = 0; m < M; m += BLOCK, sums += BLOCK * BLOCK) {
            const bf16 *b0 = b + n / 16 * panel, *next = b0 + 2 * panel + m * K * 16 / M;
            add_block(a.from_row(m), b0, panel, K, overwrite, row_major_block(sums, BLOCK), [&] { prefetch_panels(next, panel, M); });
        }
}

// P products of one shape at once; `save` gets rows of all while the next blocks are computed.
template <size_t P, class Save>
static void multiply_blocks(const OperandA (&a)[P], const bf16* const (&b)[P], long panel, long M, long N, long K, Save save, Prefetch prefetch,
                            bool b_is_cached, bool only_upper) {
    alignas(64) float out[2][P][BLOCK * BLOCK];
    const long pairs_per_step = (16 * 32 / P + K - 1) / K, steps = M * N * K / (BLOCK * BLOCK * BLOCK);
    prefetch.lines = ((prefetch.end - prefetch.next) / 64 + steps - 1) / steps;
    long saved = 16, previous_m = 0, previous_n = 0, buffer = 0;
    const auto save_pairs = [&](long count) {
        const auto& previous = out[buffer ^ 1];
        for (; count > 0 && saved < 16; count--, saved++) {
            const long m = previous_m + 2 * saved, offset = 64 * saved;
            if constexpr (P == 1)
                save(m, previous_n, previous[0] + offset);
            else
                save(m, previous_n, previous[0] + offset, previous[1] + offset);
        }
    };
    for (long n = 0; n < N; n += BLOCK)
        for (long m = 0; m < (only_upper ? n + BLOCK : M); m += BLOCK) {
            for (size_t product = 0; product < P; product++) {
                const bf16 *b0 = b[product] + n / 16 * panel, *next = b0 + 2 * panel + m * K * 16 / M;
                add_block(a[product].from_row(m), b0, panel, K, true, row_major_block(out[buffer][product], BLOCK), [&] {
                    if (!b_is_cached) prefetch_panels(next, panel, M);
                    prefetch.issue();
                    save_pairs(pairs_per_step);
                });
            }
            saved = 0, previous_m = m, previous_n = n, buffer ^= 1;
        }
    save_pairs(16);
}

// A (M x K) times B (K x N), `panel` numbers between panels of B. save(m, n, row_pair) gets two rows of 32 numbers of the
// result, rows m and m + 1 and columns n to n + 31, while the next block is computed.
template <class Save>
static void multiply(OperandA a, const bf16* b, long panel, long M, long N, long K, Save save, Prefetch prefetch = {}) {
    multiply_blocks({a}, {b}, panel, M, N, K, save, prefetch, false, false);
}
// The same where B is in this core's cache and needs no prefetch.
template <class Save>
static void multiply_cached(OperandA a, const bf16* b, long panel, long M, long N, long K, Save save) {
    multiply_blocks({a}, {b}, panel, M, N, K, save, {}, true, false);
}
// The same of a symmetric product (M x M): its upper blocks only.
template <class Save>
static void multiply_upper(OperandA a, const bf16* b, long panel, long M, long K, Save save) {
    multiply_blocks({a}, {b}, panel, M, M, K, save, {}, true, true);
}

// Two products of one shape at once: save(m, n, row_pair, row_pair2) gets two rows of each.
template <class Save>
static void multiply_two(OperandA a, const bf16* b, OperandA a2, const bf16* b2, long panel, long M, long N, long K,
                         Save save) {
    multiply_blocks({a, a2}, {b, b2}, panel, M, N, K, save, {}, true, false);
}

// `save` for `multiply` from f(m, n, low, high), which takes 32 numbers of row m from column n on.
template <class F>
static auto per_row(F f) {
    return [f](long m, long n, const float* row_pair) {
        f(m, n, _mm512_load_ps(row_pair), _mm512_load_ps(row_pair + 16));
        f(m + 1, n, _mm512_load_ps(row_pair + 32), _mm512_load_ps(row_pair + 48));
    };
}

static inline void transpose16(__m512i r[16]) {  // 16 x 16 numbers of 32 bits
    __m512i t[16];
    for (int i = 0; i < 16; i += 2)
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

static const struct Pairs {  // indices that interleave two rows of 32: the first 16 columns, and the others
    alignas(64) uint16_t index[2][32], within[32];
    Pairs() {
        for (int i = 0; i < 32; i++) {
            within[i] = i / 2 + i % 2 * 16;
            index[0][i] = i / 2 + i % 2 * 32, index[1][i] = index[0][i] + 16;
        }
    }
} PAIRS;
static inline __m512i interleave(__m512i even, __m512i odd, int half) {
    return _mm512_permutex2var_epi16(even, _mm512_load_si512(PAIRS.index[half]), odd);
}

// Two rows of 16 interleaved as a pair of B's rows; and each row of such a pair.
static inline __m512i interleave_rows(Vec even, Vec odd) {
    return _mm512_permutexvar_epi16(_mm512_load_si512(PAIRS.within), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
static inline Vec even_row(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }
static inline Vec odd_row(__m512i pair) { return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(0xffff0000))); }

// Two rows of 32 interleaved in half the time, in another order of columns: first 0-3, 8-11, 16-19 and 24-27, then the rest.
static inline __m512i low_pairs(__m512i even, __m512i odd) { return _mm512_unpacklo_epi16(even, odd); }
static inline __m512i high_pairs(__m512i even, __m512i odd) { return _mm512_unpackhi_epi16(even, odd); }
static inline long column_of(long position) { return position % 16 / 4 * 8 + position / 16 * 4 + position % 4; }
static inline long position_of(long column) { return column / 4 % 2 * 16 + column / 8 * 4 + column % 4; }

// B = x (K x N, rows `stride` apart).
static void pack(const bf16* x, long stride, long K, long N, bf16* b, long panel) {
    for (long n = 0; n < N; n += BLOCK)
        for (long k = 0; k < K; k += 2) {
            __m512i even = _mm512_loadu_si512(x + k * stride + n), odd = _mm512_loadu_si512(x + (k + 1) * stride + n);
            _mm512_storeu_si512(b + n / 16 * panel + k * 16, interleave(even, odd, 0));
            _mm512_storeu_si512(b + (n / 16 + 1) * panel + k * 16, interleave(even, odd, 1));
        }
}
// B = x^T for x (N x K).
static void pack_transposed(const bf16* x, long stride, long N, long K, bf16* b, long panel) {
    for (long n = 0; n < N; n += 16)
        for (long k = 0; k < K; k += 32) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(x + (n + i) * stride + k);
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(b + n / 16 * panel + (k / 2 + i) * 32, r[i]);
        }
}
// A = x^T for x (T x D): save(d, t, rows) gets 16 rows of 32 numbers, those of columns d to d + 15 and rows t to t + 31.
template <class Save>
static void transposed(const bf16* x, long stride, long T, long D, Save save) {
    for (long t = 0; t < T; t += BLOCK)
        for (long d = 0; d < D; d += BLOCK) {
            __m512i r[2][16];
            for (int i = 0; i < 16; i++) {
                const bf16* p = x + (t + 2 * i) * stride + d;
                __m512i even = _mm512_loadu_si512(p), odd = _mm512_loadu_si512(p + stride);
                r[0][i] = interleave(even, odd, 0), r[1][i] = interleave(even, odd, 1);
            }
            transpose16(r[0]), transpose16(r[1]);
            save(d, t, r[0]), save(d + 16, t, r[1]);
        }
}
// The same as tiles of A, which has K columns, from column `t0` on.
static void tile_transposed(const bf16* x, long stride, long T, long D, bf16* a, long K, long t0) {
    transposed(x, stride, T, D, [=](long d, long t, const __m512i* r) {
        for (int i = 0; i < 16; i++) _mm512_stream_si512((__m512i*)(a + d * K + (t0 + t) * 16 + i * 32), r[i]);
    });
}

// Makes x (M x M) symmetric from its upper blocks of 32 x 32.
static void mirror(bf16* x, long M) {
    for (long n = BLOCK; n < M; n += BLOCK)
        transposed(x + n, M, n, BLOCK, [=](long d, long t, const __m512i* rows) {
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(x + (n + d + i) * M + t, rows[i]);
        });
}

// 16 rows of a weight (N x K) to panel n / 16 of W^T and rows n to n + 15 of the packed W.
static void pack_weight(const float* w, long n, long N, long K, bf16* w_t, bf16* w_b) {
    for (long k = 0; k < K; k += 32) {
        __m512i r[16];
        for (int i = 0; i < 16; i++) {
            const float* p = w + i * K + k;
            r[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p));
        }
        for (int i = 0; i < 16; i += 2)
            for (int h = 0; h < 2; h++)
                _mm512_storeu_si512(w_b + (k / 16 + h) * N * 16 + (n + i) * 16, interleave(r[i], r[i + 1], h));
        transpose16(r);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(w_t + n * K + (k / 2 + i) * 32, r[i]);
    }
}

// --- gradients of weights --------------------------------------------------------------------------------------------

// The gradient of a weight, the sum over tokens of left^T right, for columns n0 to n0 + N: left (M x tokens) tiled, right
// packed, both for `stride` tokens. 256 tokens at a time, so that two panels of `right` stay in the first cache; `sums` is
// M x N numbers. save(m, n, tile) gets each 16 x 16 of it at last.
template <class Save>
static void weight_gradient(const bf16* left, const bf16* right, long M, long n0, long N, long tokens, long stride,
                            float* sums, Save save) {
    constexpr long TOKEN_BLOCK = 256;
    const long panel = stride * 16;
    for (long t = 0; t < tokens; t += TOKEN_BLOCK)
        for (long n = n0; n < n0 + N; n += BLOCK)
            for (long m = 0; m < M; m += BLOCK) {
                float* block = sums + ((n - n0) / BLOCK * (M / BLOCK) + m / BLOCK) * BLOCK * BLOCK;
                const OperandA a = tiled(left + m * stride + t * 16, stride);
                const bf16* b = right + n / 16 * panel + t * 16;
                // Other cores have written these operands: prefetch the next panels and the next tokens.
                const bf16* next = right + (n / 16 + 2 + m / (M / 2)) * panel + (t + m % (M / 2) * 2 * TOKEN_BLOCK / M) * 16;
                long line = ((n - n0) / BLOCK * (M / BLOCK) + m / BLOCK) * (TOKEN_BLOCK / 32) * 2;
                add_block(a, b, panel, std::min(TOKEN_BLOCK, tokens - t), t == 0, quarter_block(block), [&] {
                    for (int i = 0; i < 4; i++, next += 32) _mm_prefetch((const char*)next, _MM_HINT_T1);
                    for (int i = 0; i < 2; i++, line++) {
                        const bf16* row = left + line / (TOKEN_BLOCK / 2) % (M / 16) * panel;
                        _mm_prefetch((const char*)(row + (t + TOKEN_BLOCK) * 16 + line % (TOKEN_BLOCK / 2) * 32), _MM_HINT_T1);
                    }
                });
                if (t + TOKEN_BLOCK >= tokens)
                    for (int quarter = 0; quarter < 4; quarter++)
                        save(m + quarter / 2 * 16, n + quarter % 2 * 16, block + quarter * 256);
            }
}
static inline void save_tile(const float* block, float* dst, long stride) {
    for (int i = 0; i < 16; i++) _mm512_stream_ps(dst + i * stride, _mm512_load_ps(block + i * 16));
}
static inline void save_tile_transposed(const float* block, float* dst, long stride) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(block + i * 16);
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_stream_si512((__m512i*)(dst + i * stride), r[i]);
}
// The same of columns in the order of `low_pairs` and `high_pairs` from position n on; rows of `dst` are in order.
static inline void save_pairs_transposed(const float* block, float* dst, long n, long stride, bool add) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(block + i * 16);
    transpose16(r);
    for (int i = 0; i < 16; i++) {
        float* row = dst + (n / 32 * 32 + column_of(n % 32 + i)) * stride;
        Vec v = _mm512_castsi512_ps(r[i]);
        _mm512_storeu_ps(row, add ? _mm512_add_ps(v, _mm512_loadu_ps(row)) : v);
    }
}
