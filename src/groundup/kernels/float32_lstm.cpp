// The recurrent half of an LSTM layer, float32: a thread takes some rows of the batch through all time steps, with the weights in
// the cache. The input's part of the gates and the gradients of weights are products over all tokens, computed by the caller.
#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Recurrence {  // as in float32.py, row-major; gates are i, f, g, o of `width` numbers each
    long rows, time, width, threads;
    const float *inputs, *weight;         // (rows, time, 4 width), (4 width, width)
    const unsigned char* begins;          // (rows, time): 1 where the state before is zero
    float *gates, *cells, *hidden;        // (rows, time, 4 width), twice (rows, time, width)
    const float* grad_hidden;
    float* grad_inputs;
    long rows_per_chunk() const { return std::clamp((rows + threads - 1) / threads, 1L, 24L); }
};

INLINE Line tanh(const Line& x) { return sigmoid(x + x) * 2.f - line(1.f); }

// The weight as right operand. Forward, the four gates of 16 units are adjacent, so that a unit is done as soon as they are.
void pack(const Recurrence& l, long unit, bool forward, float* dst) {
    const long D = l.width;
    for (long gate = 0; gate < 4; gate++)
        for (long i = 0; i < 16; i++) {
            const float* src = l.weight + (gate * D + unit + i) * D;
            for (long k = 0; forward && k < D; k++) dst[(unit * 4 + gate * 16) * D + k * 16 + i] = src[k];
            for (long n = 0; !forward && n < D; n += 16) store(dst + n * 4 * D + (gate * D + unit + i) * 16, line(src + n));
        }
}

void forward(const Recurrence& l, Panels weight, long first_row, long R) {
    const long D = l.width, T = l.time;
    scratch.reserve(4 * (2 * stride_of(R) * (D / 16) + 64));
    Panels h_in = alloc_panels(scratch, R, D), h_out = alloc_panels(scratch, R, D);
    for (long t = 0; t < T; t++) {
        const auto begins = [&](long i) { return l.begins[(first_row + i) * T + t] != 0; };
        for (long i = 0; i < R; i++)
            for (long d = 0; d < D && begins(i); d += 16) store(h_in(i, d), line(0.f));
        multiply(h_in, weight, R, 4 * D, D, [&](long i, long n, const Line& product) {
            const long token = (first_row + i) * T + t, gate = n / 16 % 4, d = n / 64 * 16;
            float* gates = l.gates + token * 4 * D + d;
            const Line v = line(l.inputs + token * 4 * D + gate * D + d) + product;
            store(gates + gate * D, gate == 2 ? tanh(v) : sigmoid(v));
            if (gate < 3) return;
            Line cell = line(gates) * line(gates + 2 * D);
            if (!begins(i)) cell = cell + line(gates + D) * line(l.cells + (token - 1) * D + d);
            const Line h = line(gates + 3 * D) * tanh(cell);
            store(l.cells + token * D + d, cell), store(l.hidden + token * D + d, h), store(h_out(i, d), h);
        });
        std::swap(h_in, h_out);
    }
}

void backward(const Recurrence& l, Panels weight, long first_row, long R) {
    const long D = l.width, T = l.time;
    scratch.reserve(4 * (6 * stride_of(R) * (D / 16) + 256));
    const Panels grad_gates = alloc_panels(scratch, R, 4 * D), grad = alloc_panels(scratch, R, D), grad_cell = alloc_panels(scratch, R, D);
    for (Panels panels : {grad, grad_cell}) std::fill(panels.data, panels.data + panels.stride * (D / 16), 0.f);
    const Line one = line(1.f);
    for (long t = T - 1; t >= 0; t--) {
        for (long i = 0; i < R; i++) {
            const long token = (first_row + i) * T + t;
            const bool begins = l.begins[token];
            for (long d = 0; d < D; d += 16) {
                const float* gates = l.gates + token * 4 * D + d;
                const Line input = line(gates), forget = line(gates + D), candidate = line(gates + 2 * D), output = line(gates + 3 * D);
                const Line tanh_cell = tanh(line(l.cells + token * D + d)), grad_h = line(l.grad_hidden + token * D + d) + line(grad(i, d));
                const Line grad_c = line(grad_cell(i, d)) + grad_h * output * (one - tanh_cell * tanh_cell);
                const Line previous = begins ? line(0.f) : line(l.cells + (token - 1) * D + d);
                const Line grad_gate[] = {grad_c * candidate * input * (one - input), grad_c * previous * forget * (one - forget),
                                          grad_c * input * (one - candidate * candidate), grad_h * tanh_cell * output * (one - output)};
                store(grad_cell(i, d), begins ? line(0.f) : grad_c * forget);
                for (long gate = 0; gate < 4; gate++) {
                    store(l.grad_inputs + token * 4 * D + gate * D + d, grad_gate[gate]);
                    store(grad_gates(i, gate * D + d), grad_gate[gate]);
                }
            }
        }
        multiply(grad_gates, weight, R, D, 4 * D, [&](long i, long n, const Line& v) {
            store(grad(i, n), l.begins[(first_row + i) * T + t] ? line(0.f) : v);
        });
    }
}

}  // namespace

// Computes gates, cells and hidden; or, where `grad_hidden` is given, `grad_inputs` from these.
extern "C" void float32_recurrence(const Recurrence* arguments) {
    const Recurrence& l = *arguments;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const long D = l.width, R = l.rows_per_chunk();
    const bool is_forward = !l.grad_hidden;
    team.shared.reserve(4 * (4 * D * D + 64));
    const Panels weight = {team.shared.alloc<float>(4 * D * D), 16 * (is_forward ? D : 4 * D)};
    const auto pass = [&](long number) {
        const long first_row = number * R, count = std::min(R, l.rows - first_row);
        is_forward ? forward(l, weight, first_row, count) : backward(l, weight, first_row, count);
    };
    team.run(l.threads, {{D / 16, [&](long number) { pack(l, number * 16, is_forward, weight.data); }}, {(l.rows + R - 1) / R, pass}});
}

}  // namespace f32
