// The loss: the head, its softmax and the gradients of both, a slice of the tokens at a time.
#include "blocks.h"

static inline float one(bf16 v) {
    const uint32_t bits = (uint32_t)v << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 rounded(float v) {
    bf16 numbers[16];
    store(numbers, all(v));
    return numbers[0];
}

static inline __mmask16 first_of_16(long count) { return count < 1 ? 0 : count > 15 ? 0xffff : (1 << count) - 1; }

// Log-probabilities found[i] of the targets, and the gradients of their sum weighted by slopes[i]: by the hidden states
// (tokens x width) and the head (vocabulary x width, float32), of which the rows from `known` on only fill it up.
//
// d log p(target) / d logits = [is target] - softmax. Of it only e^logit is written down, as soon as the logit is there, for
// at most 256 tokens and 256 columns a thread and, for the head's gradient, for 1,024 tokens; what it must be multiplied by,
// -slope / sum, goes to the other operand of each product at last. Only where a sum leaves the range of float32 is it done
// again beside the row's highest logit.
extern "C" void weighted_log_probability(long tokens, long width, long vocabulary, long known, long threads, const bf16* hidden,
                                         const float* weight, const long* targets, const float* slopes, float* found,
                                         bf16* grad_hidden, float* grad_weight) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    constexpr long SLICE = 1024, COLUMNS = 256, PART = 256;
    const long at_once = std::clamp(SLICE / threads / BLOCK * BLOCK, 64L, 256L);
    const long D = width, V = vocabulary, wide = COLUMNS + BLOCK;  // rows of 512 bytes would share the same few places of a cache
    const long stride = spread(SLICE), panel = spread(V) * 16;
    common.room(2 * (V * D + panel / 16 * D + stride * (D + V)) + 4096);
    bf16 *head_t = common.take<bf16>(V * D), *head = common.take<bf16>(panel / 16 * D);
    bf16 *left = common.take<bf16>(stride * D), *right = common.take<bf16>(stride * V);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        scratch.room(at_once * (2 * wide + 4 * 16 + 4 + 4 * D + 2 * D) + 4 * D * PART + 8192);
        float *totals = scratch.take<float>(at_once * 16), *reference = scratch.take<float>(at_once);
        float *grad_sums = scratch.take<float>(at_once * D), *weight_sums = scratch.take<float>(D * PART);
        bf16 *likely = scratch.take<bf16>(at_once * wide), *scaled = scratch.take<bf16>(at_once * D);
#pragma omp for
        for (long v = 0; v < V; v += 16) pack_weight(weight + v * D, v, panel / 16, D, head_t, head);
        for (long begin = 0; begin < tokens; begin += SLICE) {
            const long size = std::min(SLICE, tokens - begin);
#pragma omp for schedule(dynamic, 1)
            for (long t = 0; t < size; t += at_once) {
                const long count = std::min(at_once, size - t);
                const bf16* states = hidden + (begin + t) * D;
                std::memset(reference, 0, sizeof(float) * count);
                for (bool sure = false;; sure = true) {
                    std::memset(totals, 0, sizeof(float) * count * 16);
                    for (long v = 0; v < V; v += COLUMNS) {
                        const long columns = std::min(COLUMNS, V - v);
                        const auto save = [=](long m, long n, const float* two) {
                            __m512i row[2];
                            for (long i = 0; i < 2; i++, two += 32) {
                                Vec e[2], by = all(reference[m + i]);
                                for (long h = 0; h < 2; h++) {
                                    e[h] = exponential(_mm512_sub_ps(_mm512_load_ps(two + h * 16), by));
                                    if (v + n + BLOCK > known)
                                        e[h] = _mm512_maskz_mov_ps(first_of_16(known - v - n - h * 16), e[h]);
                                }
                                float* sum = totals + (m + i) * 16;
                                _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(e[0], e[1])));
                                row[i] = (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]);
                                _mm512_storeu_si512(likely + (m + i) * wide + n, row[i]);
                            }
                            bf16* to = right + (v + n) * stride + (t + m) * 16;
                            _mm512_store_si512(to, first_pairs(row[0], row[1]));
                            _mm512_store_si512(to + 16 * stride, other_pairs(row[0], row[1]));
                        };
                        multiply(rows(states, D), head_t + v * D, D * 16, count, columns, D, save);
                        accumulate(rows(likely, wide), head + v * 16, panel, count, D, columns, v == 0, grad_sums);
                    }
                    bool good = true;
                    for (long i = 0; i < count; i++) {
                        const float whole = sum(_mm512_load_ps(totals + i * 16));
                        good = good && whole > 1e-20f && whole < 1e20f;
                    }
                    if (good || sure) break;
                    for (long i = 0; i < count; i++) _mm512_store_ps(totals + i * 16, all(-1e30f));
                    multiply(rows(states, D), head_t, D * 16, count, V, D, each([=](long m, long, Vec a, Vec b) {
                                 float* highest = totals + m * 16;
                                 _mm512_store_ps(highest, _mm512_max_ps(_mm512_load_ps(highest), _mm512_max_ps(a, b)));
                             }));
                    for (long i = 0; i < count; i++) reference[i] = _mm512_reduce_max_ps(_mm512_load_ps(totals + i * 16));
                }
                for (long i = 0; i < count; i++) {
                    const long token = begin + t + i, target = targets[token];
                    const auto row = [&](long d) {
                        __m512i pairs = _mm512_loadu_si512(head + d / 16 * panel + target / 2 * 32);
                        return target % 2 ? second(pairs) : first(pairs);
                    };
                    Vec dots = all(0.f);
                    for (long d = 0; d < D; d += LANES) dots = _mm512_fmadd_ps(load(states + i * D + d), row(d), dots);
                    const float whole = sum(_mm512_load_ps(totals + i * 16)), slope = slopes[token], scale = -slope / whole;
                    found[token] = sum(dots) - reference[i] - std::log(whole);
                    // What is left of the target, by exp(x) - 1, since 1 - p would round away what a sure prediction leaves.
                    const float rest = std::expm1(found[token]) * whole;
                    const long place = target / 32 * 32 + place_of(target % 32);
                    bf16* own = right + place / 16 * 16 * stride + (t + i) / 2 * 32 + place % 16 * 2 + i % 2;
                    const Vec mend = all(scale * (rest - one(*own)));
                    *own = rounded(rest);
                    const float* sums = grad_sums + i * 32;
                    for (long d = 0; d < D; d += LANES) {
                        Vec g = _mm512_load_ps(sums + d / 32 * count * 32 + d % 32);
                        store(grad_hidden + token * D + d, _mm512_fmadd_ps(g, all(scale), _mm512_mul_ps(row(d), mend)));
                        store(scaled + i * D + d, _mm512_mul_ps(load(states + i * D + d), all(scale)));
                    }
                }
                tile_transposed(scaled, D, count, D, left, stride, t);
                _mm_sfence();
            }
#pragma omp for schedule(dynamic, 1)
            for (long v = 0; v < V; v += PART)
                sum_over_tokens(left, right, D, v, std::min(PART, V - v), size, stride, weight_sums,
                                [&](long m, long n, const float* block) {
                                    save_pairs_transposed(block, grad_weight + m, n, D, begin > 0);
                                });
        }
    }
}
