// A mixture's experts, float32: tokens sorted by expert, at most CHUNK of one at a time through its gated MLP; the gradients of its
// weights are sums over its tokens. Which go where, and with what weight, is decided elsewhere.
#include <vector>

#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Expert {
    const float *gate, *up, *down;  // (inner, width) twice, (width, inner)
    float *grad_gate, *grad_up, *grad_down;
    long end;  // of its tokens, which begin where the last one's end
};

struct Experts {  // as in float32.py
    long tokens, width, inner, count, threads;
    const Expert* each;
    const float* x;            // (tokens, width)
    float *gates, *out;        // (tokens, 2 inner) in panels, kept for the backward pass; (tokens, width)
    const float* grad_out;
    float* grad_x;
    long begin(long expert) const { return expert ? each[expert - 1].end : 0; }
};

struct Slice {
    long expert, begin, rows;
};

struct Pass {
    const Experts& l;
    const long D = l.width, F = l.inner, stride = stride_of(l.tokens);
    const bool backwards = l.grad_out;
    std::vector<Slice> slices;
    float* packed;
    Panels gates{l.gates, stride}, x{}, grad{}, gated{};

    Pass(const Experts& given, Scratch& common) : l(given) {
        for (long e = 0; e < l.count; e++)
            for (long at = l.begin(e); at < l.each[e].end; at += CHUNK) slices.push_back({e, at, std::min(CHUNK, l.each[e].end - at)});
        common.room(4 * (3 * l.count * D * F + stride * (2 * D + F) / 16 + 1024));
        packed = common.take<float>(3 * l.count * D * F);
        if (backwards) x = take(common, l.tokens, D), grad = take(common, l.tokens, D), gated = take(common, l.tokens, F);
    }

    long parts() const { return (2 * F + D) / 16; }  // of an expert's weights
    Panels of_gated(long expert) const { return {packed + expert * 3 * D * F, 16 * (backwards ? 2 * F : D)}; }
    Panels of_down(long expert) const { return {packed + expert * 3 * D * F + 2 * D * F, 16 * (backwards ? D : F)}; }
    void pack(long number) const {
        const Expert& e = l.each[number / parts()];
        const long row = number % parts() * 16;
        const bool down = row >= 2 * F;
        const long own = down ? row - 2 * F : row, inputs = down ? F : D;
        const Panels to = down ? of_down(number / parts()) : of_gated(number / parts());
        const float* from = down ? e.down + own * F : gated_rows(D, e.gate, e.up, row);
        if (backwards)
            pack_backward(from, inputs, own, to);
        else
            pack_forward(from, inputs, to.at + own * inputs);
    }

    static void read(const float* from, const Slice& s, long width, Panels to) {
        for (long i = 0; i < s.rows; i++)
            for (long d = 0; d < width; d += 16) store(to(i, d), line(from + (s.begin + i) * width + d));
    }
    void rows(const Slice& s) const {
        const auto write = [&](float* to) { return [=, &s](long i, long n, const Line& v) { store(to + (s.begin + i) * D + n, v); }; };
        const Panels own = gates.row(s.begin);
        if (backwards) {
            const Panels g = grad.row(s.begin), product = gated.row(s.begin);
            read(l.grad_out, s, D, g), read(l.x, s, D, x.row(s.begin));
            multiply(g, of_down(s.expert), s.rows, F, D, [&](long i, long n, const Line& v) { open_gate_backward(own, product, i, n, v); });
            return multiply(own, of_gated(s.expert), s.rows, D, 2 * F, write(l.grad_x));
        }
        scratch.room(4 * (stride_of(CHUNK) * ((D + F) / 16) + 128));
        const Panels in = take(scratch, CHUNK, D), product = take(scratch, CHUNK, F);
        read(l.x, s, D, in);
        multiply(in, of_gated(s.expert), s.rows, 2 * F, D, [&](long i, long n, const Line& v) { open_gate(own, product, i, n, v); });
        multiply(product, of_down(s.expert), s.rows, D, F, write(l.out));
    }

    // SIDE rows of an expert's weights; the gradient of one without tokens is zero.
    long blocks() const { return (2 * F + SIDE - 1) / SIDE + (D + SIDE - 1) / SIDE; }
    void weights(long number) const {
        const long expert = number / blocks(), gates_blocks = (2 * F + SIDE - 1) / SIDE, block = number % blocks();
        const bool down = block >= gates_blocks;
        const Expert& e = l.each[expert];
        const long m0 = (down ? block - gates_blocks : block) * SIDE, M = std::min(SIDE, (down ? D : 2 * F) - m0), N = down ? F : D;
        const long begin = l.begin(expert);
        sum_up((down ? grad : gates).row(begin).column(m0), (down ? gated : x).row(begin), M, N, e.end - begin, true, [&](long m, long n) {
            const long first = (m0 + m) & -16L;
            return (down ? e.grad_down + first * F : gated_rows(D, e.grad_gate, e.grad_up, first)) + (m0 + m - first) * N + n;
        });
    }
};

}  // namespace

// Forwards `gates` and `out` are made; backwards, where `grad_out` is given, `grad_x` and the weights' gradients.
extern "C" void float32_experts(const Experts* given) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> alone(team.alone);
    const Pass pass(*given, team.common);
    team.run(given->threads, {{given->count * pass.parts(), [&](long number) { pass.pack(number); }},
                              {(long)pass.slices.size(), [&](long number) { pass.rows(pass.slices[number]); }},
                              {pass.backwards ? given->count * pass.blocks() : 0, [&](long number) { pass.weights(number); }}});
}

}  // namespace f32
