// The loss: the head, softmax and the gradients of both, a slice of the tokens at a time.
#include "blocks.h"

static inline float to_float(bf16 v) {
    const uint32_t bits = (uint32_t)v << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 to_bf16(float v) {
    bf16 numbers[16];
    store(numbers, set1(v));
    return numbers[0];
}

static inline __mmask16 low_lanes(long count) { return count < 1 ? 0 : count > 15 ? 0xffff : (1 << count) - 1; }

struct Loss {  // of hidden states (tokens x width); rows of the head (padded_vocabulary x width) from `vocabulary` on are padding
    long width, padded_vocabulary, vocabulary;
    const bf16* hidden;
    const long* targets;
    const float* slopes;
    float* logp;
    bf16* grad_hidden;  // null: only log-probabilities
    // of all threads: the head as operand of both products, panels `panel` apart; operands of the head's gradient, of a slice
    // of tokens, padded to `stride`
    bf16 *head_t, *head, *left, *right;
    long panel, stride;
};

constexpr long SLICE_TOKENS = 1024, COLUMNS = 256, GRAD_COLUMNS = 256;  // tokens, columns at once, and columns of a head's gradient
constexpr long EXP_STRIDE = COLUMNS + BLOCK;  // rows of 512 bytes would share the same few sets of a cache

struct LossChunk {  // a thread's memory for `count` tokens from `first_token` on, the `t`th of the slice
    float *lane_sums, *shift, *grad_sums;
    bf16 *exp_logits, *scaled;
    long first_token = 0, t = 0, count = 0;
};

// The sums of e^logit, and the gradient by the hidden states except for a factor. Where a sum leaves the range of float32, it is
// computed again with the row's highest logit subtracted.
static void exponentials(const Loss& l, const LossChunk& c) {
    const long D = l.width, V = l.padded_vocabulary, vocabulary = l.vocabulary, stride = l.stride, t = c.t, count = c.count;
    const OperandA hidden = rows(l.hidden + c.first_token * D, D);
    float *lane_sums = c.lane_sums, *shift = c.shift;
    bf16 *exp_logits = c.exp_logits, *right = l.right;
    std::memset(shift, 0, sizeof(float) * count);
    for (bool shifted = false;; shifted = true) {
        std::memset(lane_sums, 0, sizeof(float) * count * 16);
        for (long v = 0; v < V; v += COLUMNS) {
            const long columns = std::min(COLUMNS, V - v);
            const auto save = [=](long m, long n, const float* row_pair) {
                __m512i row[2];
                for (long i = 0; i < 2; i++, row_pair += 32) {
                    Vec e[2], offset = set1(shift[m + i]);
                    for (long h = 0; h < 2; h++) {
                        e[h] = exponential(_mm512_sub_ps(_mm512_load_ps(row_pair + h * 16), offset));
                        if (v + n + BLOCK > vocabulary) e[h] = _mm512_maskz_mov_ps(low_lanes(vocabulary - v - n - h * 16), e[h]);
                    }
                    float* sum = lane_sums + (m + i) * 16;
                    _mm512_store_ps(sum, _mm512_add_ps(_mm512_load_ps(sum), _mm512_add_ps(e[0], e[1])));
                    row[i] = (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]);
                    _mm512_storeu_si512(exp_logits + (m + i) * EXP_STRIDE + n, row[i]);
                }
                if (!l.grad_hidden) return;
                bf16* dst = right + (v + n) * stride + (t + m) * 16;
                _mm512_store_si512(dst, low_pairs(row[0], row[1]));
                _mm512_store_si512(dst + 16 * stride, high_pairs(row[0], row[1]));
            };
            multiply(hidden, l.head_t + v * D, D * 16, count, columns, D, save);
            if (l.grad_hidden) accumulate(rows(exp_logits, EXP_STRIDE), l.head + v * 16, l.panel, count, D, columns, v == 0, c.grad_sums);
        }
        bool in_range = true;
        for (long i = 0; i < count; i++) {
            const float row_sum = sum(_mm512_load_ps(lane_sums + i * 16));
            in_range = in_range && row_sum > 1e-20f && row_sum < 1e20f;
        }
        if (in_range || shifted) return;
        for (long i = 0; i < count; i++) _mm512_store_ps(lane_sums + i * 16, set1(-1e30f));
        multiply(hidden, l.head_t, D * 16, count, V, D, per_row([=](long m, long, Vec a, Vec b) {
                     float* row_max = lane_sums + m * 16;
                     _mm512_store_ps(row_max, _mm512_max_ps(_mm512_load_ps(row_max), _mm512_max_ps(a, b)));
                 }));
        for (long i = 0; i < count; i++) shift[i] = _mm512_reduce_max_ps(_mm512_load_ps(lane_sums + i * 16));
    }
}

// Log-probabilities, and the gradient by the hidden states from the sums of `exponentials`.
static void chunk_gradients(const Loss& l, const LossChunk& c) {
    const long D = l.width;
    const bf16* hidden = l.hidden + c.first_token * D;
    for (long i = 0; i < c.count; i++) {
        const long token = c.first_token + i, target = l.targets[token];
        const auto head_row = [&](long d) {
            __m512i pairs = _mm512_loadu_si512(l.head + d / 16 * l.panel + target / 2 * 32);
            return target % 2 ? odd_row(pairs) : even_row(pairs);
        };
        Vec dots = set1(0.f);
        for (long d = 0; d < D; d += LANES) dots = _mm512_fmadd_ps(load(hidden + i * D + d), head_row(d), dots);
        const float row_sum = sum(_mm512_load_ps(c.lane_sums + i * 16)), scale = -l.slopes[token] / row_sum;
        l.logp[token] = sum(dots) - c.shift[i] - std::log(row_sum);
        if (!l.grad_hidden) continue;
        // p - 1 of the target by expm1(log p): 1 - p would round to zero for a confident prediction.
        const float remainder = std::expm1(l.logp[token]) * row_sum;
        const long column = target / 32 * 32 + position_of(target % 32);
        bf16* target_exp = l.right + column / 16 * 16 * l.stride + (c.t + i) / 2 * 32 + column % 16 * 2 + i % 2;
        const Vec target_scale = set1(scale * (remainder - to_float(*target_exp)));
        *target_exp = to_bf16(remainder);
        const float* sums = c.grad_sums + i * 32;
        for (long d = 0; d < D; d += LANES) {
            Vec g = _mm512_load_ps(sums + d / 32 * c.count * 32 + d % 32);
            store(l.grad_hidden + token * D + d, _mm512_fmadd_ps(g, set1(scale), _mm512_mul_ps(head_row(d), target_scale)));
            store(c.scaled + i * D + d, _mm512_mul_ps(load(hidden + i * D + d), set1(scale)));
        }
    }
    if (l.grad_hidden) tile_transposed(c.scaled, D, c.count, D, l.left, l.stride, c.t);
    _mm_sfence();
}

// Log-probabilities of the targets, and, where not null, the gradients of their sum weighted by `slopes` by hidden states and head.
//
// d log p(target) / d logits = [is target] - softmax. Only e^logit is stored, as soon as the logit is computed: for at most 256
// tokens and 256 columns per thread and, for the head's gradient, for 1,024 tokens. Its factor, -slope / sum, is applied to the
// other operand of each product at last.
extern "C" void weighted_log_probability(long tokens, long width, long padded_vocabulary, long vocabulary, long threads, const bf16* hidden,
                                         const float* weight, const long* targets, const float* slopes, float* logp,
                                         bf16* grad_hidden, float* grad_weight) {
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const long chunk_tokens = std::clamp(SLICE_TOKENS / threads / BLOCK * BLOCK, 64L, 256L), D = width, V = padded_vocabulary;
    const long stride = padded_stride(SLICE_TOKENS), panel = padded_stride(V) * 16;
    Scratch& shared = team.shared;
    shared.reserve(2 * (V * D + panel / 16 * D + stride * (D + V)) + 4096);
    const Loss l = {D, V, vocabulary, hidden, targets, slopes, logp, grad_hidden, shared.alloc<bf16>(V * D), shared.alloc<bf16>(panel / 16 * D),
                    shared.alloc<bf16>(stride * D), shared.alloc<bf16>(stride * V), panel, stride};
    std::vector<Phase> phases{{V / 16, [&](long v) { pack_weight(weight + v * 16 * D, v * 16, panel / 16, D, l.head_t, l.head); }}};
    for (long begin = 0; begin < tokens; begin += SLICE_TOKENS) {
        const long size = std::min(SLICE_TOKENS, tokens - begin);
        phases.push_back({(size + chunk_tokens - 1) / chunk_tokens, [=, &l](long index) {
            TileConfig tiles;
            scratch.reserve(chunk_tokens * (2 * EXP_STRIDE + 4 * 16 + 4 + 4 * D + 2 * D) + 8192);
            LossChunk chunk = {scratch.alloc<float>(chunk_tokens * 16), scratch.alloc<float>(chunk_tokens), scratch.alloc<float>(chunk_tokens * D),
                               scratch.alloc<bf16>(chunk_tokens * EXP_STRIDE), scratch.alloc<bf16>(chunk_tokens * D)};
            chunk.t = index * chunk_tokens, chunk.first_token = begin + chunk.t, chunk.count = std::min(chunk_tokens, size - chunk.t);
            exponentials(l, chunk);
            chunk_gradients(l, chunk);
        }});
        if (!grad_hidden) continue;
        phases.push_back({(V + GRAD_COLUMNS - 1) / GRAD_COLUMNS, [=, &l](long index) {
            TileConfig tiles;
            scratch.reserve(4 * D * GRAD_COLUMNS + 4096);
            const long v = index * GRAD_COLUMNS;
            weight_gradient(l.left, l.right, D, v, std::min(GRAD_COLUMNS, V - v), size, stride, scratch.alloc<float>(D * GRAD_COLUMNS),
                            [&](long m, long n, const float* block) {
                                save_pairs_transposed(block, grad_weight + m, n, D, begin > 0);
                            });
        }});
    }
    team.run(threads, phases);
}
