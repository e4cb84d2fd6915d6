// Runs the kernels in bfloat16, with AVX-512 and AMX emulated by emulated/immintrin.h and buffers of exact size: built with
// sanitizers by test_generation_kernels.py. Results of any number of threads must be the same to the bit; prints a digest of them.
#include "../src/groundup/kernels/experts.cpp"
#include "../src/groundup/kernels/layer.cpp"
#include "../src/groundup/kernels/loss.cpp"
#include "../src/groundup/kernels/optimizer.cpp"

#include <cstdio>
#include <deque>
#include <utility>
#include <vector>

struct Aligned {
    size_t bytes;
    char* data;
    explicit Aligned(size_t bytes) : bytes(bytes), data((char*)aligned_alloc(64, (bytes + 63) / 64 * 64)) {}
    Aligned(Aligned&& other) : bytes(other.bytes), data(std::exchange(other.data, nullptr)) {}
    ~Aligned() { free(data); }
    bool operator==(const Aligned& other) const { return bytes == other.bytes && !std::memcmp(data, other.data, bytes); }
};

static std::deque<Aligned> buffers;
static float* filled(long count, float scale = 0.25f) {
    float* data = (float*)buffers.emplace_back(count * 4).data;
    for (long i = 0; i < count; i++) data[i] = std::sin(0.7f * i + buffers.size()) * scale;
    return data;
}
static bf16* filled_bf16(long count) {
    bf16* data = (bf16*)buffers.emplace_back(count * 2).data;
    for (long i = 0; i < count; i++) data[i] = emulated::rounded(std::sin(0.7f * i + buffers.size()) / 4);
    return data;
}

static void decoder(long threads, long rows, long time, long K, float scale, bool row_positions) {
    const long D = 32, H = 4, C = 32, F = 64, L = 2, V = 37, N = rows * time, A = H * C, E = (H + 2 * K) * C;
    std::vector<int> ids(N), documents(N), prefixes(N);
    for (long i = 0; i < N; i++) ids[i] = i * 5 % V, documents[i] = i / 41, prefixes[i] = i / 80 * 80 / 41;
    const Shape s{rows, time, D, H, K, C, F, threads, row_positions ? time * C / 2 : 0, 1e-6};
    std::vector<Layer> layers(L);
    for (Layer& l : layers) {
        const float** weights = &l.attention_norm;
        float** grads = &l.grad_attention_norm;
        for (long size : {D, D, C, C, A * D, K * C * D, K * C * D, D * A, F * D, F * D, D * F})
            *weights++ = filled(size, size == C ? scale : 0.25f), *grads++ = filled(size);
        bf16** field = &l.qkv_t;
        for (long pass = 0; pass < 2; pass++)
            for (long size : {E * D, A * D, 2 * F * D, F * D}) *field++ = filled_bf16(size);
        for (long size : {N * D, N * E, N * D, 2 * N * F}) *field++ = filled_bf16(size);
        for (long size : {A, F, D, D}) *field++ = filled_bf16(padded_stride(N) * size);
        l.log_sum_exp = filled(N * H);
    }
    const float *cos = filled(N * C / 2), *sin = filled(N * C / 2), *norm = filled(D);
    const Positions positions{cos, sin, documents.data(), prefixes.data()};
    bf16 *last = filled_bf16(N * D), *y = filled_bf16(N * D);
    forward(&s, layers.data(), L, filled(V * D), ids.data(), &positions, norm, last, y);
    float *grad_norm = filled(D), *grad_embedding = filled(V * D);
    backward(&s, layers.data(), L, ids.data(), &positions, norm, last, filled_bf16(N * D), grad_norm, grad_embedding, V);
}

static void mixture(long threads, const std::vector<long>& ends) {
    const long D = 32, F = 64, M = ends.back();
    std::vector<Expert> expert_list;
    for (long end : ends) expert_list.push_back({filled(F * D), filled(F * D), filled(D * F), filled(F * D), filled(F * D), filled(D * F), end});
    Experts l{M, D, F, (long)ends.size(), threads, expert_list.data(), filled_bf16(M * D), filled_bf16(6 * D * F * ends.size()), filled_bf16(M * 2 * F),
              filled_bf16(padded_stride(M) * F), filled_bf16(M * D), filled_bf16(M * D), filled_bf16(M * D)};
    experts(&l);
    experts_backward(&l);
}

// As `decoder`, without the MLP.
static void attention(long threads, long rows, long time) {
    const long D = 32, H = 2, C = 32, N = rows * time, A = H * C, E = 3 * A;
    std::vector<int> documents(N);
    for (long i = 0; i < N; i++) documents[i] = i / 41;
    const Shape s{rows, time, D, H, H, C, 0, threads, 0, 1e-6};
    Layer l{};
    l.attention_norm = filled(D), l.q_norm = filled(C), l.k_norm = filled(C), l.q = filled(A * D), l.k = filled(A * D), l.v = filled(A * D);
    l.o = filled(D * A), l.grad_attention_norm = filled(D), l.grad_mlp_norm = filled(D), l.grad_q_norm = filled(C), l.grad_k_norm = filled(C);
    l.grad_q = filled(A * D), l.grad_k = filled(A * D), l.grad_v = filled(A * D), l.grad_o = filled(D * A);
    l.qkv_t = filled_bf16(E * D), l.o_t = filled_bf16(A * D), l.qkv_b = filled_bf16(E * D), l.o_b = filled_bf16(A * D);
    l.x = filled_bf16(N * D), l.qkv = filled_bf16(N * E), l.mlp_input = filled_bf16(N * D), l.attention = filled_bf16(padded_stride(N) * A);
    l.normed = filled_bf16(padded_stride(N) * D), l.log_sum_exp = filled(N * H);
    const float *cos = filled(time * C / 2), *sin = filled(time * C / 2);
    const Positions positions{cos, sin, documents.data(), documents.data()};
    attention_forward(&s, &l, &positions, filled_bf16(N * D));
    attention_backward(&s, &l, &positions, filled_bf16(N * D));
}

static void loss(long threads, long tokens, long V, float scale) {
    const long D = 32, known = V - 18;
    std::vector<long> targets(tokens);
    for (long i = 0; i < tokens; i++) targets[i] = i * 5 % known;
    weighted_log_probability(tokens, D, V, known, threads, filled_bf16(tokens * D), filled(V * D, scale), targets.data(), filled(tokens),
                             filled(tokens), filled_bf16(tokens * D), filled(V * D));
    weighted_log_probability(tokens, D, V, known, threads, filled_bf16(tokens * D), filled(V * D, scale), targets.data(), filled(tokens),
                             filled(tokens), nullptr, nullptr);
}

static void optimizer(long threads) {
    const float abc[] = {4.1f, -6.9f, 2.9f, 4.0f, -6.3f, 2.6f};
    for (auto [R, C] : {std::pair<long, long>{64, 64}, {32, 128}, {96, 32}}) {
        const Matrix matrices[] = {{filled(R * C), filled(R * C), filled(R * C)}, {filled(R * C), filled(R * C), filled(R * C)}};
        muon(matrices, 2, R, C, threads, 0.9f, 0.1f, 0.99f, abc, 2);
    }
}

int main() {
    std::deque<Aligned> reference;
    for (long threads : {1, 3}) {
        buffers.clear();
        decoder(threads, 2, 64, 2, 0.25f, false), decoder(threads, 3, 64, 1, 0.25f, true), decoder(threads, 1, 32, 1, 60.f, false);
        loss(threads, 32, 288, 90.f), loss(threads, 1056, 32, 1.f);
        mixture(threads, {32, 32, 384}), mixture(threads, {64}), attention(threads, 3, 64);
        optimizer(threads);
        if (threads == 1) reference.swap(buffers);
        else if (reference != buffers) return 1;
    }
    uint64_t digest = 14695981039346656037u;
    for (const Aligned& buffer : buffers)
        for (size_t i = 0; i < buffer.bytes; i++) digest = (digest ^ (unsigned char)buffer.data[i]) * 1099511628211u;
    std::fprintf(stderr, "%016llx\n", (unsigned long long)digest);
    std::puts("sound");
}
