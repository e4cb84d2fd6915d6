// The loss in float32: the head, softmax and the gradients of both, a slice of the tokens at a time, as in loss.cpp.
#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Loss {  // of hidden states (tokens x width) and a target for each; the head is (padded_vocabulary x width)
    long tokens, width, padded_vocabulary, vocabulary, threads;  // rows of the head from `vocabulary` on are padding, to a multiple of 16
    const float *hidden, *weight;
    const long* targets;
    const float* slopes;  // weight of each log-probability in the sum that is differentiated; null: no gradients
    float *logp, *entropy, *grad_hidden, *grad_weight;  // entropy may be null
};

constexpr long COLUMNS = 256;  // of the vocabulary

struct Workspace {
    Panels head_t, head, states, exp_logits;  // the head packed for both passes; of a slice: scaled hidden states, and e^logits
};

// Log-probabilities and operands of the gradients of `count` tokens from `first_token` on, the `t`th of the slice.
// e^logits are computed without a shift; where a sum leaves the range of float32, again minus the row's highest logit.
void chunk(const Loss& l, const Workspace& workspace, long first_token, long t, long count) {
    const long D = l.width, V = l.padded_vocabulary;
    scratch.reserve(4 * (2 * stride_of(CHUNK) * (D / 16) + 256));
    const Panels states = alloc_panels(scratch, CHUNK, D), sums = alloc_panels(scratch, CHUNK, D), exp_logits = workspace.exp_logits.row(t);
    Line lane_sums[CHUNK], entropy_sums[CHUNK];
    float shift[CHUNK] = {}, row_sum[CHUNK];
    for (long i = 0; i < count; i++)
        for (long d = 0; d < D; d += 16) store(states(i, d), line(l.hidden + (first_token + i) * D + d));
    for (bool shifted = false;; shifted = true) {
        for (long i = 0; i < count; i++) lane_sums[i] = entropy_sums[i] = line(0.f);
        for (long v = 0; v < V; v += COLUMNS) {
            const long columns = std::min(COLUMNS, V - v);
            multiply(states, workspace.head_t.column(v), count, columns, D, [&](long i, long n, const Line& logits) {
                const Line shifted_logits = logits - line(shift[i]);
                Line e = exponential(shifted_logits);
                if (v + n + 16 > l.vocabulary)
                    for (long j = std::max(0L, l.vocabulary - v - n); j < 16; j++) e.part[j / LANES][j % LANES] = 0;
                lane_sums[i] = lane_sums[i] + e;
                if (l.entropy) entropy_sums[i] = entropy_sums[i] + e * shifted_logits;
                store(exp_logits(i, v + n), e);
            });
            if (l.slopes)
                multiply(exp_logits.column(v), workspace.head.row(v), count, D, columns, [&](long i, long n, const Line& product) {
                    store(sums(i, n), v ? line(sums(i, n)) + product : product);
                });
        }
        bool in_range = true;
        for (long i = 0; i < count; i++) row_sum[i] = sum(lane_sums[i]), in_range = in_range && row_sum[i] > 1e-20f && row_sum[i] < 1e20f;
        if (in_range || shifted) break;
        for (long i = 0; i < count; i++) lane_sums[i] = line(-INFINITY);
        multiply(states, workspace.head_t, count, V, D, [&](long i, long, const Line& logits) { lane_sums[i] = greater(logits, lane_sums[i]); });
        for (long i = 0; i < count; i++) shift[i] = reduce_max(lane_sums[i]);
    }
    for (long i = 0; i < count; i++) {
        const long token = first_token + i, target = l.targets[token];
        const float* row = l.weight + target * D;
        // The order of additions is that of `multiply`, so that a likely token's logit agrees with its e^logit to the last bit.
        float logit = 0;
        for (long d = 0; d < D; d++) logit = std::fma(*(states(i, d & -16L) + d % 16), row[d], logit);
        const float log_sum = std::log(row_sum[i]);
        l.logp[token] = logit - shift[i] - log_sum;
        if (l.entropy) l.entropy[token] = log_sum - sum(entropy_sums[i]) / row_sum[i];
        if (!l.slopes) continue;
        // p - 1 of the target by expm1(log p): 1 - p would round to zero for a confident prediction.
        const float scale = -l.slopes[token] / row_sum[i], remainder = std::expm1(l.logp[token]) * row_sum[i];
        float* target_exp = exp_logits(i, target & -16L) + target % 16;
        const float target_scale = scale * (remainder - *target_exp);
        *target_exp = remainder;
        for (long d = 0; d < D; d += 16) {
            store(l.grad_hidden + token * D + d, line(sums(i, d)) * scale + line(row + d) * target_scale);
            store(workspace.states(t + i, d), line(states(i, d)) * scale);
        }
    }
}

}  // namespace

extern "C" void float32_log_probability(const Loss* arguments) {
    const Loss& l = *arguments;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    const long D = l.width, V = l.padded_vocabulary, slice = std::clamp((1L << 22) / V / CHUNK, 1L, 16L) * CHUNK;
    team.shared.reserve(4 * (2 * V * D + stride_of(slice) * ((D + V) / 16) + 1024));
    Workspace workspace;
    workspace.head_t = {team.shared.alloc<float>(V * D), D * 16}, workspace.head = {team.shared.alloc<float>(V * D), V * 16};
    workspace.states = alloc_panels(team.shared, slice, D), workspace.exp_logits = alloc_panels(team.shared, slice, V);
    std::vector<Phase> phases{{V / 16, [&](long number) {
        for (long d = 0; d < D; d += 16)
            for (long i = 0; i < 16; i++) {
                const float* src = l.weight + (number * 16 + i) * D + d;
                for (long j = 0; j < 16; j++) workspace.head_t.column(number * 16)(d + j, 0)[i] = src[j];
                store(workspace.head(number * 16 + i, d), line(src));
            }
    }}};
    for (long begin = 0; begin < l.tokens; begin += slice) {
        const long size = std::min(slice, l.tokens - begin);
        phases.push_back({(size + CHUNK - 1) / CHUNK, [&, begin, size](long number) {
            const long t = number * CHUNK;
            chunk(l, workspace, begin + t, t, std::min(CHUNK, size - t));
        }});
        phases.push_back({l.slopes ? (V + WEIGHT_ROWS - 1) / WEIGHT_ROWS : 0, [&, begin, size](long number) {
            const long v = number * WEIGHT_ROWS;
            weight_gradient(workspace.exp_logits.column(v), workspace.states, std::min(WEIGHT_ROWS, V - v), D, size, begin == 0,
                            [&](long m, long n) { return l.grad_weight + (v + m) * D + n; });
        }});
    }
    team.run(l.threads, phases);
}

}  // namespace f32
