// Attention of one head in bfloat16, forward and backward, within documents.
#pragma once
#include "blocks.h"

// The causal mask of a row: tokens see earlier ones of their own document and of their prefix's, which may be the same.
struct Mask {
    const int *documents, *prefixes;  // of each token
    bool* single_document;  // for each 32 tokens, whether they are of one document

    // Which of the 16 keys from s on token t sees; which of the 16 queries from t on see key s.
    __mmask16 visible_keys(long t, long s) const {
        const __mmask16 earlier = t - s >= 15 ? 0xffff : t < s ? 0 : (__mmask16)((2 << (t - s)) - 1);
        const __m512i key_documents = _mm512_loadu_si512(documents + s);
        return _mm512_mask_cmpeq_epi32_mask(earlier, key_documents, _mm512_set1_epi32(documents[t])) |
               _mm512_mask_cmpeq_epi32_mask(earlier, key_documents, _mm512_set1_epi32(prefixes[t]));
    }
    __mmask16 visible_queries(long t, long s) const {
        const __mmask16 later = t >= s ? 0xffff : s - t > 15 ? 0 : (__mmask16)(0xffff << (s - t));
        const __m512i key_document = _mm512_set1_epi32(documents[s]);
        return _mm512_mask_cmpeq_epi32_mask(later, _mm512_loadu_si512(documents + t), key_document) |
               _mm512_mask_cmpeq_epi32_mask(later, _mm512_loadu_si512(prefixes + t), key_document);
    }
    void find_single_documents(long T) const {
        for (long t = 0; t < T; t += BLOCK)
            single_document[t / BLOCK] = std::count(documents + t, documents + t + BLOCK, documents[t]) == BLOCK;
    }
    // Whether all tokens of the block of t see all of the block of s.
    bool full_block(long t, long s) const {
        return s / BLOCK < t / BLOCK && single_document[s / BLOCK] && single_document[t / BLOCK] &&
               (documents[s] == documents[t] || documents[s] == prefixes[t]);
    }
};

// softmax(q k^T) v of one head; q (T x C, scaled by log2(e) / sqrt(C)), k^T and v packed; rows of `out` are `stride`
// apart; log_sum_exp to base two.
static void attend(const bf16* q, const bf16* keys, const bf16* values, const Mask& mask, long T, long C,
                   bf16* out, long stride, bf16* packed, long panel, float* log_sum_exp, bf16* weights) {
    const long row_stride = T + BLOCK;
    for (long t0 = 0; t0 < T; t0 += BLOCK) {
        const long S = t0 + BLOCK;
        alignas(64) float lane_sums[BLOCK * 16], shift[BLOCK] = {}, scale[BLOCK];
        // Queries and keys are normalised, so scores are small, and 2^score does not overflow ...
        for (bool shifted = false;; shifted = true) {
            std::memset(lane_sums, 0, sizeof lane_sums);
            multiply_cached(rows(q + t0 * C, C), keys, C * 16, BLOCK, S, C, [&](long m, long n, const float* row_pair) {
                const bool unmasked = mask.full_block(t0, n);
                for (long i = m; i < m + 2; i++, row_pair += 32) {
                    const Vec offset = set1(shift[i]);
                    Vec a = power_of_two(_mm512_sub_ps(_mm512_load_ps(row_pair), offset));
                    Vec b = power_of_two(_mm512_sub_ps(_mm512_load_ps(row_pair + 16), offset));
                    if (!unmasked) {
                        a = _mm512_maskz_mov_ps(mask.visible_keys(t0 + i, n), a);
                        b = _mm512_maskz_mov_ps(mask.visible_keys(t0 + i, n + 16), b);
                    }
                    _mm512_store_ps(lane_sums + i * 16, _mm512_add_ps(_mm512_load_ps(lane_sums + i * 16), _mm512_add_ps(a, b)));
                    store(weights + i * row_stride + n, a, b);
                }
            });
            bool in_range = true;
            for (long m = 0; m < BLOCK; m += 16) {
                Vec r[16];
                for (int i = 0; i < 16; i++) r[i] = _mm512_load_ps(lane_sums + (m + i) * 16);
                const Vec row_sums = sums(r);
                const __mmask16 above_minimum = _mm512_cmp_ps_mask(row_sums, set1(1e-20f), _CMP_GT_OQ);
                in_range = in_range && _mm512_mask_cmp_ps_mask(above_minimum, row_sums, set1(1e20f), _CMP_LT_OQ) == 0xffff;
                _mm512_store_ps(scale + m, _mm512_div_ps(set1(1.f), row_sums));
                _mm512_storeu_ps(log_sum_exp + t0 + m, _mm512_add_ps(logarithm_to_two(row_sums), _mm512_load_ps(shift + m)));
            }
            if (in_range || shifted) break;
            // ... unless the norms' weights are large: then the row's highest score is subtracted.
            for (long i = 0; i < BLOCK; i++) _mm512_store_ps(lane_sums + i * 16, set1(-1e30f));
            multiply_cached(rows(q + t0 * C, C), keys, C * 16, BLOCK, S, C, per_row([&](long m, long n, Vec a, Vec b) {
                         Vec row_max = _mm512_load_ps(lane_sums + m * 16);
                         row_max = _mm512_mask_max_ps(row_max, mask.visible_keys(t0 + m, n), row_max, a);
                         row_max = _mm512_mask_max_ps(row_max, mask.visible_keys(t0 + m, n + 16), row_max, b);
                         _mm512_store_ps(lane_sums + m * 16, row_max);
                     }));
            for (long i = 0; i < BLOCK; i++) shift[i] = _mm512_reduce_max_ps(_mm512_load_ps(lane_sums + i * 16));
        }
        multiply_cached(rows(weights, row_stride), values, T * 16, BLOCK, C, S, [&](long m, long n, const float* row_pair) {
            __m512i row[2];
            for (long i = 0; i < 2; i++, row_pair += 32) {
                const Vec factor = set1(scale[m + i]);
                Vec a = _mm512_mul_ps(_mm512_load_ps(row_pair), factor), b = _mm512_mul_ps(_mm512_load_ps(row_pair + 16), factor);
                row[i] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
                _mm512_storeu_si512(out + (t0 + m + i) * stride + n, row[i]);
            }
            for (long half = 0; half < 2; half++)
                _mm512_stream_si512((__m512i*)(packed + (n / 16 + half) * panel + (t0 + m) * 16), interleave(row[0], row[1], half));
        });
    }
}

struct Head {  // a thread's memory for a head in the backward pass, T x C unless noted
    bf16 *q, *k;                         // outputs of `norm_rope`
    bf16 *keys_t, *queries, *queries_t;  // k^T tiled; q packed, and q^T packed
    bf16 *grad_out, *grad_out_t;         // the gradient of the output, packed, and its transpose packed
    float *grad_q, *grad_k, *grad_v, *delta;  // `delta` (T): each row's dot product of output and its gradient
    bf16 *weights, *grad_scores, *packed_grad_scores;  // 32 keys (32 x T + 32): softmax and gradient of scores; the latter of all keys
};

// The gradients of `attend`, for 32 keys and all later queries at a time. Those of keys and values are added up over the heads
// of a group. Rows of values are `stride` apart.
static void attend_backward(const Head& h, const bf16* values, long stride, const Mask& mask, const float* log_sum_exp, bool first_of_group,
                            long T, long C) {
    const long row_stride = T + BLOCK;
    for (long s0 = 0; s0 < T; s0 += BLOCK) {
        const long Q = T - s0;
        const auto save = [=](long m, long n, const float* scores, const float* grads) {
            const long t = s0 + n;
            const bool unmasked = mask.full_block(t, s0);
            __m512i grad_pair[2];
            for (long i = 0; i < 2; i++, scores += 32, grads += 32) {
                Vec p[2], centred[2];
                for (long half = 0; half < 2; half++) {
                    const long offset = 16 * half;
                    p[half] = power_of_two(_mm512_sub_ps(_mm512_load_ps(scores + offset), _mm512_loadu_ps(log_sum_exp + t + offset)));
                    if (!unmasked) p[half] = _mm512_maskz_mov_ps(mask.visible_queries(t + offset, s0 + m + i), p[half]);
                    centred[half] = _mm512_sub_ps(_mm512_load_ps(grads + offset), _mm512_loadu_ps(h.delta + t + offset));
                }
                store(h.weights + (m + i) * row_stride + n, p[0], p[1]);
                grad_pair[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(p[1], centred[1]), _mm512_mul_ps(p[0], centred[0]));
                _mm512_storeu_si512(h.grad_scores + (m + i) * row_stride + n, grad_pair[i]);
            }
            bf16* dst = h.packed_grad_scores + t * T + (s0 + m) * 16;
            _mm512_store_si512(dst, low_pairs(grad_pair[0], grad_pair[1]));
            _mm512_store_si512(dst + 16 * T, high_pairs(grad_pair[0], grad_pair[1]));
        };
        multiply_two(rows(h.k + s0 * C, C), h.queries_t + s0 * C, rows(values + s0 * stride, stride), h.grad_out_t + s0 * C,
                     C * 16, BLOCK, Q, C, save);
        const auto add = [=](const bf16* left, const bf16* right, float* dst) {
            for (long c = 0; c < C; c += BLOCK) {
                const Block sums = row_major_block(dst + s0 * C + c, C);
                add_block(rows(left, row_stride), right + c * T + s0 * 16, T * 16, Q, first_of_group, sums, [] {});
            }
        };
        add(h.weights, h.grad_out, h.grad_v), add(h.grad_scores, h.queries, h.grad_k);
    }
    for (long t = 0; t < T; t += BLOCK)
        for (long c = 0; c < C; c += BLOCK) {  // the gradient of q^T = k^T slopes
            alignas(64) float block[BLOCK * BLOCK];
            const OperandA keys = tiled(h.keys_t + c * T, T);
            add_block(keys, h.packed_grad_scores + t * T, T * 16, t + BLOCK, true, quarter_block(block), [] {});
            for (long quarter = 0; quarter < 4; quarter++)
                save_pairs_transposed(block + quarter * 256, h.grad_q + c + quarter / 2 * 16, t + quarter % 2 * 16, C, false);
        }
}
