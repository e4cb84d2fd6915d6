// The dense decoder's layers in training, float32: CHUNK tokens go through a layer together, in the cache of one core, except
// for attention, which a head of a row at a time goes through; last come the weights' gradients, sums over all tokens.
#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Shape {  // as in model/float32_layers.py; time: of the longest row
    long rows, tokens, time, width, heads, key_heads, channels, inner, threads, layers, vocabulary;
    double eps;
    long attended() const { return heads * channels; }
    long mixed() const { return (heads + 2 * key_heads) * channels; }
    long chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
    long padded() const { return (time + 15) & -16L; }
};

struct Layer {  // parameters, their gradients, and what is kept for the backward pass (panels)
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm, *q, *k, *v, *o, *gate, *up, *down;
    float *grad_attention_norm, *grad_mlp_norm, *grad_q_norm, *grad_k_norm, *grad_q, *grad_k, *grad_v, *grad_o, *grad_gate,
        *grad_up, *grad_down;
    float *x, *mixed, *attention, *middle, *gates, *log_sums;
};

struct Batch {
    const float *embedding, *cos, *sin, *norm;
    const int *ids, *documents, *positions;  // of all tokens, one row after the other
    const int* starts;                       // of the rows, and the end
};
constexpr int SHARED = INT32_MIN;  // the document that all of its row see

// --- weights ---------------------------------------------------------------------------------------------------------

// Where the 16 rows from `row` on are in the matrices that make queries, keys and values, and in those of gates and what they
// gate, which lie beside each other, 16 by 16.
template <class T>
INLINE T* mixed_rows(const Shape& s, T* q, T* k, T* v, long row) {
    const long A = s.attended(), K = s.key_heads * s.channels;
    return row < A ? q + row * s.width : row < A + K ? k + (row - A) * s.width : v + (row - A - K) * s.width;
}
template <class T>
INLINE T* gated_rows(const Shape& s, T* gate, T* up, long row) {
    return (row / 16 % 2 ? up : gate) + row / 32 * 16 * s.width;
}

// 16 rows of a weight (outputs x inputs), to multiply from the right what goes forwards, and what comes back.
static void pack_forward(const float* from, long inputs, float* to) {
    for (long k = 0; k < inputs; k += 8)
        for (long i = 0; i < 16; i++)
            for (long j = 0; j < 8; j++) to[(k + j) * 16 + i] = from[i * inputs + k + j];
}
static void pack_backward(const float* from, long inputs, long row, Panels to) {
    for (long n = 0; n < inputs; n += 16)
        for (long i = 0; i < 16; i++) store(to(row + i, n), line(from + i * inputs + n));
}

struct Packed {
    Panels mixed, o, gated, down;
    static Packed take(const Shape& s, Scratch& from) {
        const auto panels = [&](long numbers) { return Panels{from.take<float>(numbers), 0}; };
        return {panels(s.mixed() * s.width), panels(s.attended() * s.width), panels(2 * s.inner * s.width), panels(s.inner * s.width)};
    }
    static long parts(const Shape& s) { return (s.mixed() + s.width + 2 * s.inner + s.width) / 16; }
    void pack(const Shape& s, const Layer& l, long part, bool forward) {
        const long D = s.width, sizes[] = {s.mixed(), D, 2 * s.inner, D}, inputs[] = {D, s.attended(), D, s.inner};
        long which = 0, row = part * 16;
        while (row >= sizes[which]) row -= sizes[which++];
        const float* from[] = {mixed_rows(s, l.q, l.k, l.v, row), l.o + row * inputs[1], gated_rows(s, l.gate, l.up, row),
                               l.down + row * inputs[3]};
        float* to = of(which).at;
        if (forward)
            pack_forward(from[which], inputs[which], to + row * inputs[which]);
        else
            pack_backward(from[which], inputs[which], row, {to, sizes[which] * 16});
    }
    void strides(const Shape& s, bool forward) {
        const long D = s.width, sizes[] = {s.mixed(), D, 2 * s.inner, D}, inputs[] = {D, s.attended(), D, s.inner};
        for (int which = 0; which < 4; which++) of(which).stride = 16 * (forward ? inputs : sizes)[which];
    }
    Panels& of(int which) { return which == 0 ? mixed : which == 1 ? o : which == 2 ? gated : down; }
};

// --- norms -----------------------------------------------------------------------------------------------------------

static void inverses(Panels x, long M, long D, float eps, float* inverse) {
    Line squares[CHUNK];
    for (long i = 0; i < M; i++) squares[i] = line(0.f);
    for (long d = 0; d < D; d += 16)
        for (long i = 0; i < M; i++) {
            const Line v = line(x(i, d));
            squares[i] = squares[i] + v * v;
        }
    for (long i = 0; i < M; i++) inverse[i] = 1 / std::sqrt(sum(squares[i]) / D + eps);
}

// save(i, d, line): the chunk's rows, normalised.
template <class Save>
static void normalise(Panels x, const float* weight, long M, long D, float eps, Save save) {
    float inverse[CHUNK];
    inverses(x, M, D, eps, inverse);
    for (long d = 0; d < D; d += 16) {
        const Line w = line(weight + d);
        for (long i = 0; i < M; i++) save(i, d, line(x(i, d)) * inverse[i] * w);
    }
}

// save(i, d, line) gets the gradient of x; `normed` what the norm made of it, again; `gains` adds up the weight's gradient.
template <class Save>
static void normalise_backward(Panels x, const float* weight, Panels grad, Panels normed, long M, long D, float eps, float* gains,
                               Save save) {
    float inverse[CHUNK], mean[CHUNK];
    inverses(x, M, D, eps, inverse);
    Line dots[CHUNK];
    for (long i = 0; i < M; i++) dots[i] = line(0.f);
    for (long d = 0; d < D; d += 16) {
        const Line w = line(weight + d);
        for (long i = 0; i < M; i++) dots[i] = dots[i] + line(grad(i, d)) * w * line(x(i, d));
    }
    for (long i = 0; i < M; i++) mean[i] = sum(dots[i]) * inverse[i] / D;
    for (long d = 0; d < D; d += 16) {
        const Line w = line(weight + d);
        Line gain = line(gains + d);
        for (long i = 0; i < M; i++) {
            const Line n = line(x(i, d)) * inverse[i], g = line(grad(i, d));
            gain = gain + g * n;
            if (normed.at) store(normed(i, d), n * w);
            save(i, d, (g * w - n * mean[i]) * inverse[i]);
        }
        store(gains + d, gain);
    }
}

// --- attention -------------------------------------------------------------------------------------------------------

struct Turns {
    const float *cos, *sin;  // (positions, channels / 2)
    const int* positions;    // of a row's tokens
};

// Queries or keys of a head, normalised and turned by their positions.
static void norm_rope(Panels from, const float* weight, const Turns& turns, float eps, float scale, long T, long C, Panels to) {
    const long half = C / 2;
    alignas(64) float row[512];
    for (long t = 0; t < T; t++) {
        Line squares = line(0.f);
        for (long c = 0; c < C; c += 16) {
            const Line v = line(from(t, c));
            squares = squares + v * v, store(row + c, v * line(weight + c));
        }
        const float inverse = scale / std::sqrt(sum(squares) / C + eps);
        const float *cos = turns.cos + turns.positions[t] * half, *sin = turns.sin + turns.positions[t] * half;
        for (long c = 0; c < half; c += 8) {
            for (long j = c; j < c + 8; j++) {
                const float a = row[j] * inverse, b = row[half + j] * inverse, x = cos[j], y = sin[j];
                row[j] = a * x - b * y, row[half + j] = b * x + a * y;
            }
        }
        for (long c = 0; c < C; c += 16) store(to(t, c), line(row + c));
    }
}

// From the gradient of what `norm_rope` made, `grad`, to that of what it was made from.
static void norm_rope_backward(Panels from, const float* weight, const Turns& turns, float eps, float scale, long T, long C,
                               Panels grad, Panels to, float* gains) {
    const long half = C / 2;
    alignas(64) float row[512], normed[512];
    for (long t = 0; t < T; t++) {
        Line squares = line(0.f), dots = line(0.f);
        for (long c = 0; c < C; c += 16) {
            const Line v = line(from(t, c));
            squares = squares + v * v, store(row + c, line(grad(t, c))), store(normed + c, v);
        }
        const float inverse = 1 / std::sqrt(sum(squares) / C + eps);
        const float *cos = turns.cos + turns.positions[t] * half, *sin = turns.sin + turns.positions[t] * half;
        for (long j = 0; j < half; j++) {
            const float a = row[j] * scale, b = row[half + j] * scale, x = cos[j], y = sin[j];
            row[j] = a * x + b * y, row[half + j] = b * x - a * y;
        }
        for (long c = 0; c < C; c += 16) {
            const Line n = line(normed + c) * inverse, g = line(row + c), gw = g * line(weight + c);
            store(normed + c, n), store(gains + c, line(gains + c) + g * n), store(row + c, gw);
            dots = dots + gw * n;
        }
        const float mean = sum(dots) / C;
        for (long c = 0; c < C; c += 16) store(to(t, c), (line(row + c) - line(normed + c) * mean) * inverse);
    }
}

// The transpose of panels (T x C) as panels (C x T), T filled up to 16 by zeros.
static void turned(Panels from, long T, long C, float* to) {
    for (long t = 0; t < T; t += 16) {
        float* panel = to + t * C;
        for (long c = 0; c < C; c += 16)
            for (long i = 0; i < 16; i++)
                for (long j = 0; j < 16; j++) panel[(c + j) * 16 + i] = t + i < T ? from(t + i, c)[j] : 0;
    }
}

static void fill_up(Panels of, long T, long C) {
    for (long c = 0; c < C; c += 16)
        for (long t = T; t % 16; t++) store(of(t, c), line(0.f));
}

typedef int AnyInts __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
static const struct Places {
    alignas(64) int of[16];
    Places() {
        for (int i = 0; i < 16; i++) of[i] = i;
    }
} PLACES;

struct Head {  // what a thread needs for a head of a row: T x C where nothing else is said
    long T, C;
    const int* documents;
    long *first;  // the first place that each token sees
    Panels q, k, v, grad_q, grad_k, grad_v, scores, slopes;  // scores, slopes: CHUNK x T
    float *keys_t, *values_t, *log_sums, *along;

    static size_t numbers(const Shape& s) {
        const long T = s.padded(), C = s.channels;
        return 8 * (stride_of(T) * (C / 16) + 64) + 2 * (T * C + 32) + 2 * stride_of(CHUNK) * (T / 16) + 6 * T + 1024;
    }
    static Head take(const Shape& s, Scratch& from) {
        const long T = s.padded(), C = s.channels;
        const auto panels = [&] { return f32::take(from, T, C); };
        return {0, C, nullptr, from.take<long>(T), panels(), panels(), panels(), panels(), panels(), panels(),
                f32::take(from, CHUNK, T), f32::take(from, CHUNK, T), from.take<float>(T * C), from.take<float>(T * C),
                from.take<float>(T), from.take<float>(T)};
    }
    void read(const int* of_row, long time) {
        documents = of_row, T = time;
        for (long t = 0; t < T; t++) {
            first[t] = t && of_row[t] == of_row[t - 1] ? first[t - 1] : t;
            for (long u = 0; u < t && first[t] == t; u++)
                if (of_row[u] == of_row[t] || of_row[u] == SHARED) first[t] = u;
        }
    }
    // From where on the queries t to end look, a multiple of 16.
    long begin(long t, long end) const { return *std::min_element(first + t, first + end) & -16L; }
    // Scores of query t with the 16 keys from s on, -inf where it does not see them.
    Line seen(long t, long s, const Line& scores) const {
        return made([&](int i) {
            const AnyInts places = *(const AnyInts*)(PLACES.of + i * LANES) + (int)s;
            AnyInts of{};
            const long at = s + i * LANES;
            if (at + LANES <= T)
                of = *(const AnyInts*)(documents + at);
            else
                for (long j = 0; j < LANES && at + j < T; j++) of[j] = documents[at + j];
            const auto visible = (places <= (int)t) & ((of == documents[t]) | (of == SHARED));
            return (Ints)visible ? scores.part[i] : all(-INFINITY);
        });
    }
};

// out: (T x C). Leaves the logarithms of the sums of e^score.
static void attend(Head& h, Panels out) {
    Line highest_of[CHUNK];
    float scale[CHUNK];
    for (long t = 0; t < h.T; t += CHUNK) {
        const long M = std::min(CHUNK, h.T - t), begin = h.begin(t, t + M), N = ((t + M + 15) & -16L) - begin;
        for (long i = 0; i < M; i++) highest_of[i] = line(-INFINITY);
        multiply(h.q.row(t), {h.keys_t + begin * h.C, h.C * 16}, M, N, h.C, [&](long i, long n, const Line& score) {
            const Line seen = h.seen(t + i, begin + n, score);
            highest_of[i] = greater(seen, highest_of[i]);
            store(h.scores(i, n), seen);
        }, {t - begin, FAR});
        for (long i = 0; i < M; i++) {
            const float high = highest(highest_of[i]);
            const long last = std::min(M - 1, i / TILE * TILE + TILE - 1);
            Line total = line(0.f);
            for (long n = 0; n <= t + last - begin; n += 16) {
                const Line e = exponential(line(h.scores(i, n)) - line(high));
                total = total + e, store(h.scores(i, n), e);
            }
            const float whole = sum(total);
            h.log_sums[t + i] = high + std::log(whole), scale[i] = 1 / whole;
        }
        multiply(h.scores, h.v.row(begin), M, h.C, N, [&](long i, long n, const Line& v) { store(out(t + i, n), v * scale[i]); },
                 {FAR, t - begin});
    }
}

// From the gradient of attention's output to that of queries and, added up, keys and values.
static void attend_backward(Head& h, Panels grad) {
    for (long t = 0; t < h.T; t += CHUNK) {
        const long M = std::min(CHUNK, h.T - t), begin = h.begin(t, t + M), N = ((t + M + 15) & -16L) - begin;
        const Causal seen{t - begin, FAR}, within{FAR, t - begin};
        multiply(h.q.row(t), {h.keys_t + begin * h.C, h.C * 16}, M, N, h.C, [&](long i, long n, const Line& score) {
            store(h.scores(i, n), exponential(h.seen(t + i, begin + n, score) - line(h.log_sums[t + i])));
        }, seen);
        multiply(grad.row(t), {h.values_t + begin * h.C, h.C * 16}, M, N, h.C, [&](long i, long n, const Line& slope) {
            store(h.slopes(i, n), line(h.scores(i, n)) * (slope - line(h.along[t + i])));
        }, seen);
        const auto keys = [&](Panels of) { return [=](long m, long n) { return of(begin + m, n); }; };
        multiply_transposed(h.scores, grad.row(t), N, h.C, M, false, keys(h.grad_v), t - begin);
        multiply_transposed(h.slopes, h.q.row(t), N, h.C, M, false, keys(h.grad_k), t - begin);
        multiply(h.slopes, h.k.row(begin), M, h.C, N, [&](long i, long n, const Line& v) { store(h.grad_q(t + i, n), v); }, within);
    }
}

// --- passes ----------------------------------------------------------------------------------------------------------

struct Chunk {
    long begin, rows;
    Chunk(const Shape& s, long number) : begin(number * CHUNK), rows(std::min(CHUNK, s.tokens - begin)) {}
};

static Panels panels(float* at, const Shape& s) { return {at, stride_of(s.tokens)}; }

static void mix(const Shape& s, const Layer& l, Packed& packed, long number) {
    const Chunk c(s, number);
    scratch.room(4 * (stride_of(CHUNK) * (s.width / 16) + 64));
    const Panels x = panels(l.x, s).row(c.begin), mixed = panels(l.mixed, s).row(c.begin), normed = take(scratch, CHUNK, s.width);
    normalise(x, l.attention_norm, c.rows, s.width, s.eps, [&](long i, long d, const Line& v) { store(normed(i, d), v); });
    multiply(normed, packed.mixed, c.rows, s.mixed(), s.width, [&](long i, long n, const Line& v) { store(mixed(i, n), v); });
}

static void prepare_keys(const Shape& s, const Layer& l, const Turns& turns, Panels mixed, long key_head, Head& h) {
    const long T = h.T, C = s.channels, key = s.attended() + key_head * C, value = key + s.key_heads * C;
    norm_rope(mixed.column(key), l.k_norm, turns, s.eps, 1, T, C, h.k);
    turned(h.k, T, C, h.keys_t);
    for (long c = 0; c < C; c += 16)
        for (long t = 0; t < T; t++) store(h.v(t, c), line(mixed(t, value + c)));
    fill_up(h.v, T, C), fill_up(h.k, T, C);
}

static void attend_row(const Shape& s, const Layer& l, const Batch& b, long number) {
    const long r = number / s.heads, head = number % s.heads, start = b.starts[r], T = b.starts[r + 1] - start, C = s.channels;
    scratch.room(4 * Head::numbers(s));
    Head h = Head::take(s, scratch);
    const Panels mixed = panels(l.mixed, s).row(start);
    const Turns turns = {b.cos, b.sin, b.positions + start};
    h.read(b.documents + start, T);
    prepare_keys(s, l, turns, mixed, head / (s.heads / s.key_heads), h);
    norm_rope(mixed.column(head * C), l.q_norm, turns, s.eps, 1 / std::sqrt((float)C), T, C, h.q);
    h.log_sums = l.log_sums + start * s.heads + head * T;
    attend(h, panels(l.attention, s).row(start).column(head * C));
}

static void feed(const Shape& s, const Layer& l, Packed& packed, float* to, long number) {
    const Chunk c(s, number);
    const long D = s.width, F = s.inner;
    scratch.room(4 * (stride_of(CHUNK) * ((D + F) / 16) + 128));
    const auto chunk = [&](float* at) { return panels(at, s).row(c.begin); };
    const Panels x = chunk(l.x), middle = chunk(l.middle), gates = chunk(l.gates), out = chunk(to);
    const Panels normed = take(scratch, CHUNK, D), gated = take(scratch, CHUNK, F);
    multiply(chunk(l.attention), packed.o, c.rows, D, s.attended(), [&](long i, long n, const Line& v) {
        store(middle(i, n), line(x(i, n)) + v);
    });
    normalise(middle, l.mlp_norm, c.rows, D, s.eps, [&](long i, long d, const Line& v) { store(normed(i, d), v); });
    multiply(normed, packed.gated, c.rows, 2 * F, D, [&](long i, long n, const Line& v) {
        store(gates(i, n), v);
        if (n & 16) {
            const Line gate = line(gates(i, n - 16));
            store(gated(i, n / 2 - 8), gate * sigmoid(gate) * v);
        }
    });
    multiply(gated, packed.down, c.rows, D, F, [&](long i, long n, const Line& v) { store(out(i, n), line(middle(i, n)) + v); });
}

struct Gradients {  // of all tokens, panels: what comes from above and goes below, and operands of the weights' gradients
    float *out, *middle, *mixed, *attention, *normed, *mlp_normed, *gated;
};

static void feed_backward(const Shape& s, const Layer& l, const Gradients& g, Packed& packed, float* gains, long number) {
    const Chunk c(s, number);
    const long D = s.width, F = s.inner;
    scratch.room(4 * (stride_of(CHUNK) * (D / 16) + 64));
    const auto chunk = [&](float* at) { return panels(at, s).row(c.begin); };
    const Panels out = chunk(g.out), gates = chunk(l.gates), gated = chunk(g.gated), middle = chunk(g.middle);
    const Panels grad_normed = take(scratch, CHUNK, D), attention = chunk(g.attention);
    multiply(out, packed.down, c.rows, F, D, [&](long i, long n, const Line& v) {
        float *at_gate = gates(i, 2 * n), *at_up = gates(i, 2 * n + 16);
        const Line gate = line(at_gate), up = line(at_up), open = sigmoid(gate), silu = gate * open;
        store(at_gate, v * up * (open + silu - silu * open)), store(at_up, v * silu), store(gated(i, n), silu * up);
    });
    multiply(gates, packed.gated, c.rows, D, 2 * F, [&](long i, long n, const Line& v) { store(grad_normed(i, n), v); });
    normalise_backward(chunk(l.middle), l.mlp_norm, grad_normed, chunk(g.mlp_normed), c.rows, D, s.eps, gains + number * 2 * D + D,
                       [&](long i, long d, const Line& v) { store(middle(i, d), line(out(i, d)) + v); });
    multiply(middle, packed.o, c.rows, s.attended(), D, [&](long i, long n, const Line& v) { store(attention(i, n), v); });
}

static void attend_row_backward(const Shape& s, const Layer& l, const Batch& b, const Gradients& g, float* gains, long number) {
    const long r = number / s.key_heads, key_head = number % s.key_heads, shared = s.heads / s.key_heads, C = s.channels;
    const long start = b.starts[r], T = b.starts[r + 1] - start;
    const long key = s.attended() + key_head * C, value = key + s.key_heads * C;
    scratch.room(4 * Head::numbers(s));
    Head h = Head::take(s, scratch);
    const Panels mixed = panels(l.mixed, s).row(start), grad_mixed = panels(g.mixed, s).row(start);
    const Turns turns = {b.cos, b.sin, b.positions + start};
    h.read(b.documents + start, T);
    prepare_keys(s, l, turns, mixed, key_head, h);
    turned(mixed.column(value), T, C, h.values_t);
    for (Panels of : {h.grad_k, h.grad_v}) std::fill(of.at, of.at + stride_of(s.padded()) * (C / 16), 0.f);
    float *gain_q = gains + number * 2 * C, *gain_k = gain_q + C;
    const float scale = 1 / std::sqrt((float)C);
    for (long head = key_head * shared; head < (key_head + 1) * shared; head++) {
        const Panels q = mixed.column(head * C), out = panels(l.attention, s).row(start).column(head * C);
        const Panels grad = panels(g.attention, s).row(start).column(head * C);
        norm_rope(q, l.q_norm, turns, s.eps, scale, T, C, h.q);
        h.log_sums = l.log_sums + start * s.heads + head * T;
        for (long t = 0; t < T; t++) {
            Line dots = line(0.f);
            for (long c = 0; c < C; c += 16) dots = dots + line(grad(t, c)) * line(out(t, c));
            h.along[t] = sum(dots);
        }
        attend_backward(h, grad);
        norm_rope_backward(q, l.q_norm, turns, s.eps, scale, T, C, h.grad_q, grad_mixed.column(head * C), gain_q);
    }
    norm_rope_backward(mixed.column(key), l.k_norm, turns, s.eps, 1, T, C, h.grad_k, grad_mixed.column(key), gain_k);
    for (long c = 0; c < C; c += 16)
        for (long t = 0; t < T; t++) store(grad_mixed(t, value + c), line(h.grad_v(t, c)));
}

static void mix_backward(const Shape& s, const Layer& l, const Gradients& g, Packed& packed, float* gains, long number) {
    const Chunk c(s, number);
    const long D = s.width;
    scratch.room(4 * (stride_of(CHUNK) * (D / 16) + 64));
    const auto chunk = [&](float* at) { return panels(at, s).row(c.begin); };
    const Panels grad_normed = take(scratch, CHUNK, D), middle = chunk(g.middle), x = chunk(l.x);
    multiply(chunk(g.mixed), packed.mixed, c.rows, D, s.mixed(), [&](long i, long n, const Line& v) { store(grad_normed(i, n), v); });
    // What came in is kept until all weights' gradients are there, and x is not needed again.
    normalise_backward(x, l.attention_norm, grad_normed, chunk(g.normed), c.rows, D, s.eps, gains + number * 2 * D,
                       [&](long i, long d, const Line& v) { store(x(i, d), line(middle(i, d)) + v); });
}

// Of the four products over all tokens, the `part`th block of 64 x 256.
struct WeightGradients {
    static constexpr long ROWS = 64, COLUMNS = 256;
    static long blocks(long rows, long columns) { return (rows + ROWS - 1) / ROWS * ((columns + COLUMNS - 1) / COLUMNS); }
    static long parts(const Shape& s) {
        return blocks(s.mixed(), s.width) + blocks(s.width, s.attended()) + blocks(2 * s.inner, s.width) + blocks(s.width, s.inner);
    }
    static void compute(const Shape& s, const Layer& l, const Gradients& g, long part) {
        const long D = s.width, rows[] = {s.mixed(), D, 2 * s.inner, D}, columns[] = {D, s.attended(), D, s.inner};
        float *left[] = {g.mixed, g.middle, l.gates, g.out}, *right[] = {g.normed, l.attention, g.mlp_normed, g.gated};
        int which = 0;
        for (; part >= blocks(rows[which], columns[which]); which++) part -= blocks(rows[which], columns[which]);
        const long across = (columns[which] + COLUMNS - 1) / COLUMNS, m0 = part / across * ROWS, n0 = part % across * COLUMNS;
        const long M = std::min(ROWS, rows[which] - m0), N = std::min(COLUMNS, columns[which] - n0), wide = columns[which];
        for (long k = 0; k < s.tokens; k += 128)
            multiply_transposed(panels(left[which], s).row(k).column(m0), panels(right[which], s).row(k).column(n0), M, N,
                                std::min(128L, s.tokens - k), k == 0, [&](long m, long n) {
                                    m += m0, n += n0;
                                    const long first = m & -16L;
                                    float* row = which == 0   ? mixed_rows(s, l.grad_q, l.grad_k, l.grad_v, first)
                                                 : which == 1 ? l.grad_o + first * wide
                                                 : which == 2 ? gated_rows(s, l.grad_gate, l.grad_up, first)
                                                              : l.grad_down + first * wide;
                                    return row + (m - first) * wide + n;
                                });
    }
};

// The sum of `count` rows of parts, always in the same order.
static void sum_rows(const float* parts, long count, long stride, long width, float* sums) {
    for (long i = 0; i < width; i++) {
        float total = 0;
        for (long r = 0; r < count; r++) total += parts[r * stride + i];
        sums[i] = total;
    }
}

}  // namespace

// From ids (rows, time) to the final norm's output y (tokens, width); `last` is the norm's input (panels).
extern "C" void float32_forward(const Shape* shape, const Layer* layers, const Batch* batch, float* last, float* y) {
    const Shape& s = *shape;
    const Batch& b = *batch;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> alone(team.alone);
    const long D = s.width, L = s.layers;
    team.common.room(4 * ((s.mixed() + s.attended() + 3 * s.inner) * D + 1024));
    Packed packed = Packed::take(s, team.common);
    packed.strides(s, true);
    const long counts[] = {Packed::parts(s), s.chunks(), s.rows * s.heads, s.chunks()};
    const auto count = [&](long phase) { return phase == 0 || phase > 4 * L ? s.chunks() : counts[(phase - 1) % 4]; };
    team.run(s.threads, 4 * L + 2, count, [&](long phase, long number) {
        if (phase == 0) {
            const Chunk c(s, number);
            const Panels x = panels(layers[0].x, s);
            for (long i = c.begin; i < c.begin + c.rows; i++)
                for (long d = 0; d < D; d += 16) store(x(i, d), line(b.embedding + b.ids[i] * D + d));
            return;
        }
        if (phase > 4 * L) {
            const Chunk c(s, number);
            normalise(panels(last, s).row(c.begin), b.norm, c.rows, D, s.eps,
                      [&](long i, long d, const Line& v) { store(y + (c.begin + i) * D + d, v); });
            return;
        }
        const long index = (phase - 1) / 4;
        const Layer& l = layers[index];
        switch ((phase - 1) % 4) {
            case 0: return packed.pack(s, l, number, true);
            case 1: return mix(s, l, packed, number);
            case 2: return attend_row(s, l, b, number);
            case 3: return feed(s, l, packed, index + 1 < L ? layers[index + 1].x : last, number);
        }
    });
}

// From the gradient of y to those of the parameters.
extern "C" void float32_backward(const Shape* shape, const Layer* layers, const Batch* batch, float* last, const float* grad_y,
                                 float* grad_norm, float* grad_embedding) {
    const Shape& s = *shape;
    const Batch& b = *batch;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> alone(team.alone);
    const long D = s.width, L = s.layers, C = s.channels, stride = stride_of(s.tokens) / 16;
    const long of_chunks = s.chunks() * 2 * D, of_heads = s.rows * s.key_heads * 2 * C;
    team.common.room(4 * ((s.mixed() + s.attended() + 3 * s.inner) * D + of_chunks + of_heads +
                          stride * (3 * D + s.mixed() + s.attended() + s.inner) + 4096));
    Packed packed = Packed::take(s, team.common);
    packed.strides(s, false);
    float *chunk_gains = team.common.take<float>(of_chunks), *head_gains = team.common.take<float>(of_heads);
    const auto numbers = [&](long columns) { return team.common.take<float>(stride * columns); };
    const Gradients shared = {last, numbers(D), numbers(s.mixed()), numbers(s.attended()), numbers(D), numbers(D), numbers(s.inner)};
    const long counts[] = {Packed::parts(s), s.chunks(), s.rows * s.key_heads, s.chunks(), WeightGradients::parts(s), 1};
    const auto count = [&](long phase) {
        return phase == 0 ? s.chunks() : phase == 1 ? 1 : phase == 6 * L + 2 ? s.threads : counts[(phase - 2) % 6];
    };
    team.run(s.threads, 6 * L + 3, count, [&](long phase, long number) {
        if (phase == 0) {  // the final norm
            const Chunk c(s, number);
            scratch.room(4 * (stride_of(CHUNK) * (D / 16) + 64));
            const Panels grad = take(scratch, CHUNK, D), x = panels(last, s).row(c.begin);
            for (long i = 0; i < c.rows; i++)
                for (long d = 0; d < D; d += 16) store(grad(i, d), line(grad_y + (c.begin + i) * D + d));
            float* gains = chunk_gains + number * 2 * D;
            std::fill(gains, gains + D, 0.f);
            return normalise_backward(x, b.norm, grad, {nullptr, 0}, c.rows, D, s.eps, gains,
                                      [&](long i, long d, const Line& v) { store(x(i, d), v); });
        }
        if (phase == 1) return sum_rows(chunk_gains, s.chunks(), 2 * D, D, grad_norm);
        if (phase == 6 * L + 2) {  // each has embeddings of its own, so that a token's gradients are added in the order of its places
            const Panels grad = panels(layers[0].x, s);
            for (long v = number; v < s.vocabulary; v += s.threads) std::fill(grad_embedding + v * D, grad_embedding + v * D + D, 0.f);
            for (long i = 0; i < s.tokens; i++)
                if (b.ids[i] % s.threads == number)
                    for (long d = 0; d < D; d += 16) {
                        float* to = grad_embedding + b.ids[i] * D + d;
                        store(to, line(to) + line(grad(i, d)));
                    }
            return;
        }
        const long index = L - 1 - (phase - 2) / 6;
        const Layer& l = layers[index];
        Gradients g = shared;
        g.out = index + 1 < L ? layers[index + 1].x : last;
        switch ((phase - 2) % 6) {
            case 0:
                if (number == 0) std::fill(chunk_gains, chunk_gains + of_chunks, 0.f), std::fill(head_gains, head_gains + of_heads, 0.f);
                return packed.pack(s, l, number, false);
            case 1: return feed_backward(s, l, g, packed, chunk_gains, number);
            case 2: return attend_row_backward(s, l, b, g, head_gains, number);
            case 3: return mix_backward(s, l, g, packed, chunk_gains, number);
            case 4: return WeightGradients::compute(s, l, g, number);
            case 5:
                sum_rows(chunk_gains, s.chunks(), 2 * D, D, l.grad_attention_norm);
                sum_rows(chunk_gains + D, s.chunks(), 2 * D, D, l.grad_mlp_norm);
                sum_rows(head_gains, s.rows * s.key_heads, 2 * C, C, l.grad_q_norm);
                sum_rows(head_gains + C, s.rows * s.key_heads, 2 * C, C, l.grad_k_norm);
        }
    });
}

}  // namespace f32
