// The decoder's layers, forward and backward, in bfloat16.
//
// One thread takes a row of the batch through a whole layer, so intermediate results stay in its core's cache; only what the
// backward pass needs goes to memory (as FlashAttention, Dao 2022, for attention alone). The weights' gradients are products
// over all rows in one order of additions: results are the same to the bit for any number of threads.
#include <sys/syscall.h>
#include <unistd.h>

#include "attention.h"
#include "mlp.h"

constexpr long MAX_CHANNELS = 256;
constexpr float LOG2_E = 1.44269504f;

// Asks the system to let this process use AMX, and returns whether it does; to be called once, before everything else.
extern "C" bool request_amx() {
#ifdef __AMX_BF16__
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
    return true;
#endif
}

struct Shape {
    // `position_stride`: of cosines and of sines between rows of the batch; 0 where all have the same positions
    long rows, time, width, heads, key_heads, channels, inner, threads, position_stride;
    double eps;
    long qkv_width() const { return (heads + 2 * key_heads) * channels; }  // queries, keys and values side by side
    long attention_width() const { return heads * channels; }
    long tokens() const { return rows * time; }
};

// Of all tokens: the cosines and sines of their positions, and the documents of the mask.
struct Positions {
    const float *cos, *sin;
    const int *documents, *prefixes;
    Positions of_row(const Shape& s, long r) const {
        return {cos + r * s.position_stride, sin + r * s.position_stride, documents + r * s.time, prefixes + r * s.time};
    }
    Mask mask(bool* single_document) const { return {documents, prefixes, single_document}; }
};

struct Layer {
    // float32: norm_weights (width) and (channels); matrices q, k, v, o, gate, up, down (outputs x inputs); and their gradients
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
    const float *q, *k, *v, *o, *gate, *up, *down;
    float *grad_attention_norm, *grad_mlp_norm, *grad_q_norm, *grad_k_norm;
    float *grad_q, *grad_k, *grad_v, *grad_o, *grad_gate, *grad_up, *grad_down;
    // the matrices as operand B, W^T for the forward and W for the backward pass; (q, k, v) and (gate, up) are concatenated
    bf16 *qkv_t, *o_t, *gate_up_t, *down_t, *qkv_b, *o_b, *gate_up_b, *down_b;
    // saved for the backward pass, of all tokens: input; queries, keys and values; input of the MLP;
    bf16 *x, *qkv, *mlp_input;
    // derivatives of the gated product by gate and up, as in mlp.h;
    bf16* gates;
    // operands of the weights' gradients: attention's output and gated product packed; both norms' outputs transposed, tiled;
    bf16 *attention, *gated_right, *normed, *mlp_normed;
    // and attention's log_sum_exp (rows, heads, time)
    float* log_sum_exp;
    Mlp mlp(const Shape& s) const { return {s.width, s.inner, gate_up_t, down_t, gate_up_b, down_b}; }
};

// The address of the 16 rows of panel p of (q, k, v).
template <class P>
static P qkv_panel(const Shape& s, P q, P k, P v, long p) {
    long queries = s.attention_width() / 16, keys = s.key_heads * s.channels / 16;
    if (p < queries) return q + p * 16 * s.width;
    p -= queries;
    return p < keys ? k + p * 16 * s.width : v + (p - keys) * 16 * s.width;
}
static inline Prefetch prefetch_of(const bf16* begin, long count) { return {(const char*)begin, (const char*)(begin + count)}; }

// What packs the weights of a layer; as all phases here, of a shape and a layer that outlive it.
static Phase pack_layer(const Shape& s, const Layer& l) {
    const long D = s.width, E = s.qkv_width(), A = s.attention_width(), G = 2 * s.inner;
    const std::array<long, 5> first_panel = {0, E / 16, E / 16 + D / 16, E / 16 + D / 16 + G / 16, E / 16 + 2 * D / 16 + G / 16};
    return {first_panel[4], [=, &s, &l](long p) {
        long q = p - first_panel[1], g = p - first_panel[2], d = p - first_panel[3];
        if (p < first_panel[1])
            pack_weight(qkv_panel(s, l.q, l.k, l.v, p), p * 16, E, D, l.qkv_t, l.qkv_b);
        else if (p < first_panel[2])
            pack_weight(l.o + q * 16 * A, q * 16, D, A, l.o_t, l.o_b);
        else if (p < first_panel[3])
            pack_weight(gate_up_panel(D, l.gate, l.up, g), g * 16, G, D, l.gate_up_t, l.gate_up_b);
        else
            pack_weight(l.down + d * 16 * s.inner, d * 16, D, s.inner, l.down_t, l.down_b);
    }};
}

// 1 / rms of 16 rows, from each row's sums of squares in 16 lanes.
static inline Vec inverse_rms(Vec squares[16], long width, float eps) {
    return _mm512_div_ps(set1(1.f), _mm512_sqrt_ps(_mm512_fmadd_ps(sums(squares), set1(1.f / width), set1(eps))));
}
// The same of 16 rows of x, `stride` apart.
static inline Vec inverse_rms(const bf16* x, long stride, long width, float eps) {
    Vec squares[16];
    for (int i = 0; i < 16; i++) {
        squares[i] = set1(0.f);
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
                const bf16* p = x + (t + i) * width + j;
                Vec a = _mm512_mul_ps(load(p), set1(scale[i])), b = _mm512_mul_ps(load(p + 16), set1(scale[i]));
                a = _mm512_mul_ps(a, _mm512_loadu_ps(norm_weight + j)), b = _mm512_mul_ps(b, _mm512_loadu_ps(norm_weight + j + 16));
                store(out + (t + i) * stride + j, a, b);
            }
    }
}

// grad_x = residual, if not null, + the gradient of `normalise` by x; grad_norm_weight is added to. With n = x / rms(x):
// dx = (grad * norm_weight - n * mean(grad * norm_weight * n)) / rms(x).
static void normalise_backward(const bf16* x, const float* norm_weight, float eps, const bf16* grad, long stride, const bf16* residual,
                               long T, long width, bf16* grad_x, float* grad_norm_weight) {
    for (long t = 0; t < T; t += 16, x += 16 * width, grad += 16 * stride, grad_x += 16 * width) {
        Vec dots[16], squares[16];
        for (int i = 0; i < 16; i++) {
            dots[i] = squares[i] = set1(0.f);
            for (long j = 0; j < width; j += LANES) {
                Vec v = load(x + i * width + j), g = _mm512_mul_ps(load(grad + i * stride + j), _mm512_loadu_ps(norm_weight + j));
                dots[i] = _mm512_fmadd_ps(v, g, dots[i]), squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
            }
        }
        alignas(64) float scale[16], mean[16];
        const Vec scales = inverse_rms(squares, width, eps);
        _mm512_store_ps(scale, scales);
        _mm512_store_ps(mean, _mm512_mul_ps(_mm512_mul_ps(sums(dots), set1(1.f / width)), _mm512_mul_ps(scales, scales)));
        for (long j = 0; j < width; j += LANES) {
            Vec norm_weights = _mm512_loadu_ps(norm_weight + j), grad_weights = _mm512_loadu_ps(grad_norm_weight + j);
            for (int i = 0; i < 16; i++) {
                Vec v = load(x + i * width + j), g = load(grad + i * stride + j), inverse = set1(scale[i]);
                Vec inner = _mm512_fnmadd_ps(v, set1(mean[i]), _mm512_mul_ps(g, norm_weights));
                store(grad_x + i * width + j, _mm512_fmadd_ps(inner, inverse, residual ? load(residual + (t + i) * width + j) : set1(0.f)));
                grad_weights = _mm512_fmadd_ps(_mm512_mul_ps(v, inverse), g, grad_weights);
            }
            _mm512_storeu_ps(grad_norm_weight + j, grad_weights);
        }
    }
}

// RMS norm and RoPE of one head's queries or keys, times `scale`; out (T x C).
static void norm_rope(const bf16* x, long x_stride, const float* norm_weight, const float* cos, const float* sin, float eps, float scale,
                  long T, long C, bf16* out) {
    const long half = C / 2;
    for (long t = 0; t < T; t += 16) {
        alignas(64) float inverse[16];
        _mm512_store_ps(inverse, _mm512_mul_ps(inverse_rms(x + t * x_stride, x_stride, C, eps), set1(scale)));
        for (long i = t; i < t + 16; i++)
            for (long j = 0; j < half; j += LANES) {
                Vec factor = set1(inverse[i - t]), c = _mm512_loadu_ps(cos + i * half + j), d = _mm512_loadu_ps(sin + i * half + j);
                Vec a = _mm512_mul_ps(_mm512_mul_ps(load(x + i * x_stride + j), factor), _mm512_loadu_ps(norm_weight + j));
                Vec b = _mm512_mul_ps(_mm512_mul_ps(load(x + i * x_stride + half + j), factor), _mm512_loadu_ps(norm_weight + half + j));
                store(out + i * C + j, _mm512_fnmadd_ps(b, d, _mm512_mul_ps(a, c)));
                store(out + i * C + half + j, _mm512_fmadd_ps(a, d, _mm512_mul_ps(b, c)));
            }
    }
}

// The gradient of `norm_rope`: from that of its output, grad (T x C, float32), to that of x, row-major and packed.
static void norm_rope_backward(const bf16* x, long x_stride, const float* norm_weight, const float* cos, const float* sin, float eps,
                           float scale, long T, long C, const float* grad, bf16* grad_x, long grad_x_stride, bf16* packed, long panel,
                           float* grad_norm_weight) {
    const long half = C / 2;
    alignas(64) float unrotated[16 * MAX_CHANNELS];
    for (long t = 0; t < T; t += 16, x += 16 * x_stride) {
        Vec dots[16], squares[16];
        for (long i = 0; i < 16; i++) {
            dots[i] = squares[i] = set1(0.f);
            for (long j = 0; j < half; j += LANES) {
                const float* g = grad + (t + i) * C + j;
                Vec a = _mm512_loadu_ps(g), b = _mm512_loadu_ps(g + half);
                Vec c = _mm512_loadu_ps(cos + (t + i) * half + j), d = _mm512_loadu_ps(sin + (t + i) * half + j);
                Vec low = _mm512_fmadd_ps(b, d, _mm512_mul_ps(a, c));
                Vec high = _mm512_fnmadd_ps(a, d, _mm512_mul_ps(b, c));
                _mm512_store_ps(unrotated + i * C + j, low), _mm512_store_ps(unrotated + i * C + half + j, high);
                Vec u = load(x + i * x_stride + j), v = load(x + i * x_stride + half + j);
                dots[i] = _mm512_fmadd_ps(_mm512_mul_ps(u, low), _mm512_loadu_ps(norm_weight + j), dots[i]);
                dots[i] = _mm512_fmadd_ps(_mm512_mul_ps(v, high), _mm512_loadu_ps(norm_weight + half + j), dots[i]);
                squares[i] = _mm512_fmadd_ps(v, v, _mm512_fmadd_ps(u, u, squares[i]));
            }
        }
        alignas(64) float inverse[16], mean[16];
        const Vec inverses = inverse_rms(squares, C, eps);
        _mm512_store_ps(inverse, inverses);
        _mm512_store_ps(mean, _mm512_mul_ps(_mm512_mul_ps(sums(dots), set1(1.f / C)), _mm512_mul_ps(inverses, inverses)));
        for (long j = 0; j < C; j += LANES) {
            Vec norm_weights = _mm512_loadu_ps(norm_weight + j), grad_weights = _mm512_loadu_ps(grad_norm_weight + j), grad_pair[2];
            for (long i = 0; i < 16; i++) {
                Vec v = load(x + i * x_stride + j), g = _mm512_load_ps(unrotated + i * C + j), factor = set1(inverse[i] * scale);
                grad_pair[i % 2] = _mm512_mul_ps(_mm512_fnmadd_ps(v, set1(mean[i]), _mm512_mul_ps(g, norm_weights)), factor);
                store(grad_x + (t + i) * grad_x_stride + j, grad_pair[i % 2]);
                if (i % 2) _mm512_store_si512(packed + j * panel / 16 + (t + i - 1) * 16, interleave_rows(grad_pair[0], grad_pair[1]));
                grad_weights = _mm512_fmadd_ps(_mm512_mul_ps(v, factor), g, grad_weights);
            }
            _mm512_storeu_ps(grad_norm_weight + j, grad_weights);
        }
    }
}

// A row of the layer, from l.x to y, is a chunk.
static Phase layer_forward(const Shape& s, const Layer& l, const Positions& positions, bf16* y) {
    const long T = s.time, D = s.width, C = s.channels, E = s.qkv_width(), A = s.attention_width(), F = s.inner, N = padded_stride(s.tokens());
    const long H = s.heads, K = s.key_heads;
    const float eps = s.eps, scale = LOG2_E / std::sqrt((float)C);
    const Mlp mlp = l.mlp(s);
    return {s.rows, [=, &s, &l, &positions](long r) {
        TileConfig tiles;
        scratch.reserve(2 * T * (D + F + 64 + E + A + D) + 8 * T * C + 2 * BLOCK * (T + BLOCK) + T / BLOCK + 4096);
        bf16 *h = scratch.alloc<bf16>(T * (D + 32)), *gated = scratch.alloc<bf16>(T * (F + 32));
        bf16 *q = scratch.alloc<bf16>(T * C), *k = scratch.alloc<bf16>(T * C);
        bf16 *keys = scratch.alloc<bf16>(T * C), *values = scratch.alloc<bf16>(T * C);
        bf16 *qkv = scratch.alloc<bf16>(T * E), *attention = scratch.alloc<bf16>(T * A), *mlp_input = scratch.alloc<bf16>(T * D);
        bf16* weights = scratch.alloc<bf16>(BLOCK * (T + BLOCK));
        bool* single_document = scratch.alloc<bool>(T / BLOCK);
        const bf16* x = l.x + r * T * D;
        bf16* gates = l.gates + r * T * 2 * F, *out = y + r * T * D;
        const Positions row_positions = positions.of_row(s, r);
        const Mask mask = row_positions.mask(single_document);
        mask.find_single_documents(T);
        normalise(x, l.attention_norm, eps, T, D, h, D + 32);
        tile_transposed(h, D + 32, T, D, l.normed, N, r * T);
        multiply(rows(h, D + 32), l.qkv_t, D * 16, T, E, D, per_row([=](long m, long n, Vec a, Vec b) {
                     store_and_stream(qkv + m * E + n, l.qkv + (r * T + m) * E + n, a, b);
                 }));
        for (long head = 0; head < H; head++) {
            if (head % (H / K) == 0) {
                const long key_head = head / (H / K);
                norm_rope(qkv + A + key_head * C, E, l.k_norm, row_positions.cos, row_positions.sin, eps, 1.f, T, C, k);
                pack_transposed(k, C, T, C, keys, C * 16);
                pack(qkv + A + (K + key_head) * C, E, T, C, values, T * 16);
            }
            norm_rope(qkv + head * C, E, l.q_norm, row_positions.cos, row_positions.sin, eps, scale, T, C, q);
            attend(q, keys, values, mask, T, C, attention + head * C, A,
                   l.attention + head * C * N + r * T * 16, N * 16, l.log_sum_exp + (r * H + head) * T, weights);
        }
        multiply(rows(attention, A), l.o_t, A * 16, T, D, A, per_row([=](long m, long n, Vec a, Vec b) {
                     const bf16* residual = x + m * D + n;
                     a = _mm512_add_ps(a, load(residual)), b = _mm512_add_ps(b, load(residual + 16));
                     store_and_stream(mlp_input + m * D + n, l.mlp_input + (r * T + m) * D + n, a, b);
                 }));
        if (!F) {  // attention alone
            std::memcpy(out, mlp_input, T * D * sizeof(bf16));
            return;
        }
        normalise(mlp_input, l.mlp_norm, eps, T, D, h, D + 32);
        tile_transposed(h, D + 32, T, D, l.mlp_normed, N, r * T);
        mlp_forward(mlp, rows(h, D + 32), T, gates, gated, l.gated_right + r * T * 16, N,
                    per_row([=](long m, long n, Vec a, Vec b) {
                        const bf16* residual = mlp_input + m * D + n;
                        stream_store(out + m * D + n, _mm512_add_ps(a, load(residual)), _mm512_add_ps(b, load(residual + 16)));
                    }), prefetch_of(x + s.threads * T * D, r + s.threads < s.rows ? T * D : 0));
        _mm_sfence();  // streaming stores are visible before another thread reads them
    }};
}

struct Operands {  // of the weights' gradients, all tokens: left ones tiled, right ones packed
    bf16 *grad_mlp_input, *grad_out, *grad_qkv, *grad_gates;
};

struct RowMemory {  // a thread's memory for a row in the backward pass
    bf16 *h, *grad_gates, *grad_mlp_input, *grad_attention, *grad_qkv;
    Head head;
    bool* single_document;
    static RowMemory alloc(const Shape& s) {
        const long T = s.time, D = s.width, C = s.channels, E = s.qkv_width(), A = s.attention_width(), F = s.inner, row_stride = T + BLOCK;
        scratch.reserve(2 * T * (2 * D + 2 * F + A + E + 64) + 26 * T * C + 4 * T + 4 * BLOCK * row_stride + 2 * T * T + T / BLOCK + 8192);
        const auto numbers = [](size_t count) { return scratch.alloc<bf16>(count); };
        const auto floats = [](size_t count) { return scratch.alloc<float>(count); };
        return {numbers(T * (D + 32)), numbers(T * 2 * F), numbers(T * D), numbers(T * A), numbers(T * (E + 32)),
                {numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C), numbers(T * C),
                 floats(T * C), floats(T * C), floats(T * C), floats(T), numbers(BLOCK * row_stride), numbers(BLOCK * row_stride), numbers(T * T)},
                scratch.alloc<bool>(T / BLOCK)};
    }
};

// Of row r: from the gradient of the layer's output, out (T x D), to that of the MLP's input.
static void mlp_block_backward(const Shape& s, const Layer& l, const Operands& o, const RowMemory& memory, long r, const bf16* out,
                               float* grad_mlp_norm) {
    const long T = s.time, D = s.width, E = s.qkv_width(), F = s.inner, N = padded_stride(s.tokens());
    const bf16 *mlp_input = l.mlp_input + r * T * D, *gates = l.gates + r * T * 2 * F;
    bf16* h = memory.h;
    tile_transposed(out, D, T, D, o.grad_out, N, r * T);
    mlp_backward(l.mlp(s), rows(out, D), T, gates, memory.grad_gates, o.grad_gates + r * T * 16, N,
                 per_row([=](long m, long n, Vec a, Vec b) { store(h + m * (D + 32) + n, a, b); }), prefetch_of(mlp_input, T * D),
                 prefetch_of(l.qkv + r * T * E, T * E));
    normalise_backward(mlp_input, l.mlp_norm, s.eps, h, D + 32, out, T, D, memory.grad_mlp_input, grad_mlp_norm);
}

// delta[t] = the dot product of a head's output with its gradient, grad (T x C, rows A apart).
static void compute_delta(const Shape& s, const Layer& l, const bf16* grad, long head, long r, float* delta) {
    const long T = s.time, C = s.channels, A = s.attention_width(), N = padded_stride(s.tokens());
    for (long t = 0; t < T; t += 16) {
        Vec dots[16];
        for (long i = 0; i < 16; i += 2) {
            dots[i] = dots[i + 1] = set1(0.f);
            for (long c = 0; c < C; c += LANES) {
                const bf16* p = grad + (t + i) * A + c;
                const __m512i pairs = _mm512_load_si512(l.attention + (head * C + c) * N + (r * T + t + i) * 16);
                dots[i] = _mm512_fmadd_ps(load(p), even_row(pairs), dots[i]);
                dots[i + 1] = _mm512_fmadd_ps(load(p + A), odd_row(pairs), dots[i + 1]);
            }
        }
        _mm512_storeu_ps(delta + t, sums(dots));
    }
}

// Of row r: from the gradient of all heads' outputs to that of queries, keys and values.
static void heads_backward(const Shape& s, const Layer& l, const Positions& positions, const Operands& o, const RowMemory& memory, long r,
                           float* grad_q_norm, float* grad_k_norm) {
    const long T = s.time, C = s.channels, E = s.qkv_width(), A = s.attention_width(), N = padded_stride(s.tokens()), H = s.heads, K = s.key_heads;
    const float eps = s.eps, scale = 1 / std::sqrt((float)C);
    const bf16* qkv = l.qkv + r * T * E;
    const Head& h = memory.head;
    bf16* grad_qkv = memory.grad_qkv;
    const float *cos = positions.cos, *sin = positions.sin;
    const Mask mask = positions.mask(memory.single_document);
    mask.find_single_documents(T);
    for (long head = 0; head < H; head++) {
        const long key_head = head / (H / K), key = A + key_head * C, value = key + K * C;
        const bf16* grad_out = memory.grad_attention + head * C;
        const bool first_of_group = head % (H / K) == 0, last_of_group = (head + 1) % (H / K) == 0;
        if (first_of_group) {
            norm_rope(qkv + key, E, l.k_norm, cos, sin, eps, 1.f, T, C, h.k);
            transposed(h.k, C, T, C, [=](long c, long t, const __m512i* tile) {
                for (int i = 0; i < 16; i++) _mm512_store_si512(h.keys_t + c * T + t * 16 + i * 32, tile[i]);
            });
        }
        norm_rope(qkv + head * C, E, l.q_norm, cos, sin, eps, scale * LOG2_E, T, C, h.q);
        pack_transposed(h.q, C, T, C, h.queries_t, C * 16), pack(h.q, C, T, C, h.queries, T * 16);
        pack_transposed(grad_out, A, T, C, h.grad_out_t, C * 16), pack(grad_out, A, T, C, h.grad_out, T * 16);
        compute_delta(s, l, grad_out, head, r, h.delta);
        attend_backward(h, qkv + value, E, mask, l.log_sum_exp + (r * H + head) * T, first_of_group, T, C);
        norm_rope_backward(qkv + head * C, E, l.q_norm, cos, sin, eps, scale, T, C, h.grad_q, grad_qkv + head * C, E + 32,
                           o.grad_qkv + head * C * N + r * T * 16, N * 16, grad_q_norm);
        if (!last_of_group) continue;
        // the queries had been scaled by log2(e)
        norm_rope_backward(qkv + key, E, l.k_norm, cos, sin, eps, 1 / LOG2_E, T, C, h.grad_k, grad_qkv + key, E + 32,
                           o.grad_qkv + key * N + r * T * 16, N * 16, grad_k_norm);
        for (long t = 0; t < T; t += 2)
            for (long c = 0; c < C; c += LANES) {
                Vec even = _mm512_load_ps(h.grad_v + t * C + c), odd = _mm512_load_ps(h.grad_v + (t + 1) * C + c);
                bf16* dst = grad_qkv + t * (E + 32) + value + c;
                store(dst, even), store(dst + E + 32, odd);
                _mm512_store_si512(o.grad_qkv + (value + c) * N + (r * T + t) * 16, interleave_rows(even, odd));
            }
    }
}

// The gradients of the four products' weights.
static Phase weight_gradients(const Shape& s, const Layer& l, const Operands& o) {
    constexpr long COLUMN_BLOCK = 512;
    const long D = s.width, A = s.attention_width(), F = s.inner, N = padded_stride(s.tokens());
    const std::array<long, 4> columns = {s.qkv_width(), A, 2 * F, F};
    long parts = 0;
    for (long c : columns) parts += (c + COLUMN_BLOCK - 1) / COLUMN_BLOCK;
    return {parts, [=, &s, &l](long part) {
        TileConfig tiles;
        scratch.reserve(4 * D * COLUMN_BLOCK + 4096);
        float* sums = scratch.alloc<float>(D * COLUMN_BLOCK);
        const bf16* left[] = {l.normed, o.grad_mlp_input, l.mlp_normed, o.grad_out};
        const bf16* right[] = {o.grad_qkv, l.attention, o.grad_gates, l.gated_right};
        long matrix = 0, n0 = part * COLUMN_BLOCK;
        for (long padded = 0; n0 >= (padded = (columns[matrix] + COLUMN_BLOCK - 1) / COLUMN_BLOCK * COLUMN_BLOCK); matrix++) n0 -= padded;
        weight_gradient(left[matrix], right[matrix], D, n0, std::min(COLUMN_BLOCK, columns[matrix] - n0), s.tokens(), N, sums,
                        [&](long m, long n, const float* block) {
                            float* qkv = qkv_panel(s, l.grad_q, l.grad_k, l.grad_v, n / 16);
                            float* gate_up = gate_up_panel(D, l.grad_gate, l.grad_up, n / 16);
                            if (matrix == 0) save_tile_transposed(block, qkv + m, D);
                            if (matrix == 1) save_tile(block, l.grad_o + m * A + n, A);
                            if (matrix == 2) save_tile_transposed(block, gate_up + m, D);
                            if (matrix == 3) save_tile(block, l.grad_down + m * F + n, F);
                        });
        _mm_sfence();
    }};
}

// Adds what computes a layer's gradients, from that of its output, grad (tokens x width), which becomes that of its input.
static void layer_backward(std::vector<Phase>& phases, const Shape& s, const Layer& l, const Positions& positions, const Operands& o, bf16* grad, float* grad_norm_parts) {
    const long T = s.time, D = s.width, C = s.channels, E = s.qkv_width(), A = s.attention_width(), N = padded_stride(s.tokens());
    const long norm_weights = 2 * D + 2 * C;
    phases.push_back({s.rows, [=, &s, &l, &positions](long r) {
        TileConfig tiles;
        const RowMemory memory = RowMemory::alloc(s);
        std::memset(grad_norm_parts + r * norm_weights, 0, norm_weights * sizeof(float));
        const bf16* x = l.x + r * T * D;
        bf16* out = grad + r * T * D;  // at first the gradient of the output, at last of the input
        bf16 *h = memory.h, *grad_attention = memory.grad_attention;
        float *grad_attention_norm = grad_norm_parts + r * norm_weights, *grad_mlp_norm = grad_attention_norm + D;
        float *grad_q_norm = grad_mlp_norm + D, *grad_k_norm = grad_q_norm + C;
        if (s.inner)
            mlp_block_backward(s, l, o, memory, r, out, grad_mlp_norm);
        else
            std::memcpy(memory.grad_mlp_input, out, T * D * sizeof(bf16));
        tile_transposed(memory.grad_mlp_input, D, T, D, o.grad_mlp_input, N, r * T);
        _mm_sfence();
        multiply(rows(memory.grad_mlp_input, D), l.o_b, D * 16, T, A, D,
                 per_row([=](long m, long n, Vec a, Vec b) { store(grad_attention + m * A + n, a, b); }));
        heads_backward(s, l, positions.of_row(s, r), o, memory, r, grad_q_norm, grad_k_norm);
        multiply(rows(memory.grad_qkv, E + 32), l.qkv_b, E * 16, T, D, E,
                 per_row([=](long m, long n, Vec a, Vec b) { store(h + m * (D + 32) + n, a, b); }), prefetch_of(x, T * D));
        normalise_backward(x, l.attention_norm, s.eps, h, D + 32, memory.grad_mlp_input, T, D, out, grad_attention_norm);
    }});
    phases.push_back(weight_gradients(s, l, o));
    phases.push_back({1, [=, &s, &l](long) {
        const long sizes[] = {D, D, C, C};
        float* grad_norms[] = {l.grad_attention_norm, l.grad_mlp_norm, l.grad_q_norm, l.grad_k_norm};
        for (long norm = 0, offset = 0; norm < 4; offset += sizes[norm++])
            sum_rows(grad_norm_parts + offset, s.rows, norm_weights, sizes[norm], grad_norms[norm]);
    }});
}

static Operands alloc_operands(const Shape& s, Scratch& shared, long grad_numbers, long floats) {
    const long D = s.width, N = padded_stride(s.tokens());
    shared.reserve(2 * (N * (2 * D + s.qkv_width() + 2 * s.inner) + grad_numbers) + 4 * floats + 8192);
    return {shared.alloc<bf16>(N * D), shared.alloc<bf16>(N * D), shared.alloc<bf16>(N * s.qkv_width()), shared.alloc<bf16>(2 * N * s.inner)};
}

// The attention of one layer alone, of which `inner` is 0: from l.x (tokens x width) to y, x and what attention adds to it.
extern "C" void attention_forward(const Shape* shape, const Layer* layer, const Positions* positions, bf16* y) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    team.run(shape->threads, {pack_layer(*shape, *layer), layer_forward(*shape, *layer, *positions, y)});
}

// From the gradient of y, which becomes that of x, to those of the layer's parameters.
extern "C" void attention_backward(const Shape* shape, const Layer* layer, const Positions* positions, bf16* grad) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const long floats = shape->rows * 2 * (shape->width + shape->channels);
    const Operands operands = alloc_operands(*shape, team.shared, 0, floats);
    std::vector<Phase> phases;
    layer_backward(phases, *shape, *layer, *positions, operands, grad, team.shared.alloc<float>(floats));
    team.run(shape->threads, phases);
}

// From ids (rows, time) to the final norm's output y; the norm's input stays in `last`.
extern "C" void forward(const Shape* shape, const Layer* layers, long count, const float* embedding, const int* ids,
                        const Positions* positions, const float* norm_weight, bf16* last, bf16* y) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const Shape& s = *shape;
    const long D = s.width, T = s.time;
    std::vector<Phase> phases{{s.rows, [&](long r) {
        for (long i = r * T; i < (r + 1) * T; i++)
            for (long j = 0; j < D; j += BLOCK) {
                const float* src = embedding + ids[i] * D + j;
                store(layers[0].x + i * D + j, _mm512_loadu_ps(src), _mm512_loadu_ps(src + 16));
            }
    }}};
    for (long i = 0; i < count; i++) {
        phases.push_back(pack_layer(s, layers[i]));
        phases.push_back(layer_forward(s, layers[i], *positions, i + 1 < count ? layers[i + 1].x : last));
    }
    phases.push_back({s.rows, [&](long r) { normalise(last + r * T * D, norm_weight, s.eps, T, D, y + r * T * D, D); }});
    team.run(s.threads, phases);
}

// From the gradient of y to those of the parameters.
extern "C" void backward(const Shape* shape, const Layer* layers, long count, const int* ids, const Positions* positions,
                         const float* norm_weight, const bf16* last, const bf16* grad_y, float* grad_norm_weight, float* grad_embedding,
                         long vocabulary) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const Shape& s = *shape;
    const long D = s.width, row = s.time * D, norm_weights = 2 * (D + s.channels), N = padded_stride(s.tokens());
    const Operands operands = alloc_operands(s, team.shared, N * D, s.rows * norm_weights);
    bf16* grad = team.shared.alloc<bf16>(N * D);
    float* grad_norm_parts = team.shared.alloc<float>(s.rows * norm_weights);
    std::vector<Phase> phases{{s.rows, [&](long r) {
        std::memset(grad_norm_parts + r * D, 0, D * sizeof(float));
        normalise_backward(last + r * row, norm_weight, s.eps, grad_y + r * row, D, nullptr, s.time, D, grad + r * row,
                           grad_norm_parts + r * D);
    }}, {1, [&](long) { sum_rows(grad_norm_parts, s.rows, D, D, grad_norm_weight); }}};
    for (long i = count - 1; i >= 0; i--) layer_backward(phases, s, layers[i], *positions, operands, grad, grad_norm_parts);
    // Each chunk has its own rows of the embedding, so that a token's gradients are added in the order of positions.
    phases.push_back({s.threads, [&](long chunk) {
        for (long v = chunk; v < vocabulary; v += s.threads) std::memset(grad_embedding + v * D, 0, D * sizeof(float));
        for (long i = 0; i < s.tokens(); i++)
            if (ids[i] % s.threads == chunk)
                for (long j = 0; j < D; j += LANES) {
                    float* dst = grad_embedding + ids[i] * D + j;
                    _mm512_storeu_ps(dst, _mm512_add_ps(_mm512_loadu_ps(dst), load(grad + i * D + j)));
                }
    }});
    team.run(s.threads, phases);
}
