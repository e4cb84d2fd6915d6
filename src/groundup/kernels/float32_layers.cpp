// The dense decoder's layers in training, float32: CHUNK tokens go through a layer together, in the cache of one core, except
// for attention, which a head of a row at a time goes through; last come the weights' gradients, sums over all tokens.
#include "float32_attention.h"
#include "team.h"

namespace f32 {
namespace {

struct Shape {  // as in model/float32_layers.py; time: of the longest row; asked: tokens whose hidden states are
    long rows, tokens, time, width, heads, key_heads, channels, inner, threads, layers, vocabulary, asked;
    double eps;
    long attended() const { return heads * channels; }
    long mixed() const { return (heads + 2 * key_heads) * channels; }
    long chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
    long asked_chunks() const { return (asked + CHUNK - 1) / CHUNK; }
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
    const int* asked;                        // which tokens, ascending: after the last layer's attention only these go on
};

// --- weights ---------------------------------------------------------------------------------------------------------

// Where the 16 rows from `row` on are in the matrices that make queries, keys and values.
template <class T>
INLINE T* mixed_rows(const Shape& s, T* q, T* k, T* v, long row) {
    const long A = s.attended(), K = s.key_heads * s.channels;
    return row < A ? q + row * s.width : row < A + K ? k + (row - A) * s.width : v + (row - A - K) * s.width;
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
        const float* from[] = {mixed_rows(s, l.q, l.k, l.v, row), l.o + row * inputs[1], gated_rows(s.width, l.gate, l.up, row),
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

// --- passes ----------------------------------------------------------------------------------------------------------

struct Chunk {
    long begin, rows;
    Chunk(long tokens, long number) : begin(number * CHUNK), rows(std::min(CHUNK, tokens - begin)) {}
};

static Panels panels(float* at, const Shape& s) { return {at, stride_of(s.tokens)}; }

// The chunk's rows of a matrix: as they lie, or, where `places` are given, those that lie there, side by side in memory of the thread.
static Panels chunk_of(Panels all, const Chunk& c, const int* places, long columns) {
    if (!places) return all.row(c.begin);
    const Panels found = take(scratch, CHUNK, columns);
    for (long n = 0; n < columns; n += 16)
        for (long i = 0; i < c.rows; i++) store(found(i, n), line(all(places[c.begin + i], n)));
    return found;
}

static void mix(const Shape& s, const Layer& l, Packed& packed, long number) {
    const Chunk c(s.tokens, number);
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
    scratch.room(4 * Head::numbers(s.time, C));
    Head h = Head::take(s.time, C, scratch);
    const Panels mixed = panels(l.mixed, s).row(start);
    const Turns turns = {b.cos, b.sin, b.positions + start};
    h.read(b.documents + start, T);
    prepare_keys(s, l, turns, mixed, head / (s.heads / s.key_heads), h);
    norm_rope(mixed.column(head * C), l.q_norm, turns, s.eps, 1 / std::sqrt((float)C), T, C, h.q);
    h.log_sums = l.log_sums + start * s.heads + head * T;
    attend(h, panels(l.attention, s).row(start).column(head * C));
}

static void feed(const Shape& s, const Layer& l, Packed& packed, float* to, const int* places, const Chunk& c) {
    const long D = s.width, F = s.inner;
    scratch.room(4 * (stride_of(CHUNK) * ((2 * D + s.attended() + F) / 16) + 256));
    const auto chunk = [&](float* at) { return panels(at, s).row(c.begin); };
    const Panels x = chunk_of(panels(l.x, s), c, places, D), attention = chunk_of(panels(l.attention, s), c, places, s.attended());
    const Panels middle = chunk(l.middle), gates = chunk(l.gates), out = chunk(to);
    const Panels normed = take(scratch, CHUNK, D), gated = take(scratch, CHUNK, F);
    multiply(attention, packed.o, c.rows, D, s.attended(), [&](long i, long n, const Line& v) {
        store(middle(i, n), line(x(i, n)) + v);
    });
    normalise(middle, l.mlp_norm, c.rows, D, s.eps, [&](long i, long d, const Line& v) { store(normed(i, d), v); });
    multiply(normed, packed.gated, c.rows, 2 * F, D, [&](long i, long n, const Line& v) { open_gate(gates, gated, i, n, v); });
    multiply(gated, packed.down, c.rows, D, F, [&](long i, long n, const Line& v) { store(out(i, n), line(middle(i, n)) + v); });
}

struct Gradients {  // of all tokens, panels: what comes from above and goes below, and operands of the weights' gradients
    float *out, *middle, *mixed, *attention, *normed, *mlp_normed, *gated;
    const int* places;  // of the `tokens` that the MLP's are of; null: of all
    long tokens;
};

static void feed_backward(const Shape& s, const Layer& l, const Gradients& g, Packed& packed, float* gains, long number) {
    const Chunk c(g.tokens, number);
    const long D = s.width, F = s.inner;
    scratch.room(4 * (2 * stride_of(CHUNK) * (D / 16) + 128));
    const auto chunk = [&](float* at) { return panels(at, s).row(c.begin); };
    const auto place = [&](float* at, long i, long n) { return panels(at, s)(g.places ? g.places[c.begin + i] : c.begin + i, n); };
    const Panels out = chunk(g.out), gates = chunk(l.gates), gated = chunk(g.gated);
    const Panels grad_normed = take(scratch, CHUNK, D), middle = take(scratch, CHUNK, D);
    multiply(out, packed.down, c.rows, F, D, [&](long i, long n, const Line& v) { open_gate_backward(gates, gated, i, n, v); });
    multiply(gates, packed.gated, c.rows, D, 2 * F, [&](long i, long n, const Line& v) { store(grad_normed(i, n), v); });
    normalise_backward(chunk(l.middle), l.mlp_norm, grad_normed, chunk(g.mlp_normed), c.rows, D, s.eps, gains + number * 2 * D + D,
                       [&](long i, long d, const Line& v) {
                           const Line both = line(out(i, d)) + v;
                           store(middle(i, d), both), store(place(g.middle, i, d), both);
                       });
    multiply(middle, packed.o, c.rows, s.attended(), D, [&](long i, long n, const Line& v) { store(place(g.attention, i, n), v); });
}

static void attend_row_backward(const Shape& s, const Layer& l, const Batch& b, const Gradients& g, float* gains, long number) {
    const long r = number / s.key_heads, key_head = number % s.key_heads, shared = s.heads / s.key_heads, C = s.channels;
    const long start = b.starts[r], T = b.starts[r + 1] - start;
    const long key = s.attended() + key_head * C, value = key + s.key_heads * C;
    scratch.room(4 * Head::numbers(s.time, C));
    Head h = Head::take(s.time, C, scratch);
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
    const Chunk c(s.tokens, number);
    const long D = s.width;
    scratch.room(4 * (stride_of(CHUNK) * (D / 16) + 64));
    const auto chunk = [&](float* at) { return panels(at, s).row(c.begin); };
    const Panels grad_normed = take(scratch, CHUNK, D), middle = chunk(g.middle), x = chunk(l.x);
    multiply(chunk(g.mixed), packed.mixed, c.rows, D, s.mixed(), [&](long i, long n, const Line& v) { store(grad_normed(i, n), v); });
    // What came in is kept until all weights' gradients are there, and x is not needed again.
    normalise_backward(x, l.attention_norm, grad_normed, chunk(g.normed), c.rows, D, s.eps, gains + number * 2 * D,
                       [&](long i, long d, const Line& v) { store(x(i, d), line(middle(i, d)) + v); });
}

// Of the four products over all tokens, the `part`th SIDE rows.
struct WeightGradients {
    static long parts(long rows) { return (rows + SIDE - 1) / SIDE; }
    static long parts(const Shape& s) { return parts(s.mixed()) + parts(s.width) + parts(2 * s.inner) + parts(s.width); }
    static void compute(const Shape& s, const Layer& l, const Gradients& g, long part) {
        const long D = s.width, rows[] = {s.mixed(), D, 2 * s.inner, D}, columns[] = {D, s.attended(), D, s.inner};
        float *left[] = {g.mixed, g.middle, l.gates, g.out}, *right[] = {g.normed, l.attention, g.mlp_normed, g.gated};
        const long tokens[] = {s.tokens, s.tokens, g.tokens, g.tokens};
        int which = 0;
        for (; part >= parts(rows[which]); which++) part -= parts(rows[which]);
        const long m0 = part * SIDE, wide = columns[which];
        sum_up(panels(left[which], s).column(m0), panels(right[which], s), std::min(SIDE, rows[which] - m0), wide, tokens[which], true,
               [&](long m, long n) {
                   m += m0;
                   const long first = m & -16L;
                   float* row = which == 0   ? mixed_rows(s, l.grad_q, l.grad_k, l.grad_v, first)
                                : which == 1 ? l.grad_o + first * wide
                                : which == 2 ? gated_rows(s.width, l.grad_gate, l.grad_up, first)
                                             : l.grad_down + first * wide;
                   return row + (m - first) * wide + n;
               });
    }
};

}  // namespace

// From ids to the final norm's output y (asked, width); `last` is the norm's input (panels).
extern "C" void float32_forward(const Shape* shape, const Layer* layers, const Batch* batch, float* last, float* y) {
    const Shape& s = *shape;
    const Batch& b = *batch;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> alone(team.alone);
    const long D = s.width, L = s.layers;
    team.common.room(4 * ((s.mixed() + s.attended() + 3 * s.inner) * D + 1024));
    Packed packed = Packed::take(s, team.common);
    packed.strides(s, true);
    std::vector<Phase> phases{{s.chunks(), [&](long number) {
        const Chunk c(s.tokens, number);
        const Panels x = panels(layers[0].x, s);
        for (long i = c.begin; i < c.begin + c.rows; i++)
            for (long d = 0; d < D; d += 16) store(x(i, d), line(b.embedding + b.ids[i] * D + d));
    }}};
    for (long i = 0; i < L; i++) {
        const Layer* l = layers + i;
        const bool ends = i + 1 == L;
        phases.push_back({Packed::parts(s), [&, l](long number) { packed.pack(s, *l, number, true); }});
        phases.push_back({s.chunks(), [&, l](long number) { mix(s, *l, packed, number); }});
        phases.push_back({s.rows * s.heads, [&, l](long number) { attend_row(s, *l, b, number); }});
        phases.push_back({ends ? s.asked_chunks() : s.chunks(), [&, l, ends](long number) {
            feed(s, *l, packed, ends ? last : l[1].x, ends ? b.asked : nullptr, Chunk(ends ? s.asked : s.tokens, number));
        }});
    }
    phases.push_back({s.asked_chunks(), [&](long number) {
        const Chunk c(s.asked, number);
        normalise(panels(last, s).row(c.begin), b.norm, c.rows, D, s.eps,
                  [&](long i, long d, const Line& v) { store(y + (c.begin + i) * D + d, v); });
    }});
    team.run(s.threads, phases);
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
    Gradients g = {last, numbers(D), numbers(s.mixed()), numbers(s.attended()), numbers(D), numbers(D), numbers(s.inner), b.asked, s.asked};
    std::vector<Phase> phases{{s.asked_chunks(), [&](long number) {  // the final norm
        const Chunk c(s.asked, number);
        scratch.room(4 * (stride_of(CHUNK) * (D / 16) + 64));
        const Panels grad = take(scratch, CHUNK, D), x = panels(last, s).row(c.begin);
        for (long i = 0; i < c.rows; i++)
            for (long d = 0; d < D; d += 16) store(grad(i, d), line(grad_y + (c.begin + i) * D + d));
        float* gains = chunk_gains + number * 2 * D;
        std::fill(gains, gains + D, 0.f);
        normalise_backward(x, b.norm, grad, {nullptr, 0}, c.rows, D, s.eps, gains, [&](long i, long d, const Line& v) { store(x(i, d), v); });
    }}};
    phases.push_back({1, [&](long) { sum_rows(chunk_gains, s.asked_chunks(), 2 * D, D, grad_norm); }});
    for (long index = L - 1; index >= 0; index--) {
        const Layer* l = layers + index;
        phases.push_back({Packed::parts(s), [&, l, g](long number) {
            if (number == 0) {
                std::fill(chunk_gains, chunk_gains + of_chunks, 0.f), std::fill(head_gains, head_gains + of_heads, 0.f);
                if (g.places) std::fill(g.middle, g.middle + stride * D, 0.f), std::fill(g.attention, g.attention + stride * s.attended(), 0.f);
            }
            packed.pack(s, *l, number, false);
        }});
        phases.push_back({(g.tokens + CHUNK - 1) / CHUNK, [&, l, g](long number) { feed_backward(s, *l, g, packed, chunk_gains, number); }});
        phases.push_back({s.rows * s.key_heads, [&, l, g](long number) { attend_row_backward(s, *l, b, g, head_gains, number); }});
        phases.push_back({s.chunks(), [&, l, g](long number) { mix_backward(s, *l, g, packed, chunk_gains, number); }});
        phases.push_back({WeightGradients::parts(s), [&, l, g](long number) { WeightGradients::compute(s, *l, g, number); }});
        phases.push_back({1, [&, l](long) {
            sum_rows(chunk_gains, s.chunks(), 2 * D, D, l->grad_attention_norm);
            sum_rows(chunk_gains + D, s.chunks(), 2 * D, D, l->grad_mlp_norm);
            sum_rows(head_gains, s.rows * s.key_heads, 2 * C, C, l->grad_q_norm);
            sum_rows(head_gains + C, s.rows * s.key_heads, 2 * C, C, l->grad_k_norm);
        }});
        g.out = l->x, g.places = nullptr, g.tokens = s.tokens;
    }
    phases.push_back({s.threads, [&](long number) {  // each has embeddings of its own: a token's gradients are added in order
        const Panels grad = panels(layers[0].x, s);
        for (long v = number; v < s.vocabulary; v += s.threads) std::fill(grad_embedding + v * D, grad_embedding + v * D + D, 0.f);
        for (long i = 0; i < s.tokens; i++)
            if (b.ids[i] % s.threads == number)
                for (long d = 0; d < D; d += 16) {
                    float* to = grad_embedding + b.ids[i] * D + d;
                    store(to, line(to) + line(grad(i, d)));
                }
    }});
    team.run(s.threads, phases);
}

}  // namespace f32
