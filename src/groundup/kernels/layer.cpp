// The decoder's layers, forward and backward, in bfloat16.
//
// A row of the batch goes through a whole layer by one thread, so that all between its products stays in that core's
// cache; only what the backward pass needs is written to memory (as FlashAttention, Dao 2022, for attention alone). The
// gradients of the weights are summed over all rows by products of their own, in an order that no thread changes: the
// result is the same to the bit for any number of threads.
#include <sys/syscall.h>
#include <unistd.h>

#include "attention.h"
#include "blocks.h"

constexpr long MAX_CHANNELS = 256;
constexpr float LOG2_E = 1.44269504f;

// Whether the system lets this process use what its processor has; to be asked once, before everything else.
extern "C" bool granted() {
#ifdef __AMX_BF16__
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
    return true;
#endif
}

struct Shape {
    // `turns`: numbers of cosines and of sines from one row of the batch to the next; 0 where all have the same positions
    long rows, time, width, heads, key_heads, channels, inner, threads, turns;
    double eps;
    long mixed() const { return (heads + 2 * key_heads) * channels; }  // queries, keys and values side by side
    long attended() const { return heads * channels; }
    long tokens() const { return rows * time; }
};

// Of all tokens: the cosines and sines of their positions; and what they see, by the numbers of documents.
struct Places {
    const float *cos, *sin;
    const int *documents, *prefixes;
    Places of_row(const Shape& s, long r) const {
        return {cos + r * s.turns, sin + r * s.turns, documents + r * s.time, prefixes + r * s.time};
    }
    Seen seen(bool* alike) const { return {documents, prefixes, alike}; }
};

struct Layer {
    // float32: norm_weights (width) and (channels); matrices q, k, v, o, gate, up, down (outputs x inputs); and their gradients
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
    const float *q, *k, *v, *o, *gate, *up, *down;
    float *grad_attention_norm, *grad_mlp_norm, *grad_q_norm, *grad_k_norm;
    float *grad_q, *grad_k, *grad_v, *grad_o, *grad_gate, *grad_up, *grad_down;
    // the matrices as operand B, W^T for the forward and W for the backward pass: (q, k, v) and (gate, up) together
    bf16 *mixed_t, *o_t, *gated_t, *down_t, *mixed_b, *o_b, *gated_b, *down_b;
    // kept for the backward pass, of all tokens: input; queries, keys and values; input of the MLP;
    bf16 *x, *qkv, *middle;
    // the gradients of the gated product by gate and by what it gates, side by side, row by row for 32 columns at a time;
    bf16* gates;
    // operands of the weights' gradients: what attention found and the gated product packed, both norms' outputs
    // transposed and tiled;
    bf16 *attention, *gated_right, *normed, *mlp_normed;
    // and the logarithms of attention's sums (rows, heads, time)
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

static inline Ahead soon(const bf16* at, long count) { return {(const char*)at, (const char*)(at + count)}; }

static void pack_layer(const Shape& s, const Layer& l) {
    const long D = s.width, E = s.mixed(), A = s.attended(), G = 2 * s.inner;
    const long first[] = {0, E / 16, E / 16 + D / 16, E / 16 + D / 16 + G / 16, E / 16 + 2 * D / 16 + G / 16};
#pragma omp parallel for num_threads(s.threads)
    for (long p = 0; p < first[4]; p++) {
        long q = p - first[1], g = p - first[2], d = p - first[3];
        if (p < first[1])
            pack_weight(mixed_panel(s, l.q, l.k, l.v, p), p * 16, E, D, l.mixed_t, l.mixed_b);
        else if (p < first[2])
            pack_weight(l.o + q * 16 * A, q * 16, D, A, l.o_t, l.o_b);
        else if (p < first[3])
            pack_weight(gated_panel(s, l.gate, l.up, g), g * 16, G, D, l.gated_t, l.gated_b);
        else
            pack_weight(l.down + d * 16 * s.inner, d * 16, D, s.inner, l.down_t, l.down_b);
    }
}

// 1 / rms of 16 rows, from the sums of their squares in each of 16 places.
static inline Vec inverse_rms(Vec squares[16], long width, float eps) {
    return _mm512_div_ps(all(1.f), _mm512_sqrt_ps(_mm512_fmadd_ps(sums(squares), all(1.f / width), all(eps))));
}
// The same of 16 rows of x, `stride` apart.
static inline Vec inverse_rms(const bf16* x, long stride, long width, float eps) {
    Vec squares[16];
    for (int i = 0; i < 16; i++) {
        squares[i] = all(0.f);
        for (long j = 0; j < width; j += LANES) {
            Vec v = load(x + i * stride + j);
            squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
        }
    }
    return inverse_rms(squares, width, eps);
}

// out = x / rms(x) * norm_weight, for T rows.
static void normalise(const bf16* x, const float* norm_weight, float eps, long T, long width, bf16* out, long stride) {
    for (long t = 0; t < T; t += 16) {
        alignas(64) float scale[16];
        _mm512_store_ps(scale, inverse_rms(x + t * width, width, width, eps));
        for (long i = 0; i < 16; i++)
            for (long j = 0; j < width; j += BLOCK) {
                const bf16* from = x + (t + i) * width + j;
                Vec a = _mm512_mul_ps(load(from), all(scale[i])), b = _mm512_mul_ps(load(from + 16), all(scale[i]));
                a = _mm512_mul_ps(a, _mm512_loadu_ps(norm_weight + j)), b = _mm512_mul_ps(b, _mm512_loadu_ps(norm_weight + j + 16));
                store(out + (t + i) * stride + j, a, b);
            }
    }
}

// grad_x = rest, if there is one, + the gradient of `normalise` by x; grad_norm_weight is added to. With n = x / rms(x):
// dx = (grad * norm_weight - n * mean(grad * norm_weight * n)) / rms(x).
static void normalise_backward(const bf16* x, const float* norm_weight, float eps, const bf16* grad, long stride, const bf16* rest,
                               long T, long width, bf16* grad_x, float* grad_norm_weight) {
    for (long t = 0; t < T; t += 16, x += 16 * width, grad += 16 * stride, grad_x += 16 * width) {
        Vec dots[16], squares[16];
        for (int i = 0; i < 16; i++) {
            dots[i] = squares[i] = all(0.f);
            for (long j = 0; j < width; j += LANES) {
                Vec v = load(x + i * width + j), g = _mm512_mul_ps(load(grad + i * stride + j), _mm512_loadu_ps(norm_weight + j));
                dots[i] = _mm512_fmadd_ps(v, g, dots[i]), squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
            }
        }
        alignas(64) float scale[16], mean[16];
        const Vec scales = inverse_rms(squares, width, eps);
        _mm512_store_ps(scale, scales);
        _mm512_store_ps(mean, _mm512_mul_ps(_mm512_mul_ps(sums(dots), all(1.f / width)), _mm512_mul_ps(scales, scales)));
        for (long j = 0; j < width; j += LANES) {
            Vec norm_weights = _mm512_loadu_ps(norm_weight + j), total = _mm512_loadu_ps(grad_norm_weight + j);
            for (int i = 0; i < 16; i++) {
                Vec v = load(x + i * width + j), g = load(grad + i * stride + j), by = all(scale[i]);
                Vec inner = _mm512_fnmadd_ps(v, all(mean[i]), _mm512_mul_ps(g, norm_weights));
                store(grad_x + i * width + j, _mm512_fmadd_ps(inner, by, rest ? load(rest + (t + i) * width + j) : all(0.f)));
                total = _mm512_fmadd_ps(_mm512_mul_ps(v, by), g, total);
            }
            _mm512_storeu_ps(grad_norm_weight + j, total);
        }
    }
}

// One head's queries or keys (x: rows `from` apart): normalised, turned by their positions, times `scale`; out (T x C).
static void norm_rope(const bf16* x, long from, const float* norm_weight, const float* cos, const float* sin, float eps, float scale,
                  long T, long C, bf16* out) {
    const long half = C / 2;
    for (long t = 0; t < T; t += 16) {
        alignas(64) float norm[16];
        _mm512_store_ps(norm, _mm512_mul_ps(inverse_rms(x + t * from, from, C, eps), all(scale)));
        for (long i = t; i < t + 16; i++)
            for (long j = 0; j < half; j += LANES) {
                Vec by = all(norm[i - t]), c = _mm512_loadu_ps(cos + i * half + j), d = _mm512_loadu_ps(sin + i * half + j);
                Vec a = _mm512_mul_ps(_mm512_mul_ps(load(x + i * from + j), by), _mm512_loadu_ps(norm_weight + j));
                Vec b = _mm512_mul_ps(_mm512_mul_ps(load(x + i * from + half + j), by), _mm512_loadu_ps(norm_weight + half + j));
                store(out + i * C + j, _mm512_fnmadd_ps(b, d, _mm512_mul_ps(a, c)));
                store(out + i * C + half + j, _mm512_fmadd_ps(a, d, _mm512_mul_ps(b, c)));
            }
    }
}

// The gradient of `norm_rope`: from that of its output, grad (T x C, float32), to that of x, rows `to` apart, and packed.
static void norm_rope_backward(const bf16* x, long from, const float* norm_weight, const float* cos, const float* sin, float eps,
                           float scale, long T, long C, const float* grad, bf16* grad_x, long to, bf16* packed, long panel,
                           float* grad_norm_weight) {
    const long half = C / 2;
    alignas(64) float back[16 * MAX_CHANNELS];
    for (long t = 0; t < T; t += 16, x += 16 * from) {
        Vec dots[16], squares[16];
        for (long i = 0; i < 16; i++) {
            dots[i] = squares[i] = all(0.f);
            for (long j = 0; j < half; j += LANES) {
                const float* g = grad + (t + i) * C + j;
                Vec a = _mm512_loadu_ps(g), b = _mm512_loadu_ps(g + half);
                Vec c = _mm512_loadu_ps(cos + (t + i) * half + j), d = _mm512_loadu_ps(sin + (t + i) * half + j);
                Vec first = _mm512_fmadd_ps(b, d, _mm512_mul_ps(a, c));
                Vec second = _mm512_fnmadd_ps(a, d, _mm512_mul_ps(b, c));
                _mm512_store_ps(back + i * C + j, first), _mm512_store_ps(back + i * C + half + j, second);
                Vec u = load(x + i * from + j), v = load(x + i * from + half + j);
                dots[i] = _mm512_fmadd_ps(_mm512_mul_ps(u, first), _mm512_loadu_ps(norm_weight + j), dots[i]);
                dots[i] = _mm512_fmadd_ps(_mm512_mul_ps(v, second), _mm512_loadu_ps(norm_weight + half + j), dots[i]);
                squares[i] = _mm512_fmadd_ps(v, v, _mm512_fmadd_ps(u, u, squares[i]));
            }
        }
        alignas(64) float norm[16], mean[16];
        const Vec norms = inverse_rms(squares, C, eps);
        _mm512_store_ps(norm, norms);
        _mm512_store_ps(mean, _mm512_mul_ps(_mm512_mul_ps(sums(dots), all(1.f / C)), _mm512_mul_ps(norms, norms)));
        for (long j = 0; j < C; j += LANES) {
            Vec norm_weights = _mm512_loadu_ps(norm_weight + j), total = _mm512_loadu_ps(grad_norm_weight + j), both[2];
            for (long i = 0; i < 16; i++) {
                Vec v = load(x + i * from + j), g = _mm512_load_ps(back + i * C + j), by = all(norm[i] * scale);
                both[i % 2] = _mm512_mul_ps(_mm512_fnmadd_ps(v, all(mean[i]), _mm512_mul_ps(g, norm_weights)), by);
                store(grad_x + (t + i) * to + j, both[i % 2]);
                if (i % 2) _mm512_store_si512(packed + j * panel / 16 + (t + i - 1) * 16, together(both[0], both[1]));
                total = _mm512_fmadd_ps(_mm512_mul_ps(v, by), g, total);
            }
            _mm512_storeu_ps(grad_norm_weight + j, total);
        }
    }
}

static void layer_forward(const Shape& s, const Layer& l, const Places& places, bf16* y) {
    const long T = s.time, D = s.width, C = s.channels, E = s.mixed(), A = s.attended(), F = s.inner, N = spread(s.tokens());
    const long H = s.heads, K = s.key_heads;
    const float eps = s.eps, scale = LOG2_E / std::sqrt((float)C);
#pragma omp parallel num_threads(s.threads)
    {
        Tiles tiles;
        scratch.room(2 * T * (D + F + 64 + E + A + D) + 8 * T * C + 2 * BLOCK * (T + BLOCK) + T / BLOCK + 4096);
        bf16 *h = scratch.take<bf16>(T * (D + 32)), *gated = scratch.take<bf16>(T * (F + 32));
        bf16 *q = scratch.take<bf16>(T * C), *k = scratch.take<bf16>(T * C);
        bf16 *keys = scratch.take<bf16>(T * C), *values = scratch.take<bf16>(T * C);
        bf16 *qkv = scratch.take<bf16>(T * E), *attention = scratch.take<bf16>(T * A), *middle = scratch.take<bf16>(T * D);
        bf16* weights = scratch.take<bf16>(BLOCK * (T + BLOCK));
        bool* alike = scratch.take<bool>(T / BLOCK);
#pragma omp for schedule(dynamic, 1)
        for (long r = 0; r < s.rows; r++) {
            const bf16* x = l.x + r * T * D;
            bf16* gates = l.gates + r * T * 2 * F, *out = y + r * T * D;
            const Places own = places.of_row(s, r);
            const Seen seen = own.seen(alike);
            seen.find_alike(T);
            normalise(x, l.attention_norm, eps, T, D, h, D + 32);
            tile_transposed(h, D + 32, T, D, l.normed, N, r * T);
            multiply(rows(h, D + 32), l.mixed_t, D * 16, T, E, D, each([=](long m, long n, Vec a, Vec b) {
                         store_and_stream(qkv + m * E + n, l.qkv + (r * T + m) * E + n, a, b);
                     }));
            for (long head = 0; head < H; head++) {
                if (head % (H / K) == 0) {
                    const long shared = head / (H / K);
                    norm_rope(qkv + A + shared * C, E, l.k_norm, own.cos, own.sin, eps, 1.f, T, C, k);
                    pack_transposed(k, C, T, C, keys, C * 16);
                    pack(qkv + A + (K + shared) * C, E, T, C, values, T * 16);
                }
                norm_rope(qkv + head * C, E, l.q_norm, own.cos, own.sin, eps, scale, T, C, q);
                attend(q, keys, values, seen, T, C, attention + head * C, A,
                       l.attention + head * C * N + r * T * 16, N * 16, l.log_sums + (r * H + head) * T, weights);
            }
            multiply(rows(attention, A), l.o_t, A * 16, T, D, A, each([=](long m, long n, Vec a, Vec b) {
                         const bf16* was = x + m * D + n;
                         a = _mm512_add_ps(a, load(was)), b = _mm512_add_ps(b, load(was + 16));
                         store_and_stream(middle + m * D + n, l.middle + (r * T + m) * D + n, a, b);
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
                         stream_store(out + m * D + n, _mm512_add_ps(a, load(was)), _mm512_add_ps(b, load(was + 16)));
                     }), soon(x + s.threads * T * D, r + s.threads < s.rows ? T * D : 0));
            _mm_sfence();  // what went past the caches is there before another thread looks for it
        }
    }
}

struct Operands {  // of the weights' gradients: all tokens, left ones tiled (width), right ones packed
    bf16 *grad_middle, *grad_out, *grad_qkv, *grad_gates;
};

struct RowMemory {  // what a thread needs for a row on its way back
    bf16 *h, *grad_gates, *grad_middle, *grad_attention, *grad_qkv;
    Head head;
    bool* alike;
    static RowMemory take(const Shape& s) {
        const long T = s.time, D = s.width, C = s.channels, E = s.mixed(), A = s.attended(), F = s.inner, wide = T + BLOCK;
        scratch.room(2 * T * (2 * D + 2 * F + A + E + 64) + 26 * T * C + 4 * T + 4 * BLOCK * wide + 2 * T * T + T / BLOCK + 8192);
        const auto numbers = [](size_t count) { return scratch.take<bf16>(count); };
        const auto floats = [](size_t count) { return scratch.take<float>(count); };
        return {numbers(T * (D + 32)), numbers(T * 2 * F), numbers(T * D), numbers(T * A), numbers(T * (E + 32)),
                {numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C),
                 floats(T * C), floats(T * C), floats(T * C), floats(T), numbers(BLOCK * wide), numbers(BLOCK * wide), numbers(T * T)},
                scratch.take<bool>(T / BLOCK)};
    }
};

// Of row r: from the gradient of the layer's output, out (T x D), to that of what the MLP's is added to.
static void mlp_backward(const Shape& s, const Layer& l, const Operands& o, const RowMemory& own, long r, const bf16* out, float* gain) {
    const long T = s.time, D = s.width, E = s.mixed(), F = s.inner, N = spread(s.tokens());
    const bf16 *middle = l.middle + r * T * D, *gates = l.gates + r * T * 2 * F;
    bf16 *h = own.h, *grad_gates = own.grad_gates;
    multiply(rows(out, D), l.down_b, D * 16, T, F, D, [=](long m, long n, const float* two) {
        for (long c = 0; c < 32; c += 16) {
            Vec to_gate[2], to_up[2];
            const long at = 2 * (n + c);  // of the 16 gates, then 16 of what they gate
            for (long i = 0; i < 2; i++) {
                const bf16* kept = gates + at * T + (m + i) * 32;
                __m512i factors = _mm512_load_si512(kept);
                _mm_prefetch((const char*)kept + 8192, _MM_HINT_T1);  // two pages on, where the processor does not look
                Vec v = _mm512_load_ps(two + i * 32 + c);
                to_gate[i] = _mm512_mul_ps(v, first(factors)), to_up[i] = _mm512_mul_ps(v, second(factors));
                store(grad_gates + (m + i) / 16 * 32 * F + at * 16 + (m + i) % 16 * 32, to_gate[i], to_up[i]);
            }
            bf16* to = o.grad_gates + at * N + (r * T + m) * 16;
            _mm512_stream_si512((__m512i*)to, together(to_gate[0], to_gate[1]));
            _mm512_stream_si512((__m512i*)(to + 16 * N), together(to_up[0], to_up[1]));
        }
    }, soon(middle, T * D));
    tile_transposed(out, D, T, D, o.grad_out, N, r * T);
    multiply(tiled(grad_gates, 2 * F), l.gated_b, 2 * F * 16, T, D, 2 * F,
             each([=](long m, long n, Vec a, Vec b) { store(h + m * (D + 32) + n, a, b); }), soon(l.qkv + r * T * E, T * E));
    normalise_backward(middle, l.mlp_norm, s.eps, h, D + 32, out, T, D, own.grad_middle, gain);
}

// along[t] = the dot product of the gradient of what a head found, from (T x C, rows A apart), with it.
static void dot_with_found(const Shape& s, const Layer& l, const bf16* from, long head, long r, float* along) {
    const long T = s.time, C = s.channels, A = s.attended(), N = spread(s.tokens());
    for (long t = 0; t < T; t += 16) {
        Vec dots[16];
        for (long i = 0; i < 16; i += 2) {
            dots[i] = dots[i + 1] = all(0.f);
            for (long c = 0; c < C; c += LANES) {
                const bf16* at = from + (t + i) * A + c;
                const __m512i found = _mm512_load_si512(l.attention + (head * C + c) * N + (r * T + t + i) * 16);
                dots[i] = _mm512_fmadd_ps(load(at), first(found), dots[i]);
                dots[i + 1] = _mm512_fmadd_ps(load(at + A), second(found), dots[i + 1]);
            }
        }
        _mm512_storeu_ps(along + t, sums(dots));
    }
}

// Of row r: from the gradient of what all heads found to that of queries, keys and values.
static void heads_backward(const Shape& s, const Layer& l, const Places& places, const Operands& o, const RowMemory& own, long r,
                           float* gain_q, float* gain_k) {
    const long T = s.time, C = s.channels, E = s.mixed(), A = s.attended(), N = spread(s.tokens()), H = s.heads, K = s.key_heads;
    const float eps = s.eps, scale = 1 / std::sqrt((float)C);
    const bf16* qkv = l.qkv + r * T * E;
    const Head& one = own.head;
    bf16* grad_qkv = own.grad_qkv;
    const float *cos = places.cos, *sin = places.sin;
    const Seen seen = places.seen(own.alike);
    seen.find_alike(T);
    for (long head = 0; head < H; head++) {
        const long shared = head / (H / K), key = A + shared * C, value = key + K * C;
        const bf16* from = own.grad_attention + head * C;
        const bool first_to_share = head % (H / K) == 0, last_to_share = (head + 1) % (H / K) == 0;
        if (first_to_share) {
            norm_rope(qkv + key, E, l.k_norm, cos, sin, eps, 1.f, T, C, one.k);
            transposed(one.k, C, T, C, [=](long c, long t, const __m512i* found) {
                for (int i = 0; i < 16; i++) _mm512_store_si512(one.keys_t + c * T + t * 16 + i * 32, found[i]);
            });
        }
        norm_rope(qkv + head * C, E, l.q_norm, cos, sin, eps, scale * LOG2_E, T, C, one.q);
        pack_transposed(one.q, C, T, C, one.queries_t, C * 16), pack(one.q, C, T, C, one.queries, T * 16);
        pack_transposed(from, A, T, C, one.grads_t, C * 16), pack(from, A, T, C, one.grads, T * 16);
        dot_with_found(s, l, from, head, r, one.along);
        attend_backward(one, qkv + value, E, seen, l.log_sums + (r * H + head) * T, first_to_share, T, C);
        norm_rope_backward(qkv + head * C, E, l.q_norm, cos, sin, eps, scale, T, C, one.grad_q, grad_qkv + head * C, E + 32,
                           o.grad_qkv + head * C * N + r * T * 16, N * 16, gain_q);
        if (!last_to_share) continue;
        // the queries had been scaled by log2(e)
        norm_rope_backward(qkv + key, E, l.k_norm, cos, sin, eps, 1 / LOG2_E, T, C, one.grad_k, grad_qkv + key, E + 32,
                           o.grad_qkv + key * N + r * T * 16, N * 16, gain_k);
        for (long t = 0; t < T; t += 2)
            for (long c = 0; c < C; c += LANES) {
                Vec above = _mm512_load_ps(one.grad_v + t * C + c), below = _mm512_load_ps(one.grad_v + (t + 1) * C + c);
                bf16* to = grad_qkv + t * (E + 32) + value + c;
                store(to, above), store(to + E + 32, below);
                _mm512_store_si512(o.grad_qkv + (value + c) * N + (r * T + t) * 16, together(above, below));
            }
    }
}

// The gradients of the four products' weights, shared out among the threads that call it together.
static void weight_gradients(const Shape& s, const Layer& l, const Operands& o) {
    constexpr long PART = 512;
    const long D = s.width, A = s.attended(), F = s.inner, N = spread(s.tokens());
    scratch.room(4 * D * PART + 4096);
    float* sums = scratch.take<float>(D * PART);
    const long columns[] = {s.mixed(), A, 2 * F, F};
    const bf16* left[] = {l.normed, o.grad_middle, l.mlp_normed, o.grad_out};
    const bf16* right[] = {o.grad_qkv, l.attention, o.grad_gates, l.gated_right};
    long parts = 0;
    for (long c : columns) parts += (c + PART - 1) / PART;
#pragma omp for schedule(dynamic, 1)
    for (long part = 0; part < parts; part++) {
        long which = 0, n0 = part * PART;
        for (long all_of = 0; n0 >= (all_of = (columns[which] + PART - 1) / PART * PART); which++) n0 -= all_of;
        sum_over_tokens(left[which], right[which], D, n0, std::min(PART, columns[which] - n0), s.tokens(), N, sums,
                        [&](long m, long n, const float* block) {
                            float* mixed = mixed_panel(s, l.grad_q, l.grad_k, l.grad_v, n / 16);
                            float* gated = gated_panel(s, l.grad_gate, l.grad_up, n / 16);
                            if (which == 0) save_tile_transposed(block, mixed + m, D);
                            if (which == 1) save_tile(block, l.grad_o + m * A + n, A);
                            if (which == 2) save_tile_transposed(block, gated + m, D);
                            if (which == 3) save_tile(block, l.grad_down + m * F + n, F);
                        });
        _mm_sfence();
    }
}

// From the gradient of the layer's output, grad (tokens x width), which becomes that of its input.
static void layer_backward(const Shape& s, const Layer& l, const Places& places, const Operands& o, bf16* grad, float* gain_parts) {
    const long T = s.time, D = s.width, C = s.channels, E = s.mixed(), A = s.attended(), N = spread(s.tokens());
    const long norm_weights = 2 * D + 2 * C;
    std::memset(gain_parts, 0, s.rows * norm_weights * sizeof(float));
#pragma omp parallel num_threads(s.threads)
    {
        Tiles tiles;
        const RowMemory own = RowMemory::take(s);
#pragma omp for schedule(dynamic, 1)
        for (long r = 0; r < s.rows; r++) {
            const bf16* x = l.x + r * T * D;
            bf16* out = grad + r * T * D;  // at first the gradient of the output, at last of the input
            bf16 *h = own.h, *grad_attention = own.grad_attention;
            float *gain1 = gain_parts + r * norm_weights, *gain2 = gain1 + D, *gain_q = gain2 + D, *gain_k = gain_q + C;
            mlp_backward(s, l, o, own, r, out, gain2);
            tile_transposed(own.grad_middle, D, T, D, o.grad_middle, N, r * T);
            _mm_sfence();
            multiply(rows(own.grad_middle, D), l.o_b, D * 16, T, A, D,
                     each([=](long m, long n, Vec a, Vec b) { store(grad_attention + m * A + n, a, b); }));
            heads_backward(s, l, places.of_row(s, r), o, own, r, gain_q, gain_k);
            multiply(rows(own.grad_qkv, E + 32), l.mixed_b, E * 16, T, D, E,
                     each([=](long m, long n, Vec a, Vec b) { store(h + m * (D + 32) + n, a, b); }), soon(x, T * D));
            normalise_backward(x, l.attention_norm, s.eps, h, D + 32, own.grad_middle, T, D, out, gain1);
        }
        weight_gradients(s, l, o);
    }
    const long sizes[] = {D, D, C, C};
    float* to[] = {l.grad_attention_norm, l.grad_mlp_norm, l.grad_q_norm, l.grad_k_norm};
    for (long which = 0, at = 0; which < 4; at += sizes[which++])
        sum_rows(gain_parts + at, s.rows, norm_weights, sizes[which], to[which]);
}

// From ids (rows, time) to the final norm's output y; the norm's input stays in `last`.
extern "C" void forward(const Shape* shape, const Layer* layers, long count, const float* embedding, const int* ids,
                        const Places* places, const float* norm_weight, bf16* last, bf16* y) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const Shape& s = *shape;
    const long D = s.width, T = s.time;
#pragma omp parallel for num_threads(s.threads)
    for (long i = 0; i < s.tokens(); i++)
        for (long j = 0; j < D; j += BLOCK) {
            const float* from = embedding + ids[i] * D + j;
            store(layers[0].x + i * D + j, _mm512_loadu_ps(from), _mm512_loadu_ps(from + 16));
        }
    for (long i = 0; i < count; i++) {
        pack_layer(s, layers[i]);
        layer_forward(s, layers[i], *places, i + 1 < count ? layers[i + 1].x : last);
    }
#pragma omp parallel for num_threads(s.threads)
    for (long r = 0; r < s.rows; r++) normalise(last + r * T * D, norm_weight, s.eps, T, D, y + r * T * D, D);
}

// From the gradient of y to those of the parameters.
extern "C" void backward(const Shape* shape, const Layer* layers, long count, const int* ids, const Places* places,
                         const float* norm_weight, const bf16* last, const bf16* grad_y, float* grad_norm_weight, float* grad_embedding,
                         long vocabulary) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const Shape& s = *shape;
    const long D = s.width, row = s.time * D, norm_weights = 2 * (D + s.channels), N = spread(s.tokens());
    common.room(2 * N * (3 * D + s.mixed() + 2 * s.inner) + 4 * s.rows * norm_weights + 4096);
    const Operands operands = {common.take<bf16>(N * D), common.take<bf16>(N * D), common.take<bf16>(N * s.mixed()),
                               common.take<bf16>(2 * N * s.inner)};
    bf16* grad = common.take<bf16>(N * D);
    float* gain_parts = common.take<float>(s.rows * norm_weights);
    std::memset(gain_parts, 0, s.rows * D * sizeof(float));
#pragma omp parallel for num_threads(s.threads)
    for (long r = 0; r < s.rows; r++)
        normalise_backward(last + r * row, norm_weight, s.eps, grad_y + r * row, D, nullptr, s.time, D, grad + r * row,
                           gain_parts + r * D);
    sum_rows(gain_parts, s.rows, D, D, grad_norm_weight);
    for (long i = count - 1; i >= 0; i--) layer_backward(s, layers[i], *places, operands, grad, gain_parts);
    // Each thread has embeddings of its own, so that gradients of one token are added up in the order of its places.
#pragma omp parallel for schedule(static, 1) num_threads(s.threads)
    for (long mine = 0; mine < s.threads; mine++) {
        for (long v = mine; v < vocabulary; v += s.threads) std::memset(grad_embedding + v * D, 0, D * sizeof(float));
        for (long i = 0; i < s.tokens(); i++)
            if (ids[i] % s.threads == mine)
                for (long j = 0; j < D; j += LANES) {
                    float* to = grad_embedding + ids[i] * D + j;
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), load(grad + i * D + j)));
                }
    }
}
