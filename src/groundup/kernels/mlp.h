// The gated MLP in bfloat16, down(silu(gate(x)) * up(x)), forward and backward, of T tokens by one thread; T is a multiple of 32.
#pragma once
#include "blocks.h"

struct Mlp {
    long width, inner;
    // the matrices as operand B, W^T for the forward and W for the backward pass; rows of (gate, up) alternate, 16 of each
    const bf16 *gate_up_t, *down_t, *gate_up_b, *down_b;
};

// The address of the 16 rows of panel p of (gate, up).
template <class P>
static P gate_up_panel(long width, P gate, P up, long p) {
    return (p % 2 ? up : gate) + p / 2 * 16 * width;
}

// `gates` gets the derivatives of the gated product by gate and up in pairs, row-major in blocks of 32 columns; `gated` is
// T x (inner + 32) numbers; `packed` gets the gated product as an operand, `stride` tokens in a panel. `save` as for `multiply`.
template <class Save>
static void mlp_forward(const Mlp& l, OperandA x, long T, bf16* gates, bf16* gated, bf16* packed, long stride, Save save, Prefetch prefetch) {
    const long D = l.width, F = l.inner;
    multiply(x, l.gate_up_t, D * 16, T, 2 * F, D, [=](long m, long n, const float* row_pair) {
        Vec product[2];
        for (long i = 0; i < 2; i++) {
            Vec gate = _mm512_load_ps(row_pair + i * 32), up = _mm512_load_ps(row_pair + i * 32 + 16);
            Vec sigmoid_gate = sigmoid(gate), silu = _mm512_mul_ps(gate, sigmoid_gate);
            Vec silu_grad = _mm512_fmadd_ps(silu, _mm512_sub_ps(set1(1.f), sigmoid_gate), sigmoid_gate);
            _mm512_stream_si512((__m512i*)(gates + n * T + (m + i) * 32), interleave_rows(_mm512_mul_ps(up, silu_grad), silu));
            product[i] = _mm512_mul_ps(silu, up);
            store(gated + (m + i) * (F + 32) + n / 2, product[i]);
        }
        _mm512_stream_si512((__m512i*)(packed + n / 2 * stride + m * 16), interleave_rows(product[0], product[1]));
    });
    multiply(rows(gated, F + 32), l.down_t, F * 16, T, D, F, save, prefetch);
}

// From `out`, the gradient of the output, to that of x, for `save`; `grad_gates` is T x 2 inner numbers, and `packed` gets the
// gradients by gate and up as an operand.
template <class Save>
static void mlp_backward(const Mlp& l, OperandA out, long T, const bf16* gates, bf16* grad_gates, bf16* packed, long stride, Save save,
                         Prefetch first_prefetch, Prefetch prefetch) {
    const long D = l.width, F = l.inner;
    multiply(out, l.down_b, D * 16, T, F, D, [=](long m, long n, const float* row_pair) {
        for (long c = 0; c < 32; c += 16) {
            Vec grad_gate[2], grad_up[2];
            const long gate_column = 2 * (n + c);  // 16 columns of gate, then 16 of up
            for (long i = 0; i < 2; i++) {
                const bf16* saved = gates + gate_column * T + (m + i) * 32;
                __m512i factors = _mm512_load_si512(saved);
                _mm_prefetch((const char*)saved + 8192, _MM_HINT_T1);  // two pages ahead, where the processor does not prefetch
                Vec v = _mm512_load_ps(row_pair + i * 32 + c);
                grad_gate[i] = _mm512_mul_ps(v, even_row(factors)), grad_up[i] = _mm512_mul_ps(v, odd_row(factors));
                store(grad_gates + (m + i) / 16 * 32 * F + gate_column * 16 + (m + i) % 16 * 32, grad_gate[i], grad_up[i]);
            }
            bf16* dst = packed + gate_column * stride + m * 16;
            _mm512_stream_si512((__m512i*)dst, interleave_rows(grad_gate[0], grad_gate[1]));
            _mm512_stream_si512((__m512i*)(dst + 16 * stride), interleave_rows(grad_up[0], grad_up[1]));
        }
    }, first_prefetch);
    multiply(tiled(grad_gates, 2 * F), l.gate_up_b, 2 * F * 16, T, D, 2 * F, save, prefetch);
}
