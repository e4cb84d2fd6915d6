// The experts of a mixture in bfloat16: tokens are sorted by expert, and at most TOKEN_BLOCK of one go through its gated MLP at a
// time; the gradients of its weights are sums over its tokens. The router is elsewhere. Every expert's tokens are padded with
// zeros to a multiple of 32, which add nothing to any gradient.
#include "mlp.h"

#include <vector>

constexpr long TOKEN_BLOCK = 256, COLUMN_BLOCK = 512;  // tokens, and columns of a weight's gradient

struct Expert {
    const float *gate, *up, *down;  // (inner, width) twice, (width, inner)
    float *grad_gate, *grad_up, *grad_down;
    long end;  // of its tokens; they begin at the end of the expert before
};

struct Experts {  // as in kernels/__init__.py
    long tokens, width, inner, count, threads;
    const Expert* experts;
    const bf16* x;  // (tokens, width)
    // saved for the backward pass: packed matrices, 6 width x inner each; `gates` of `mlp_forward`, (tokens, 2 inner); and its
    // product, `padded_stride(tokens)` x inner
    bf16 *packed, *gates, *gated;
    bf16* out;  // (tokens, width)
    const bf16* grad_out;
    bf16* grad_x;

    long begin(long expert) const { return expert ? experts[expert - 1].end : 0; }
    Mlp mlp(long expert) const {
        const long size = width * inner;
        const bf16* matrices = packed + expert * 6 * size;
        return {width, inner, matrices, matrices + 2 * size, matrices + 3 * size, matrices + 5 * size};
    }
};

struct Slice {
    long expert, begin, rows;
};

static std::vector<Slice> slices_of(const Experts& l) {
    std::vector<Slice> slices;
    for (long e = 0; e < l.count; e++)
        for (long t = l.begin(e); t < l.experts[e].end; t += TOKEN_BLOCK) slices.push_back({e, t, std::min(TOKEN_BLOCK, l.experts[e].end - t)});
    return slices;
}

static void pack_expert(const Experts& l, long number) {
    const long D = l.width, F = l.inner, parts = (2 * F + D) / 16, p = number % parts;
    const Expert& e = l.experts[number / parts];
    const Mlp packed = l.mlp(number / parts);
    if (p < 2 * F / 16)
        pack_weight(gate_up_panel(D, e.gate, e.up, p), p * 16, 2 * F, D, (bf16*)packed.gate_up_t, (bf16*)packed.gate_up_b);
    else
        pack_weight(e.down + (p - 2 * F / 16) * 16 * F, (p - 2 * F / 16) * 16, D, F, (bf16*)packed.down_t, (bf16*)packed.down_b);
}

extern "C" void experts(const Experts* arguments) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const Experts& l = *arguments;
    const long D = l.width, F = l.inner, N = padded_stride(l.tokens);
    const std::vector<Slice> slices = slices_of(l);
    team.run(l.threads, {
        {l.count * (2 * F + D) / 16, [&](long number) { pack_expert(l, number); }},
        {(long)slices.size(), [&](long index) {
            TileConfig tiles;
            scratch.reserve(2 * TOKEN_BLOCK * (F + 32) + 4096);
            const Slice s = slices[index];
            bf16 *out = l.out + s.begin * D, *gated = scratch.alloc<bf16>(TOKEN_BLOCK * (F + 32));
            mlp_forward(l.mlp(s.expert), rows(l.x + s.begin * D, D), s.rows, l.gates + s.begin * 2 * F, gated, l.gated + s.begin * 16, N,
                        per_row([=](long m, long n, Vec a, Vec b) { store(out + m * D + n, a, b); }), {});
            _mm_sfence();
        }},
    });
}

// COLUMN_BLOCK columns of the gradients of an expert's matrices, those of gate and up first; zero where it has no tokens.
static void expert_gradients(const Experts& l, const bf16* x, const bf16* grad_out, const bf16* grad_gates, long number) {
    const long D = l.width, F = l.inner, N = padded_stride(l.tokens), gated_parts = (2 * F + COLUMN_BLOCK - 1) / COLUMN_BLOCK;
    const long parts = gated_parts + (F + COLUMN_BLOCK - 1) / COLUMN_BLOCK, index = number / parts, part = number % parts;
    const bool down = part >= gated_parts;
    const Expert& expert = l.experts[index];
    const long n0 = (down ? part - gated_parts : part) * COLUMN_BLOCK, columns = std::min(COLUMN_BLOCK, (down ? F : 2 * F) - n0);
    const long begin = l.begin(index), count = expert.end - begin;
    if (!count) {
        if (down)
            for (long d = 0; d < D; d++) std::memset(expert.grad_down + d * F + n0, 0, columns * sizeof(float));
        else
            for (long p = n0 / 16; p < (n0 + columns) / 16; p++)
                std::memset(gate_up_panel(D, expert.grad_gate, expert.grad_up, p), 0, 16 * D * sizeof(float));
        return;
    }
    float* sums = scratch.alloc<float>(D * COLUMN_BLOCK);
    weight_gradient((down ? grad_out : x) + begin * 16, (down ? l.gated : grad_gates) + begin * 16, D, n0, columns, count, N, sums,
                    [&](long m, long n, const float* block) {
                        if (down)
                            save_tile(block, expert.grad_down + m * F + n, F);
                        else
                            save_tile_transposed(block, gate_up_panel(D, expert.grad_gate, expert.grad_up, n / 16) + m, D);
                    });
    _mm_sfence();
}

// From `grad_out` to `grad_x` and the gradients of the matrices.
extern "C" void experts_backward(const Experts* arguments) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const Experts& l = *arguments;
    const long D = l.width, F = l.inner, N = padded_stride(l.tokens);
    const std::vector<Slice> slices = slices_of(l);
    Scratch& shared = team.shared;
    shared.reserve(2 * N * (2 * D + 2 * F) + 4096);
    bf16 *x = shared.alloc<bf16>(N * D), *grad_out = shared.alloc<bf16>(N * D), *grad_gates = shared.alloc<bf16>(N * 2 * F);
    const long parts = (2 * F + COLUMN_BLOCK - 1) / COLUMN_BLOCK + (F + COLUMN_BLOCK - 1) / COLUMN_BLOCK;
    team.run(l.threads, {
        {(long)slices.size(), [&](long index) {
            TileConfig tiles;
            const Slice s = slices[index];
            scratch.reserve(2 * TOKEN_BLOCK * 2 * F + 4096);
            const bf16* out = l.grad_out + s.begin * D;
            bf16* grad_x = l.grad_x + s.begin * D;
            tile_transposed(l.x + s.begin * D, D, s.rows, D, x, N, s.begin), tile_transposed(out, D, s.rows, D, grad_out, N, s.begin);
            mlp_backward(l.mlp(s.expert), rows(out, D), s.rows, l.gates + s.begin * 2 * F, scratch.alloc<bf16>(TOKEN_BLOCK * 2 * F),
                         grad_gates + s.begin * 16, N, per_row([=](long m, long n, Vec a, Vec b) { store(grad_x + m * D + n, a, b); }), {}, {});
            _mm_sfence();
        }},
        {l.count * parts, [&](long number) {
            TileConfig tiles;
            scratch.reserve(4 * D * COLUMN_BLOCK + 4096);
            expert_gradients(l, x, grad_out, grad_gates, number);
        }},
    });
}
