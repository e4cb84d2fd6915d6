// The dense decoder's layers in training, float32: a thread takes CHUNK tokens through a layer, in the cache of its core, except
// for attention, which it computes for a head of a row. The weights' gradients, sums over all tokens, come last.
#include "float32_attention.h"
#include "team.h"

namespace f32 {
namespace {

struct Shape {  // as in model/float32_layers.py; time: of the longest row; outputs: tokens whose hidden states are returned
    long rows, tokens, time, width, heads, key_heads, channels, inner, threads, layers, vocabulary, outputs;
    double eps;
    long attention_width() const { return heads * channels; }
    long qkv_width() const { return (heads + 2 * key_heads) * channels; }
    long chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
    long output_chunks() const { return (outputs + CHUNK - 1) / CHUNK; }
    long padded_time() const { return (time + 15) & -16L; }
};

struct Layer {  // parameters, their gradients, and activations saved for the backward pass (panels)
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm, *q, *k, *v, *o, *gate, *up, *down;
    float *grad_attention_norm, *grad_mlp_norm, *grad_q_norm, *grad_k_norm, *grad_q, *grad_k, *grad_v, *grad_o, *grad_gate,
        *grad_up, *grad_down;
    float *x, *qkv, *attention, *mlp_input, *gates, *log_sum_exp;
};

struct Batch {
    const float *embedding, *cos, *sin, *norm;
    const int *ids, *documents, *positions;  // of all tokens, one row after the other
    const int* starts;                       // of the rows, and the end
    const int* output_indices;  // ascending: after the last layer's attention only these tokens go on
};

// --- weights ---------------------------------------------------------------------------------------------------------

// The address of the 16 rows from `row` on of (q, k, v) in their matrix.
template <class T>
INLINE T* qkv_rows(const Shape& s, T* q, T* k, T* v, long row) {
    const long A = s.attention_width(), K = s.key_heads * s.channels;
    return row < A ? q + row * s.width : row < A + K ? k + (row - A) * s.width : v + (row - A - K) * s.width;
}

struct Packed {
    Panels qkv, o, gate_up, down;
    static Packed alloc(const Shape& s, Scratch& arena) {
        const auto panels = [&](long floats) { return Panels{arena.alloc<float>(floats), 0}; };
        return {panels(s.qkv_width() * s.width), panels(s.attention_width() * s.width), panels(2 * s.inner * s.width), panels(s.inner * s.width)};
    }
    static long parts(const Shape& s) { return (s.qkv_width() + s.width + 2 * s.inner + s.width) / 16; }
    void pack(const Shape& s, const Layer& l, long part, bool forward) {
        const long D = s.width, sizes[] = {s.qkv_width(), D, 2 * s.inner, D}, inputs[] = {D, s.attention_width(), D, s.inner};
        long index = 0, row = part * 16;
        while (row >= sizes[index]) row -= sizes[index++];
        const float* src[] = {qkv_rows(s, l.q, l.k, l.v, row), l.o + row * inputs[1], gate_up_rows(s.width, l.gate, l.up, row),
                              l.down + row * inputs[3]};
        float* dst = matrix(index).data;
        if (forward)
            pack_forward(src[index], inputs[index], dst + row * inputs[index]);
        else
            pack_backward(src[index], inputs[index], row, {dst, sizes[index] * 16});
    }
    void strides(const Shape& s, bool forward) {
        const long D = s.width, sizes[] = {s.qkv_width(), D, 2 * s.inner, D}, inputs[] = {D, s.attention_width(), D, s.inner};
        for (int index = 0; index < 4; index++) matrix(index).stride = 16 * (forward ? inputs : sizes)[index];
    }
    Panels& matrix(int index) { return index == 0 ? qkv : index == 1 ? o : index == 2 ? gate_up : down; }
};

// --- passes ----------------------------------------------------------------------------------------------------------

struct Chunk {
    long begin, rows;
    Chunk(long tokens, long number) : begin(number * CHUNK), rows(std::min(CHUNK, tokens - begin)) {}
};

static Panels panels(float* data, const Shape& s) { return {data, stride_of(s.tokens)}; }

// The chunk's rows of a matrix; or, where `indices` are given, those rows, gathered in the thread's memory.
static Panels chunk_of(Panels x, const Chunk& c, const int* indices, long columns) {
    if (!indices) return x.row(c.begin);
    const Panels gathered = alloc_panels(scratch, CHUNK, columns);
    for (long n = 0; n < columns; n += 16)
        for (long i = 0; i < c.rows; i++) store(gathered(i, n), line(x(indices[c.begin + i], n)));
    return gathered;
}

static void project_qkv(const Shape& s, const Layer& l, Packed& packed, long number) {
    const Chunk c(s.tokens, number);
    scratch.reserve(4 * (stride_of(CHUNK) * (s.width / 16) + 64));
    const Panels x = panels(l.x, s).row(c.begin), qkv = panels(l.qkv, s).row(c.begin), normed = alloc_panels(scratch, CHUNK, s.width);
    normalise(x, l.attention_norm, c.rows, s.width, s.eps, [&](long i, long d, const Line& v) { store(normed(i, d), v); });
    multiply(normed, packed.qkv, c.rows, s.qkv_width(), s.width, [&](long i, long n, const Line& v) { store(qkv(i, n), v); });
}

static void prepare_keys(const Shape& s, const Layer& l, const Rope& rope, Panels qkv, long key_head, Head& h) {
    const long T = h.T, C = s.channels, key = s.attention_width() + key_head * C, value = key + s.key_heads * C;
    norm_rope(qkv.column(key), l.k_norm, rope, s.eps, 1, T, C, h.k);
    transpose_panels(h.k, T, C, h.keys_t);
    for (long c = 0; c < C; c += 16)
        for (long t = 0; t < T; t++) store(h.v(t, c), line(qkv(t, value + c)));
    zero_padding_rows(h.v, T, C), zero_padding_rows(h.k, T, C);
}

static void attend_row(const Shape& s, const Layer& l, const Batch& b, long number) {
    const long r = number / s.heads, head = number % s.heads, start = b.starts[r], T = b.starts[r + 1] - start, C = s.channels;
    scratch.reserve(4 * Head::float_count(s.time, C));
    Head h = Head::alloc(s.time, C, scratch);
    const Panels qkv = panels(l.qkv, s).row(start);
    const Rope rope = {b.cos, b.sin, b.positions + start};
    h.set_row(b.documents + start, T);
    prepare_keys(s, l, rope, qkv, head / (s.heads / s.key_heads), h);
    norm_rope(qkv.column(head * C), l.q_norm, rope, s.eps, 1 / std::sqrt((float)C), T, C, h.q);
    h.log_sum_exp = l.log_sum_exp + start * s.heads + head * T;
    attend(h, panels(l.attention, s).row(start).column(head * C));
}

static void o_proj_and_mlp(const Shape& s, const Layer& l, Packed& packed, float* y, const int* indices, const Chunk& c) {
    const long D = s.width, F = s.inner;
    scratch.reserve(4 * (stride_of(CHUNK) * ((2 * D + s.attention_width() + F) / 16) + 256));
    const auto chunk = [&](float* data) { return panels(data, s).row(c.begin); };
    const Panels x = chunk_of(panels(l.x, s), c, indices, D), attention = chunk_of(panels(l.attention, s), c, indices, s.attention_width());
    const Panels mlp_input = chunk(l.mlp_input), gates = chunk(l.gates), out = chunk(y);
    const Panels normed = alloc_panels(scratch, CHUNK, D), gated = alloc_panels(scratch, CHUNK, F);
    multiply(attention, packed.o, c.rows, D, s.attention_width(), [&](long i, long n, const Line& v) {
        store(mlp_input(i, n), line(x(i, n)) + v);
    });
    normalise(mlp_input, l.mlp_norm, c.rows, D, s.eps, [&](long i, long d, const Line& v) { store(normed(i, d), v); });
    multiply(normed, packed.gate_up, c.rows, 2 * F, D, [&](long i, long n, const Line& v) { swiglu(gates, gated, i, n, v); });
    multiply(gated, packed.down, c.rows, D, F, [&](long i, long n, const Line& v) { store(out(i, n), line(mlp_input(i, n)) + v); });
}

struct Gradients {  // of all tokens, panels: gradients of activations, and operands of the weights' gradients
    float *out, *mlp_input, *qkv, *attention, *normed, *mlp_normed, *gated;
    const int* indices;  // of the `tokens` that go through the MLP; null: all
    long tokens;
};

static void o_proj_and_mlp_backward(const Shape& s, const Layer& l, const Gradients& g, Packed& packed, float* grad_norms, long number) {
    const Chunk c(g.tokens, number);
    const long D = s.width, F = s.inner;
    scratch.reserve(4 * (2 * stride_of(CHUNK) * (D / 16) + 128));
    const auto chunk = [&](float* data) { return panels(data, s).row(c.begin); };
    const auto gathered = [&](float* data, long i, long n) { return panels(data, s)(g.indices ? g.indices[c.begin + i] : c.begin + i, n); };
    const Panels out = chunk(g.out), gates = chunk(l.gates), gated = chunk(g.gated);
    const Panels grad_normed = alloc_panels(scratch, CHUNK, D), grad_mlp_input = alloc_panels(scratch, CHUNK, D);
    multiply(out, packed.down, c.rows, F, D, [&](long i, long n, const Line& v) { swiglu_backward(gates, gated, i, n, v); });
    multiply(gates, packed.gate_up, c.rows, D, 2 * F, [&](long i, long n, const Line& v) { store(grad_normed(i, n), v); });
    normalise_backward(chunk(l.mlp_input), l.mlp_norm, grad_normed, chunk(g.mlp_normed), c.rows, D, s.eps, grad_norms + number * 2 * D + D,
                       [&](long i, long d, const Line& v) {
                           const Line grad = line(out(i, d)) + v;
                           store(grad_mlp_input(i, d), grad), store(gathered(g.mlp_input, i, d), grad);
                       });
    multiply(grad_mlp_input, packed.o, c.rows, s.attention_width(), D, [&](long i, long n, const Line& v) { store(gathered(g.attention, i, n), v); });
}

static void attend_row_backward(const Shape& s, const Layer& l, const Batch& b, const Gradients& g, float* grad_norms, long number) {
    const long r = number / s.key_heads, key_head = number % s.key_heads, group_size = s.heads / s.key_heads, C = s.channels;
    const long start = b.starts[r], T = b.starts[r + 1] - start;
    const long key = s.attention_width() + key_head * C, value = key + s.key_heads * C;
    scratch.reserve(4 * Head::float_count(s.time, C));
    Head h = Head::alloc(s.time, C, scratch);
    const Panels qkv = panels(l.qkv, s).row(start), grad_qkv = panels(g.qkv, s).row(start);
    const Rope rope = {b.cos, b.sin, b.positions + start};
    h.set_row(b.documents + start, T);
    prepare_keys(s, l, rope, qkv, key_head, h);
    transpose_panels(qkv.column(value), T, C, h.values_t);
    for (Panels grad_panels : {h.grad_k, h.grad_v}) std::fill(grad_panels.data, grad_panels.data + stride_of(s.padded_time()) * (C / 16), 0.f);
    float *grad_q_norm = grad_norms + number * 2 * C, *grad_k_norm = grad_q_norm + C;
    const float scale = 1 / std::sqrt((float)C);
    for (long head = key_head * group_size; head < (key_head + 1) * group_size; head++) {
        const Panels q = qkv.column(head * C), out = panels(l.attention, s).row(start).column(head * C);
        const Panels grad = panels(g.attention, s).row(start).column(head * C);
        norm_rope(q, l.q_norm, rope, s.eps, scale, T, C, h.q);
        h.log_sum_exp = l.log_sum_exp + start * s.heads + head * T;
        for (long t = 0; t < T; t++) {
            Line dots = line(0.f);
            for (long c = 0; c < C; c += 16) dots = dots + line(grad(t, c)) * line(out(t, c));
            h.delta[t] = sum(dots);
        }
        attend_backward(h, grad);
        norm_rope_backward(q, l.q_norm, rope, s.eps, scale, T, C, h.grad_q, grad_qkv.column(head * C), grad_q_norm);
    }
    norm_rope_backward(qkv.column(key), l.k_norm, rope, s.eps, 1, T, C, h.grad_k, grad_qkv.column(key), grad_k_norm);
    for (long c = 0; c < C; c += 16)
        for (long t = 0; t < T; t++) store(grad_qkv(t, value + c), line(h.grad_v(t, c)));
}

static void project_qkv_backward(const Shape& s, const Layer& l, const Gradients& g, Packed& packed, float* grad_norms, long number) {
    const Chunk c(s.tokens, number);
    const long D = s.width;
    scratch.reserve(4 * (stride_of(CHUNK) * (D / 16) + 64));
    const auto chunk = [&](float* data) { return panels(data, s).row(c.begin); };
    const Panels grad_normed = alloc_panels(scratch, CHUNK, D), grad_mlp_input = chunk(g.mlp_input), x = chunk(l.x);
    multiply(chunk(g.qkv), packed.qkv, c.rows, D, s.qkv_width(), [&](long i, long n, const Line& v) { store(grad_normed(i, n), v); });
    // x is not needed again, but g.mlp_input is, for the weights' gradients.
    normalise_backward(x, l.attention_norm, grad_normed, chunk(g.normed), c.rows, D, s.eps, grad_norms + number * 2 * D,
                       [&](long i, long d, const Line& v) { store(x(i, d), line(grad_mlp_input(i, d)) + v); });
}

// Of the four products over all tokens, the `part`th WEIGHT_ROWS rows.
struct WeightGradients {
    static long parts(long rows) { return (rows + WEIGHT_ROWS - 1) / WEIGHT_ROWS; }
    static long parts(const Shape& s) { return parts(s.qkv_width()) + parts(s.width) + parts(2 * s.inner) + parts(s.width); }
    static void compute(const Shape& s, const Layer& l, const Gradients& g, long part) {
        const long D = s.width, rows[] = {s.qkv_width(), D, 2 * s.inner, D}, columns[] = {D, s.attention_width(), D, s.inner};
        float *left[] = {g.qkv, g.mlp_input, l.gates, g.out}, *right[] = {g.normed, l.attention, g.mlp_normed, g.gated};
        const long tokens[] = {s.tokens, s.tokens, g.tokens, g.tokens};
        int w = 0;
        for (; part >= parts(rows[w]); w++) part -= parts(rows[w]);
        const long m0 = part * WEIGHT_ROWS, inputs = columns[w];
        weight_gradient(panels(left[w], s).column(m0), panels(right[w], s), std::min(WEIGHT_ROWS, rows[w] - m0), inputs, tokens[w], true,
                        [&](long m, long n) {
                   m += m0;
                   const long block_row = m & -16L;
                   float* row = w == 0   ? qkv_rows(s, l.grad_q, l.grad_k, l.grad_v, block_row)
                                : w == 1 ? l.grad_o + block_row * inputs
                                : w == 2 ? gate_up_rows(s.width, l.grad_gate, l.grad_up, block_row)
                                             : l.grad_down + block_row * inputs;
                   return row + (m - block_row) * inputs + n;
               });
    }
};

}  // namespace

// From ids to the final norm's output y (outputs, width); `last` is the norm's input (panels).
extern "C" void float32_forward(const Shape* shape, const Layer* layers, const Batch* batch, float* last, float* y) {
    const Shape& s = *shape;
    const Batch& b = *batch;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const long D = s.width, L = s.layers;
    team.shared.reserve(4 * ((s.qkv_width() + s.attention_width() + 3 * s.inner) * D + 1024));
    Packed packed = Packed::alloc(s, team.shared);
    packed.strides(s, true);
    std::vector<Phase> phases{{s.chunks(), [&](long number) {
        const Chunk c(s.tokens, number);
        const Panels x = panels(layers[0].x, s);
        for (long i = c.begin; i < c.begin + c.rows; i++)
            for (long d = 0; d < D; d += 16) store(x(i, d), line(b.embedding + b.ids[i] * D + d));
    }}};
    for (long i = 0; i < L; i++) {
        const Layer* l = layers + i;
        const bool is_last = i + 1 == L;
        phases.push_back({Packed::parts(s), [&, l](long number) { packed.pack(s, *l, number, true); }});
        phases.push_back({s.chunks(), [&, l](long number) { project_qkv(s, *l, packed, number); }});
        phases.push_back({s.rows * s.heads, [&, l](long number) { attend_row(s, *l, b, number); }});
        phases.push_back({is_last ? s.output_chunks() : s.chunks(), [&, l, is_last](long number) {
            o_proj_and_mlp(s, *l, packed, is_last ? last : l[1].x, is_last ? b.output_indices : nullptr,
                           Chunk(is_last ? s.outputs : s.tokens, number));
        }});
    }
    phases.push_back({s.output_chunks(), [&](long number) {
        const Chunk c(s.outputs, number);
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
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const long D = s.width, L = s.layers, C = s.channels, stride = stride_of(s.tokens) / 16;
    const long chunk_floats = s.chunks() * 2 * D, head_floats = s.rows * s.key_heads * 2 * C;
    team.shared.reserve(4 * ((s.qkv_width() + s.attention_width() + 3 * s.inner) * D + chunk_floats + head_floats +
                             stride * (3 * D + s.qkv_width() + s.attention_width() + s.inner) + 4096));
    Packed packed = Packed::alloc(s, team.shared);
    packed.strides(s, false);
    float *chunk_grads = team.shared.alloc<float>(chunk_floats), *head_grads = team.shared.alloc<float>(head_floats);
    const auto floats = [&](long columns) { return team.shared.alloc<float>(stride * columns); };
    Gradients g = {last, floats(D), floats(s.qkv_width()), floats(s.attention_width()), floats(D), floats(D), floats(s.inner),
                   b.output_indices, s.outputs};
    std::vector<Phase> phases{{s.output_chunks(), [&](long number) {  // the final norm
        const Chunk c(s.outputs, number);
        scratch.reserve(4 * (stride_of(CHUNK) * (D / 16) + 64));
        const Panels grad = alloc_panels(scratch, CHUNK, D), x = panels(last, s).row(c.begin);
        for (long i = 0; i < c.rows; i++)
            for (long d = 0; d < D; d += 16) store(grad(i, d), line(grad_y + (c.begin + i) * D + d));
        float* grad_norms = chunk_grads + number * 2 * D;
        std::fill(grad_norms, grad_norms + D, 0.f);
        normalise_backward(x, b.norm, grad, {nullptr, 0}, c.rows, D, s.eps, grad_norms, [&](long i, long d, const Line& v) { store(x(i, d), v); });
    }}};
    phases.push_back({1, [&](long) { sum_rows(chunk_grads, s.output_chunks(), 2 * D, D, grad_norm); }});
    for (long index = L - 1; index >= 0; index--) {
        const Layer* l = layers + index;
        phases.push_back({Packed::parts(s), [&, l, g](long number) {
            if (number == 0) {
                std::fill(chunk_grads, chunk_grads + chunk_floats, 0.f), std::fill(head_grads, head_grads + head_floats, 0.f);
                if (g.indices)
                    std::fill(g.mlp_input, g.mlp_input + stride * D, 0.f), std::fill(g.attention, g.attention + stride * s.attention_width(), 0.f);
            }
            packed.pack(s, *l, number, false);
        }});
        phases.push_back({(g.tokens + CHUNK - 1) / CHUNK, [&, l, g](long number) { o_proj_and_mlp_backward(s, *l, g, packed, chunk_grads, number); }});
        phases.push_back({s.rows * s.key_heads, [&, l, g](long number) { attend_row_backward(s, *l, b, g, head_grads, number); }});
        phases.push_back({s.chunks(), [&, l, g](long number) { project_qkv_backward(s, *l, g, packed, chunk_grads, number); }});
        phases.push_back({WeightGradients::parts(s), [&, l, g](long number) { WeightGradients::compute(s, *l, g, number); }});
        phases.push_back({1, [&, l](long) {
            sum_rows(chunk_grads, s.chunks(), 2 * D, D, l->grad_attention_norm);
            sum_rows(chunk_grads + D, s.chunks(), 2 * D, D, l->grad_mlp_norm);
            sum_rows(head_grads, s.rows * s.key_heads, 2 * C, C, l->grad_q_norm);
            sum_rows(head_grads + C, s.rows * s.key_heads, 2 * C, C, l->grad_k_norm);
        }});
        g.out = l->x, g.indices = nullptr, g.tokens = s.tokens;
    }
    phases.push_back({s.threads, [&](long number) {  // a thread has its own rows of the embedding: the order is fixed
        const Panels grad = panels(layers[0].x, s);
        for (long v = number; v < s.vocabulary; v += s.threads) std::fill(grad_embedding + v * D, grad_embedding + v * D + D, 0.f);
        for (long i = 0; i < s.tokens; i++)
            if (b.ids[i] % s.threads == number)
                for (long d = 0; d < D; d += 16) {
                    float* dst = grad_embedding + b.ids[i] * D + d;
                    store(dst, line(dst) + line(grad(i, d)));
                }
    }});
    team.run(s.threads, phases);
}

}  // namespace f32
