// The experts of a mixture, float32: tokens are sorted by expert, and at most CHUNK of one go through its gated MLP at a time; the
// gradients of its weights are sums over its tokens. The router is elsewhere.
#include <vector>

#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Expert {
    const float *gate, *up, *down;  // (inner, width) twice, (width, inner)
    float *grad_gate, *grad_up, *grad_down;
    long end;  // of its tokens; they begin at the end of the expert before
};

struct Experts {  // as in float32.py
    long tokens, width, inner, count, threads;
    const Expert* experts;
    const float* x;            // (tokens, width)
    float *gates, *out;        // (tokens, 2 inner) in panels, saved for the backward pass; (tokens, width)
    const float* grad_out;
    float* grad_x;
    long begin(long expert) const { return expert ? experts[expert - 1].end : 0; }
};

struct Slice {
    long expert, begin, rows;
};

struct Pass {
    const Experts& l;
    const long D = l.width, F = l.inner, stride = stride_of(l.tokens);
    const bool backward = l.grad_out;
    std::vector<Slice> slices;
    float* packed;
    Panels gates{l.gates, stride}, x{}, grad{}, gated{};

    Pass(const Experts& arguments, Scratch& shared) : l(arguments) {
        for (long e = 0; e < l.count; e++)
            for (long t = l.begin(e); t < l.experts[e].end; t += CHUNK) slices.push_back({e, t, std::min(CHUNK, l.experts[e].end - t)});
        shared.reserve(4 * (3 * l.count * D * F + stride * (2 * D + F) / 16 + 1024));
        packed = shared.alloc<float>(3 * l.count * D * F);
        if (backward) x = alloc_panels(shared, l.tokens, D), grad = alloc_panels(shared, l.tokens, D), gated = alloc_panels(shared, l.tokens, F);
    }

    long parts() const { return (2 * F + D) / 16; }  // of an expert's weights
    Panels gate_up_panels(long expert) const { return {packed + expert * 3 * D * F, 16 * (backward ? 2 * F : D)}; }
    Panels down_panels(long expert) const { return {packed + expert * 3 * D * F + 2 * D * F, 16 * (backward ? D : F)}; }
    void pack(long number) const {
        const Expert& e = l.experts[number / parts()];
        const long row = number % parts() * 16;
        const bool down = row >= 2 * F;
        const long matrix_row = down ? row - 2 * F : row, inputs = down ? F : D;
        const Panels dst = down ? down_panels(number / parts()) : gate_up_panels(number / parts());
        const float* src = down ? e.down + matrix_row * F : gate_up_rows(D, e.gate, e.up, row);
        if (backward)
            pack_backward(src, inputs, matrix_row, dst);
        else
            pack_forward(src, inputs, dst.data + matrix_row * inputs);
    }

    static void load_rows(const float* src, const Slice& s, long width, Panels dst) {
        for (long i = 0; i < s.rows; i++)
            for (long d = 0; d < width; d += 16) store(dst(i, d), line(src + (s.begin + i) * width + d));
    }
    void mlp(const Slice& s) const {
        const auto store_rows = [&](float* dst) { return [=, &s](long i, long n, const Line& v) { store(dst + (s.begin + i) * D + n, v); }; };
        const Panels s_gates = gates.row(s.begin);
        if (backward) {
            const Panels g = grad.row(s.begin), s_gated = gated.row(s.begin);
            load_rows(l.grad_out, s, D, g), load_rows(l.x, s, D, x.row(s.begin));
            multiply(g, down_panels(s.expert), s.rows, F, D, [&](long i, long n, const Line& v) { swiglu_backward(s_gates, s_gated, i, n, v); });
            return multiply(s_gates, gate_up_panels(s.expert), s.rows, D, 2 * F, store_rows(l.grad_x));
        }
        scratch.reserve(4 * (stride_of(CHUNK) * ((D + F) / 16) + 128));
        const Panels x = alloc_panels(scratch, CHUNK, D), s_gated = alloc_panels(scratch, CHUNK, F);
        load_rows(l.x, s, D, x);
        multiply(x, gate_up_panels(s.expert), s.rows, 2 * F, D, [&](long i, long n, const Line& v) { swiglu(s_gates, s_gated, i, n, v); });
        multiply(s_gated, down_panels(s.expert), s.rows, D, F, store_rows(l.out));
    }

    // WEIGHT_ROWS rows of an expert's weights; the gradient of an expert without tokens is zero.
    long blocks() const { return (2 * F + WEIGHT_ROWS - 1) / WEIGHT_ROWS + (D + WEIGHT_ROWS - 1) / WEIGHT_ROWS; }
    void weight_gradients(long number) const {
        const long expert = number / blocks(), gate_blocks = (2 * F + WEIGHT_ROWS - 1) / WEIGHT_ROWS, block = number % blocks();
        const bool down = block >= gate_blocks;
        const Expert& e = l.experts[expert];
        const long m0 = (down ? block - gate_blocks : block) * WEIGHT_ROWS, M = std::min(WEIGHT_ROWS, (down ? D : 2 * F) - m0), N = down ? F : D;
        const long begin = l.begin(expert);
        weight_gradient((down ? grad : gates).row(begin).column(m0), (down ? gated : x).row(begin), M, N, e.end - begin, true, [&](long m, long n) {
            const long block_row = (m0 + m) & -16L;
            return (down ? e.grad_down + block_row * F : gate_up_rows(D, e.grad_gate, e.grad_up, block_row)) + (m0 + m - block_row) * N + n;
        });
    }
};

}  // namespace

// Computes `gates` and `out`; or, where `grad_out` is given, `grad_x` and the gradients of the weights.
extern "C" void float32_experts(const Experts* arguments) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const Pass pass(*arguments, team.shared);
    team.run(arguments->threads, {{arguments->count * pass.parts(), [&](long number) { pass.pack(number); }},
                                  {(long)pass.slices.size(), [&](long number) { pass.mlp(pass.slices[number]); }},
                                  {pass.backward ? arguments->count * pass.blocks() : 0, [&](long number) { pass.weight_gradients(number); }}});
}

}  // namespace f32
