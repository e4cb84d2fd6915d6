// The gated MLP in bfloat16, down(silu(gate(x)) * up(x)), forward and backward, of T tokens by one thread; T is a multiple of 32.
#pragma once
#include "blocks.h"

struct Mlp {
    long width, inner;
    // the matrices as operand B, W^T for the forward and W for the backward pass: gate and up together, 16 rows of each by turns
    const bf16 *gated_t, *down_t, *gated_b, *down_b;
};

// Where the 16 rows of panel p of (gate, up) begin.
template <class P>
static P gated_panel(long width, P gate, P up, long p) {
    return (p % 2 ? up : gate) + p / 2 * 16 * width;
}

// `gates` keeps the gradients of the gated product by gate and by what it gates, side by side, row by row for 32 columns at a
// time; `gated` has room for T x (inner + 32); `packed` is the gated product as an operand, `stride` tokens in a panel.
// `save` as for `multiply`.
template <class Save>
static void mlp_forward(const Mlp& l, Left x, long T, bf16* gates, bf16* gated, bf16* packed, long stride, Save save, Ahead ahead) {
    const long D = l.width, F = l.inner;
    multiply(x, l.gated_t, D * 16, T, 2 * F, D, [=](long m, long n, const float* two) {
        Vec both[2];
        for (long i = 0; i < 2; i++) {
            Vec gate = _mm512_load_ps(two + i * 32), up = _mm512_load_ps(two + i * 32 + 16);
            Vec open = sigmoid(gate), silu = _mm512_mul_ps(gate, open);
            Vec bend = _mm512_fmadd_ps(silu, _mm512_sub_ps(all(1.f), open), open);
            _mm512_stream_si512((__m512i*)(gates + n * T + (m + i) * 32), together(_mm512_mul_ps(up, bend), silu));
            both[i] = _mm512_mul_ps(silu, up);
            store(gated + (m + i) * (F + 32) + n / 2, both[i]);
        }
        _mm512_stream_si512((__m512i*)(packed + n / 2 * stride + m * 16), together(both[0], both[1]));
    });
    multiply(rows(gated, F + 32), l.down_t, F * 16, T, D, F, save, ahead);
}

// From the gradient of what it made, `out`, to that of x, for `save`; `grad_gates` has room for T x 2 inner, and `packed` gets the
// gradients by gate and up as an operand.
template <class Save>
static void mlp_backward(const Mlp& l, Left out, long T, const bf16* gates, bf16* grad_gates, bf16* packed, long stride, Save save,
                         Ahead first_ahead, Ahead ahead) {
    const long D = l.width, F = l.inner;
    multiply(out, l.down_b, D * 16, T, F, D, [=](long m, long n, const float* two) {
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
            bf16* to = packed + at * stride + m * 16;
            _mm512_stream_si512((__m512i*)to, together(to_gate[0], to_gate[1]));
            _mm512_stream_si512((__m512i*)(to + 16 * stride), together(to_up[0], to_up[1]));
        }
    }, first_ahead);
    multiply(tiled(grad_gates, 2 * F), l.gated_b, 2 * F * 16, T, D, 2 * F, save, ahead);
}
