// Muon and AdamW in float32, as training/optimizer.py has them.
#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Matrix {
    float *weight, *momentum;
    const float* grad;
};

// Makes C (M x M) symmetric from its lower blocks.
void mirror(Panels c, long M) {
    for (long m = 0; m < M; m += 16)
        for (long n = 0; n < m; n += 16)
            for (long i = 0; i < 16; i++)
                for (long j = 0; j < 16; j++) c(n, m)[j * 16 + i] = c(m, n)[i * 16 + j];
}

// The product of two symmetric matrices that commute, computed up to the diagonal; out gets save(m, n, line) of it.
template <class Save>
void symmetric(Panels a, Panels b, Panels out, long M, Save save) {
    for (long m = 0; m < M; m += CHUNK) {
        const long rows = std::min(CHUNK, M - m);
        multiply(a.row(m), b, rows, m + rows, M, [=](long i, long n, const Line& v) { store(out(m + i, n), save(m + i, n, v)); }, {m, UNBOUNDED});
    }
    mirror(out, M);
}

// X (N x M panels, N >= M) made semi-orthogonal by Newton-Schulz steps, each X P with P = a + b G + c G G and G = X^T X.
//
// Where X is not square, up to three steps are fused on the small side (Gram Newton-Schulz, Zhang et al. 2026): the next G is P G P,
// and X is multiplied by the product of the P at last. More steps would show G's rounding errors, which grow 16-fold with each.
void orthogonalise(Panels& x, Panels& other, Panels workspace[5], long N, long M, const float* abc, long steps) {
    Panels &gram = workspace[0], &polynomial = workspace[1], &product = workspace[2], &next = workspace[3], &right = workspace[4];
    const auto identity = [](long, long, const Line& v) { return v; };
    for (long first_step = 0, fused_steps; first_step < steps; first_step += fused_steps) {
        fused_steps = N > M ? std::min(3L, steps - first_step) : 1;
        for (long m = 0; m < M; m += 16)
            for (long n = 0; n < N; n += K_BLOCK)
                multiply_transposed(x.row(n).column(m), x.row(n), 16, m + 16, std::min(K_BLOCK, N - n), n == 0,
                                    [=](long i, long j) { return gram(m + i, j); });
        mirror(gram, M);
        for (long step = 0; step < fused_steps; step++) {
            const float* abc_step = abc + 3 * (first_step + step);
            symmetric(gram, gram, polynomial, M, [=](long i, long j, const Line& v) { return line(gram(i, j)) * abc_step[1] + v * abc_step[2]; });
            for (long i = 0; i < M; i++) polynomial(i, i & -16L)[i % 16] += abc_step[0];
            if (step) symmetric(polynomial, product, next, M, identity), std::swap(product, next);
            else std::swap(product, polynomial);
            const Panels factor = step ? polynomial : product;
            if (step + 1 < fused_steps) symmetric(factor, gram, right, M, identity), symmetric(factor, right, gram, M, identity);
        }
        for (long n = 0; n < N; n += CHUNK)
            multiply(x.row(n), product, std::min(CHUNK, N - n), M, M, [=](long i, long j, const Line& v) { store(other(n + i, j), v); });
        std::swap(x, other);
    }
}

}  // namespace

// One update by Muon of `count` matrices (R x C): see muon in optimizer.cpp.
extern "C" void float32_muon(const Matrix* matrices, long count, long R, long C, long threads, float momentum, float lr,
                             float decay_factor, const float* abc, long steps) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const long M = std::min(R, C), N = std::max(R, C);
    team.run(threads, {{count, [&](long index) {
        const Matrix& w = matrices[index];
        scratch.reserve(4 * (2 * stride_of(N) * (M / 16) + 5 * stride_of(M) * (M / 16) + 512));
        Panels x = alloc_panels(scratch, N, M), next_x = alloc_panels(scratch, N, M);
        Panels workspace[5];
        for (Panels& panels : workspace) panels = alloc_panels(scratch, M, M);
        const bool tall = R >= C;
        Line squares = line(0.f);
        for (long r = 0; r < R; r++)
            for (long c = 0; c < C; c += 16) {
                const Line g = line(w.grad + r * C + c), old_momentum = line(w.momentum + r * C + c);
                const Line m = old_momentum + (g - old_momentum) * (1 - momentum), next = g + (m - g) * momentum;
                store(w.momentum + r * C + c, m);
                squares = squares + next * next;
                if (tall)
                    store(x(r, c), next);
                else
                    for (long j = 0; j < 16; j++) *(x(c + j, r & -16L) + r % 16) = next.part[j / LANES][j % LANES];
            }
        const float scale = 1 / (std::sqrt(sum(squares)) * 1.01f + 1e-7f);
        for (long m = 0; m < M; m += 16)
            for (long n = 0; n < N; n++) store(x(n, m), line(x(n, m)) * scale);
        orthogonalise(x, next_x, workspace, N, M, abc, steps);
        for (long r = 0; r < R; r++)
            for (long c = 0; c < C; c++) {
                const float direction = tall ? x(r, c & -16L)[c % 16] : x(c, r & -16L)[r % 16];
                w.weight[r * C + c] = w.weight[r * C + c] * decay_factor - direction * lr;
            }
    }}});
}

// One update by AdamW of n numbers. lr and root_correction include the bias correction of the moments.
extern "C" void float32_adamw(long n, long threads, float* weight, const float* grad, float* first, float* second, float beta1,
                              float beta2, float root_correction, float lr, float decay_factor) {
    constexpr long PART = 1 << 15;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    team.run(threads, {{(n + PART - 1) / PART, [=](long number) {
        for (long i = number * PART; i < std::min(n, number * PART + PART); i++) {
            const float g = grad[i], m = first[i] + (g - first[i]) * (1 - beta1), v = second[i] * beta2 + g * g * (1 - beta2);
            first[i] = m, second[i] = v;
            weight[i] = weight[i] * decay_factor - m / (std::sqrt(v) / root_correction + 1e-8f) * lr;
        }
    }}});
}

}  // namespace f32
