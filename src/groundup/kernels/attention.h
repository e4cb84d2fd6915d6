// Attention of one head in bfloat16, forward and backward, within documents.
#pragma once
#include "blocks.h"

// What the tokens of a row see: earlier ones of their own document, and of that of their prefix, which may be the same.
struct Seen {
    const int *documents, *prefixes;  // of each token
    bool* alike;                      // of 32 tokens each, whether they are of one document

    // Which of 16 keys from s (or queries from t) a token sees.
    __mmask16 keys(long t, long s) const {
        const __mmask16 earlier = t - s >= 15 ? 0xffff : t < s ? 0 : (__mmask16)((2 << (t - s)) - 1);
        const __m512i those = _mm512_loadu_si512(documents + s);
        return _mm512_mask_cmpeq_epi32_mask(earlier, those, _mm512_set1_epi32(documents[t])) |
               _mm512_mask_cmpeq_epi32_mask(earlier, those, _mm512_set1_epi32(prefixes[t]));
    }
    __mmask16 queries(long t, long s) const {
        const __mmask16 later = t >= s ? 0xffff : s - t > 15 ? 0 : (__mmask16)(0xffff << (s - t));
        const __m512i that = _mm512_set1_epi32(documents[s]);
        return _mm512_mask_cmpeq_epi32_mask(later, _mm512_loadu_si512(documents + t), that) |
               _mm512_mask_cmpeq_epi32_mask(later, _mm512_loadu_si512(prefixes + t), that);
    }
    void find_alike(long T) const {
        for (long t = 0; t < T; t += BLOCK)
            alike[t / BLOCK] = std::count(documents + t, documents + t + BLOCK, documents[t]) == BLOCK;
    }
    // Whether all of the 32 tokens around t see all of those around s.
    bool all(long t, long s) const {
        return s / BLOCK < t / BLOCK && alike[s / BLOCK] && alike[t / BLOCK] &&
               (documents[s] == documents[t] || documents[s] == prefixes[t]);
    }
};

// softmax(q k^T) v of one head; q (T x C, scaled by log2(e) / sqrt(C)), keys packed transposed, values packed; out rows
// `stride` apart; log_sums to base two.
static void attend(const bf16* q, const bf16* keys, const bf16* values, const Seen& seen, long T, long C,
                   bf16* out, long stride, bf16* packed, long panel, float* log_sums, bf16* weights) {
    const long wide = T + BLOCK;
    for (long t0 = 0; t0 < T; t0 += BLOCK) {
        const long S = t0 + BLOCK;
        alignas(64) float sums_of[BLOCK * 16], reference[BLOCK] = {}, scale[BLOCK];
        // Queries and keys are normalised, so a score is small, and 2^score is near enough to one ...
        for (bool sure = false;; sure = true) {
            std::memset(sums_of, 0, sizeof sums_of);
            multiply_near(rows(q + t0 * C, C), keys, C * 16, BLOCK, S, C, [&](long m, long n, const float* two) {
                const bool plain = seen.all(t0, n);
                for (long i = m; i < m + 2; i++, two += 32) {
                    const Vec by = all(reference[i]);
                    Vec a = power_of_two(_mm512_sub_ps(_mm512_load_ps(two), by));
                    Vec b = power_of_two(_mm512_sub_ps(_mm512_load_ps(two + 16), by));
                    if (!plain) {
                        a = _mm512_maskz_mov_ps(seen.keys(t0 + i, n), a);
                        b = _mm512_maskz_mov_ps(seen.keys(t0 + i, n + 16), b);
                    }
                    _mm512_store_ps(sums_of + i * 16, _mm512_add_ps(_mm512_load_ps(sums_of + i * 16), _mm512_add_ps(a, b)));
                    store(weights + i * wide + n, a, b);
                }
            });
            bool good = true;
            for (long m = 0; m < BLOCK; m += 16) {
                Vec r[16];
                for (int i = 0; i < 16; i++) r[i] = _mm512_load_ps(sums_of + (m + i) * 16);
                const Vec total = sums(r);
                const __mmask16 above = _mm512_cmp_ps_mask(total, all(1e-20f), _CMP_GT_OQ);
                good = good && _mm512_mask_cmp_ps_mask(above, total, all(1e20f), _CMP_LT_OQ) == 0xffff;
                _mm512_store_ps(scale + m, _mm512_div_ps(all(1.f), total));
                _mm512_storeu_ps(log_sums + t0 + m, _mm512_add_ps(logarithm_to_two(total), _mm512_load_ps(reference + m)));
            }
            if (good || sure) break;
            // ... unless the norms' norm_weights are large: then beside the row's highest.
            for (long i = 0; i < BLOCK; i++) _mm512_store_ps(sums_of + i * 16, all(-1e30f));
            multiply_near(rows(q + t0 * C, C), keys, C * 16, BLOCK, S, C, each([&](long m, long n, Vec a, Vec b) {
                         Vec highest = _mm512_load_ps(sums_of + m * 16);
                         highest = _mm512_mask_max_ps(highest, seen.keys(t0 + m, n), highest, a);
                         highest = _mm512_mask_max_ps(highest, seen.keys(t0 + m, n + 16), highest, b);
                         _mm512_store_ps(sums_of + m * 16, highest);
                     }));
            for (long i = 0; i < BLOCK; i++) reference[i] = _mm512_reduce_max_ps(_mm512_load_ps(sums_of + i * 16));
        }
        multiply_near(rows(weights, wide), values, T * 16, BLOCK, C, S, [&](long m, long n, const float* two) {
            __m512i row[2];
            for (long i = 0; i < 2; i++, two += 32) {
                const Vec by = all(scale[m + i]);
                Vec a = _mm512_mul_ps(_mm512_load_ps(two), by), b = _mm512_mul_ps(_mm512_load_ps(two + 16), by);
                row[i] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
                _mm512_storeu_si512(out + (t0 + m + i) * stride + n, row[i]);
            }
            for (long half = 0; half < 2; half++)
                _mm512_stream_si512((__m512i*)(packed + (n / 16 + half) * panel + (t0 + m) * 16), paired(row[0], row[1], half));
        });
    }
}

struct Head {  // of one head in the backward pass, T x C but where said
    bf16 *q, *k;                                // as `norm_rope` makes them
    bf16 *keys_t, *queries, *queries_t;         // k^T tiled; q packed, and q^T
    bf16 *grads, *grads_t;                      // the gradient of what it found, the same two ways
    float *grad_q, *grad_k, *grad_v, *along;    // `along` (T): the gradient's dot product with what was found
    bf16 *weights, *slopes, *all_slopes;        // of 32 keys (32 x T + 32): softmax, gradient of scores; the latter of all
};

// The gradients of `attend`; those of keys and values are added to where heads share them and this is not the first. 32
// keys and all queries from there on at a time; values `stride` apart.
static void attend_backward(const Head& h, const bf16* values, long stride, const Seen& seen, const float* log_sums, bool first_to_share,
                            long T, long C) {
    const long wide = T + BLOCK;
    for (long s0 = 0; s0 < T; s0 += BLOCK) {
        const long Q = T - s0;
        const auto save = [=](long m, long n, const float* scores, const float* grads) {
            const long t = s0 + n;
            const bool plain = seen.all(t, s0);
            __m512i slope[2];
            for (long i = 0; i < 2; i++, scores += 32, grads += 32) {
                Vec p[2], d[2];
                for (long half = 0; half < 2; half++) {
                    const long at = 16 * half;
                    p[half] = power_of_two(_mm512_sub_ps(_mm512_load_ps(scores + at), _mm512_loadu_ps(log_sums + t + at)));
                    if (!plain) p[half] = _mm512_maskz_mov_ps(seen.queries(t + at, s0 + m + i), p[half]);
                    d[half] = _mm512_sub_ps(_mm512_load_ps(grads + at), _mm512_loadu_ps(h.along + t + at));
                }
                store(h.weights + (m + i) * wide + n, p[0], p[1]);
                slope[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(p[1], d[1]), _mm512_mul_ps(p[0], d[0]));
                _mm512_storeu_si512(h.slopes + (m + i) * wide + n, slope[i]);
            }
            bf16* to = h.all_slopes + t * T + (s0 + m) * 16;
            _mm512_store_si512(to, first_pairs(slope[0], slope[1]));
            _mm512_store_si512(to + 16 * T, other_pairs(slope[0], slope[1]));
        };
        multiply_both(rows(h.k + s0 * C, C), h.queries_t + s0 * C, rows(values + s0 * stride, stride), h.grads_t + s0 * C,
                      C * 16, BLOCK, Q, C, save);
        const auto add = [=](const bf16* left, const bf16* right, float* to) {
            for (long c = 0; c < C; c += BLOCK) {
                const Block sums = in_rows(to + s0 * C + c, C);
                add_block(rows(left, wide), right + c * T + s0 * 16, T * 16, Q, first_to_share, sums, [] {});
            }
        };
        add(h.weights, h.grads, h.grad_v), add(h.slopes, h.queries, h.grad_k);
    }
    for (long t = 0; t < T; t += BLOCK)
        for (long c = 0; c < C; c += BLOCK) {  // the gradient of q^T = k^T slopes
            alignas(64) float block[BLOCK * BLOCK];
            const Left keys = tiled(h.keys_t + c * T, T);
            add_block(keys, h.all_slopes + t * T, T * 16, t + BLOCK, true, in_quarters(block), [] {});
            for (long quarter = 0; quarter < 4; quarter++)
                save_pairs_transposed(block + quarter * 256, h.grad_q + c + quarter / 2 * 16, t + quarter % 2 * 16, C, false);
        }
}
