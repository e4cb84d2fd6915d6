// Muon as in training/optimizer.py. AdamW is always in float32: float32_optimizer.cpp.
#include "blocks.h"

struct Matrix {
    float *weight, *momentum;
    const float* grad;
};

// One update by Muon of `count` matrices (R x C): Nesterov momentum, made semi-orthogonal by `steps` quintic Newton-Schulz steps
// (abc: three coefficients each), times `lr` is subtracted from the weight times `decay_factor`.
extern "C" void muon(const Matrix* matrices, long count, long R, long C, long threads, float momentum, float lr, float decay_factor,
                     const float* abc, long steps) {
    const long M = std::min(R, C), N = std::max(R, C);
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    team.run(threads, {{count, [&](long index) {
        TileConfig tiles;
        scratch.reserve(2 * (4 * M * N + 3 * M * M) + 4096);
        bf16 *update = scratch.alloc<bf16>(R * C), *x = scratch.alloc<bf16>(M * N);
        bf16 *packed = scratch.alloc<bf16>(M * N), *next_packed = scratch.alloc<bf16>(M * N);  // x packed, of this step and the next
        bf16 *gram = scratch.alloc<bf16>(M * M), *powers = scratch.alloc<bf16>(M * M), *packed_gram = scratch.alloc<bf16>(M * M);
        const Matrix& w = matrices[index];
        Vec squares = set1(0.f);
        for (long i = 0; i < R * C; i += BLOCK) {
            Vec nesterov[2];
            for (long j = 0; j < 2; j++) {
                const long offset = i + j * 16;
                Vec g = _mm512_loadu_ps(w.grad + offset), m = _mm512_loadu_ps(w.momentum + offset);
                m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), set1(1 - momentum), m);
                _mm512_storeu_ps(w.momentum + offset, m);
                nesterov[j] = _mm512_fmadd_ps(_mm512_sub_ps(m, g), set1(momentum), g);
                squares = _mm512_fmadd_ps(nesterov[j], nesterov[j], squares);
            }
            store(update + i, nesterov[0], nesterov[1]);
        }
        if (R > C)
            transposed(update, C, R, C, [=](long c, long r, const __m512i* tile) {
                for (int i = 0; i < 16; i++) _mm512_storeu_si512(x + (c + i) * N + r, tile[i]);
            });
        const bf16* src = R > C ? x : update;
        const Vec scale = set1(1 / (std::sqrt(sum(squares)) * 1.01f + 1e-7f));
        for (long i = 0; i < M * N; i += BLOCK)
            store(x + i, _mm512_mul_ps(load(src + i), scale), _mm512_mul_ps(load(src + i + 16), scale));
        pack(x, N, M, N, packed, M * 16);
        for (const float* coef = abc; coef < abc + 3 * steps; coef += 3) {
            pack_transposed(x, N, M, N, next_packed, N * 16);
            multiply_upper(rows(x, N), next_packed, N * 16, M, N,
                           per_row([=](long m, long n, Vec a, Vec b) { store(gram + m * M + n, a, b); }));
            mirror(gram, M);
            pack(gram, M, M, M, packed_gram, M * 16);
            multiply_upper(rows(gram, M), packed_gram, M * 16, M, M, per_row([=](long m, long n, Vec a, Vec b) {
                               const bf16* g = gram + m * M + n;
                               store(powers + m * M + n, _mm512_fmadd_ps(set1(coef[1]), load(g), _mm512_mul_ps(set1(coef[2]), a)),
                                     _mm512_fmadd_ps(set1(coef[1]), load(g + 16), _mm512_mul_ps(set1(coef[2]), b)));
                           }));
            mirror(powers, M);
            multiply_cached(rows(powers, M), packed, M * 16, M, N, M, [=](long m, long n, const float* row_pair) {
                __m512i row[2];
                for (long i = 0; i < 2; i++) {
                    bf16* dst = x + (m + i) * N + n;
                    Vec a = _mm512_fmadd_ps(set1(coef[0]), load(dst), _mm512_load_ps(row_pair + 32 * i));
                    Vec b = _mm512_fmadd_ps(set1(coef[0]), load(dst + 16), _mm512_load_ps(row_pair + 32 * i + 16));
                    _mm512_storeu_si512(dst, row[i] = (__m512i)_mm512_cvtne2ps_pbh(b, a));
                }
                for (int half = 0; half < 2; half++)
                    _mm512_store_si512(next_packed + (n / 16 + half) * M * 16 + m * 16, interleave(row[0], row[1], half));
            });
            std::swap(packed, next_packed);
        }
        const bf16* direction = x;
        if (R > C) {
            transposed(x, N, M, N, [=](long n, long m, const __m512i* tile) {
                for (int i = 0; i < 16; i++) _mm512_storeu_si512(update + (n + i) * C + m, tile[i]);
            });
            direction = update;
        }
        for (long i = 0; i < R * C; i += LANES) {
            Vec v = _mm512_mul_ps(_mm512_loadu_ps(w.weight + i), set1(decay_factor));
            _mm512_storeu_ps(w.weight + i, _mm512_fnmadd_ps(load(direction + i), set1(lr), v));
        }
    }}});
}
