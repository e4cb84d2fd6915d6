// The loss in float32: the head, its softmax and the gradients of both, a slice of the tokens at a time, as in loss.cpp.
#include "float32.h"
#include "team.h"

namespace f32 {
namespace {

struct Loss {  // of `tokens` hidden states (tokens x width) of which the ith has its target; the head is (vocabulary x width)
    long tokens, width, vocabulary, known, threads;  // rows of the head from `known` on only fill it up to a multiple of 16
    const float *hidden, *weight;
    const long* targets;
    const float* slopes;  // of each log-probability in the sum whose gradients are asked for; null: there are none
    float *found, *entropy, *grad_hidden, *grad_weight;  // entropy may be null
};

constexpr long COLUMNS = 256;  // of the vocabulary

struct Memory {
    Panels head_t, head, states, likely;  // the head for both directions; of a slice: hidden states, scaled, and e^logits
};

// Log-probabilities found[i] and what is needed for the gradients of `count` tokens from `at` on, the `t`th of the slice.
// A row's e^logits are written down as they are; where their sum leaves the range of float32, beside the row's highest logit.
void chunk(const Loss& l, const Memory& memory, long at, long t, long count) {
    const long D = l.width, V = l.vocabulary;
    scratch.room(4 * (2 * stride_of(CHUNK) * (D / 16) + 256));
    const Panels states = take(scratch, CHUNK, D), sums = take(scratch, CHUNK, D), likely = memory.likely.row(t);
    Line totals[CHUNK], weighted[CHUNK];
    float reference[CHUNK] = {}, whole[CHUNK];
    for (long i = 0; i < count; i++)
        for (long d = 0; d < D; d += 16) store(states(i, d), line(l.hidden + (at + i) * D + d));
    for (bool sure = false;; sure = true) {
        for (long i = 0; i < count; i++) totals[i] = weighted[i] = line(0.f);
        for (long v = 0; v < V; v += COLUMNS) {
            const long columns = std::min(COLUMNS, V - v);
            multiply(states, memory.head_t.column(v), count, columns, D, [&](long i, long n, const Line& logits) {
                const Line above = logits - line(reference[i]);
                Line e = exponential(above);
                if (v + n + 16 > l.known)
                    for (long j = std::max(0L, l.known - v - n); j < 16; j++) e.part[j / LANES][j % LANES] = 0;
                totals[i] = totals[i] + e;
                if (l.entropy) weighted[i] = weighted[i] + e * above;
                store(likely(i, v + n), e);
            });
            if (l.slopes)
                multiply(likely.column(v), memory.head.row(v), count, D, columns, [&](long i, long n, const Line& product) {
                    store(sums(i, n), v ? line(sums(i, n)) + product : product);
                });
        }
        bool good = true;
        for (long i = 0; i < count; i++) whole[i] = sum(totals[i]), good = good && whole[i] > 1e-20f && whole[i] < 1e20f;
        if (good || sure) break;
        for (long i = 0; i < count; i++) totals[i] = line(-INFINITY);
        multiply(states, memory.head_t, count, V, D, [&](long i, long, const Line& logits) { totals[i] = greater(logits, totals[i]); });
        for (long i = 0; i < count; i++) reference[i] = highest(totals[i]);
    }
    for (long i = 0; i < count; i++) {
        const long token = at + i, target = l.targets[token];
        const float* row = l.weight + target * D;
        // As `multiply` adds them up, so that a likely token's logit and its share of the sum agree to the last bit.
        float logit = 0;
        for (long d = 0; d < D; d++) logit = std::fma(*(states(i, d & -16L) + d % 16), row[d], logit);
        const float log_whole = std::log(whole[i]);
        l.found[token] = logit - reference[i] - log_whole;
        if (l.entropy) l.entropy[token] = log_whole - sum(weighted[i]) / whole[i];
        if (!l.slopes) continue;
        // What is left of the target, by exp(x) - 1, since 1 - p would round away what a sure prediction leaves.
        const float scale = -l.slopes[token] / whole[i], rest = std::expm1(l.found[token]) * whole[i];
        float* own = likely(i, target & -16L) + target % 16;
        const float mend = scale * (rest - *own);
        *own = rest;
        for (long d = 0; d < D; d += 16) {
            store(l.grad_hidden + token * D + d, line(sums(i, d)) * scale + line(row + d) * mend);
            store(memory.states(t + i, d), line(states(i, d)) * scale);
        }
    }
}

}  // namespace

extern "C" void float32_log_probability(const Loss* given) {
    const Loss& l = *given;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> alone(team.alone);
    const long D = l.width, V = l.vocabulary, slice = std::clamp((1L << 22) / V / CHUNK, 1L, 16L) * CHUNK;
    team.common.room(4 * (2 * V * D + stride_of(slice) * ((D + V) / 16) + 1024));
    Memory memory;
    memory.head_t = {team.common.take<float>(V * D), D * 16}, memory.head = {team.common.take<float>(V * D), V * 16};
    memory.states = take(team.common, slice, D), memory.likely = take(team.common, slice, V);
    std::vector<Phase> phases{{V / 16, [&](long number) {
        for (long d = 0; d < D; d += 16)
            for (long i = 0; i < 16; i++) {
                const float* from = l.weight + (number * 16 + i) * D + d;
                for (long j = 0; j < 16; j++) memory.head_t.column(number * 16)(d + j, 0)[i] = from[j];
                store(memory.head(number * 16 + i, d), line(from));
            }
    }}};
    for (long begin = 0; begin < l.tokens; begin += slice) {
        const long size = std::min(slice, l.tokens - begin);
        phases.push_back({(size + CHUNK - 1) / CHUNK, [&, begin, size](long number) {
            const long t = number * CHUNK;
            chunk(l, memory, begin + t, t, std::min(CHUNK, size - t));
        }});
        phases.push_back({l.slopes ? (V + SIDE - 1) / SIDE : 0, [&, begin, size](long number) {
            const long v = number * SIDE;
            sum_up(memory.likely.column(v), memory.states, std::min(SIDE, V - v), D, size, begin == 0,
                   [&](long m, long n) { return l.grad_weight + (v + m) * D + n; });
        }});
    }
    team.run(l.threads, phases);
}

}  // namespace f32
