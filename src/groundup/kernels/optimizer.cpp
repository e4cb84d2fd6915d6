// Muon, as training/optimizer.py has it; AdamW is in float32 whatever the products are in: float32_optimizer.cpp.
#include "blocks.h"

struct Matrix {
    float *weight, *momentum;
    const float* grad;
};

// One update by Muon of `count` matrices (R x C), Nesterov momentum, made semi-orthogonal by
// `steps` quintic Newton-Schulz steps (abc: three coefficients each), taken `lr` times from a weight shrunk by `decay_factor`.
extern "C" void muon(const Matrix* matrices, long count, long R, long C, long threads, float momentum, float lr, float decay_factor,
                     const float* abc, long steps) {
    const long M = std::min(R, C), N = std::max(R, C);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        scratch.room(2 * (4 * M * N + 3 * M * M) + 4096);
        bf16 *update = scratch.take<bf16>(R * C), *x = scratch.take<bf16>(M * N);
        bf16 *packed = scratch.take<bf16>(M * N), *other = scratch.take<bf16>(M * N);  // x^T or x, now and next
        bf16 *gram = scratch.take<bf16>(M * M), *powers = scratch.take<bf16>(M * M), *packed_gram = scratch.take<bf16>(M * M);
#pragma omp for schedule(dynamic, 1)
        for (long which = 0; which < count; which++) {
            const Matrix& w = matrices[which];
            Vec squares = all(0.f);
            for (long i = 0; i < R * C; i += BLOCK) {
                Vec next[2];
                for (long j = 0; j < 2; j++) {
                    const long at = i + j * 16;
                    Vec g = _mm512_loadu_ps(w.grad + at), m = _mm512_loadu_ps(w.momentum + at);
                    m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), all(1 - momentum), m);
                    _mm512_storeu_ps(w.momentum + at, m);
                    next[j] = _mm512_fmadd_ps(_mm512_sub_ps(m, g), all(momentum), g);
                    squares = _mm512_fmadd_ps(next[j], next[j], squares);
                }
                store(update + i, next[0], next[1]);
            }
            if (R > C)
                transposed(update, C, R, C, [=](long c, long r, const __m512i* found) {
                    for (int i = 0; i < 16; i++) _mm512_storeu_si512(x + (c + i) * N + r, found[i]);
                });
            const bf16* from = R > C ? x : update;
            const Vec scale = all(1 / (std::sqrt(sum(squares)) * 1.01f + 1e-7f));
            for (long i = 0; i < M * N; i += BLOCK)
                store(x + i, _mm512_mul_ps(load(from + i), scale), _mm512_mul_ps(load(from + i + 16), scale));
            pack(x, N, M, N, packed, M * 16);
            for (const float* k = abc; k < abc + 3 * steps; k += 3) {
                pack_transposed(x, N, M, N, other, N * 16);
                multiply_upper(rows(x, N), other, N * 16, M, N,
                               each([=](long m, long n, Vec a, Vec b) { store(gram + m * M + n, a, b); }));
                mirror(gram, M);
                pack(gram, M, M, M, packed_gram, M * 16);
                multiply_upper(rows(gram, M), packed_gram, M * 16, M, M, each([=](long m, long n, Vec a, Vec b) {
                                   const bf16* g = gram + m * M + n;
                                   store(powers + m * M + n, _mm512_fmadd_ps(all(k[1]), load(g), _mm512_mul_ps(all(k[2]), a)),
                                         _mm512_fmadd_ps(all(k[1]), load(g + 16), _mm512_mul_ps(all(k[2]), b)));
                               }));
                mirror(powers, M);
                multiply_near(rows(powers, M), packed, M * 16, M, N, M, [=](long m, long n, const float* two) {
                    __m512i row[2];
                    for (long i = 0; i < 2; i++) {
                        bf16* to = x + (m + i) * N + n;
                        Vec a = _mm512_fmadd_ps(all(k[0]), load(to), _mm512_load_ps(two + 32 * i));
                        Vec b = _mm512_fmadd_ps(all(k[0]), load(to + 16), _mm512_load_ps(two + 32 * i + 16));
                        _mm512_storeu_si512(to, row[i] = (__m512i)_mm512_cvtne2ps_pbh(b, a));
                    }
                    for (int half = 0; half < 2; half++)
                        _mm512_store_si512(other + (n / 16 + half) * M * 16 + m * 16, paired(row[0], row[1], half));
                });
                std::swap(packed, other);
            }
            const bf16* direction = x;
            if (R > C) {
                transposed(x, N, M, N, [=](long n, long m, const __m512i* found) {
                    for (int i = 0; i < 16; i++) _mm512_storeu_si512(update + (n + i) * C + m, found[i]);
                });
                direction = update;
            }
            for (long i = 0; i < R * C; i += LANES) {
                Vec v = _mm512_mul_ps(_mm512_loadu_ps(w.weight + i), all(decay_factor));
                _mm512_storeu_ps(w.weight + i, _mm512_fnmadd_ps(load(direction + i), all(lr), v));
            }
        }
    }
}
