// The forward pass of the dense decoder in float32 for tokens of any rows: prefill and decode steps of generation, and
// log-probabilities for scoring.
//
// The order of additions does not depend on the batch, so a token's logits are the same to the bit whatever is computed with it:
// neither drafts nor other rows nor the number of threads can change the text.
#include <algorithm>
#include <vector>

#include "products.h"
#include "team.h"

using namespace f32;

struct StepModel {
    long layers, width, heads, key_heads, channels, inner, vocabulary, threads;
    long panels;  // whether the matrices, except the embedding, are in panels of 16 outputs
    double eps;
    const float *embedding, *norm, *head;
};

struct StepLayer {  // matrices (outputs x inputs); biases and the norms of heads may be null
    const float *attention_norm, *q, *k, *v, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *o;
    const float *mlp_norm, *gate, *up, *down;
};

struct StepCache {  // (layers, key heads and then value heads, rows, capacity, channels)
    long rows, capacity;
    float* data;
};

struct StepTokens {  // each at a position of a row; those of one row in order; logit_indices: tokens whose logits are computed, ascending
    long count, logit_count;
    const long *ids, *rows, *positions, *logit_indices;
    const long *slots;    // index in its row of the cache
    const long *parents;  // in a tree: the token before each, -1 where that is the last cached one; or null
};

struct StepTargets {  // to be scored instead of logits: targets up to ends[i] follow the i-th of the logit_indices
    const long *ends, *ids;
    float* logp;      // log-probabilities of the targets
    long* likeliest;  // the most likely token after each of the logit_indices
};

namespace {

void rms_norm(const float* x, const float* norm_weight, double eps, long width, float* out) {
    Vec squares{};
    for (long j = 0; j < width; j += LANES) squares += load(x + j) * load(x + j);
    const Vec scale = set1(1 / std::sqrt(sum(squares) / width + (float)eps));
    for (long j = 0; j < width; j += LANES) store(out + j, load(x + j) * scale * load(norm_weight + j));
}

// RoPE of a query or key, in place. Channels j and j + C / 2 are a pair and become 2 j and 2 j + 1; rope_cache has its (cos, sin).
void apply_rope(float* x, const float* rope_cache, long C) {
    float out[MAX_CHANNELS];
    for (long j = 0; j < C / 2; j++) {
        const float a = x[j], b = x[C / 2 + j], cosine = rope_cache[2 * j], sine = rope_cache[2 * j + 1];
        out[2 * j] = a * cosine - b * sine, out[2 * j + 1] = a * sine + b * cosine;
    }
    std::memcpy(x, out, C * sizeof(float));
}

struct KeyRange {  // of the cache: `count` slots from `slot` on have the positions from `position` on
    long slot, position, count;
};

// softmax(q k^T) v of R queries (R x C) over keys and values of C channels; query r sees the first visible[r] positions.
// `scores` is R rows of `stride`, a multiple of LANES and not less than any of `visible`.
template <int R>
void attend_rows(const float* q, const float* keys, const float* values, const std::vector<KeyRange>& ranges, const long* visible, long C,
                 float* scores, long stride, float* const* out) {
    const long S = *std::max_element(visible, visible + R), padded = (S + LANES - 1) / LANES * LANES;
    for (const KeyRange& range : ranges)
        gemm_rows<R>(q, C, keys + range.slot * C, C, std::min(range.count, S - range.position), C, 0,
                     [&](long r, long s, float score) { scores[r * stride + range.position + s] = score; });
    Vec inverse_sum[R];
    for (long r = 0; r < R; r++) {
        float* row = scores + r * stride;
        std::fill(row + visible[r], row + padded, -INFINITY);
        Vec row_max = load(row), total{};
        for (long s = LANES; s < padded; s += LANES) row_max = max(row_max, load(row + s));
        row_max = set1(reduce_max(row_max));
        for (long s = 0; s < padded; s += LANES) {
            const Vec v = exponential(load(row + s) - row_max);
            store(row + s, v);
            total += v;
        }
        inverse_sum[r] = set1(1 / sum(total));
    }
    constexpr long W = LANES == 16 || R > 2 ? 2 : 4;  // vectors of channels in registers
    for (long c = 0; c < C; c += W * LANES) {
        Vec acc[R][W] = {};
        for (const KeyRange& range : ranges) {
            const float *value_rows = values + range.slot * C + c, *weights = scores + range.position;
            for (long s = 0, end = std::min(range.count, S - range.position); s < end; s++) {
                Vec value[W];
                for (long w = 0; w < W; w++) value[w] = load(value_rows + s * C + w * LANES);
                for (long r = 0; r < R; r++)
                    for (long w = 0; w < W; w++) acc[r][w] += set1(weights[r * stride + s]) * value[w];
            }
        }
        for (long r = 0; r < R; r++)
            for (long w = 0; w < W; w++) store(out[r] + c + w * LANES, acc[r][w] * inverse_sum[r]);
    }
}

struct Group {  // `count` consecutive tokens of one row from `first` on; their results go to rows from `output` on
    long first, output, count;
};

class Pass {
   public:
    Pass(const StepModel& model, const StepLayer* layers, const StepCache& cache, const StepTokens& tokens, const float* rope_cache,
         float* logits, const StepTargets* targets, Scratch& shared)
        : m(model), layers(layers), cache(cache), t(tokens), rope_cache(rope_cache), targets(targets), logits(logits), N(t.count),
          M(t.logit_count) {
        shared.reserve(4 * (2 * N * m.width + N * (2 * A + m.inner)) + 4096);
        x = shared.alloc<float>(N * m.width), last = shared.alloc<float>(M * m.width);
        queries = shared.alloc<float>(N * A), attended = shared.alloc<float>(N * A), inner = shared.alloc<float>(N * m.inner);
        for (long n = 0; n < N; n++) std::memcpy(x + n * m.width, m.embedding + t.ids[n] * m.width, m.width * sizeof(float));
        all_groups.reserve(N), logit_groups.reserve(M);
        for (long n = 0; n < N; n++) append(all_groups, n, n);
        for (long i = 0; i < M; i++) append(logit_groups, t.logit_indices[i], i);
        static long pass_count = 0;
        pass_id = ++pass_count;
    }

    long phases() const { return PHASES * m.layers + 1; }

    long chunks(long phase) const {
        switch (phase == PHASES * m.layers ? (long)HEAD : phase % PHASES) {
            case QKV: return blocks(N) * (m.heads + 2 * m.key_heads);
            case ATTENTION: return (long)groups(phase).size() * m.key_heads;
            case GATED: return blocks(rows(phase)) * parts(m.inner);
            case HEAD: return targets ? (M + SCORE_BLOCK - 1) / SCORE_BLOCK : blocks(M) * parts(m.vocabulary);
            default: return blocks(rows(phase)) * parts(m.width);
        }
    }

    void chunk(long phase, long chunk) {
        if (phase == PHASES * m.layers) return targets ? score(chunk) : head(chunk);
        const long i = phase / PHASES;
        switch (phase % PHASES) {
            case QKV: return project(i, phase, chunk);
            case ATTENTION: return attend(i, phase, chunk);
            case OUTPUT: return add_product(phase, chunk, attended, A, layers[i].o);
            case GATED: return gate(i, phase, chunk);
            default: return add_product(phase, chunk, inner, m.inner, layers[i].down);
        }
    }

   private:
    enum Kind { QKV, ATTENTION, OUTPUT, GATED, DOWN, HEAD };
    static constexpr long PHASES = HEAD;  // of a layer
    static constexpr long BLOCK = 64, QUERY_BLOCK = 16, SCORE_BLOCK = 48;  // tokens of a chunk: products, attention, scores

    const StepModel& m;
    const StepLayer* layers;
    const StepCache& cache;
    const StepTokens& t;
    const float* rope_cache;
    const StepTargets* targets;
    float *logits, *x, *last, *queries, *attended, *inner;
    const long N, M, A = m.heads * m.channels;
    std::vector<Group> all_groups, logit_groups;
    long pass_id;

    void append(std::vector<Group>& groups, long token, long output) {
        if (!groups.empty()) {
            Group& g = groups.back();
            if (g.count < QUERY_BLOCK && g.first + g.count == token && t.rows[token] == t.rows[g.first] &&
                (!t.parents || t.parents[token] == token - 1)) {
                g.count++;
                return;
            }
        }
        groups.push_back({token, output, 1});
    }

    // What the last token of a group sees: its row up to it, or in a tree its path to the root and what was cached before that.
    void visible_ranges(const Group& g, std::vector<KeyRange>& ranges) const {
        ranges.clear();
        long token = g.first + g.count - 1, end = t.positions[token] + 1;
        if (!t.parents) {
            for (long n = g.first; n < token; n++) end = std::max(end, t.positions[n] + 1);
            return ranges.push_back({0, 0, end});
        }
        for (; token >= 0; token = t.parents[token]) {
            end = t.positions[token];
            if (!ranges.empty() && ranges.back().slot == t.slots[token] + 1)
                ranges.back().slot--, ranges.back().position--, ranges.back().count++;
            else
                ranges.push_back({t.slots[token], end, 1});
        }
        if (end) ranges.push_back({0, 0, end});
        std::reverse(ranges.begin(), ranges.end());
    }

    static long blocks(long rows) { return (rows + BLOCK - 1) / BLOCK; }
    static long parts(long outputs) { return (outputs + OUTPUT_BLOCK - 1) / OUTPUT_BLOCK; }
    // After the last layer's keys and values only tokens whose logits are computed go on.
    bool only_logit_tokens(long phase) const { return phase > PHASES * (m.layers - 1) + QKV; }
    long rows(long phase) const { return only_logit_tokens(phase) ? M : N; }
    const std::vector<Group>& groups(long phase) const { return only_logit_tokens(phase) ? logit_groups : all_groups; }

    struct OutputTile {  // rows from n on, outputs from o on
        long n, rows, o, outputs;
    };
    static OutputTile output_tile(long chunk, long rows, long outputs) {
        const long count = parts(outputs), n = chunk / count * BLOCK, o = chunk % count * OUTPUT_BLOCK;
        return {n, std::min(BLOCK, rows - n), o, std::min(OUTPUT_BLOCK, outputs - o)};
    }

    void multiply(const float* x, long rows, long K, const float* weight, long outputs, float* out) const {
        (m.panels ? gemm_panels : gemm)(x, rows, K, weight, outputs, out);
    }

    // A normalised block of x, cached by the thread for the next chunks: other threads compute it again rather than wait.
    const float* rms_norm_block(long phase, const float* rows_in, long n, long rows, const float* norm_weight) {
        thread_local std::vector<float> cached;
        thread_local long cached_pass = 0, cached_phase, cached_row;
        if (cached_pass != pass_id || cached_phase != phase || cached_row != n) {
            cached.resize(BLOCK * m.width);
            for (long i = 0; i < rows; i++)
                rms_norm(rows_in + (n + i) * m.width, norm_weight, m.eps, m.width, cached.data() + i * m.width);
            cached_pass = pass_id, cached_phase = phase, cached_row = n;
        }
        return cached.data();
    }

    float* cache_row(long layer, long head, long row) const {
        return cache.data + ((layer * 2 * m.key_heads + head) * cache.rows + row) * cache.capacity * m.channels;
    }

    void project(long i, long phase, long chunk) {
        const StepLayer& l = layers[i];
        const long C = m.channels, D = m.width, K = m.key_heads, count = m.heads + 2 * K;
        const long head = chunk % count, n = chunk / count * BLOCK, rows = std::min(BLOCK, N - n);
        const float* h = rms_norm_block(phase, x, n, rows, l.attention_norm);
        const bool is_query = head < m.heads, is_key = !is_query && head < m.heads + K;
        const long head_index = is_query ? head : is_key ? head - m.heads : head - m.heads - K;
        const float* weight = (is_query ? l.q : is_key ? l.k : l.v) + head_index * C * D;
        const float *bias = is_query ? l.q_bias : is_key ? l.k_bias : l.v_bias, *norm_weight = is_query ? l.q_norm : l.k_norm;
        for (long o = 0; o < C; o += OUTPUT_BLOCK) {
            float out[BLOCK * OUTPUT_BLOCK];
            const long outputs = std::min(OUTPUT_BLOCK, C - o);
            multiply(h, rows, D, weight + o * D, outputs, out);
            for (long r = 0; r < rows; r++) {
                float* dst = qkv_row(i, head, n + r) + o;
                for (long j = 0; j < outputs; j += LANES) {
                    const Vec v = load(out + r * OUTPUT_BLOCK + j);
                    store(dst + j, bias ? v + load(bias + head_index * C + o + j) : v);
                }
            }
        }
        for (long r = n; (is_query || is_key) && r < n + rows; r++) {
            float* dst = qkv_row(i, head, r);
            if (norm_weight) rms_norm(dst, norm_weight, m.eps, C, dst);
            apply_rope(dst, rope_cache + t.positions[r] * C, C);
        }
    }
    float* qkv_row(long layer, long head, long n) const {
        if (head < m.heads) return queries + (n * m.heads + head) * m.channels;
        return cache_row(layer, head - m.heads, t.rows[n]) + t.slots[n] * m.channels;
    }

    void attend(long i, long phase, long chunk) {
        const std::vector<Group>& phase_groups = groups(phase);
        const Group& g = phase_groups[chunk % phase_groups.size()];
        const long key_head = chunk / phase_groups.size(), C = m.channels, group_size = m.heads / m.key_heads;
        const long last_token = g.first + g.count - 1, row = t.rows[g.first];
        const float *keys = cache_row(i, key_head, row), *values = cache_row(i, m.key_heads + key_head, row);
        const float scale = 1 / std::sqrt((float)C);
        thread_local std::vector<KeyRange> ranges;
        thread_local std::vector<float> scores;
        visible_ranges(g, ranges);
        const long end = ranges.back().position + ranges.back().count, stride = (end + LANES - 1) / LANES * LANES;
        scores.resize(4 * (stride + MAX_CHANNELS));
        float *q = scores.data() + 4 * stride, *out[4];
        long visible[4], count = 0;
        const auto attend_batch = [&] {
            switch (count) {
                case 1: attend_rows<1>(q, keys, values, ranges, visible, C, scores.data(), stride, out); break;
                case 2: attend_rows<2>(q, keys, values, ranges, visible, C, scores.data(), stride, out); break;
                case 3: attend_rows<3>(q, keys, values, ranges, visible, C, scores.data(), stride, out); break;
                case 4: attend_rows<4>(q, keys, values, ranges, visible, C, scores.data(), stride, out); break;
            }
            count = 0;
        };
        for (long n = g.first; n <= last_token; n++)
            for (long head = key_head * group_size; head < (key_head + 1) * group_size; head++) {
                const float* query = queries + (n * m.heads + head) * C;
                for (long c = 0; c < C; c += LANES) store(q + count * C + c, load(query + c) * scale);
                visible[count] = t.positions[n] + 1, out[count] = attended + (g.output + n - g.first) * A + head * C;
                if (++count == 4) attend_batch();
            }
        attend_batch();
    }

    // x += a (rows x K) times the weight (width x K) transposed.
    void add_product(long phase, long chunk, const float* a, long K, const float* weight) {
        const OutputTile p = output_tile(chunk, rows(phase), m.width);
        float product[BLOCK * OUTPUT_BLOCK];
        multiply(a + p.n * K, p.rows, K, weight + p.o * K, p.outputs, product);
        for (long r = 0; r < p.rows; r++) {
            float* dst = residual(phase) + (p.n + r) * m.width + p.o;
            const bool first_of_last = phase == PHASES * (m.layers - 1) + OUTPUT;
            const float* previous = first_of_last ? x + t.logit_indices[p.n + r] * m.width + p.o : dst;
            for (long j = 0; j < p.outputs; j += LANES) store(dst + j, load(previous + j) + load(product + r * OUTPUT_BLOCK + j));
        }
    }
    float* residual(long phase) const { return only_logit_tokens(phase) ? last : x; }

    void gate(long i, long phase, long chunk) {
        const StepLayer& l = layers[i];
        const OutputTile p = output_tile(chunk, rows(phase), m.inner);
        const float* h = rms_norm_block(phase, residual(phase), p.n, p.rows, l.mlp_norm);
        float gates[BLOCK * OUTPUT_BLOCK], up[BLOCK * OUTPUT_BLOCK];
        multiply(h, p.rows, m.width, l.gate + p.o * m.width, p.outputs, gates);
        multiply(h, p.rows, m.width, l.up + p.o * m.width, p.outputs, up);
        for (long r = 0; r < p.rows; r++)
            for (long j = 0; j < p.outputs; j += LANES) {
                const Vec v = load(gates + r * OUTPUT_BLOCK + j), denominator = exponential(-v) + 1.f;
                store(inner + (p.n + r) * m.inner + p.o + j, v * load(up + r * OUTPUT_BLOCK + j) / denominator);
            }
    }

    void head(long chunk) {
        const OutputTile p = output_tile(chunk, M, m.vocabulary);
        const float* h = rms_norm_block(PHASES * m.layers, last, p.n, p.rows, m.norm);
        float block[BLOCK * OUTPUT_BLOCK];
        multiply(h, p.rows, m.width, m.head + p.o * m.width, p.outputs, block);
        for (long r = 0; r < p.rows; r++)
            std::memcpy(logits + (p.n + r) * m.vocabulary + p.o, block + r * OUTPUT_BLOCK, p.outputs * sizeof(float));
    }

    // Log-probabilities of targets from logits that stay in the thread's memory.
    void score(long chunk) {
        const long n = chunk * SCORE_BLOCK, rows = std::min(SCORE_BLOCK, M - n), V = m.vocabulary;
        const long stride = (V + OUTPUT_BLOCK - 1) / OUTPUT_BLOCK * OUTPUT_BLOCK;
        thread_local std::vector<float> h, all_logits;
        h.resize(SCORE_BLOCK * m.width), all_logits.resize(SCORE_BLOCK * stride);
        for (long r = 0; r < rows; r++) rms_norm(last + (n + r) * m.width, m.norm, m.eps, m.width, h.data() + r * m.width);
        for (long o = 0; o < V; o += OUTPUT_BLOCK) {
            float block[SCORE_BLOCK * OUTPUT_BLOCK];
            const long outputs = std::min(OUTPUT_BLOCK, V - o);
            multiply(h.data(), rows, m.width, m.head + o * m.width, outputs, block);
            for (long r = 0; r < rows; r++) {
                std::fill(block + r * OUTPUT_BLOCK + outputs, block + (r + 1) * OUTPUT_BLOCK, -INFINITY);
                std::memcpy(all_logits.data() + r * stride + o, block + r * OUTPUT_BLOCK, OUTPUT_BLOCK * sizeof(float));
            }
        }
        for (long r = 0; r < rows; r++) {
            const float* row = all_logits.data() + r * stride;
            Vec lane_max = load(row), total{};
            for (long v = LANES; v < stride; v += LANES) lane_max = max(lane_max, load(row + v));
            const float row_max = reduce_max(lane_max);
            for (long v = 0; v < stride; v += LANES) total += exponential(load(row + v) - set1(row_max));
            const float log_sum = std::log(sum(total));
            for (long i = n + r ? targets->ends[n + r - 1] : 0; i < targets->ends[n + r]; i++)
                targets->logp[i] = row[targets->ids[i]] - row_max - log_sum;
            targets->likeliest[n + r] = std::find(row, row + V, row_max) - row;
        }
    }
};

}  // namespace

// Logits (logit_count, vocabulary) after each of the logit_indices. The cache has what is before the tokens in their
// rows; their keys and values are added. rope_cache (capacity, channels): cosine and sine of each pair's angle. With `targets`
// their log-probabilities are computed instead of logits; the caller has checked these and the parents. Returns 0; or, with nothing
// done, 1 for an id out of range, 2 for a row, position or slot out of range, 3 for too many tokens; or 4 if `stop`, where it is
// not null, became 1 meanwhile: results may be written in part.
extern "C" int decode(const StepModel* model, const StepLayer* layers, const StepCache* cache, const StepTokens* tokens,
                      const float* rope_cache, float* logits, const StepTargets* targets, const int* stop) {
    const StepTokens& t = *tokens;
    const auto within = [&](const long* values, long end) {
        return std::all_of(values, values + t.count, [=](long value) { return 0 <= value && value < end; });
    };
    if (!within(t.ids, model->vocabulary)) return 1;
    if (!within(t.rows, cache->rows) || !within(t.positions, cache->capacity) || !within(t.slots, cache->capacity)) return 2;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> lock(team.call_mutex);
    Pass pass(*model, layers, *cache, t, rope_cache, logits, targets, team.shared);
    const auto stopped = [stop] { return stop && __atomic_load_n(stop, __ATOMIC_RELAXED); };
    std::vector<Phase> phases;
    for (long phase = 0; phase < pass.phases(); phase++) {
        phases.push_back({pass.chunks(phase), [&pass, &stopped, phase](long chunk) {
            if (!stopped()) pass.chunk(phase, chunk);
        }});
        if (phases.back().chunks > Team::MAX_CHUNKS) return 3;
    }
    team.run(model->threads, phases);
    return stopped() ? 4 : 0;
}
