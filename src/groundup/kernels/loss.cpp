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

struct Loss {  // of hidden states (tokens x width) by the head (vocabulary x width), of which the rows from `known` on only fill it up
    long width, vocabulary, known;
    const bf16* hidden;
    const long* targets;
    const float* slopes;
    float* found;
    bf16* grad_hidden;  // none where the log-probabilities alone are asked for
    // for all threads: the head as operand of both products, panels `panel` apart; of a slice of tokens, of which there is room for
    // `stride`, operands of the head's gradient
    bf16 *head_t, *head, *left, *right;
    long panel, stride;
};

constexpr long SLICE = 1024, COLUMNS = 256, PART = 256;  // tokens, columns at once, and columns of a head's gradient
constexpr long WIDE = COLUMNS + BLOCK;  // rows of 512 bytes would share the same few places of a cache

struct LossChunk {  // what a thread needs for `count` tokens, those from `at` on, the `t`th of the slice
    float *totals, *reference, *grad_sums;
    bf16 *likely, *scaled;
    long at = 0, t = 0, count = 0;
};

// The sums of e^logit, and the gradient by the hidden states but for a factor. Where a sum leaves the range of float32 it is done
// again beside the row's highest logit.
static void exponentials(const Loss& l, const LossChunk& c) {
    const long D = l.width, V = l.vocabulary, known = l.known, stride = l.stride, t = c.t, count = c.count;
    const Left states = rows(l.hidden + c.at * D, D);
    float *totals = c.totals, *reference = c.reference;
    bf16 *likely = c.likely, *right = l.right;
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
                        if (v + n + BLOCK > known) e[h] = _mm512_maskz_mov_ps(first_of_16(known - v - n - h * 16), e[h]);
                    }
                    float* sum = totals + (m + i) * 16;
                    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(e[0], e[1])));
                    row[i] = (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]);
                    _mm512_storeu_si512(likely + (m + i) * WIDE + n, row[i]);
                }
                if (!l.grad_hidden) return;
                bf16* to = right + (v + n) * stride + (t + m) * 16;
                _mm512_store_si512(to, first_pairs(row[0], row[1]));
                _mm512_store_si512(to + 16 * stride, other_pairs(row[0], row[1]));
            };
            multiply(states, l.head_t + v * D, D * 16, count, columns, D, save);
            if (l.grad_hidden) accumulate(rows(likely, WIDE), l.head + v * 16, l.panel, count, D, columns, v == 0, c.grad_sums);
        }
        bool good = true;
        for (long i = 0; i < count; i++) {
            const float whole = sum(_mm512_load_ps(totals + i * 16));
            good = good && whole > 1e-20f && whole < 1e20f;
        }
        if (good || sure) return;
        for (long i = 0; i < count; i++) _mm512_store_ps(totals + i * 16, all(-1e30f));
        multiply(states, l.head_t, D * 16, count, V, D, each([=](long m, long, Vec a, Vec b) {
                     float* highest = totals + m * 16;
                     _mm512_store_ps(highest, _mm512_max_ps(_mm512_load_ps(highest), _mm512_max_ps(a, b)));
                 }));
        for (long i = 0; i < count; i++) reference[i] = _mm512_reduce_max_ps(_mm512_load_ps(totals + i * 16));
    }
}

// Log-probabilities, and the gradient by the hidden states from what `exponentials` left.
static void chunk_gradients(const Loss& l, const LossChunk& c) {
    const long D = l.width;
    const bf16* states = l.hidden + c.at * D;
    for (long i = 0; i < c.count; i++) {
        const long token = c.at + i, target = l.targets[token];
        const auto row = [&](long d) {
            __m512i pairs = _mm512_loadu_si512(l.head + d / 16 * l.panel + target / 2 * 32);
            return target % 2 ? second(pairs) : first(pairs);
        };
        Vec dots = all(0.f);
        for (long d = 0; d < D; d += LANES) dots = _mm512_fmadd_ps(load(states + i * D + d), row(d), dots);
        const float whole = sum(_mm512_load_ps(c.totals + i * 16)), scale = -l.slopes[token] / whole;
        l.found[token] = sum(dots) - c.reference[i] - std::log(whole);
        if (!l.grad_hidden) continue;
        // What is left of the target, by exp(x) - 1, since 1 - p would round away what a sure prediction leaves.
        const float rest = std::expm1(l.found[token]) * whole;
        const long place = target / 32 * 32 + place_of(target % 32);
        bf16* own = l.right + place / 16 * 16 * l.stride + (c.t + i) / 2 * 32 + place % 16 * 2 + i % 2;
        const Vec mend = all(scale * (rest - one(*own)));
        *own = rounded(rest);
        const float* sums = c.grad_sums + i * 32;
        for (long d = 0; d < D; d += LANES) {
            Vec g = _mm512_load_ps(sums + d / 32 * c.count * 32 + d % 32);
            store(l.grad_hidden + token * D + d, _mm512_fmadd_ps(g, all(scale), _mm512_mul_ps(row(d), mend)));
            store(c.scaled + i * D + d, _mm512_mul_ps(load(states + i * D + d), all(scale)));
        }
    }
    if (l.grad_hidden) tile_transposed(c.scaled, D, c.count, D, l.left, l.stride, c.t);
    _mm_sfence();
}

// Log-probabilities found[i] of the targets, and the gradients of their sum weighted by slopes[i], by the hidden states and the head,
// where there is room for these.
//
// d log p(target) / d logits = [is target] - softmax. Of it only e^logit is written down, as soon as the logit is there, for
// at most 256 tokens and 256 columns a thread and, for the head's gradient, for 1,024 tokens; what it must be multiplied by,
// -slope / sum, goes to the other operand of each product at last.
extern "C" void weighted_log_probability(long tokens, long width, long vocabulary, long known, long threads, const bf16* hidden,
                                         const float* weight, const long* targets, const float* slopes, float* found,
                                         bf16* grad_hidden, float* grad_weight) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const long at_once = std::clamp(SLICE / threads / BLOCK * BLOCK, 64L, 256L), D = width, V = vocabulary;
    const long stride = spread(SLICE), panel = spread(V) * 16;
    common.room(2 * (V * D + panel / 16 * D + stride * (D + V)) + 4096);
    const Loss l = {D, V, known, hidden, targets, slopes, found, grad_hidden, common.take<bf16>(V * D), common.take<bf16>(panel / 16 * D),
                    common.take<bf16>(stride * D), common.take<bf16>(stride * V), panel, stride};
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        scratch.room(at_once * (2 * WIDE + 4 * 16 + 4 + 4 * D + 2 * D) + 4 * D * PART + 8192);
        LossChunk chunk = {scratch.take<float>(at_once * 16), scratch.take<float>(at_once), scratch.take<float>(at_once * D),
                           scratch.take<bf16>(at_once * WIDE), scratch.take<bf16>(at_once * D)};
        float* weight_sums = scratch.take<float>(D * PART);
#pragma omp for
        for (long v = 0; v < V; v += 16) pack_weight(weight + v * D, v, panel / 16, D, l.head_t, l.head);
        for (long begin = 0; begin < tokens; begin += SLICE) {
            const long size = std::min(SLICE, tokens - begin);
#pragma omp for schedule(dynamic, 1)
            for (long t = 0; t < size; t += at_once) {
                chunk.at = begin + t, chunk.t = t, chunk.count = std::min(at_once, size - t);
                exponentials(l, chunk);
                chunk_gradients(l, chunk);
            }
            if (!grad_hidden) continue;
#pragma omp for schedule(dynamic, 1)
            for (long v = 0; v < V; v += PART)
                sum_over_tokens(l.left, l.right, D, v, std::min(PART, V - v), size, stride, weight_sums,
                                [&](long m, long n, const float* block) {
                                    save_pairs_transposed(block, grad_weight + m, n, D, begin > 0);
                                });
        }
    }
}
