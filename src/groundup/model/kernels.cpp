// The decoder's training step for processors with AMX: a layer forward and backward, and the loss, in bfloat16.
//
// A row of the batch goes through a whole layer by one thread, so that all between its products stays in that core's
// cache; only what the backward pass needs is written to memory (as FlashAttention, Dao 2022, for attention alone). The
// gradients of the weights are summed over all rows by products of their own, in an order that no thread changes: the
// result is the same to the bit for any number of threads.
//
// A product C = A B takes tiles of 16 x 32 of A and 32 x 16 of B. A lies row by row, or tile by tile ("tiled"). B is
// "packed": panels of 16 columns, in each the rows in pairs: b[panel][k / 2][column][k % 2]. Sizes are multiples of 32.
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>

using bf16 = uint16_t;
using Vec = __m512;  // 16 numbers
constexpr long LANES = 16, BLOCK = 32, MAX_CHANNELS = 256;

// --- numbers ---------------------------------------------------------------------------------------------------------

static inline Vec load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline void store(bf16* p, Vec v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
static inline void store(bf16* p, Vec low, Vec high) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low)); }
// The same past the caches, for what is not read soon.
static inline void store_beyond(bf16* p, Vec low, Vec high) { _mm512_stream_si512((__m512i*)p, (__m512i)_mm512_cvtne2ps_pbh(high, low)); }
static inline void keep(bf16* here, bf16* beyond, Vec low, Vec high) {
    __m512i v = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(here, v), _mm512_stream_si512((__m512i*)beyond, v);
}
static inline Vec all(float v) { return _mm512_set1_ps(v); }
static inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
// The sums of 16 vectors, as one.
static inline Vec sums(Vec r[16]) {
    for (int i = 0; i < 8; i++) r[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]), _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    // r[i]: in each 128 bits a0 b0 a1 b1 of rows 2i (a) and 2i + 1 (b)
    for (int i = 0; i < 4; i++)
        r[i] = _mm512_add_ps(_mm512_shuffle_ps(r[2 * i], r[2 * i + 1], 0x44), _mm512_shuffle_ps(r[2 * i], r[2 * i + 1], 0xee));
    // r[i]: in each 128 bits rows 4i to 4i + 3
    for (int i = 0; i < 2; i++)
        r[i] = _mm512_add_ps(_mm512_shuffle_f32x4(r[2 * i], r[2 * i + 1], 0x88), _mm512_shuffle_f32x4(r[2 * i], r[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(r[0], r[1], 0x88), _mm512_shuffle_f32x4(r[0], r[1], 0xdd));
}

// e^x to 2e-4, finer than bfloat16 (4e-3) can tell; 0 below -87.
static inline Vec exponential(Vec x) {
    x = _mm512_max_ps(all(-150.f), _mm512_mul_ps(x, all(1.44269504f)));  // in this order NaN stays
    Vec whole = _mm512_roundscale_ps(x, 0), rest = _mm512_sub_ps(x, whole);
    Vec y = _mm512_fmadd_ps(all(0.0558263f), rest, all(0.2401397f));
    y = _mm512_fmadd_ps(_mm512_fmadd_ps(y, rest, all(0.6931472f)), rest, all(1.f));
    return _mm512_scalef_ps(y, whole);
}
static inline Vec sigmoid(Vec x) { return _mm512_rcp14_ps(_mm512_add_ps(all(1.f), exponential(_mm512_sub_ps(all(0.f), x)))); }

// --- tiles -----------------------------------------------------------------------------------------------------------

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

// Whether the system lets this process use tiles; to be asked once, before everything else.
extern "C" bool tiles_granted() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }

struct Left {  // operand A: numbers between rows of a tile, between tiles below each other, and along K
    const bf16* at;
    long row, down, along;
};
static inline Left rows(const bf16* at, long stride) { return {at, stride, 16 * stride, 32}; }
static inline Left tiled(const bf16* at, long K) { return {at, 32, 16 * K, 512}; }

static inline void clear_block() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void fill_block(const float* block) {
    _tile_loadd(0, block, 64);
    _tile_loadd(1, block + 256, 64);
    _tile_loadd(2, block + 512, 64);
    _tile_loadd(3, block + 768, 64);
}
static inline void spill_block(float* out, long stride, long right, long below) {
    _tile_stored(0, out, stride);
    _tile_stored(1, out + right, stride);
    _tile_stored(2, out + below, stride);
    _tile_stored(3, out + below + right, stride);
}

// Tiles 0 to 3 += A B, a block of 32 x 32, at two tiles of A and two panels of B; meanwhile(k) runs between the steps, since
// the tiles' unit and the vector units work at the same time.
template <class Meanwhile>
static inline void add_block(const bf16* a0, const bf16* a1, const bf16* b0, const bf16* b1, long row, long along, long K,
                             Meanwhile meanwhile) {
    __asm__ volatile("" ::: "memory");  // g++ does not know that tiles read memory
    for (long k = 0; k < K; k += 32) {
        _tile_loadd(4, a0, row * 2);
        _tile_loadd(6, b0, 64);
        _tile_loadd(7, b1, 64);
        _tile_loadd(5, a1, row * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a0 += along, a1 += along, b0 += 512, b1 += 512;
        meanwhile();
    }
}

// A (M x K) times B (K x N), `panel` numbers between panels of B. save(m, n, two) gets two rows of 32 numbers of the
// result, those at rows m and m + 1 and columns n to n + 31, while the next block is in the making.
template <class Save>
static void multiply(Left a, const bf16* b, long panel, long M, long N, long K, Save save) {
    alignas(64) float out[2][BLOCK * BLOCK];
    const long pairs_a_step = (16 * 32 + K - 1) / K;
    long saved = 16, last_m = 0, last_n = 0, turn = 0;
    for (long n = 0; n < N; n += BLOCK)
        for (long m = 0; m < M; m += BLOCK) {
            const float* last = out[turn ^ 1];
            const bf16 *a0 = a.at + m / 16 * a.down, *b0 = b + n / 16 * panel;
            clear_block();
            add_block(a0, a0 + a.down, b0, b0 + panel, a.row, a.along, K, [&] {
                for (long i = 0; i < pairs_a_step && saved < 16; i++, saved++) save(last_m + 2 * saved, last_n, last + 64 * saved);
            });
            spill_block(out[turn], 128, 16, 512);
            saved = 0, last_m = m, last_n = n, turn ^= 1;
        }
    for (; saved < 16; saved++) save(last_m + 2 * saved, last_n, out[turn ^ 1] + 64 * saved);
}

// save for `multiply`: what `f(m, n, low, high)` makes of row m, 16 numbers from column n on and 16 more.
template <class F>
static auto each(F f) {
    return [f](long m, long n, const float* two) {
        f(m, n, _mm512_load_ps(two), _mm512_load_ps(two + 16)), f(m + 1, n, _mm512_load_ps(two + 32), _mm512_load_ps(two + 48));
    };
}

static inline void transpose16(__m512i r[16]) {  // a matrix of 16 x 16 of 32 bits
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88), r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
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

// --- a thread's own memory -------------------------------------------------------------------------------------------

struct Scratch {
    char* memory = nullptr;
    size_t size = 0, used = 0;
    void room(size_t bytes) {  // kept between calls: memory given back would have to be cleared again
        used = 0;
        if (bytes <= size) return;
        free(memory);
        size = (bytes + (1 << 21)) >> 21 << 21;
        memory = (char*)aligned_alloc(1 << 21, size);
        madvise(memory, size, MADV_HUGEPAGE);
    }
    template <class T>
    T* take(size_t count) {
        T* found = (T*)(memory + used);
        used += (count * sizeof(T) + 127) / 64 * 64;
        return found;
    }
};
static thread_local Scratch scratch;
static Scratch common;           // for all threads of a call
static std::mutex one_at_a_time;  // who calls from outside

// --- one layer -------------------------------------------------------------------------------------------------------

struct Shape {
    long rows, time, width, heads, key_heads, channels, inner, threads;
    double eps;
    long mixed() const { return (heads + 2 * key_heads) * channels; }  // queries, keys and values side by side
    long attended() const { return heads * channels; }
    long tokens() const { return rows * time; }
};

struct Layer {
    // float32: gains (width) and (channels); matrices q, k, v, o, gate, up, down (outputs x inputs); and their gradients
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
    const float *q, *k, *v, *o, *gate, *up, *down;
    float *grad_attention_norm, *grad_mlp_norm, *grad_q_norm, *grad_k_norm;
    float *grad_q, *grad_k, *grad_v, *grad_o, *grad_gate, *grad_up, *grad_down;
    // the matrices as operand B, W^T for the forward and W for the backward pass: (q, k, v) and (gate, up) together
    bf16 *mixed_t, *o_t, *gated_t, *down_t, *mixed, *o_b, *gated, *down_b;
    // kept for the backward pass, of all tokens: input, q k v, attention's output and log-sums (rows, heads, time),
    // input of the MLP, gates and what they gate (16 columns of each in turn)
    bf16 *x, *qkv, *attention, *middle, *gates, *gated_right, *normed, *mlp_normed;
    float* log_sums;
};

// Where the 16 rows of panel p of (q, k, v) and of (gate, up) begin.
template <class P>
static P mixed_panel(const Shape& s, P q, P k, P v, long p) {
    long queries = s.attended() / 16, keys = s.key_heads * s.channels / 16;
    if (p < queries) return q + p * 16 * s.width;
    p -= queries;
    return p < keys ? k + p * 16 * s.width : v + (p - keys) * 16 * s.width;
}
template <class P>
static P gated_panel(const Shape& s, P gate, P up, long p) {
    return (p % 2 ? up : gate) + p / 2 * 16 * s.width;
}

// 16 rows of a matrix (N x K) to panel n / 16 of W^T and rows n to n + 15 of the packed W.
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

static void pack_layer(const Shape& s, const Layer& l) {
    const long D = s.width, E = s.mixed(), A = s.attended(), G = 2 * s.inner;
    const long first[] = {0, E / 16, E / 16 + D / 16, E / 16 + D / 16 + G / 16, E / 16 + 2 * D / 16 + G / 16};
#pragma omp parallel for num_threads(s.threads)
    for (long p = 0; p < first[4]; p++) {
        long q = p - first[1], g = p - first[2], d = p - first[3];
        if (p < first[1]) pack_weight(mixed_panel(s, l.q, l.k, l.v, p), p * 16, E, D, l.mixed_t, l.mixed);
        else if (p < first[2]) pack_weight(l.o + q * 16 * A, q * 16, D, A, l.o_t, l.o_b);
        else if (p < first[3]) pack_weight(gated_panel(s, l.gate, l.up, g), g * 16, G, D, l.gated_t, l.gated);
        else pack_weight(l.down + d * 16 * s.inner, d * 16, D, s.inner, l.down_t, l.down_b);
    }
}

// 1 / rms of 16 rows of x, `stride` apart.
static inline Vec inverse_rms(const bf16* x, long stride, long width, float eps) {
    Vec squares[16];
    for (int i = 0; i < 16; i++) {
        squares[i] = all(0.f);
        for (long j = 0; j < width; j += LANES) squares[i] = _mm512_fmadd_ps(load(x + i * stride + j), load(x + i * stride + j), squares[i]);
    }
    return _mm512_div_ps(all(1.f), _mm512_sqrt_ps(_mm512_fmadd_ps(sums(squares), all(1.f / width), all(eps))));
}

// out = x / rms(x) * gain, for T rows.
static void normalise(const bf16* x, const float* gain, float eps, long T, long width, bf16* out, long stride) {
    for (long t = 0; t < T; t += 16) {
        alignas(64) float scale[16];
        _mm512_store_ps(scale, inverse_rms(x + t * width, width, width, eps));
        for (long i = 0; i < 16; i++)
            for (long j = 0; j < width; j += BLOCK) {
                const bf16* from = x + (t + i) * width + j;
                store(out + (t + i) * stride + j, _mm512_mul_ps(_mm512_mul_ps(load(from), all(scale[i])), _mm512_loadu_ps(gain + j)),
                      _mm512_mul_ps(_mm512_mul_ps(load(from + 16), all(scale[i])), _mm512_loadu_ps(gain + j + 16)));
            }
    }
}

// grad_x = rest, if there is one, + the gradient of `normalise` by x; grad_gain is added to. With n = x / rms(x):
// dx = (grad * gain - n * mean(grad * gain * n)) / rms(x).
static void normalise_backward(const bf16* x, const float* gain, float eps, const bf16* grad, long stride, const bf16* rest,
                               long T, long width, bf16* grad_x, float* grad_gain) {
    for (long t = 0; t < T; t += 16, x += 16 * width, grad += 16 * stride, grad_x += 16 * width) {
        Vec dots[16];
        for (int i = 0; i < 16; i++) {
            dots[i] = all(0.f);
            for (long j = 0; j < width; j += LANES)
                dots[i] = _mm512_fmadd_ps(_mm512_mul_ps(load(x + i * width + j), load(grad + i * stride + j)), _mm512_loadu_ps(gain + j), dots[i]);
        }
        alignas(64) float scale[16], mean[16];
        const Vec scales = inverse_rms(x, width, width, eps);
        _mm512_store_ps(scale, scales);
        _mm512_store_ps(mean, _mm512_mul_ps(_mm512_mul_ps(sums(dots), all(1.f / width)), _mm512_mul_ps(scales, scales)));
        for (long j = 0; j < width; j += LANES) {
            Vec gains = _mm512_loadu_ps(gain + j), total = _mm512_loadu_ps(grad_gain + j);
            for (int i = 0; i < 16; i++) {
                Vec v = load(x + i * width + j), g = load(grad + i * stride + j), by = all(scale[i]);
                Vec inner = _mm512_fnmadd_ps(v, all(mean[i]), _mm512_mul_ps(g, gains));
                store(grad_x + i * width + j, _mm512_fmadd_ps(inner, by, rest ? load(rest + (t + i) * width + j) : all(0.f)));
                total = _mm512_fmadd_ps(_mm512_mul_ps(v, by), g, total);
            }
            _mm512_storeu_ps(grad_gain + j, total);
        }
    }
}

// One head's queries or keys (x: rows `from` apart): normalised, turned by their positions, times `scale`; out (T x C).
static void place(const bf16* x, long from, const float* gain, const float* cos, const float* sin, float eps, float scale,
                  long T, long C, bf16* out) {
    const long half = C / 2;
    for (long t = 0; t < T; t += 16) {
        alignas(64) float norm[16];
        _mm512_store_ps(norm, _mm512_mul_ps(inverse_rms(x + t * from, from, C, eps), all(scale)));
        for (long i = t; i < t + 16; i++)
            for (long j = 0; j < half; j += LANES) {
                Vec by = all(norm[i - t]), c = _mm512_loadu_ps(cos + i * half + j), d = _mm512_loadu_ps(sin + i * half + j);
                Vec a = _mm512_mul_ps(_mm512_mul_ps(load(x + i * from + j), by), _mm512_loadu_ps(gain + j));
                Vec b = _mm512_mul_ps(_mm512_mul_ps(load(x + i * from + half + j), by), _mm512_loadu_ps(gain + half + j));
                store(out + i * C + j, _mm512_fnmadd_ps(b, d, _mm512_mul_ps(a, c)));
                store(out + i * C + half + j, _mm512_fmadd_ps(a, d, _mm512_mul_ps(b, c)));
            }
    }
}

// The gradient of `place`: from that of its output, grad (T x C, float32), to that of x, rows `to` apart, and packed.
static void place_backward(const bf16* x, long from, const float* gain, const float* cos, const float* sin, float eps,
                           float scale, long T, long C, const float* grad, bf16* grad_x, long to, bf16* packed, long panel,
                           float* grad_gain) {
    const long half = C / 2;
    alignas(64) float back[16 * MAX_CHANNELS];
    for (long t = 0; t < T; t += 16, x += 16 * from) {
        Vec dots[16];
        for (long i = 0; i < 16; i++) {
            dots[i] = all(0.f);
            for (long j = 0; j < half; j += LANES) {
                const float* g = grad + (t + i) * C + j;
                Vec a = _mm512_loadu_ps(g), b = _mm512_loadu_ps(g + half);
                Vec c = _mm512_loadu_ps(cos + (t + i) * half + j), d = _mm512_loadu_ps(sin + (t + i) * half + j);
                Vec first = _mm512_fmadd_ps(b, d, _mm512_mul_ps(a, c)), second = _mm512_fnmadd_ps(a, d, _mm512_mul_ps(b, c));
                _mm512_store_ps(back + i * C + j, first), _mm512_store_ps(back + i * C + half + j, second);
                dots[i] = _mm512_fmadd_ps(_mm512_mul_ps(load(x + i * from + j), first), _mm512_loadu_ps(gain + j), dots[i]);
                dots[i] = _mm512_fmadd_ps(_mm512_mul_ps(load(x + i * from + half + j), second), _mm512_loadu_ps(gain + half + j), dots[i]);
            }
        }
        alignas(64) float norm[16], mean[16];
        const Vec norms = inverse_rms(x, from, C, eps);
        _mm512_store_ps(norm, norms);
        _mm512_store_ps(mean, _mm512_mul_ps(_mm512_mul_ps(sums(dots), all(1.f / C)), _mm512_mul_ps(norms, norms)));
        for (long j = 0; j < C; j += LANES) {
            Vec gains = _mm512_loadu_ps(gain + j), total = _mm512_loadu_ps(grad_gain + j), both[2];
            for (long i = 0; i < 16; i++) {
                Vec v = load(x + i * from + j), g = _mm512_load_ps(back + i * C + j), by = all(norm[i] * scale);
                both[i % 2] = _mm512_mul_ps(_mm512_fnmadd_ps(v, all(mean[i]), _mm512_mul_ps(g, gains)), by);
                store(grad_x + (t + i) * to + j, both[i % 2]);
                if (i % 2) _mm512_store_si512(packed + j * panel / 16 + (t + i - 1) * 16, together(both[0], both[1]));
                total = _mm512_fmadd_ps(_mm512_mul_ps(v, by), g, total);
            }
            _mm512_storeu_ps(grad_gain + j, total);
        }
    }
}

// Which of 16 keys from s (or queries from t) a token sees: earlier ones of its own document.
static inline __mmask16 keys_seen(const int* documents, long t, long s) {
    __mmask16 earlier = t - s >= 15 ? 0xffff : t < s ? 0 : (__mmask16)((2 << (t - s)) - 1);
    return _mm512_mask_cmpeq_epi32_mask(earlier, _mm512_loadu_si512(documents + s), _mm512_set1_epi32(documents[t]));
}
static inline __mmask16 queries_that_see(const int* documents, long t, long s) {
    __mmask16 later = t >= s ? 0xffff : s - t > 15 ? 0 : (__mmask16)(0xffff << (s - t));
    return _mm512_mask_cmpeq_epi32_mask(later, _mm512_loadu_si512(documents + t), _mm512_set1_epi32(documents[s]));
}

// softmax(q k^T) v of one head; q (T x C, scaled), keys packed transposed, values packed; out rows `stride` apart.
static void attend(const bf16* q, const bf16* keys, const bf16* values, const int* documents, long T, long C, bf16* out,
                   bf16* beyond, long stride, float* log_sums, float* scores, bf16* weights) {
    const long wide = T + BLOCK;
    for (long t0 = 0; t0 < T; t0 += BLOCK) {
        const long S = t0 + BLOCK;
        multiply(rows(q + t0 * C, C), keys, C * 16, BLOCK, S, C,
                 each([=](long m, long n, Vec a, Vec b) {
                     _mm512_storeu_ps(scores + m * wide + n, a), _mm512_storeu_ps(scores + m * wide + n + 16, b);
                 }));
        alignas(64) float scale[BLOCK];
        for (long i = 0; i < BLOCK; i++) {
            float* row = scores + i * wide;
            Vec highest = all(-1e30f), total = all(0.f);
            for (long s = 0; s < S; s += LANES)
                highest = _mm512_mask_max_ps(highest, keys_seen(documents, t0 + i, s), highest, _mm512_loadu_ps(row + s));
            const float top = _mm512_reduce_max_ps(highest);
            for (long s = 0; s < S; s += LANES) {
                Vec e = exponential(_mm512_sub_ps(_mm512_loadu_ps(row + s), all(top)));
                e = _mm512_maskz_mov_ps(keys_seen(documents, t0 + i, s), e);
                total = _mm512_add_ps(total, e);
                store(weights + i * wide + s, e);
            }
            const float whole = sum(total);
            scale[i] = 1 / whole;
            log_sums[t0 + i] = top + std::log(whole);
        }
        multiply(rows(weights, wide), values, T * 16, BLOCK, C, S, each([&](long m, long n, Vec a, Vec b) {
                     const long at = (t0 + m) * stride + n;
                     keep(out + at, beyond + at, _mm512_mul_ps(a, all(scale[m])), _mm512_mul_ps(b, all(scale[m])));
                 }));
    }
}

static void layer_forward(const Shape& s, const Layer& l, const float* cos, const float* sin, const int* documents, bf16* y) {
    const long T = s.time, D = s.width, C = s.channels, E = s.mixed(), A = s.attended(), F = s.inner, N = s.tokens();
    const long H = s.heads, K = s.key_heads;
    const float eps = s.eps, scale = 1 / std::sqrt((float)C);
#pragma omp parallel num_threads(s.threads)
    {
        Tiles tiles;
        scratch.room(2 * T * (D + F + 64 + E + A + D) + 8 * T * C + 6 * BLOCK * (T + BLOCK) + 4096);
        bf16 *h = scratch.take<bf16>(T * (D + 32)), *gated = scratch.take<bf16>(T * (F + 32));
        bf16 *q = scratch.take<bf16>(T * C), *k = scratch.take<bf16>(T * C);
        bf16 *keys = scratch.take<bf16>(T * C), *values = scratch.take<bf16>(T * C);
        bf16 *qkv = scratch.take<bf16>(T * E), *attention = scratch.take<bf16>(T * A), *middle = scratch.take<bf16>(T * D);
        float* scores = scratch.take<float>(BLOCK * (T + BLOCK));
        bf16* weights = scratch.take<bf16>(BLOCK * (T + BLOCK));
#pragma omp for schedule(dynamic, 1)
        for (long r = 0; r < s.rows; r++) {
            const bf16* x = l.x + r * T * D;
            bf16* gates = l.gates + r * T * 2 * F, *out = y + r * T * D;
            normalise(x, l.attention_norm, eps, T, D, h, D + 32);
            tile_transposed(h, D + 32, T, D, l.normed, N, r * T);
            multiply(rows(h, D + 32), l.mixed_t, D * 16, T, E, D, each([=](long m, long n, Vec a, Vec b) { keep(qkv + m * E + n, l.qkv + (r * T + m) * E + n, a, b); }));
            for (long head = 0; head < H; head++) {
                if (head % (H / K) == 0) {
                    const long shared = head / (H / K);
                    place(qkv + A + shared * C, E, l.k_norm, cos, sin, eps, 1.f, T, C, k);
                    pack_transposed(k, C, T, C, keys, C * 16);
                    pack(qkv + A + (K + shared) * C, E, T, C, values, T * 16);
                }
                place(qkv + head * C, E, l.q_norm, cos, sin, eps, scale, T, C, q);
                attend(q, keys, values, documents + r * T, T, C, attention + head * C,
                       l.attention + r * T * A + head * C, A, l.log_sums + (r * H + head) * T,
                       scores, weights);
            }
            multiply(rows(attention, A), l.o_t, A * 16, T, D, A, each([=](long m, long n, Vec a, Vec b) {
                         const bf16* was = x + m * D + n;
                         keep(middle + m * D + n, l.middle + (r * T + m) * D + n, _mm512_add_ps(a, load(was)), _mm512_add_ps(b, load(was + 16)));
                     }));
            normalise(middle, l.mlp_norm, eps, T, D, h, D + 32);
            tile_transposed(h, D + 32, T, D, l.mlp_normed, N, r * T);
            multiply(rows(h, D + 32), l.gated_t, D * 16, T, 2 * F, D, [=](long m, long n, const float* two) {
                Vec both[2];
                for (long i = 0; i < 2; i++) {
                    Vec gate = _mm512_load_ps(two + i * 32), up = _mm512_load_ps(two + i * 32 + 16);
                    Vec open = sigmoid(gate), silu = _mm512_mul_ps(gate, open);
                    Vec bend = _mm512_fmadd_ps(silu, _mm512_sub_ps(all(1.f), open), open);
                    _mm512_stream_si512((__m512i*)(gates + n * T + (m + i) * 32), together(_mm512_mul_ps(up, bend), silu));
                    both[i] = _mm512_mul_ps(silu, up);
                    store(gated + (m + i) * (F + 32) + n / 2, both[i]);
                }
                _mm512_stream_si512((__m512i*)(l.gated_right + n / 2 * N + (r * T + m) * 16), together(both[0], both[1]));
            });
            multiply(rows(gated, F + 32), l.down_t, F * 16, T, D, F, each([=](long m, long n, Vec a, Vec b) {
                         const bf16* was = middle + m * D + n;
                         store_beyond(out + m * D + n, _mm512_add_ps(a, load(was)), _mm512_add_ps(b, load(was + 16)));
                     }));
            _mm_sfence();  // what went past the caches is there before another thread looks for it
        }
    }
}

// dW = sum over tokens of left^T right: left (width x tokens) tiled, right packed; in parts of 128 columns, 512 tokens at
// a time. save(m, n, block) as in `multiply`.
template <class Save>
static void sum_over_tokens(const bf16* left, const bf16* right, long M, long n0, long N, long tokens, float* sums, Save save) {
    constexpr long AT_ONCE = 256;
    const long panel = tokens * 16;
    for (long t = 0; t < tokens; t += AT_ONCE)
        for (long n = n0; n < n0 + N; n += BLOCK)
            for (long m = 0; m < M; m += BLOCK) {
                float* block = sums + ((n - n0) / BLOCK * (M / BLOCK) + m / BLOCK) * BLOCK * BLOCK;
                if (t)
                    fill_block(block);
                else
                    clear_block();
                const bf16 *a = left + m * tokens + t * 16, *b = right + n / 16 * panel + t * 16;
                const bf16* next = right + (n / 16 + 2 + m / (M / 2)) * panel + (t + m % (M / 2) * 2 * AT_ONCE / M) * 16;
                long line = ((n - n0) / BLOCK * (M / BLOCK) + m / BLOCK) * (AT_ONCE / 32) * 2;
                add_block(a, a + tokens * 16, b, b + panel, 32, 512, std::min(AT_ONCE, tokens - t), [&] {
                    for (int i = 0; i < 4; i++, next += 32) _mm_prefetch((const char*)next, _MM_HINT_T0);
                    for (int i = 0; i < 2; i++, line++)
                        _mm_prefetch((const char*)(left + line / (AT_ONCE / 2) % (M / 16) * 16 * tokens + (t + AT_ONCE) * 16 + line % (AT_ONCE / 2) * 32), _MM_HINT_T1);
                });
                spill_block(block, 64, 256, 512);
                if (t + AT_ONCE >= tokens)
                    for (int quarter = 0; quarter < 4; quarter++)
                        save(m + quarter / 2 * 16, n + quarter % 2 * 16, block + quarter * 256);
            }
}
static inline void save_tile(const float* block, float* to, long stride) {
    for (int i = 0; i < 16; i++) _mm512_storeu_ps(to + i * stride, _mm512_load_ps(block + i * 16));
}
static inline void save_tile_transposed(const float* block, float* to, long stride, bool add = false) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(block + i * 16);
    transpose16(r);
    for (int i = 0; i < 16; i++) {
        Vec v = _mm512_castsi512_ps(r[i]);
        _mm512_storeu_ps(to + i * stride, add ? _mm512_add_ps(v, _mm512_loadu_ps(to + i * stride)) : v);
    }
}

// The sum of `count` rows of parts, `stride` apart, always in the same order.
static void sum_rows(const float* parts, long count, long stride, long width, float* sums) {
    for (long i = 0; i < width; i++) {
        float total = 0;
        for (long r = 0; r < count; r++) total += parts[r * stride + i];
        sums[i] = total;
    }
}

struct Operands {  // of the weights' gradients: all tokens, left ones tiled (width), right ones packed
    bf16 *grad_middle, *grad_out, *grad_qkv, *attention, *grad_gates;
};

// From the gradient of the layer's output, grad (tokens x width), which becomes that of its input.
static void layer_backward(const Shape& s, const Layer& l, const float* cos, const float* sin, const int* documents,
                           const Operands& o, bf16* grad, float* gain_parts) {
    const long T = s.time, D = s.width, C = s.channels, E = s.mixed(), A = s.attended(), F = s.inner, N = s.tokens();
    const long H = s.heads, K = s.key_heads, wide = T + BLOCK, gains = 2 * D + 2 * C;
    const float eps = s.eps, scale = 1 / std::sqrt((float)C);
    std::memset(gain_parts, 0, s.rows * gains * sizeof(float));
#pragma omp parallel num_threads(s.threads)
    {
        Tiles tiles;
        scratch.room(2 * T * (2 * D + 3 * F + A + E + 256) + 2 * T * C * 9 + 4 * T * C * 3 + 4 * T + 4 * BLOCK * wide +
                     2 * T * wide + 8192);
        bf16 *h = scratch.take<bf16>(T * (D + 32)), *grad_gates = scratch.take<bf16>(T * 2 * F), *grad_middle = scratch.take<bf16>(T * D);
        bf16 *grad_attention = scratch.take<bf16>(T * A), *grad_qkv = scratch.take<bf16>(T * (E + 32));
        bf16 *q = scratch.take<bf16>(T * C), *k = scratch.take<bf16>(T * C), *keys = scratch.take<bf16>(T * C);
        bf16 *queries_t = scratch.take<bf16>(T * C), *queries = scratch.take<bf16>(T * C);
        bf16 *grads_t = scratch.take<bf16>(T * C), *grads = scratch.take<bf16>(T * C);
        float *grad_q = scratch.take<float>(T * C), *grad_k = scratch.take<float>(T * C), *grad_v = scratch.take<float>(T * C);
        float* along = scratch.take<float>(T);
        bf16 *weights = scratch.take<bf16>(BLOCK * wide), *slopes = scratch.take<bf16>(BLOCK * wide);
        bf16* all_slopes = scratch.take<bf16>(T * wide);
#pragma omp for schedule(dynamic, 1)
        for (long r = 0; r < s.rows; r++) {
            const bf16 *x = l.x + r * T * D, *qkv = l.qkv + r * T * E, *attention = l.attention + r * T * A;
            const bf16 *middle = l.middle + r * T * D, *gates = l.gates + r * T * 2 * F;
            const int* numbers = documents + r * T;
            bf16* out = grad + r * T * D;  // gradient of the output, in the end of the input
            float *gain1 = gain_parts + r * gains, *gain2 = gain1 + D, *gain_q = gain2 + D, *gain_k = gain_q + C;
            // the MLP
            multiply(rows(out, D), l.down_b, D * 16, T, F, D, [=](long m, long n, const float* two) {
                for (long c = 0; c < 32; c += 16) {
                    Vec to_gate[2], to_up[2];
                    const long at = 2 * (n + c);  // of the 16 gates, then 16 of what they gate
                    for (long i = 0; i < 2; i++) {
                        __m512i factors = _mm512_load_si512(gates + at * T + (m + i) * 32);
                        Vec v = _mm512_load_ps(two + i * 32 + c);
                        to_gate[i] = _mm512_mul_ps(v, first(factors)), to_up[i] = _mm512_mul_ps(v, second(factors));
                        store(grad_gates + (m + i) / 16 * 32 * F + at * 16 + (m + i) % 16 * 32, to_gate[i], to_up[i]);
                    }
                    bf16* to = o.grad_gates + at * N + (r * T + m) * 16;
                    _mm512_store_si512(to, together(to_gate[0], to_gate[1])), _mm512_store_si512(to + 16 * N, together(to_up[0], to_up[1]));
                }
            });
            tile_transposed(out, D, T, D, o.grad_out, N, r * T);
            multiply(tiled(grad_gates, 2 * F), l.gated, 2 * F * 16, T, D, 2 * F,
                     each([=](long m, long n, Vec a, Vec b) { store(h + m * (D + 32) + n, a, b); }));
            normalise_backward(middle, l.mlp_norm, eps, h, D + 32, out, T, D, grad_middle, gain2);
            // attention
            tile_transposed(grad_middle, D, T, D, o.grad_middle, N, r * T);
            _mm_sfence();
            pack(attention, A, T, A, o.attention + r * T * 16, N * 16);
            multiply(rows(grad_middle, D), l.o_b, D * 16, T, A, D,
                     each([=](long m, long n, Vec a, Vec b) { store(grad_attention + m * A + n, a, b); }));
            for (long head = 0; head < H; head++) {
                const long shared = head / (H / K);
                const bf16 *v = qkv + A + (K + shared) * C, *from = grad_attention + head * C;
                const float* log_sums = l.log_sums + (r * H + head) * T;
                if (head % (H / K) == 0) {
                    place(qkv + A + shared * C, E, l.k_norm, cos, sin, eps, 1.f, T, C, k);
                    pack(k, C, T, C, keys, T * 16);
                    std::memset(grad_k, 0, T * C * sizeof(float)), std::memset(grad_v, 0, T * C * sizeof(float));
                }
                place(qkv + head * C, E, l.q_norm, cos, sin, eps, scale, T, C, q);
                pack_transposed(q, C, T, C, queries_t, C * 16), pack(q, C, T, C, queries, T * 16);
                pack_transposed(from, A, T, C, grads_t, C * 16), pack(from, A, T, C, grads, T * 16);
                for (long t = 0; t < T; t++) {
                    Vec dots = all(0.f);
                    for (long c = 0; c < C; c += LANES)
                        dots = _mm512_fmadd_ps(load(from + t * A + c), load(attention + t * A + head * C + c), dots);
                    along[t] = sum(dots);
                }
                for (long s0 = 0; s0 < T; s0 += BLOCK) {  // 32 keys and all queries from there on
                    const long Q = T - s0;
                    multiply(rows(k + s0 * C, C), queries_t + s0 * C, C * 16, BLOCK, Q, C, each([=](long m, long n, Vec a, Vec b) {
                                 a = exponential(_mm512_sub_ps(a, _mm512_loadu_ps(log_sums + s0 + n)));
                                 b = exponential(_mm512_sub_ps(b, _mm512_loadu_ps(log_sums + s0 + n + 16)));
                                 store(weights + m * wide + n, _mm512_maskz_mov_ps(queries_that_see(numbers, s0 + n, s0 + m), a),
                                       _mm512_maskz_mov_ps(queries_that_see(numbers, s0 + n + 16, s0 + m), b));
                             }));
                    multiply(rows(v + s0 * E, E), grads_t + s0 * C, C * 16, BLOCK, Q, C, each([=](long m, long n, Vec a, Vec b) {
                                 const bf16* p = weights + m * wide + n;
                                 a = _mm512_mul_ps(load(p), _mm512_sub_ps(a, _mm512_loadu_ps(along + s0 + n)));
                                 b = _mm512_mul_ps(load(p + 16), _mm512_sub_ps(b, _mm512_loadu_ps(along + s0 + n + 16)));
                                 store(slopes + m * wide + n, a, b);
                             }));
                    const auto added = [=](float* sums) {
                        return each([=](long m, long n, Vec a, Vec b) {
                            float* to = sums + (s0 + m) * C + n;
                            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), a));
                            _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), b));
                        });
                    };
                    multiply(rows(weights, wide), grads + s0 * 16, T * 16, BLOCK, C, Q, added(grad_v));
                    multiply(rows(slopes, wide), queries + s0 * 16, T * 16, BLOCK, C, Q, added(grad_k));
                    transposed(slopes, wide, BLOCK, Q, [=](long n, long, const __m512i* found) {
                        for (int i = 0; i < 16; i++) _mm512_storeu_si512(all_slopes + (s0 + n + i) * wide + s0, found[i]);
                    });
                }
                for (long t0 = 0; t0 < T; t0 += BLOCK)
                    multiply(rows(all_slopes + t0 * wide, wide), keys, T * 16, BLOCK, C, t0 + BLOCK,
                             each([=](long m, long n, Vec a, Vec b) {
                                 float* to = grad_q + (t0 + m) * C + n;
                                 _mm512_storeu_ps(to, a), _mm512_storeu_ps(to + 16, b);
                             }));
                place_backward(qkv + head * C, E, l.q_norm, cos, sin, eps, scale, T, C, grad_q, grad_qkv + head * C, E + 32,
                               o.grad_qkv + head * C * N + r * T * 16, N * 16, gain_q);
                if ((head + 1) % (H / K) == 0) {
                    place_backward(qkv + A + shared * C, E, l.k_norm, cos, sin, eps, 1.f, T, C, grad_k,
                                   grad_qkv + A + shared * C, E + 32, o.grad_qkv + (A + shared * C) * N + r * T * 16, N * 16, gain_k);
                    const long at = A + (K + shared) * C;
                    for (long t = 0; t < T; t += 2)
                        for (long c = 0; c < C; c += LANES) {
                            Vec above = _mm512_loadu_ps(grad_v + t * C + c), below = _mm512_loadu_ps(grad_v + (t + 1) * C + c);
                            store(grad_qkv + t * (E + 32) + at + c, above), store(grad_qkv + (t + 1) * (E + 32) + at + c, below);
                            _mm512_store_si512(o.grad_qkv + (at + c) * N + (r * T + t) * 16, together(above, below));
                        }
                }
            }
            multiply(rows(grad_qkv, E + 32), l.mixed, E * 16, T, D, E,
                     each([=](long m, long n, Vec a, Vec b) { store(h + m * (D + 32) + n, a, b); }));
            normalise_backward(x, l.attention_norm, eps, h, D + 32, grad_middle, T, D, out, gain1);
        }
        // the weights' gradients
        constexpr long PART = 512;
        scratch.room(4 * D * PART + 4096);
        float* sums = scratch.take<float>(D * PART);
        const long columns[] = {E, A, 2 * F, F};
        const bf16* left[] = {l.normed, o.grad_middle, l.mlp_normed, o.grad_out};
        const bf16* right[] = {o.grad_qkv, o.attention, o.grad_gates, l.gated_right};
        long parts = 0;
        for (long c : columns) parts += (c + PART - 1) / PART;
#pragma omp for schedule(dynamic, 1)
        for (long part = 0; part < parts; part++) {
            long which = 0, n0 = part * PART;
            while (n0 >= (columns[which] + PART - 1) / PART * PART) n0 -= (columns[which] + PART - 1) / PART * PART, which++;
            sum_over_tokens(left[which], right[which], D, n0, std::min(PART, columns[which] - n0), N, sums,
                            [&](long m, long n, const float* block) {
                                if (which == 0) save_tile_transposed(block, mixed_panel(s, l.grad_q, l.grad_k, l.grad_v, n / 16) + m, D);
                                if (which == 1) save_tile(block, l.grad_o + m * A + n, A);
                                if (which == 2) save_tile_transposed(block, gated_panel(s, l.grad_gate, l.grad_up, n / 16) + m, D);
                                if (which == 3) save_tile(block, l.grad_down + m * F + n, F);
                            });
        }
    }
    const long sizes[] = {D, D, C, C};
    float* to[] = {l.grad_attention_norm, l.grad_mlp_norm, l.grad_q_norm, l.grad_k_norm};
    for (long which = 0, at = 0; which < 4; at += sizes[which++]) sum_rows(gain_parts + at, s.rows, gains, sizes[which], to[which]);
}

// From embeddings, which lie in the first layer's x, to the final norm's output y; its input stays in `last`.
extern "C" void forward(const Shape* shape, const Layer* layers, long count, const float* cos, const float* sin,
                        const int* documents, const float* gain, bf16* last, bf16* y) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const Shape& s = *shape;
    for (long i = 0; i < count; i++) {
        pack_layer(s, layers[i]);
        layer_forward(s, layers[i], cos, sin, documents, i + 1 < count ? layers[i + 1].x : last);
    }
    const long row = s.time * s.width;
#pragma omp parallel for num_threads(s.threads)
    for (long r = 0; r < s.rows; r++) normalise(last + r * row, gain, s.eps, s.time, s.width, y + r * row, s.width);
}

// From the gradient of y, `grad`, which becomes that of the embeddings.
extern "C" void backward(const Shape* shape, const Layer* layers, long count, const float* cos, const float* sin,
                         const int* documents, const float* gain, const bf16* last, bf16* grad, float* grad_gain) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const Shape& s = *shape;
    const long row = s.time * s.width, gains = 2 * (s.width + s.channels), N = s.tokens();
    common.room(2 * N * (2 * s.width + s.mixed() + s.attended() + 2 * s.inner) + 4 * s.rows * gains + 4096);
    const Operands operands = {common.take<bf16>(N * s.width), common.take<bf16>(N * s.width), common.take<bf16>(N * s.mixed()),
                               common.take<bf16>(N * s.attended()), common.take<bf16>(2 * N * s.inner)};
    float* gain_parts = common.take<float>(s.rows * gains);
    std::memset(gain_parts, 0, s.rows * s.width * sizeof(float));
#pragma omp parallel for num_threads(s.threads)
    for (long r = 0; r < s.rows; r++)
        normalise_backward(last + r * row, gain, s.eps, grad + r * row, s.width, nullptr, s.time, s.width, grad + r * row,
                           gain_parts + r * s.width);
    sum_rows(gain_parts, s.rows, s.width, s.width, grad_gain);
    for (long i = count - 1; i >= 0; i--) layer_backward(s, layers[i], cos, sin, documents, operands, grad, gain_parts);
}

// --- the loss --------------------------------------------------------------------------------------------------------

// Log-probabilities found[i] of the targets, and the gradients of their sum weighted by slopes[i]: by the hidden states
// (tokens x width) and the head (vocabulary x width, float32), of which the rows from `known` on only fill it up. The logits
// of 64 tokens a thread are in memory, and their gradients of 1,024 tokens.
static inline float one(bf16 v) { uint32_t u = (uint32_t)v << 16; float f; std::memcpy(&f, &u, 4); return f; }
extern "C" void weighted_log_probability(long tokens, long width, long vocabulary, long known, long threads, const bf16* hidden,
                                         const float* weight, const long* targets, const float* slopes, float* found,
                                         bf16* grad_hidden, float* grad_weight) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    constexpr long SLICE = 1024, AT_ONCE = 128, PART = 256;
    const long D = width, V = vocabulary, wide = V + BLOCK;  // rows 8 KiB apart would share the same few places of a cache
    common.room(2 * (2 * V * D + SLICE * (D + V)) + 4096);
    bf16 *head_t = common.take<bf16>(V * D), *head = common.take<bf16>(V * D);
    bf16 *left = common.take<bf16>(SLICE * D), *right = common.take<bf16>(SLICE * V);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        scratch.room(AT_ONCE * (2 * wide + 2 * D + 68) + 4 * D * PART + 8192);
        float *highest = scratch.take<float>(AT_ONCE * 16), *sums_of = scratch.take<float>(D * PART);
        bf16 *grad = scratch.take<bf16>(AT_ONCE * wide), *scaled = scratch.take<bf16>(AT_ONCE * D);
        float* scale = scratch.take<float>(AT_ONCE);
#pragma omp for
        for (long v = 0; v < V; v += 16) pack_weight(weight + v * D, v, V, D, head_t, head);
        for (long begin = 0; begin < tokens; begin += SLICE) {
            const long size = std::min(SLICE, tokens - begin);
#pragma omp for schedule(dynamic, 1)
            for (long t = 0; t < size; t += AT_ONCE) {
                const long count = std::min(AT_ONCE, size - t), first_token = begin + t;
                for (long i = 0; i < count; i++) _mm512_store_ps(highest + i * 16, all(-1e30f));
                multiply(rows(hidden + first_token * D, D), head_t, D * 16, count, V, D, each([=](long m, long n, Vec a, Vec b) {
                             store(grad + m * wide + n, a, b);
                             _mm512_store_ps(highest + m * 16, _mm512_max_ps(_mm512_load_ps(highest + m * 16), _mm512_max_ps(a, b)));
                         }));
                // d log p(target) / d logits = [is target] - softmax. Of it only e^(logit - highest) is written down; what
                // it must be multiplied by, -slope / sum, goes to the other operand of each product.
                for (long i = 0; i < count; i += 2) {
                    const long token = first_token + i;
                    bf16 *above = grad + i * wide, *below = above + wide; float top[2], own[2];
                    bf16 *to = right + (t + i) * 16, *row = grad + i * wide;
                    for (long j = 0; j < 2; j++) {
                        for (long v = known; v < V; v++) above[j * wide + v] = 0xff00;
                        top[j] = _mm512_reduce_max_ps(_mm512_load_ps(highest + (i + j) * 16));
                        own[j] = one(above[j * wide + targets[token + j]]) - top[j];
                    }
                    Vec sum_above = all(0.f), sum_below = all(0.f);
                    for (long v = 0; v < V; v += BLOCK) {
                        Vec a = exponential(_mm512_sub_ps(load(above + v), all(top[0])));
                        Vec b = exponential(_mm512_sub_ps(load(above + v + 16), all(top[0])));
                        Vec c = exponential(_mm512_sub_ps(load(below + v), all(top[1])));
                        Vec d = exponential(_mm512_sub_ps(load(below + v + 16), all(top[1])));
                        sum_above = _mm512_add_ps(sum_above, _mm512_add_ps(a, b)), sum_below = _mm512_add_ps(sum_below, _mm512_add_ps(c, d));
                        store(row + v, a, b), store(row + wide + v, c, d);
                        _mm512_store_si512(to + v * size, together(a, c)), _mm512_store_si512(to + (v + 16) * size, together(b, d));
                    }
                    for (long j = 0; j < 2; j++) {
                        const long target = targets[token + j];
                        const float whole = sum(j ? sum_below : sum_above);
                        found[token + j] = own[j] - std::log(whole), scale[i + j] = -slopes[token + j] / whole;
                        bf16 rest[16];  // the target's; 1 - p would round away what a sure prediction leaves
                        store(rest, all(std::expm1(found[token + j]) * whole));
                        row[j * wide + target] = to[target / 16 * 16 * size + target % 16 * 2 + j] = rest[0];
                    }
                    for (long j = 0; j < 2; j++)
                        for (long d = 0; d < D; d += LANES)
                            store(scaled + (i + j) * D + d, _mm512_mul_ps(load(hidden + (token + j) * D + d), all(scale[i + j])));
                }
                tile_transposed(scaled, D, count, D, left, size, t);
                _mm_sfence();
                multiply(rows(grad, wide), head, V * 16, count, D, V, each([=](long m, long n, Vec a, Vec b) {
                             store(grad_hidden + (first_token + m) * D + n, _mm512_mul_ps(a, all(scale[m])), _mm512_mul_ps(b, all(scale[m])));
                         }));
            }
#pragma omp for schedule(dynamic, 1)
            for (long v = 0; v < V; v += PART)
                sum_over_tokens(left, right, D, v, std::min(PART, V - v), size, sums_of, [&](long m, long n, const float* block) {
                    save_tile_transposed(block, grad_weight + n * D + m, D, begin > 0);
                });
        }
    }
}

// --- the optimizer ---------------------------------------------------------------------------------------------------

struct Matrix {
    float *weight, *momentum;
    const float* grad;
};

// One update by Muon of `count` matrices (R x C), as training/optimizer.py has it: Nesterov momentum, made semi-orthogonal by
// `steps` quintic Newton-Schulz steps (abc: three coefficients each), taken `rate` times from a weight shrunk by `keep`.
extern "C" void muon(const Matrix* matrices, long count, long R, long C, long threads, float momentum, float rate, float keep,
                     const float* abc, long steps) {
    const long M = std::min(R, C), N = std::max(R, C);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        scratch.room(2 * (4 * M * N + 3 * M * M) + 4096);
        bf16 *update = scratch.take<bf16>(R * C), *x = scratch.take<bf16>(M * N), *packed = scratch.take<bf16>(M * N);
        bf16 *gram = scratch.take<bf16>(M * M), *powers = scratch.take<bf16>(M * M), *packed_gram = scratch.take<bf16>(M * M);
#pragma omp for schedule(dynamic, 1)
        for (long which = 0; which < count; which++) {
            const Matrix& w = matrices[which];
            Vec squares = all(0.f);
            for (long i = 0; i < R * C; i += BLOCK) {
                Vec next[2];
                for (long j = 0; j < 2; j++) {
                    const long at = i + j * 16;
                    Vec g = _mm512_loadu_ps(w.grad + at), m = _mm512_loadu_ps(w.momentum + at);
                    m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), all(1 - momentum), m);
                    _mm512_storeu_ps(w.momentum + at, m);
                    next[j] = _mm512_fmadd_ps(_mm512_sub_ps(m, g), all(momentum), g);
                    squares = _mm512_fmadd_ps(next[j], next[j], squares);
                }
                store(update + i, next[0], next[1]);
            }
            if (R > C)
                transposed(update, C, R, C, [=](long c, long r, const __m512i* found) {
                    for (int i = 0; i < 16; i++) _mm512_storeu_si512(x + (c + i) * N + r, found[i]);
                });
            const bf16* from = R > C ? x : update;
            const Vec scale = all(1 / (std::sqrt(sum(squares)) * 1.01f + 1e-7f));
            for (long i = 0; i < M * N; i += BLOCK) store(x + i, _mm512_mul_ps(load(from + i), scale), _mm512_mul_ps(load(from + i + 16), scale));
            for (const float* k = abc; k < abc + 3 * steps; k += 3) {
                pack_transposed(x, N, M, N, packed, N * 16);
                multiply(rows(x, N), packed, N * 16, M, M, N, each([=](long m, long n, Vec a, Vec b) { store(gram + m * M + n, a, b); }));
                pack(gram, M, M, M, packed_gram, M * 16);
                multiply(rows(gram, M), packed_gram, M * 16, M, M, M, each([=](long m, long n, Vec a, Vec b) {
                             const bf16* g = gram + m * M + n;
                             store(powers + m * M + n, _mm512_fmadd_ps(all(k[1]), load(g), _mm512_mul_ps(all(k[2]), a)),
                                   _mm512_fmadd_ps(all(k[1]), load(g + 16), _mm512_mul_ps(all(k[2]), b)));
                         }));
                pack(x, N, M, N, packed, M * 16);
                multiply(rows(powers, M), packed, M * 16, M, N, M, each([=](long m, long n, Vec a, Vec b) {
                             bf16* to = x + m * N + n;
                             store(to, _mm512_fmadd_ps(all(k[0]), load(to), a), _mm512_fmadd_ps(all(k[0]), load(to + 16), b));
                         }));
            }
            const bf16* direction = x;
            if (R > C) {
                transposed(x, N, M, N, [=](long n, long m, const __m512i* found) {
                    for (int i = 0; i < 16; i++) _mm512_storeu_si512(update + (n + i) * C + m, found[i]);
                });
                direction = update;
            }
            for (long i = 0; i < R * C; i += LANES) {
                Vec v = _mm512_mul_ps(_mm512_loadu_ps(w.weight + i), all(keep));
                _mm512_storeu_ps(w.weight + i, _mm512_fnmadd_ps(load(direction + i), all(rate), v));
            }
        }
    }
}

// One update by AdamW of n numbers: rates already corrected for the moments' beginning at zero, as in training/optimizer.py.
extern "C" void adamw(long n, long threads, float* weight, const float* grad, float* first, float* second, float beta1,
                      float beta2, float root_correction, float rate, float keep) {
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < n; i++) {
        first[i] += (grad[i] - first[i]) * (1 - beta1);
        second[i] = second[i] * beta2 + grad[i] * grad[i] * (1 - beta2);
        weight[i] = weight[i] * keep - rate * first[i] / (std::sqrt(second[i]) / root_correction + 1e-8f);
    }
}
