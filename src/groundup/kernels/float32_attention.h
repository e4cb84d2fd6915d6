// Norms and attention, float32: of some rows of panels, and of a head of one row of the batch.
#pragma once
#include "float32.h"

namespace f32 {
namespace {

constexpr int SHARED = INT32_MIN;  // the document that all of its row see

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

    static size_t numbers(long time, long C) {
        const long T = (time + 15) & -16L;
        return 8 * (stride_of(T) * (C / 16) + 64) + 2 * (T * C + 32) + 2 * stride_of(CHUNK) * (T / 16) + 6 * T + 1024;
    }
    static Head take(long time, long C, Scratch& from) {
        const long T = (time + 15) & -16L;
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

}  // namespace
}  // namespace f32
