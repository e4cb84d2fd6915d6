// The recurrent half of an LSTM layer, float32: some rows of the batch at a time go through all of the text, the weights in the
// cache. What a step takes from its input, and the gradients of weights, are products over all tokens and left to others.
#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Recurrence {  // as in float32.py: everything row by row; gates are i, f, g, o of `width` numbers each
    long rows, time, width, threads;
    const float *inputs, *weight;         // (rows, time, 4 width), (4 width, width)
    const unsigned char* begins;          // (rows, time): 1 where nothing before is known
    float *gates, *cells, *hidden;        // (rows, time, 4 width), twice (rows, time, width)
    const float* grad_hidden;
    float* grad_inputs;
    long at_once() const { return std::clamp((rows + threads - 1) / threads, 1L, 24L); }
};

INLINE Line tanh(const Line& x) { return sigmoid(x + x) * 2.f - line(1.f); }

// The weight as right operand: forwards 16 units' four gates lie side by side, so that a unit is done as soon as they are.
void pack(const Recurrence& l, long unit, bool forward, float* to) {
    const long D = l.width;
    for (long gate = 0; gate < 4; gate++)
        for (long i = 0; i < 16; i++) {
            const float* from = l.weight + (gate * D + unit + i) * D;
            for (long k = 0; forward && k < D; k++) to[(unit * 4 + gate * 16) * D + k * 16 + i] = from[k];
            for (long n = 0; !forward && n < D; n += 16) store(to + n * 4 * D + (gate * D + unit + i) * 16, line(from + n));
        }
}

void forward(const Recurrence& l, Panels weight, long first, long R) {
    const long D = l.width, T = l.time;
    scratch.room(4 * (2 * stride_of(R) * (D / 16) + 64));
    Panels before = take(scratch, R, D), after = take(scratch, R, D);
    for (long t = 0; t < T; t++) {
        const auto begins = [&](long i) { return l.begins[(first + i) * T + t] != 0; };
        for (long i = 0; i < R; i++)
            for (long d = 0; d < D && begins(i); d += 16) store(before(i, d), line(0.f));
        multiply(before, weight, R, 4 * D, D, [&](long i, long n, const Line& product) {
            const long at = (first + i) * T + t, gate = n / 16 % 4, d = n / 64 * 16;
            float* gates = l.gates + at * 4 * D + d;
            const Line v = line(l.inputs + at * 4 * D + gate * D + d) + product;
            store(gates + gate * D, gate == 2 ? tanh(v) : sigmoid(v));
            if (gate < 3) return;
            Line cell = line(gates) * line(gates + 2 * D);
            if (!begins(i)) cell = cell + line(gates + D) * line(l.cells + (at - 1) * D + d);
            const Line h = line(gates + 3 * D) * tanh(cell);
            store(l.cells + at * D + d, cell), store(l.hidden + at * D + d, h), store(after(i, d), h);
        });
        std::swap(before, after);
    }
}

void backward(const Recurrence& l, Panels weight, long first, long R) {
    const long D = l.width, T = l.time;
    scratch.room(4 * (6 * stride_of(R) * (D / 16) + 256));
    const Panels slopes = take(scratch, R, 4 * D), grad = take(scratch, R, D), grad_cell = take(scratch, R, D);
    for (Panels of : {grad, grad_cell}) std::fill(of.at, of.at + of.stride * (D / 16), 0.f);
    const Line one = line(1.f);
    for (long t = T - 1; t >= 0; t--) {
        for (long i = 0; i < R; i++) {
            const long at = (first + i) * T + t;
            const bool begins = l.begins[at];
            for (long d = 0; d < D; d += 16) {
                const float* gates = l.gates + at * 4 * D + d;
                const Line in = line(gates), forget = line(gates + D), made = line(gates + 2 * D), out = line(gates + 3 * D);
                const Line shown = tanh(line(l.cells + at * D + d)), h = line(l.grad_hidden + at * D + d) + line(grad(i, d));
                const Line cell = line(grad_cell(i, d)) + h * out * (one - shown * shown);
                const Line previous = begins ? line(0.f) : line(l.cells + (at - 1) * D + d);
                const Line found[] = {cell * made * in * (one - in), cell * previous * forget * (one - forget),
                                      cell * in * (one - made * made), h * shown * out * (one - out)};
                store(grad_cell(i, d), begins ? line(0.f) : cell * forget);
                for (long gate = 0; gate < 4; gate++) {
                    store(l.grad_inputs + at * 4 * D + gate * D + d, found[gate]);
                    store(slopes(i, gate * D + d), found[gate]);
                }
            }
        }
        multiply(slopes, weight, R, D, 4 * D, [&](long i, long n, const Line& v) {
            store(grad(i, n), l.begins[(first + i) * T + t] ? line(0.f) : v);
        });
    }
}

}  // namespace

// Forwards gates, cells and hidden are made; backwards, where `grad_hidden` is given, `grad_inputs` from them.
extern "C" void float32_recurrence(const Recurrence* given) {
    const Recurrence& l = *given;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> alone(team.alone);
    const long D = l.width, R = l.at_once();
    const bool forwards = !l.grad_hidden;
    team.common.room(4 * (4 * D * D + 64));
    const Panels weight = {team.common.take<float>(4 * D * D), 16 * (forwards ? D : 4 * D)};
    const auto pass = [&](long number) {
        const long first = number * R, count = std::min(R, l.rows - first);
        forwards ? forward(l, weight, first, count) : backward(l, weight, first, count);
    };
    team.run(l.threads, {{D / 16, [&](long number) { pack(l, number * 16, forwards, weight.at); }}, {(l.rows + R - 1) / R, pass}});
}

}  // namespace f32
