// A mixture's experts in bfloat16: tokens sorted by expert, at most MOST_TOKENS of one at a time through its gated MLP; the gradients of
// its weights are sums over its tokens. Which go where, and with what weight, is decided elsewhere. Every expert's tokens are
// filled up with zeros to a multiple of 32, which add nothing to any gradient.
#include "mlp.h"

#include <vector>

constexpr long MOST_TOKENS = 256, MOST_COLUMNS = 512;  // tokens, and columns of a weight's gradient

struct Expert {
    const float *gate, *up, *down;  // (inner, width) twice, (width, inner)
    float *grad_gate, *grad_up, *grad_down;
    long end;  // of its tokens, which begin where the last one's end
};

struct Experts {  // as in kernels/__init__.py
    long tokens, width, inner, count, threads;
    const Expert* each;
    const bf16* x;  // (tokens, width)
    // kept for the backward pass: the packed matrices, 6 width x inner each; what `mlp_forward` keeps, (tokens, 2 inner); and its
    // product, `spread(tokens)` x inner
    bf16 *packed, *gates, *gated;
    bf16* out;  // (tokens, width)
    const bf16* grad_out;
    bf16* grad_x;

    long begin(long expert) const { return expert ? each[expert - 1].end : 0; }
    Mlp mlp(long expert) const {
        const long size = width * inner;
        const bf16* own = packed + expert * 6 * size;
        return {width, inner, own, own + 2 * size, own + 3 * size, own + 5 * size};
    }
};

struct Slice {
    long expert, begin, rows;
};

static std::vector<Slice> slices_of(const Experts& l) {
    std::vector<Slice> found;
    for (long e = 0; e < l.count; e++)
        for (long at = l.begin(e); at < l.each[e].end; at += MOST_TOKENS) found.push_back({e, at, std::min(MOST_TOKENS, l.each[e].end - at)});
    return found;
}

static void pack_expert(const Experts& l, long number) {
    const long D = l.width, F = l.inner, parts = (2 * F + D) / 16, p = number % parts;
    const Expert& e = l.each[number / parts];
    const Mlp to = l.mlp(number / parts);
    if (p < 2 * F / 16)
        pack_weight(gated_panel(D, e.gate, e.up, p), p * 16, 2 * F, D, (bf16*)to.gated_t, (bf16*)to.gated_b);
    else
        pack_weight(e.down + (p - 2 * F / 16) * 16 * F, (p - 2 * F / 16) * 16, D, F, (bf16*)to.down_t, (bf16*)to.down_b);
}

extern "C" void experts(const Experts* given) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const Experts& l = *given;
    const long D = l.width, F = l.inner, N = spread(l.tokens);
    const std::vector<Slice> slices = slices_of(l);
#pragma omp parallel num_threads(l.threads)
    {
        Tiles tiles;
        scratch.room(2 * MOST_TOKENS * (F + 32) + 4096);
        bf16* gated = scratch.take<bf16>(MOST_TOKENS * (F + 32));
#pragma omp for schedule(dynamic, 8)
        for (long number = 0; number < l.count * (2 * F + D) / 16; number++) pack_expert(l, number);
#pragma omp for schedule(dynamic, 1)
        for (size_t which = 0; which < slices.size(); which++) {
            const Slice s = slices[which];
            bf16* out = l.out + s.begin * D;
            mlp_forward(l.mlp(s.expert), rows(l.x + s.begin * D, D), s.rows, l.gates + s.begin * 2 * F, gated, l.gated + s.begin * 16, N,
                        each([=](long m, long n, Vec a, Vec b) { store(out + m * D + n, a, b); }), {});
            _mm_sfence();
        }
    }
}

// MOST_COLUMNS columns of the gradients of an expert's matrices, those of gate and up first; zero where it has no tokens.
static void expert_gradients(const Experts& l, const bf16* x, const bf16* grad_out, const bf16* grad_gates, long number) {
    const long D = l.width, F = l.inner, N = spread(l.tokens), gated_parts = (2 * F + MOST_COLUMNS - 1) / MOST_COLUMNS;
    const long parts = gated_parts + (F + MOST_COLUMNS - 1) / MOST_COLUMNS, e = number / parts, part = number % parts;
    const bool down = part >= gated_parts;
    const Expert& one = l.each[e];
    const long n0 = (down ? part - gated_parts : part) * MOST_COLUMNS, columns = std::min(MOST_COLUMNS, (down ? F : 2 * F) - n0);
    const long begin = l.begin(e), count = one.end - begin;
    if (!count) {
        if (down)
            for (long d = 0; d < D; d++) std::memset(one.grad_down + d * F + n0, 0, columns * sizeof(float));
        else
            for (long p = n0 / 16; p < (n0 + columns) / 16; p++)
                std::memset(gated_panel(D, one.grad_gate, one.grad_up, p), 0, 16 * D * sizeof(float));
        return;
    }
    float* sums = scratch.take<float>(D * MOST_COLUMNS);
    sum_over_tokens((down ? grad_out : x) + begin * 16, (down ? l.gated : grad_gates) + begin * 16, D, n0, columns, count, N, sums,
                    [&](long m, long n, const float* block) {
                        if (down)
                            save_tile(block, one.grad_down + m * F + n, F);
                        else
                            save_tile_transposed(block, gated_panel(D, one.grad_gate, one.grad_up, n / 16) + m, D);
                    });
    _mm_sfence();
}

// From `grad_out` to `grad_x` and the gradients of the matrices.
extern "C" void experts_backward(const Experts* given) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const Experts& l = *given;
    const long D = l.width, F = l.inner, N = spread(l.tokens);
    const std::vector<Slice> slices = slices_of(l);
    common.room(2 * N * (2 * D + 2 * F) + 4096);
    bf16 *x = common.take<bf16>(N * D), *grad_out = common.take<bf16>(N * D), *grad_gates = common.take<bf16>(N * 2 * F);
    const long parts = (2 * F + MOST_COLUMNS - 1) / MOST_COLUMNS + (F + MOST_COLUMNS - 1) / MOST_COLUMNS;
#pragma omp parallel num_threads(l.threads)
    {
        Tiles tiles;
#pragma omp for schedule(dynamic, 1)
        for (size_t which = 0; which < slices.size(); which++) {
            const Slice s = slices[which];
            scratch.room(2 * MOST_TOKENS * 2 * F + 4096);
            const bf16* out = l.grad_out + s.begin * D;
            bf16* to = l.grad_x + s.begin * D;
            tile_transposed(l.x + s.begin * D, D, s.rows, D, x, N, s.begin), tile_transposed(out, D, s.rows, D, grad_out, N, s.begin);
            mlp_backward(l.mlp(s.expert), rows(out, D), s.rows, l.gates + s.begin * 2 * F, scratch.take<bf16>(MOST_TOKENS * 2 * F),
                         grad_gates + s.begin * 16, N, each([=](long m, long n, Vec a, Vec b) { store(to + m * D + n, a, b); }), {}, {});
            _mm_sfence();
        }
#pragma omp for schedule(dynamic, 1)
        for (long number = 0; number < l.count * parts; number++) {
            scratch.room(4 * D * MOST_COLUMNS + 4096);
            expert_gradients(l, x, grad_out, grad_gates, number);
        }
    }
}
