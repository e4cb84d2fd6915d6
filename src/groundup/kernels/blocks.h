// What all kernels are made of: numbers, products of blocks, operands in the order that these ask for, and memory.
//
// A product C = A B takes tiles of 16 x 32 of A and 32 x 16 of B. A lies row by row, or tile by tile ("tiled"). B is
// "packed": panels of 16 columns, in each the rows in pairs: b[panel][k / 2][column][k % 2]. Sizes are multiples of 32.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "memory.h"

using bf16 = uint16_t;
using Vec = __m512;  // 16 numbers
constexpr long LANES = 16, BLOCK = 32;

// --- numbers ---------------------------------------------------------------------------------------------------------

static inline Vec load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline void store(bf16* p, Vec v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
static inline void store(bf16* p, Vec low, Vec high) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low)); }
// The same past the caches, for what is not read soon; and both.
static inline void stream_store(bf16* p, Vec low, Vec high) {
    _mm512_stream_si512((__m512i*)p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
static inline void store_and_stream(bf16* here, bf16* streamed, Vec low, Vec high) {
    __m512i v = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(here, v), _mm512_stream_si512((__m512i*)streamed, v);
}
static inline Vec all(float v) { return _mm512_set1_ps(v); }
static inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
// The sums of 16 vectors, as one.
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

// 2^x and e^x to 2e-4, finer than bfloat16 (4e-3) can tell; 0 far below zero, and NaN stays.
static inline Vec power_of_two(Vec x) {
    Vec whole = _mm512_roundscale_ps(x, 0), rest = _mm512_sub_ps(x, whole);
    Vec y = _mm512_fmadd_ps(all(0.0558263f), rest, all(0.2401397f));
    y = _mm512_fmadd_ps(_mm512_fmadd_ps(y, rest, all(0.6931472f)), rest, all(1.f));
    return _mm512_scalef_ps(y, whole);
}
static inline Vec exponential(Vec x) { return power_of_two(_mm512_mul_ps(x, all(1.44269504f))); }
static inline Vec logarithm_to_two(Vec x) {  // to 1e-5, of positive numbers
    Vec m = _mm512_sub_ps(_mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), all(1.f));
    Vec y = _mm512_fmadd_ps(all(-0.03459521f), m, all(0.14643361f));
    for (float c : {-0.30338967f, 0.46930169f, -0.72044237f, 1.44268325f}) y = _mm512_fmadd_ps(y, m, all(c));
    return _mm512_fmadd_ps(y, m, _mm512_getexp_ps(x));
}
static inline Vec sigmoid(Vec x) {
    return _mm512_rcp14_ps(_mm512_add_ps(all(1.f), exponential(_mm512_sub_ps(all(0.f), x))));
}

// --- blocks ----------------------------------------------------------------------------------------------------------

// How far apart the panels of an operand lie that is read a few of its `rows` at a time: at a power of two all would
// compete for the same places of a cache.
static inline long spread(long rows) { return ((rows + 127) / 128 | 1) * 128; }

struct Left {  // operand A: numbers between rows of a tile, between tiles below each other, and along K
    const bf16* at;
    long row, down, along;
    Left from(long m) const { return {at + m / 16 * down, row, down, along}; }
};
static inline Left rows(const bf16* at, long stride) { return {at, stride, 16 * stride, 32}; }
static inline Left tiled(const bf16* at, long K) { return {at, 32, 16 * K, 512}; }

struct Block {  // 32 x 32 numbers: between the rows of each quarter of 16 x 16, to the quarter beside and to the one below
    float* at;
    long row, right, below;
};
static inline Block in_rows(float* at, long stride) { return {at, stride, 16, 16 * stride}; }
static inline Block in_quarters(float* at) { return {at, 16, 256, 512}; }

#ifdef __AMX_BF16__

struct Tiles {  // a thread's tiles: all eight of 16 x 64 bytes; what was configured before comes back at the end
    alignas(64) uint8_t before[64], ours[64] = {};
    Tiles() {
        _tile_storeconfig(before);
        ours[0] = 1;
        for (int t = 0; t < 8; t++) ours[16 + 2 * t] = 64, ours[48 + t] = 16;
        _tile_loadconfig(ours);
    }
    ~Tiles() {
        if (before[0])
            _tile_loadconfig(before);
        else
            _tile_release();
    }
};

// sums += A B, or = where `fresh`, for two panels of B; meanwhile() runs between the steps of 32 along K, since the tiles'
// unit and the vector units work at the same time.
template <class Meanwhile>
static inline void add_block(Left a, const bf16* b, long panel, long K, bool fresh, Block sums, Meanwhile meanwhile) {
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums.at, sums.row * 4);
        _tile_loadd(1, sums.at + sums.right, sums.row * 4);
        _tile_loadd(2, sums.at + sums.below, sums.row * 4);
        _tile_loadd(3, sums.at + sums.below + sums.right, sums.row * 4);
    }
    const bf16 *a0 = a.at, *a1 = a.at + a.down, *b0 = b, *b1 = b + panel;
    __asm__ volatile("" ::: "memory");  // g++ does not know that tiles read memory
    for (long k = 0; k < K; k += 32) {
        _tile_loadd(4, a0, a.row * 2);
        _tile_loadd(6, b0, 64);
        _tile_loadd(7, b1, 64);
        _tile_loadd(5, a1, a.row * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a0 += a.along, a1 += a.along, b0 += 512, b1 += 512;
        meanwhile();
    }
    _tile_stored(0, sums.at, sums.row * 4);
    _tile_stored(1, sums.at + sums.right, sums.row * 4);
    _tile_stored(2, sums.at + sums.below, sums.row * 4);
    _tile_stored(3, sums.at + sums.below + sums.right, sums.row * 4);
}

#else

struct Tiles {
    Tiles() {}  // so that g++ does not call it unused
};

// The same by vectors: 8 rows of the block in registers at a time.
template <class Meanwhile>
static inline void add_block(Left a, const bf16* b, long panel, long K, bool fresh, Block sums, Meanwhile meanwhile) {
    for (long m = 0; m < BLOCK; m += 8) {
        const bf16* left = a.at + m / 16 * a.down + m % 16 * a.row;
        float* to = sums.at + m / 16 * sums.below + m % 16 * sums.row;
        Vec c[8][2];
        for (long i = 0; i < 8; i++)
            for (long h = 0; h < 2; h++) c[i][h] = fresh ? all(0.f) : _mm512_loadu_ps(to + i * sums.row + h * sums.right);
        for (long k = 0; k < K; k += 32, left += a.along) {
            const bf16* right = b + k * 16;
#pragma GCC unroll 4
            for (long j = 0; j < 32; j += 2, right += 32) {
                const __m512bh r[] = {(__m512bh)_mm512_loadu_si512(right), (__m512bh)_mm512_loadu_si512(right + panel)};
#pragma GCC unroll 8
                for (long i = 0; i < 8; i++) {
                    int pair;
                    std::memcpy(&pair, left + i * a.row + j, 4);
                    const __m512bh l = (__m512bh)_mm512_set1_epi32(pair);
                    c[i][0] = _mm512_dpbf16_ps(c[i][0], l, r[0]), c[i][1] = _mm512_dpbf16_ps(c[i][1], l, r[1]);
                }
            }
            if (k / 32 % 4 == m / 8) meanwhile();
        }
        for (long i = 0; i < 8; i++)
            for (long h = 0; h < 2; h++) _mm512_storeu_ps(to + i * sums.row + h * sums.right, c[i][h]);
    }
}

#endif

struct Ahead {  // memory that is needed soon: asked for in even parts, once a step
    const char *at = nullptr, *end = nullptr;
    long lines = 0;
    void ask() {
        for (long i = 0; i < lines && at < end; i++, at += 64) _mm_prefetch(at, _MM_HINT_T1);
    }
};
// Asks for the part at `next` of two panels of B, so that M / 32 blocks ask for the whole of both.
static inline void prefetch_panels(const bf16*& next, long panel, long M) {
    for (long i = 0; i < (16 * 32 + M - 1) / M; i++, next += 32) {
        _mm_prefetch((const char*)next, _MM_HINT_T1);
        _mm_prefetch((const char*)(next + panel), _MM_HINT_T1);
    }
}

// sums += A B, or = where `fresh`: blocks of 32 x 32, those of the same columns one after the other.
static void accumulate(Left a, const bf16* b, long panel, long M, long N, long K, bool fresh, float* sums) {
    for (long n = 0; n < N; n += BLOCK)
        for (long m = 0; m < M; m += BLOCK, sums += BLOCK * BLOCK) {
            const bf16 *b0 = b + n / 16 * panel, *next = b0 + 2 * panel + m * K * 16 / M;
            add_block(a.from(m), b0, panel, K, fresh, in_rows(sums, BLOCK), [&] { prefetch_panels(next, panel, M); });
        }
}

// Products of P pairs of one shape at once, which `save` gets side by side while the next blocks are in the making.
template <size_t P, class Save>
static void multiply_blocks(const Left (&a)[P], const bf16* const (&b)[P], long panel, long M, long N, long K, Save save, Ahead ahead,
                            bool near, bool upper) {
    alignas(64) float out[2][P][BLOCK * BLOCK];
    const long pairs_a_step = (16 * 32 / P + K - 1) / K, steps = M * N * K / (BLOCK * BLOCK * BLOCK);
    ahead.lines = ((ahead.end - ahead.at) / 64 + steps - 1) / steps;
    long saved = 16, last_m = 0, last_n = 0, turn = 0;
    const auto save_some = [&](long count) {
        const auto& last = out[turn ^ 1];
        for (; count > 0 && saved < 16; count--, saved++) {
            const long m = last_m + 2 * saved, at = 64 * saved;
            if constexpr (P == 1)
                save(m, last_n, last[0] + at);
            else
                save(m, last_n, last[0] + at, last[1] + at);
        }
    };
    for (long n = 0; n < N; n += BLOCK)
        for (long m = 0; m < (upper ? n + BLOCK : M); m += BLOCK) {
            for (size_t which = 0; which < P; which++) {
                const bf16 *b0 = b[which] + n / 16 * panel, *next = b0 + 2 * panel + m * K * 16 / M;
                add_block(a[which].from(m), b0, panel, K, true, in_rows(out[turn][which], BLOCK), [&] {
                    if (!near) prefetch_panels(next, panel, M);
                    ahead.ask();
                    save_some(pairs_a_step);
                });
            }
            saved = 0, last_m = m, last_n = n, turn ^= 1;
        }
    save_some(16);
}

// A (M x K) times B (K x N), `panel` numbers between panels of B. save(m, n, two) gets two rows of 32 numbers of the
// result, those at rows m and m + 1 and columns n to n + 31, while the next block is in the making.
template <class Save>
static void multiply(Left a, const bf16* b, long panel, long M, long N, long K, Save save, Ahead ahead = {}) {
    multiply_blocks({a}, {b}, panel, M, N, K, save, ahead, false, false);
}
// The same where B is in this core's cache: asking for it ahead would take time.
template <class Save>
static void multiply_near(Left a, const bf16* b, long panel, long M, long N, long K, Save save) {
    multiply_blocks({a}, {b}, panel, M, N, K, save, {}, true, false);
}
// Such a product that is known to be symmetric (M x M): its upper blocks.
template <class Save>
static void multiply_upper(Left a, const bf16* b, long panel, long M, long K, Save save) {
    multiply_blocks({a}, {b}, panel, M, M, K, save, {}, true, true);
}

// Two products of one shape at once: save(m, n, two, other) gets two rows of each.
template <class Save>
static void multiply_both(Left a, const bf16* b, Left other_a, const bf16* other_b, long panel, long M, long N, long K,
                          Save save) {
    multiply_blocks({a, other_a}, {b, other_b}, panel, M, N, K, save, {}, true, false);
}

// save for `multiply`: what `f(m, n, low, high)` makes of row m, 16 numbers from column n on and 16 more.
template <class F>
static auto each(F f) {
    return [f](long m, long n, const float* two) {
        f(m, n, _mm512_load_ps(two), _mm512_load_ps(two + 16));
        f(m + 1, n, _mm512_load_ps(two + 32), _mm512_load_ps(two + 48));
    };
}

static inline void transpose16(__m512i r[16]) {  // a matrix of 16 x 16 of 32 bits
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

static const struct Pairs {  // two rows of 32 to pairs: the first 16 columns, and the other
    alignas(64) uint16_t index[2][32], within[32];
    Pairs() {
        for (int i = 0; i < 32; i++) {
            within[i] = i / 2 + i % 2 * 16;
            index[0][i] = i / 2 + i % 2 * 32, index[1][i] = index[0][i] + 16;
        }
    }
} PAIRS;
static inline __m512i paired(__m512i even, __m512i odd, int half) {
    return _mm512_permutex2var_epi16(even, _mm512_load_si512(PAIRS.index[half]), odd);
}

// Two rows of 16 as a pair of B's rows, each number beside the one below; and each row of such a pair.
static inline __m512i together(Vec even, Vec odd) {
    return _mm512_permutexvar_epi16(_mm512_load_si512(PAIRS.within), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
static inline Vec first(__m512i pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16)); }
static inline Vec second(__m512i pair) { return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(0xffff0000))); }

// Two rows of 32 as pairs in half the time, in another order of columns: first 0-3, 8-11, 16-19 and 24-27, then the rest.
static inline __m512i first_pairs(__m512i even, __m512i odd) { return _mm512_unpacklo_epi16(even, odd); }
static inline __m512i other_pairs(__m512i even, __m512i odd) { return _mm512_unpackhi_epi16(even, odd); }
static inline long column_at(long place) { return place % 16 / 4 * 8 + place / 16 * 4 + place % 4; }
static inline long place_of(long column) { return column / 4 % 2 * 16 + column / 8 * 4 + column % 4; }

// B = x (K x N, rows `stride` apart).
static void pack(const bf16* x, long stride, long K, long N, bf16* b, long panel) {
    for (long n = 0; n < N; n += BLOCK)
        for (long k = 0; k < K; k += 2) {
            __m512i even = _mm512_loadu_si512(x + k * stride + n), odd = _mm512_loadu_si512(x + (k + 1) * stride + n);
            _mm512_storeu_si512(b + n / 16 * panel + k * 16, paired(even, odd, 0));
            _mm512_storeu_si512(b + (n / 16 + 1) * panel + k * 16, paired(even, odd, 1));
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
                const bf16* at = x + (t + 2 * i) * stride + d;
                __m512i even = _mm512_loadu_si512(at), odd = _mm512_loadu_si512(at + stride);
                r[0][i] = paired(even, odd, 0), r[1][i] = paired(even, odd, 1);
            }
            transpose16(r[0]), transpose16(r[1]);
            save(d, t, r[0]), save(d + 16, t, r[1]);
        }
}
// The same as tiles of A, K numbers along, beginning at `t0`.
static void tile_transposed(const bf16* x, long stride, long T, long D, bf16* a, long K, long t0) {
    transposed(x, stride, T, D, [=](long d, long t, const __m512i* r) {
        for (int i = 0; i < 16; i++) _mm512_stream_si512((__m512i*)(a + d * K + (t0 + t) * 16 + i * 32), r[i]);
    });
}

// x (M x M), of which the upper blocks of 32 x 32 are known, made symmetric.
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
            const float* at = w + i * K + k;
            r[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at));
        }
        for (int i = 0; i < 16; i += 2)
            for (int h = 0; h < 2; h++)
                _mm512_storeu_si512(w_b + (k / 16 + h) * N * 16 + (n + i) * 16, paired(r[i], r[i + 1], h));
        transpose16(r);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(w_t + n * K + (k / 2 + i) * 32, r[i]);
    }
}

// --- gradients of weights --------------------------------------------------------------------------------------------

// The gradient of a weight, the sum over tokens of left^T right, for columns n0 to n0 + N: left (M x tokens) tiled, right
// packed, both for `stride` tokens. 256 tokens at a time, so that two panels of `right` stay in the first cache; `sums` has
// room for M x N. save(m, n, tile) gets each 16 x 16 of it at last.
template <class Save>
static void sum_over_tokens(const bf16* left, const bf16* right, long M, long n0, long N, long tokens, long stride,
                            float* sums, Save save) {
    constexpr long AT_ONCE = 256;
    const long panel = stride * 16;
    for (long t = 0; t < tokens; t += AT_ONCE)
        for (long n = n0; n < n0 + N; n += BLOCK)
            for (long m = 0; m < M; m += BLOCK) {
                float* block = sums + ((n - n0) / BLOCK * (M / BLOCK) + m / BLOCK) * BLOCK * BLOCK;
                const Left a = tiled(left + m * stride + t * 16, stride);
                const bf16* b = right + n / 16 * panel + t * 16;
                // What other cores have written comes late if it is not asked for: the panels after these, and the next tokens.
                const bf16* next = right + (n / 16 + 2 + m / (M / 2)) * panel + (t + m % (M / 2) * 2 * AT_ONCE / M) * 16;
                long line = ((n - n0) / BLOCK * (M / BLOCK) + m / BLOCK) * (AT_ONCE / 32) * 2;
                add_block(a, b, panel, std::min(AT_ONCE, tokens - t), t == 0, in_quarters(block), [&] {
                    for (int i = 0; i < 4; i++, next += 32) _mm_prefetch((const char*)next, _MM_HINT_T1);
                    for (int i = 0; i < 2; i++, line++) {
                        const bf16* row = left + line / (AT_ONCE / 2) % (M / 16) * panel;
                        _mm_prefetch((const char*)(row + (t + AT_ONCE) * 16 + line % (AT_ONCE / 2) * 32), _MM_HINT_T1);
                    }
                });
                if (t + AT_ONCE >= tokens)
                    for (int quarter = 0; quarter < 4; quarter++)
                        save(m + quarter / 2 * 16, n + quarter % 2 * 16, block + quarter * 256);
            }
}
static inline void save_tile(const float* block, float* to, long stride) {
    for (int i = 0; i < 16; i++) _mm512_stream_ps(to + i * stride, _mm512_load_ps(block + i * 16));
}
static inline void save_tile_transposed(const float* block, float* to, long stride) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(block + i * 16);
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_stream_si512((__m512i*)(to + i * stride), r[i]);
}
// The same of columns in the order of `first_pairs` and `other_pairs`, n their first place, to rows of `to` in order.
static inline void save_pairs_transposed(const float* block, float* to, long n, long stride, bool add) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(block + i * 16);
    transpose16(r);
    for (int i = 0; i < 16; i++) {
        float* row = to + (n / 32 * 32 + column_at(n % 32 + i)) * stride;
        Vec v = _mm512_castsi512_ps(r[i]);
        _mm512_storeu_ps(row, add ? _mm512_add_ps(v, _mm512_loadu_ps(row)) : v);
    }
}
