// Norms of rows in panels, and attention of a head in one row of the batch, float32.
#pragma once
#include "float32.h"

namespace f32 {
namespace {

constexpr int SHARED = INT32_MIN;  // the document that all tokens of its row see

// --- norms -----------------------------------------------------------------------------------------------------------

static void inverse_rms(Panels x, long M, long D, float eps, float* inverse) {
    Line squares[CHUNK];
    for (long i = 0; i < M; i++) squares[i] = line(0.f);
    for (long d = 0; d < D; d += 16)
        for (long i = 0; i < M; i++) {
            const Line v = line(x(i, d));
            squares[i] = squares[i] + v * v;
        }
    for (long i = 0; i < M; i++) inverse[i] = 1 / std::sqrt(sum(squares[i]) / D + eps);
}

// save(i, d, line) gets the chunk's rows, normalised.
template <class Save>
static void normalise(Panels x, const float* weight, long M, long D, float eps, Save save) {
    float inverse[CHUNK];
    inverse_rms(x, M, D, eps, inverse);
    for (long d = 0; d < D; d += 16) {
        const Line w = line(weight + d);
        for (long i = 0; i < M; i++) save(i, d, line(x(i, d)) * inverse[i] * w);
    }
}

// save(i, d, line) gets the gradient of x, `normalised` the norm's output again; the weight's gradient is added to `grad_weight`.
template <class Save>
static void normalise_backward(Panels x, const float* weight, Panels grad, Panels normalised, long M, long D, float eps, float* grad_weight,
                               Save save) {
    float inverse[CHUNK], mean[CHUNK];
    inverse_rms(x, M, D, eps, inverse);
    Line dots[CHUNK];
    for (long i = 0; i < M; i++) dots[i] = line(0.f);
    for (long d = 0; d < D; d += 16) {
        const Line w = line(weight + d);
        for (long i = 0; i < M; i++) dots[i] = dots[i] + line(grad(i, d)) * w * line(x(i, d));
    }
    for (long i = 0; i < M; i++) mean[i] = sum(dots[i]) * inverse[i] / D;
    for (long d = 0; d < D; d += 16) {
        const Line w = line(weight + d);
        Line total = line(grad_weight + d);
        for (long i = 0; i < M; i++) {
            const Line n = line(x(i, d)) * inverse[i], g = line(grad(i, d));
            total = total + g * n;
            if (normalised.data) store(normalised(i, d), n * w);
            save(i, d, (g * w - n * mean[i]) * inverse[i]);
        }
        store(grad_weight + d, total);
    }
}

// --- attention -------------------------------------------------------------------------------------------------------

struct Rope {
    const float *cos, *sin;  // (positions, channels / 2)
    const int* positions;    // of a row's tokens
};

// RMS norm and RoPE of a head's queries or keys.
static void norm_rope(Panels x, const float* weight, const Rope& rope, float eps, float scale, long T, long C, Panels out) {
    const long half = C / 2;
    alignas(64) float row[512];
    for (long t = 0; t < T; t++) {
        Line squares = line(0.f);
        for (long c = 0; c < C; c += 16) {
            const Line v = line(x(t, c));
            squares = squares + v * v, store(row + c, v * line(weight + c));
        }
        const float inverse = scale / std::sqrt(sum(squares) / C + eps);
        const float *cos = rope.cos + rope.positions[t] * half, *sin = rope.sin + rope.positions[t] * half;
        for (long c = 0; c < half; c += 8) {
            for (long j = c; j < c + 8; j++) {
                const float a = row[j] * inverse, b = row[half + j] * inverse, cos_j = cos[j], sin_j = sin[j];
                row[j] = a * cos_j - b * sin_j, row[half + j] = b * cos_j + a * sin_j;
            }
        }
        for (long c = 0; c < C; c += 16) store(out(t, c), line(row + c));
    }
}

// From `grad`, the gradient by the output of `norm_rope`, to that by its input.
static void norm_rope_backward(Panels x, const float* weight, const Rope& rope, float eps, float scale, long T, long C,
                               Panels grad, Panels grad_x, float* grad_weight) {
    const long half = C / 2;
    alignas(64) float row[512], normalised[512];
    for (long t = 0; t < T; t++) {
        Line squares = line(0.f), dots = line(0.f);
        for (long c = 0; c < C; c += 16) {
            const Line v = line(x(t, c));
            squares = squares + v * v, store(row + c, line(grad(t, c))), store(normalised + c, v);
        }
        const float inverse = 1 / std::sqrt(sum(squares) / C + eps);
        const float *cos = rope.cos + rope.positions[t] * half, *sin = rope.sin + rope.positions[t] * half;
        for (long j = 0; j < half; j++) {
            const float a = row[j] * scale, b = row[half + j] * scale, cos_j = cos[j], sin_j = sin[j];
            row[j] = a * cos_j + b * sin_j, row[half + j] = b * cos_j - a * sin_j;
        }
        for (long c = 0; c < C; c += 16) {
            const Line n = line(normalised + c) * inverse, g = line(row + c), gw = g * line(weight + c);
            store(normalised + c, n), store(grad_weight + c, line(grad_weight + c) + g * n), store(row + c, gw);
            dots = dots + gw * n;
        }
        const float mean = sum(dots) / C;
        for (long c = 0; c < C; c += 16) store(grad_x(t, c), (line(row + c) - line(normalised + c) * mean) * inverse);
    }
}

// The transpose of panels (T x C) as panels (C x T), T padded with zeros to a multiple of 16.
static void transpose_panels(Panels x, long T, long C, float* out) {
    for (long t = 0; t < T; t += 16) {
        float* panel = out + t * C;
        for (long c = 0; c < C; c += 16)
            for (long i = 0; i < 16; i++)
                for (long j = 0; j < 16; j++) panel[(c + j) * 16 + i] = t + i < T ? x(t + i, c)[j] : 0;
    }
}

static void zero_padding_rows(Panels x, long T, long C) {
    for (long c = 0; c < C; c += 16)
        for (long t = T; t % 16; t++) store(x(t, c), line(0.f));
}

typedef int UnalignedInts __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
static const struct Iota {
    alignas(64) int index[16];
    Iota() {
        for (int i = 0; i < 16; i++) index[i] = i;
    }
} IOTA;

struct Head {  // a thread's memory for a head of a row: T x C unless noted
    long T, C;
    const int* documents;
    long *first_key;  // the first position that each token sees
    Panels q, k, v, grad_q, grad_k, grad_v, scores, grad_scores;  // the last two: CHUNK x T
    float *keys_t, *values_t, *log_sum_exp, *delta;

    static size_t float_count(long time, long C) {
        const long T = (time + 15) & -16L;
        return 8 * (stride_of(T) * (C / 16) + 64) + 2 * (T * C + 32) + 2 * stride_of(CHUNK) * (T / 16) + 6 * T + 1024;
    }
    static Head alloc(long time, long C, Scratch& arena) {
        const long T = (time + 15) & -16L;
        const auto panels = [&] { return alloc_panels(arena, T, C); };
        return {0, C, nullptr, arena.alloc<long>(T), panels(), panels(), panels(), panels(), panels(), panels(),
                alloc_panels(arena, CHUNK, T), alloc_panels(arena, CHUNK, T), arena.alloc<float>(T * C), arena.alloc<float>(T * C),
                arena.alloc<float>(T), arena.alloc<float>(T)};
    }
    void set_row(const int* row_documents, long time) {
        documents = row_documents, T = time;
        for (long t = 0; t < T; t++) {
            first_key[t] = t && row_documents[t] == row_documents[t - 1] ? first_key[t - 1] : t;
            for (long u = 0; u < t && first_key[t] == t; u++)
                if (row_documents[u] == row_documents[t] || row_documents[u] == SHARED) first_key[t] = u;
        }
    }
    // The first key that the queries t to end see, rounded down to a multiple of 16.
    long first_visible(long t, long end) const { return *std::min_element(first_key + t, first_key + end) & -16L; }
    // The scores of query t with the 16 keys from s on, -inf where masked.
    Line masked(long t, long s, const Line& scores) const {
        return make_line([&](int i) {
            const UnalignedInts positions = *(const UnalignedInts*)(IOTA.index + i * LANES) + (int)s;
            UnalignedInts key_documents{};
            const long key = s + i * LANES;
            if (key + LANES <= T)
                key_documents = *(const UnalignedInts*)(documents + key);
            else
                for (long j = 0; j < LANES && key + j < T; j++) key_documents[j] = documents[key + j];
            const auto visible = (positions <= (int)t) & ((key_documents == documents[t]) | (key_documents == SHARED));
            return (IntVec)visible ? scores.part[i] : set1(-INFINITY);
        });
    }
};

// out: (T x C). Stores each row's log_sum_exp of scores.
static void attend(Head& h, Panels out) {
    Line row_max[CHUNK];
    float scale[CHUNK];
    for (long t = 0; t < h.T; t += CHUNK) {
        const long M = std::min(CHUNK, h.T - t), begin = h.first_visible(t, t + M), N = ((t + M + 15) & -16L) - begin;
        for (long i = 0; i < M; i++) row_max[i] = line(-INFINITY);
        multiply(h.q.row(t), {h.keys_t + begin * h.C, h.C * 16}, M, N, h.C, [&](long i, long n, const Line& score) {
            const Line masked = h.masked(t + i, begin + n, score);
            row_max[i] = greater(masked, row_max[i]);
            store(h.scores(i, n), masked);
        }, {t - begin, UNBOUNDED});
        for (long i = 0; i < M; i++) {
            const float max_score = reduce_max(row_max[i]);
            const long last_row = std::min(M - 1, i / TILE_ROWS * TILE_ROWS + TILE_ROWS - 1);
            Line total = line(0.f);
            for (long n = 0; n <= t + last_row - begin; n += 16) {
                const Line e = exponential(line(h.scores(i, n)) - line(max_score));
                total = total + e, store(h.scores(i, n), e);
            }
            const float row_sum = sum(total);
            h.log_sum_exp[t + i] = max_score + std::log(row_sum), scale[i] = 1 / row_sum;
        }
        multiply(h.scores, h.v.row(begin), M, h.C, N, [&](long i, long n, const Line& v) { store(out(t + i, n), v * scale[i]); },
                 {UNBOUNDED, t - begin});
    }
}

// From the gradient of attention's output to those of queries and, added up, of keys and values.
static void attend_backward(Head& h, Panels grad) {
    for (long t = 0; t < h.T; t += CHUNK) {
        const long M = std::min(CHUNK, h.T - t), begin = h.first_visible(t, t + M), N = ((t + M + 15) & -16L) - begin;
        const Causal key_limit{t - begin, UNBOUNDED}, depth_limit{UNBOUNDED, t - begin};
        multiply(h.q.row(t), {h.keys_t + begin * h.C, h.C * 16}, M, N, h.C, [&](long i, long n, const Line& score) {
            store(h.scores(i, n), exponential(h.masked(t + i, begin + n, score) - line(h.log_sum_exp[t + i])));
        }, key_limit);
        multiply(grad.row(t), {h.values_t + begin * h.C, h.C * 16}, M, N, h.C, [&](long i, long n, const Line& grad_p) {
            store(h.grad_scores(i, n), line(h.scores(i, n)) * (grad_p - line(h.delta[t + i])));
        }, key_limit);
        const auto keys = [&](Panels grad_panels) { return [=](long m, long n) { return grad_panels(begin + m, n); }; };
        multiply_transposed(h.scores, grad.row(t), N, h.C, M, false, keys(h.grad_v), t - begin);
        multiply_transposed(h.grad_scores, h.q.row(t), N, h.C, M, false, keys(h.grad_k), t - begin);
        multiply(h.grad_scores, h.k.row(begin), M, h.C, N, [&](long i, long n, const Line& v) { store(h.grad_q(t + i, n), v); }, depth_limit);
    }
}

}  // namespace
}  // namespace f32
