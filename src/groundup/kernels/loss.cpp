// The loss for processors with AMX: the head, its softmax and the gradients of both, a slice of the tokens at a time.
#include "tiles.h"

static inline float one(bf16 v) {
    const uint32_t bits = (uint32_t)v << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Log-probabilities found[i] of the targets, and the gradients of their sum weighted by slopes[i]: by the hidden states
// (tokens x width) and the head (vocabulary x width, float32), of which the rows from `known` on only fill it up. The logits
// of 128 tokens a thread are in memory, and their gradients of 1,024 tokens.
extern "C" void weighted_log_probability(long tokens, long width, long vocabulary, long known, long threads, const bf16* hidden,
                                         const float* weight, const long* targets, const float* slopes, float* found,
                                         bf16* grad_hidden, float* grad_weight) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    constexpr long SLICE = 1024, AT_ONCE = 128, PART = 256;
    const long D = width, V = vocabulary, wide = V + BLOCK;  // rows 8 KiB apart would share the same few places of a cache
    common.room(2 * (2 * V * D + SLICE * (D + V)) + 4096);
    bf16 *head_t = common.take<bf16>(V * D), *head = common.take<bf16>(V * D);
    bf16 *left = common.take<bf16>(SLICE * D), *right = common.take<bf16>(SLICE * V);
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        scratch.room(AT_ONCE * (2 * wide + 2 * D + 68) + 4 * D * PART + 8192);
        float *highest = scratch.take<float>(AT_ONCE * 16), *sums_of = scratch.take<float>(D * PART);
        bf16 *grad = scratch.take<bf16>(AT_ONCE * wide), *scaled = scratch.take<bf16>(AT_ONCE * D);
        float* scale = scratch.take<float>(AT_ONCE);
#pragma omp for
        for (long v = 0; v < V; v += 16) pack_weight(weight + v * D, v, V, D, head_t, head);
        for (long begin = 0; begin < tokens; begin += SLICE) {
            const long size = std::min(SLICE, tokens - begin);
#pragma omp for schedule(dynamic, 1)
            for (long t = 0; t < size; t += AT_ONCE) {
                const long count = std::min(AT_ONCE, size - t), first_token = begin + t;
                for (long i = 0; i < count; i++) _mm512_store_ps(highest + i * 16, all(-1e30f));
                multiply(rows(hidden + first_token * D, D), head_t, D * 16, count, V, D, each([=](long m, long n, Vec a, Vec b) {
                             store(grad + m * wide + n, a, b);
                             Vec before = _mm512_load_ps(highest + m * 16);
                             _mm512_store_ps(highest + m * 16, _mm512_max_ps(before, _mm512_max_ps(a, b)));
                         }));
                // d log p(target) / d logits = [is target] - softmax. Of it only e^(logit - highest) is written down; what
                // it must be multiplied by, -slope / sum, goes to the other operand of each product.
                for (long i = 0; i < count; i += 2) {
                    const long token = first_token + i;
                    bf16 *above = grad + i * wide, *below = above + wide, *to = right + (t + i) * 16;
                    float top[2], own[2];
                    for (long j = 0; j < 2; j++) {
                        for (long v = known; v < V; v++) above[j * wide + v] = 0xff00;
                        top[j] = _mm512_reduce_max_ps(_mm512_load_ps(highest + (i + j) * 16));
                        own[j] = one(above[j * wide + targets[token + j]]) - top[j];
                    }
                    Vec sum_above = all(0.f), sum_below = all(0.f);
                    for (long v = 0; v < V; v += BLOCK) {
                        Vec a = exponential(_mm512_sub_ps(load(above + v), all(top[0])));
                        Vec b = exponential(_mm512_sub_ps(load(above + v + 16), all(top[0])));
                        Vec c = exponential(_mm512_sub_ps(load(below + v), all(top[1])));
                        Vec d = exponential(_mm512_sub_ps(load(below + v + 16), all(top[1])));
                        sum_above = _mm512_add_ps(sum_above, _mm512_add_ps(a, b));
                        sum_below = _mm512_add_ps(sum_below, _mm512_add_ps(c, d));
                        store(above + v, a, b), store(below + v, c, d);
                        _mm512_store_si512(to + v * size, together(a, c));
                        _mm512_store_si512(to + (v + 16) * size, together(b, d));
                    }
                    for (long j = 0; j < 2; j++) {
                        const long target = targets[token + j];
                        const float whole = sum(j ? sum_below : sum_above);
                        found[token + j] = own[j] - std::log(whole), scale[i + j] = -slopes[token + j] / whole;
                        bf16 rest[16];  // the target's; 1 - p would round away what a sure prediction leaves
                        store(rest, all(std::expm1(found[token + j]) * whole));
                        above[j * wide + target] = to[target / 16 * 16 * size + target % 16 * 2 + j] = rest[0];
                    }
                    for (long j = 0; j < 2; j++)
                        for (long d = 0; d < D; d += LANES)
                            store(scaled + (i + j) * D + d, _mm512_mul_ps(load(hidden + (token + j) * D + d), all(scale[i + j])));
                }
                tile_transposed(scaled, D, count, D, left, size, t);
                _mm_sfence();
                multiply(rows(grad, wide), head, V * 16, count, D, V, each([=](long m, long n, Vec a, Vec b) {
                             a = _mm512_mul_ps(a, all(scale[m])), b = _mm512_mul_ps(b, all(scale[m]));
                             store(grad_hidden + (first_token + m) * D + n, a, b);
                         }));
            }
#pragma omp for schedule(dynamic, 1)
            for (long v = 0; v < V; v += PART)
                sum_over_tokens(left, right, D, v, std::min(PART, V - v), size, sums_of, [&](long m, long n, const float* block) {
                    save_tile_transposed(block, grad_weight + n * D + m, D, begin > 0);
                });
        }
    }
}
