// Tokens of any rows through the whole dense decoder in float32: what generation does between two tokens, and how it reads
// prompts; and how likely tokens are after each other, for scoring.
//
// Every sum is made in the same order whatever is computed beside it, so a token's logits are the same to the bit in any
// company: neither drafts nor other rows nor the number of threads can change what is said.
#include <algorithm>
#include <vector>

#include "products.h"
#include "team.h"

using namespace f32;

struct StepModel {
    long layers, width, heads, key_heads, channels, inner, vocabulary, threads;
    long panels;  // whether the matrices, but the embedding, lie in panels of 16 outputs
    double eps;
    const float *embedding, *norm, *head;
};

struct StepLayer {  // matrices (outputs x inputs); biases and the norms of heads may be missing
    const float *attention_norm, *q, *k, *v, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *o;
    const float *mlp_norm, *gate, *up, *down;
};

struct StepCache {  // (layers, key heads and then value heads, rows, room, channels)
    long rows, room;
    float* at;
};

struct StepTokens {  // each at a position of a row; those of one row in order. Logits are wanted of some, in order.
    long count, wanted_count;
    const long *ids, *rows, *positions, *wanted;
    const long *slots;    // where in its row of the cache each is kept
    const long *parents;  // of a tree: the token before each, -1 where that is the last one of those kept before; or nothing
};

struct StepTargets {  // what is asked of the wanted tokens: how likely the targets up to ends[i] are after the i-th
    const long *ends, *ids;
    float* found;     // logarithms of their probabilities
    long* likeliest;  // token after each of the wanted
};

namespace {

// out = x / rms(x) * norm_weight, of `width` numbers.
void normalised(const float* x, const float* norm_weight, double eps, long width, float* out) {
    Vec squares{};
    for (long j = 0; j < width; j += LANES) squares += load(x + j) * load(x + j);
    const Vec scale = all(1 / std::sqrt(sum(squares) / width + (float)eps));
    for (long j = 0; j < width; j += LANES) store(out + j, load(x + j) * scale * load(norm_weight + j));
}

// A query or key in place: each channel of the first half and its partner of the second, side by side, turned by (cos, sin).
void turned(float* x, const float* turns, long C) {
    float out[MAX_CHANNELS];
    for (long j = 0; j < C / 2; j++) {
        const float a = x[j], b = x[C / 2 + j], cosine = turns[2 * j], sine = turns[2 * j + 1];
        out[2 * j] = a * cosine - b * sine, out[2 * j + 1] = a * sine + b * cosine;
    }
    std::memcpy(x, out, C * sizeof(float));
}

struct Stretch {  // of keys and values: so many from `slot` on are those at the positions from `position` on
    long slot, position, count;
};

// softmax(q k^T) v of R queries (R x C) over keys and values of C channels, of which query r sees the first seen[r] positions;
// `scores` has room for R rows of `stride`, which is a multiple of LANES and not less than any of `seen`.
template <int R>
void attend_rows(const float* q, const float* keys, const float* values, const std::vector<Stretch>& way, const long* seen, long C,
                 float* scores, long stride, float* const* out) {
    const long S = *std::max_element(seen, seen + R), padded = (S + LANES - 1) / LANES * LANES;
    for (const Stretch& part : way)
        products_of<R>(q, C, keys + part.slot * C, C, std::min(part.count, S - part.position), C, 0,
                       [&](long r, long s, float found) { scores[r * stride + part.position + s] = found; });
    Vec share[R];
    for (long r = 0; r < R; r++) {
        float* row = scores + r * stride;
        std::fill(row + seen[r], row + padded, -INFINITY);
        Vec most = load(row), total{};
        for (long s = LANES; s < padded; s += LANES) most = max(most, load(row + s));
        most = all(highest(most));
        for (long s = 0; s < padded; s += LANES) {
            const Vec v = exponential(load(row + s) - most);
            store(row + s, v);
            total += v;
        }
        share[r] = all(1 / sum(total));
    }
    constexpr long W = LANES == 16 || R > 2 ? 2 : 4;  // vectors of channels at once
    for (long c = 0; c < C; c += W * LANES) {
        Vec found[R][W] = {};
        for (const Stretch& part : way) {
            const float *from = values + part.slot * C + c, *shares = scores + part.position;
            for (long s = 0, end = std::min(part.count, S - part.position); s < end; s++) {
                Vec value[W];
                for (long w = 0; w < W; w++) value[w] = load(from + s * C + w * LANES);
                for (long r = 0; r < R; r++)
                    for (long w = 0; w < W; w++) found[r][w] += all(shares[r * stride + s]) * value[w];
            }
        }
        for (long r = 0; r < R; r++)
            for (long w = 0; w < W; w++) store(out[r] + c + w * LANES, found[r][w] * share[r]);
    }
}

struct Group {  // tokens of one row, one after the other: `first` and so many more of the tokens, `to` where their results go
    long first, to, count;
};

class Pass {
   public:
    Pass(const StepModel& model, const StepLayer* layers, const StepCache& cache, const StepTokens& tokens, const float* turns,
         float* logits, const StepTargets* targets, Scratch& common)
        : m(model), layers(layers), cache(cache), t(tokens), turns(turns), targets(targets), logits(logits), N(t.count),
          M(t.wanted_count) {
        common.room(4 * (2 * N * m.width + N * (2 * A + m.inner)) + 4096);
        x = common.take<float>(N * m.width), last = common.take<float>(M * m.width);
        queries = common.take<float>(N * A), attended = common.take<float>(N * A), inner = common.take<float>(N * m.inner);
        for (long n = 0; n < N; n++) std::memcpy(x + n * m.width, m.embedding + t.ids[n] * m.width, m.width * sizeof(float));
        every.reserve(N), wanted.reserve(M);
        for (long n = 0; n < N; n++) add_to(every, n, n);
        for (long i = 0; i < M; i++) add_to(wanted, t.wanted[i], i);
        static long passes = 0;
        number = ++passes;
    }

    long phases() const { return PHASES * m.layers + 1; }

    long chunks(long phase) const {
        switch (phase == PHASES * m.layers ? (long)HEAD : phase % PHASES) {
            case QKV: return blocks(N) * (m.heads + 2 * m.key_heads);
            case ATTENTION: return (long)groups(phase).size() * m.key_heads;
            case GATED: return blocks(rows(phase)) * parts(m.inner);
            case HEAD: return targets ? (M + SCORED - 1) / SCORED : blocks(M) * parts(m.vocabulary);
            default: return blocks(rows(phase)) * parts(m.width);
        }
    }

    void chunk(long phase, long number) {
        if (phase == PHASES * m.layers) return targets ? score(number) : head(number);
        const long i = phase / PHASES;
        switch (phase % PHASES) {
            case QKV: return project(i, phase, number);
            case ATTENTION: return attend(i, phase, number);
            case OUTPUT: return add(phase, number, attended, A, layers[i].o);
            case GATED: return gate(i, phase, number);
            default: return add(phase, number, inner, m.inner, layers[i].down);
        }
    }

   private:
    enum Kind { QKV, ATTENTION, OUTPUT, GATED, DOWN, HEAD };
    static constexpr long PHASES = HEAD;  // of a layer
    static constexpr long BLOCK = 64, QUERIES = 16, SCORED = 48;  // tokens of a chunk: in products, in attention, in scores

    const StepModel& m;
    const StepLayer* layers;
    const StepCache& cache;
    const StepTokens& t;
    const float* turns;
    const StepTargets* targets;
    float *logits, *x, *last, *queries, *attended, *inner;
    const long N, M, A = m.heads * m.channels;
    std::vector<Group> every, wanted;
    long number;

    void add_to(std::vector<Group>& groups, long token, long to) {
        if (!groups.empty()) {
            Group& g = groups.back();
            if (g.count < QUERIES && g.first + g.count == token && t.rows[token] == t.rows[g.first] &&
                (!t.parents || t.parents[token] == token - 1)) {
                g.count++;
                return;
            }
        }
        groups.push_back({token, to, 1});
    }

    // What the last token of a group sees: all of its row before it, or what is on its way to the root and kept before that.
    void way_of(const Group& g, std::vector<Stretch>& way) const {
        way.clear();
        long token = g.first + g.count - 1, most = t.positions[token] + 1;
        if (!t.parents) {
            for (long n = g.first; n < token; n++) most = std::max(most, t.positions[n] + 1);
            return way.push_back({0, 0, most});
        }
        for (; token >= 0; token = t.parents[token]) {
            most = t.positions[token];
            if (!way.empty() && way.back().slot == t.slots[token] + 1)
                way.back().slot--, way.back().position--, way.back().count++;
            else
                way.push_back({t.slots[token], most, 1});
        }
        if (most) way.push_back({0, 0, most});
        std::reverse(way.begin(), way.end());
    }

    static long blocks(long rows) { return (rows + BLOCK - 1) / BLOCK; }
    static long parts(long outputs) { return (outputs + PART - 1) / PART; }
    // After the last layer's keys and values only those go on whose logits are wanted.
    bool only_wanted(long phase) const { return phase > PHASES * (m.layers - 1) + QKV; }
    long rows(long phase) const { return only_wanted(phase) ? M : N; }
    const std::vector<Group>& groups(long phase) const { return only_wanted(phase) ? wanted : every; }

    struct Part {  // rows from n on, outputs from o on
        long n, rows, o, outputs;
    };
    static Part of(long chunk, long rows, long outputs) {
        const long count = parts(outputs), n = chunk / count * BLOCK, o = chunk % count * PART;
        return {n, std::min(BLOCK, rows - n), o, std::min(PART, outputs - o)};
    }

    void multiply(const float* x, long rows, long K, const float* weight, long outputs, float* found) const {
        (m.panels ? products_of_panels : products)(x, rows, K, weight, outputs, found);
    }

    // A block of x, normalised: kept by the thread for the chunks that follow, which makes it twice, but waits for nobody.
    const float* normalised_block(long phase, const float* from, long n, long rows, const float* norm_weight) {
        thread_local std::vector<float> kept;
        thread_local long of_pass = 0, of_phase, of_block;
        if (of_pass != number || of_phase != phase || of_block != n) {
            kept.resize(BLOCK * m.width);
            for (long i = 0; i < rows; i++)
                normalised(from + (n + i) * m.width, norm_weight, m.eps, m.width, kept.data() + i * m.width);
            of_pass = number, of_phase = phase, of_block = n;
        }
        return kept.data();
    }

    float* kept(long layer, long head, long row) const {
        return cache.at + ((layer * 2 * m.key_heads + head) * cache.rows + row) * cache.room * m.channels;
    }

    void project(long i, long phase, long chunk) {
        const StepLayer& l = layers[i];
        const long C = m.channels, D = m.width, K = m.key_heads, count = m.heads + 2 * K;
        const long head = chunk % count, n = chunk / count * BLOCK, rows = std::min(BLOCK, N - n);
        const float* h = normalised_block(phase, x, n, rows, l.attention_norm);
        const bool query = head < m.heads, key = !query && head < m.heads + K;
        const long own = query ? head : key ? head - m.heads : head - m.heads - K;
        const float* weight = (query ? l.q : key ? l.k : l.v) + own * C * D;
        const float *bias = query ? l.q_bias : key ? l.k_bias : l.v_bias, *norm_weight = query ? l.q_norm : l.k_norm;
        for (long o = 0; o < C; o += PART) {
            float found[BLOCK * PART];
            const long outputs = std::min(PART, C - o);
            multiply(h, rows, D, weight + o * D, outputs, found);
            for (long r = 0; r < rows; r++) {
                float* to = place(i, head, n + r) + o;
                for (long j = 0; j < outputs; j += LANES) {
                    const Vec v = load(found + r * PART + j);
                    store(to + j, bias ? v + load(bias + own * C + o + j) : v);
                }
            }
        }
        for (long r = n; (query || key) && r < n + rows; r++) {
            float* to = place(i, head, r);
            if (norm_weight) normalised(to, norm_weight, m.eps, C, to);
            turned(to, turns + t.positions[r] * C, C);
        }
    }
    float* place(long layer, long head, long n) const {
        if (head < m.heads) return queries + (n * m.heads + head) * m.channels;
        return kept(layer, head - m.heads, t.rows[n]) + t.slots[n] * m.channels;
    }

    void attend(long i, long phase, long chunk) {
        const std::vector<Group>& all_groups = groups(phase);
        const Group& g = all_groups[chunk % all_groups.size()];
        const long shared = chunk / all_groups.size(), C = m.channels, together = m.heads / m.key_heads;
        const long last_token = g.first + g.count - 1, row = t.rows[g.first];
        const float *keys = kept(i, shared, row), *values = kept(i, m.key_heads + shared, row);
        const float scale = 1 / std::sqrt((float)C);
        thread_local std::vector<Stretch> way;
        thread_local std::vector<float> scores;
        way_of(g, way);
        const long most = way.back().position + way.back().count, stride = (most + LANES - 1) / LANES * LANES;
        scores.resize(4 * (stride + MAX_CHANNELS));
        float *q = scores.data() + 4 * stride, *out[4];
        long seen[4], count = 0;
        const auto flush = [&] {
            switch (count) {
                case 1: attend_rows<1>(q, keys, values, way, seen, C, scores.data(), stride, out); break;
                case 2: attend_rows<2>(q, keys, values, way, seen, C, scores.data(), stride, out); break;
                case 3: attend_rows<3>(q, keys, values, way, seen, C, scores.data(), stride, out); break;
                case 4: attend_rows<4>(q, keys, values, way, seen, C, scores.data(), stride, out); break;
            }
            count = 0;
        };
        for (long n = g.first; n <= last_token; n++)
            for (long head = shared * together; head < (shared + 1) * together; head++) {
                const float* from = queries + (n * m.heads + head) * C;
                for (long c = 0; c < C; c += LANES) store(q + count * C + c, load(from + c) * scale);
                seen[count] = t.positions[n] + 1, out[count] = attended + (g.to + n - g.first) * A + head * C;
                if (++count == 4) flush();
            }
        flush();
    }

    // x += from (rows x K) times the weight (width x K) transposed.
    void add(long phase, long chunk, const float* from, long K, const float* weight) {
        const Part p = of(chunk, rows(phase), m.width);
        float found[BLOCK * PART];
        multiply(from + p.n * K, p.rows, K, weight + p.o * K, p.outputs, found);
        for (long r = 0; r < p.rows; r++) {
            float* to = residual(phase) + (p.n + r) * m.width + p.o;
            const bool first_of_last = phase == PHASES * (m.layers - 1) + OUTPUT;
            const float* before = first_of_last ? x + t.wanted[p.n + r] * m.width + p.o : to;
            for (long j = 0; j < p.outputs; j += LANES) store(to + j, load(before + j) + load(found + r * PART + j));
        }
    }
    float* residual(long phase) const { return only_wanted(phase) ? last : x; }

    void gate(long i, long phase, long chunk) {
        const StepLayer& l = layers[i];
        const Part p = of(chunk, rows(phase), m.inner);
        const float* h = normalised_block(phase, residual(phase), p.n, p.rows, l.mlp_norm);
        float gates[BLOCK * PART], found[BLOCK * PART];
        multiply(h, p.rows, m.width, l.gate + p.o * m.width, p.outputs, gates);
        multiply(h, p.rows, m.width, l.up + p.o * m.width, p.outputs, found);
        for (long r = 0; r < p.rows; r++)
            for (long j = 0; j < p.outputs; j += LANES) {
                const Vec v = load(gates + r * PART + j), below = exponential(-v) + 1.f;
                store(inner + (p.n + r) * m.inner + p.o + j, v * load(found + r * PART + j) / below);
            }
    }

    void head(long chunk) {
        const Part p = of(chunk, M, m.vocabulary);
        const float* h = normalised_block(PHASES * m.layers, last, p.n, p.rows, m.norm);
        float found[BLOCK * PART];
        multiply(h, p.rows, m.width, m.head + p.o * m.width, p.outputs, found);
        for (long r = 0; r < p.rows; r++)
            std::memcpy(logits + (p.n + r) * m.vocabulary + p.o, found + r * PART, p.outputs * sizeof(float));
    }

    // The logits of some tokens stay with the thread: what is asked of them is few numbers.
    void score(long chunk) {
        const long n = chunk * SCORED, rows = std::min(SCORED, M - n), V = m.vocabulary, stride = (V + PART - 1) / PART * PART;
        thread_local std::vector<float> h, all_logits;
        h.resize(SCORED * m.width), all_logits.resize(SCORED * stride);
        for (long r = 0; r < rows; r++) normalised(last + (n + r) * m.width, m.norm, m.eps, m.width, h.data() + r * m.width);
        for (long o = 0; o < V; o += PART) {
            float found[SCORED * PART];
            const long outputs = std::min(PART, V - o);
            multiply(h.data(), rows, m.width, m.head + o * m.width, outputs, found);
            for (long r = 0; r < rows; r++) {
                std::fill(found + r * PART + outputs, found + (r + 1) * PART, -INFINITY);
                std::memcpy(all_logits.data() + r * stride + o, found + r * PART, PART * sizeof(float));
            }
        }
        for (long r = 0; r < rows; r++) {
            const float* row = all_logits.data() + r * stride;
            Vec most = load(row), total{};
            for (long v = LANES; v < stride; v += LANES) most = max(most, load(row + v));
            const float top = highest(most);
            for (long v = 0; v < stride; v += LANES) total += exponential(load(row + v) - all(top));
            const float norm = std::log(sum(total));
            for (long i = n + r ? targets->ends[n + r - 1] : 0; i < targets->ends[n + r]; i++)
                targets->found[i] = row[targets->ids[i]] - top - norm;
            targets->likeliest[n + r] = std::find(row, row + V, top) - row;
        }
    }
};

}  // namespace

// Logits (wanted, vocabulary) of the token after each of those wanted. The cache has what is before the tokens in their
// rows, and gets these. turns (room, channels): cosine and sine of each pair's angle. 0; or, with nothing done, 1 where an id
// is none, 2 where a row, position or slot is none, 3 where they are too many. With `targets` there are no logits, but what is
// asked there; who calls has seen to it that these and the parents are in order. 4 where `stop`, if it is there, became 1 meanwhile:
// what was to be written may be written in part.
extern "C" int decode(const StepModel* model, const StepLayer* layers, const StepCache* cache, const StepTokens* tokens,
                      const float* turns, float* logits, const StepTargets* targets, const int* stop) {
    const StepTokens& t = *tokens;
    const auto within = [&](const long* some, long end) {
        return std::all_of(some, some + t.count, [=](long one) { return 0 <= one && one < end; });
    };
    if (!within(t.ids, model->vocabulary)) return 1;
    if (!within(t.rows, cache->rows) || !within(t.positions, cache->room) || !within(t.slots, cache->room)) return 2;
    Team& team = Team::get();
    const std::lock_guard<std::mutex> alone(team.alone);
    Pass pass(*model, layers, *cache, t, turns, logits, targets, team.common);
    const auto stopped = [stop] { return stop && __atomic_load_n(stop, __ATOMIC_RELAXED); };
    std::vector<Phase> phases;
    for (long phase = 0; phase < pass.phases(); phase++) {
        phases.push_back({pass.chunks(phase), [&pass, &stopped, phase](long chunk) {
            if (!stopped()) pass.chunk(phase, chunk);
        }});
        if (phases.back().chunks > Team::MOST_CHUNKS) return 3;
    }
    team.run(model->threads, phases);
    return stopped() ? 4 : 0;
}
