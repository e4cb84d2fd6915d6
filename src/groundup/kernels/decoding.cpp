// A few tokens of each row through the whole decoder in float32: what generation does between two tokens.
//
// Every sum is made in the same order whatever is computed beside it, so a token's logits are the same to the bit in any
// company: neither drafts nor other rows nor the number of threads can change what is said.
#include "blocks.h"

struct StepModel {
    long layers, width, heads, key_heads, channels, inner, vocabulary, threads;
    double eps;
    const float *embedding, *norm, *head;
};

struct StepLayer {  // matrices (outputs x inputs); biases and the norms of heads may be missing
    const float *attention_norm, *q, *k, *v, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *o;
    const float *mlp_norm, *gate, *up, *down;
};

// e^x to the last bits: 2^whole times a polynomial of the rest, at most ln(2) / 2.
static inline Vec exact_exponential(Vec x) {
    const Vec whole = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), 0);
    const Vec rest = _mm512_fnmadd_ps(whole, all(-2.12194440e-4f), _mm512_fnmadd_ps(whole, all(0.693359375f), x));
    Vec y = all(1.f / 720);
    for (float c : {1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f}) y = _mm512_fmadd_ps(y, rest, all(c));
    return _mm512_scalef_ps(y, whole);
}

// save(n, v) gets the products of row n of x (N x K) with 16 rows of w (K each).
template <class Save>
static inline void dot16(const float* x, long N, long K, const float* w, Save save) {
    long n = 0;
    for (; n + 4 <= N; n += 4) {
        alignas(64) float found[4][16];
        for (long o = 0; o < 16; o += 4) {
            Vec r[16];  // those of token i and output j at 4 i + j
            for (Vec& v : r) v = all(0.f);
            const float *left = x + n * K, *right = w + o * K;
            for (long k = 0; k < K; k += LANES) {
                const Vec l[] = {_mm512_loadu_ps(left + k), _mm512_loadu_ps(left + K + k), _mm512_loadu_ps(left + 2 * K + k),
                                 _mm512_loadu_ps(left + 3 * K + k)};
#pragma GCC unroll 4
                for (long j = 0; j < 4; j++) {
                    const Vec v = _mm512_loadu_ps(right + j * K + k);
#pragma GCC unroll 4
                    for (long i = 0; i < 4; i++) r[4 * i + j] = _mm512_fmadd_ps(l[i], v, r[4 * i + j]);
                }
            }
            const Vec s = sums(r);
            _mm_store_ps(found[0] + o, _mm512_extractf32x4_ps(s, 0)), _mm_store_ps(found[1] + o, _mm512_extractf32x4_ps(s, 1));
            _mm_store_ps(found[2] + o, _mm512_extractf32x4_ps(s, 2)), _mm_store_ps(found[3] + o, _mm512_extractf32x4_ps(s, 3));
        }
        for (long i = 0; i < 4; i++) save(n + i, _mm512_load_ps(found[i]));
    }
    for (; n < N; n++) {
        Vec r[16];
        for (Vec& v : r) v = all(0.f);
        for (long k = 0; k < K; k += LANES) {
            const Vec l = _mm512_loadu_ps(x + n * K + k);
#pragma GCC unroll 16
            for (long j = 0; j < 16; j++) r[j] = _mm512_fmadd_ps(l, _mm512_loadu_ps(w + j * K + k), r[j]);
        }
        save(n, sums(r));
    }
}

// out = x / rms(x) * norm_weight, of `width` numbers.
static inline void normalised(const float* x, const float* norm_weight, double eps, long width, float* out) {
    Vec squares = all(0.f);
    for (long j = 0; j < width; j += LANES) squares = _mm512_fmadd_ps(_mm512_loadu_ps(x + j), _mm512_loadu_ps(x + j), squares);
    const Vec scale = all(1 / std::sqrt(sum(squares) / width + (float)eps));
    for (long j = 0; j < width; j += LANES)
        _mm512_storeu_ps(out + j, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + j), scale), _mm512_loadu_ps(norm_weight + j)));
}

// A query or key in place: each channel of the first half and its partner of the second, side by side, turned by (cos, sin).
static inline void turned(float* x, const float* turns, long C) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    Vec pairs[2 * 16];
    for (long j = 0; j < C / 2; j += LANES) {
        const Vec a = _mm512_loadu_ps(x + j), b = _mm512_loadu_ps(x + C / 2 + j);
        pairs[j / 8] = _mm512_permutex2var_ps(a, low, b), pairs[j / 8 + 1] = _mm512_permutex2var_ps(a, high, b);
    }
    for (long j = 0; j < C; j += LANES) {
        const Vec turn = _mm512_loadu_ps(turns + j), v = pairs[j / LANES];
        const Vec across = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), _mm512_movehdup_ps(turn));
        _mm512_storeu_ps(x + j, _mm512_fmaddsub_ps(v, _mm512_moveldup_ps(turn), across));
    }
}

// softmax(q k^T / sqrt(C)) v over S keys and values of C channels; `scores` has room for S and 15 more.
static inline void attend_row(const float* q, const float* keys, const float* values, long S, long C, float* scores, float* out) {
    const Vec none = all(-INFINITY), scale = all(1 / std::sqrt((float)C));
    Vec highest = none;
    for (long s = 0; s < S; s += LANES) {
        const long count = std::min(LANES, S - s);
        Vec r[16];
        for (long i = 0; i < 16; i++) {
            r[i] = all(0.f);
            for (long c = 0; i < count && c < C; c += LANES)
                r[i] = _mm512_fmadd_ps(_mm512_loadu_ps(q + c), _mm512_loadu_ps(keys + (s + i) * C + c), r[i]);
        }
        const Vec v = _mm512_mask_mul_ps(none, (1 << count) - 1, sums(r), scale);
        _mm512_storeu_ps(scores + s, v);
        highest = _mm512_max_ps(highest, v);
    }
    highest = all(_mm512_reduce_max_ps(highest));
    Vec total = all(0.f), sums_of[16];
    for (long s = 0; s < S; s += LANES) {
        const Vec v = exact_exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + s), highest));
        _mm512_storeu_ps(scores + s, v);
        total = _mm512_add_ps(total, v);
    }
    for (long c = 0; c < C; c += LANES) sums_of[c / LANES] = all(0.f);
    for (long s = 0; s < S; s++)
        for (long c = 0; c < C; c += LANES)
            sums_of[c / LANES] = _mm512_fmadd_ps(all(scores[s]), _mm512_loadu_ps(values + s * C + c), sums_of[c / LANES]);
    const Vec share = all(1 / sum(total));
    for (long c = 0; c < C; c += LANES) _mm512_storeu_ps(out + c, _mm512_mul_ps(sums_of[c / LANES], share));
}

// Logits (rows x T, vocabulary) of the tokens after `ids`, T of each of the first rows, which stand at `places` of their rows.
// The cache (layers, key heads and then value heads, all_rows, room, channels) has the tokens before, and gets these.
// turns (room, channels): cosine and sine of each pair's angle. False, and nothing done, where an id is none.
extern "C" bool decode(const StepModel* model, const StepLayer* layers, long rows, long all_rows, long room, long T,
                       const float* turns, float* cache, const long* ids, const long* places, float* logits) {
    const std::lock_guard<std::mutex> alone(one_at_a_time);
    const StepModel& m = *model;
    const long N = rows * T, D = m.width, H = m.heads, K = m.key_heads, C = m.channels, A = H * C, F = m.inner, V = m.vocabulary;
    if (!std::all_of(ids, ids + N, [=](long id) { return 0 <= id && id < V; })) return false;
    common.room(4 * N * (D + 2 * A + F) + 4096);
    float *x = common.take<float>(N * D), *queries = common.take<float>(N * A), *attended = common.take<float>(N * A);
    float* inner = common.take<float>(N * F);
    for (long n = 0; n < N; n++) std::memcpy(x + n * D, m.embedding + ids[n] * D, D * sizeof(float));
#pragma omp parallel num_threads(m.threads)
    {
        scratch.room(4 * (N * D + N * 16 + room + 16) + 4096);
        float *h = scratch.take<float>(N * D), *gates = scratch.take<float>(N * 16), *scores = scratch.take<float>(room + 16);
        const auto normalise = [&](const float* norm_weight) {  // by each thread for itself, which is shorter than waiting
            for (long n = 0; n < N; n++) normalised(x + n * D, norm_weight, m.eps, D, h + n * D);
        };
        for (long i = 0; i < m.layers; i++) {
            const StepLayer& l = layers[i];
            const auto kept = [&](long head, long row) { return cache + ((i * 2 * K + head) * all_rows + row) * room * C; };
            normalise(l.attention_norm);
#pragma omp for schedule(static)
            for (long head = 0; head < H + 2 * K; head++) {
                const bool query = head < H, key = !query && head < H + K;
                const long own = query ? head : key ? head - H : head - H - K;
                const float* weight = (query ? l.q : key ? l.k : l.v) + own * C * D;
                const float *bias = query ? l.q_bias : key ? l.k_bias : l.v_bias, *norm_weight = query ? l.q_norm : l.k_norm;
                const auto to = [&](long n) {
                    return query ? queries + (n * H + head) * C : kept(head - H, n / T) + places[n] * C;
                };
                for (long c = 0; c < C; c += LANES)
                    dot16(h, N, D, weight + c * D, [&](long n, Vec v) {
                        _mm512_storeu_ps(to(n) + c, bias ? _mm512_add_ps(v, _mm512_loadu_ps(bias + own * C + c)) : v);
                    });
                for (long n = 0; (query || key) && n < N; n++) {
                    if (norm_weight) normalised(to(n), norm_weight, m.eps, C, to(n));
                    turned(to(n), turns + places[n] * C, C);
                }
            }
#pragma omp for schedule(static)
            for (long n = 0; n < N * K; n++) {
                const long token = n % N, shared = n / N;
                for (long head = shared * (H / K); head < (shared + 1) * (H / K); head++)
                    attend_row(queries + (token * H + head) * C, kept(shared, token / T), kept(K + shared, token / T),
                         places[token] + 1, C, scores, attended + (token * H + head) * C);
            }
            const auto add = [&](const float* from, long width, const float* weight, long o) {
                dot16(from, N, width, weight + o * width, [&](long n, Vec v) {
                    _mm512_storeu_ps(x + n * D + o, _mm512_add_ps(_mm512_loadu_ps(x + n * D + o), v));
                });
            };
#pragma omp for schedule(static)
            for (long o = 0; o < D; o += LANES) add(attended, A, l.o, o);
            normalise(l.mlp_norm);
#pragma omp for schedule(static)
            for (long f = 0; f < F; f += LANES) {
                dot16(h, N, D, l.gate + f * D, [&](long n, Vec v) { _mm512_store_ps(gates + n * 16, v); });
                dot16(h, N, D, l.up + f * D, [&](long n, Vec v) {
                    const Vec gate = _mm512_load_ps(gates + n * 16), below = exact_exponential(_mm512_sub_ps(all(0.f), gate));
                    v = _mm512_div_ps(_mm512_mul_ps(gate, v), _mm512_add_ps(all(1.f), below));
                    _mm512_storeu_ps(inner + n * F + f, v);
                });
            }
#pragma omp for schedule(static)
            for (long o = 0; o < D; o += LANES) add(inner, F, l.down, o);
        }
        normalise(m.norm);
#pragma omp for schedule(static)
        for (long v = 0; v < V; v += LANES) {
            const long from = std::min(v, V - LANES);  // the last sixteen may overlap those before
            dot16(h, N, D, m.head + from * D, [&](long n, Vec found) { _mm512_storeu_ps(logits + n * V + from, found); });
        }
    }
    return true;
}
