// Runs the training kernels in float32 on odd sizes with buffers of exact size: built with sanitizers, and for ARM, by
// test_generation_kernels.py. Results of any number of threads must be the same to the bit.
#include "../src/groundup/kernels/float32_experts.cpp"
#include "../src/groundup/kernels/float32_layers.cpp"
#include "../src/groundup/kernels/float32_loss.cpp"
#include "../src/groundup/kernels/float32_lstm.cpp"
#include "../src/groundup/kernels/float32_optimizer.cpp"

#include <cstdio>
#include <deque>

using namespace f32;

static std::deque<std::vector<float>> buffers;
static float* filled(long count, float scale = 0.25f) {
    buffers.emplace_back(count);
    for (long i = 0; i < count; i++) buffers.back()[i] = std::sin(0.7f * i + buffers.size()) * scale;
    return buffers.back().data();
}

// The first of the rows is `time` long, each other a token shorter than the one before; three tokens are seen by all of a row.
static void decoder(long threads, long rows, long time, long output_stride) {
    std::vector<int> starts{0}, ids, documents, positions;
    for (long r = 0; r < rows; r++) {
        const long length = std::max(time - r, 1L);
        for (long i = 0; i < length; i++) documents.push_back(i < 3 ? SHARED : i / 7 % 2), positions.push_back(i);
        starts.push_back(starts.back() + length);
    }
    const long D = 48, H = 4, K = 2, C = 16, F = 80, L = 2, V = 37, tokens = starts.back(), stride = tokens | 1;
    for (long i = 0; i < tokens; i++) ids.push_back(i * 5 % V);
    std::vector<int> output_indices;
    for (long i = output_stride - 1; i < tokens; i += output_stride) output_indices.push_back(i);
    const long M = output_indices.size();
    const Shape s{rows, tokens, time, D, H, K, C, F, threads, L, V, M, 1e-6};
    std::vector<Layer> layers(L);
    for (Layer& l : layers) {
        const long sizes[] = {D, D, C, C, H * C * D, K * C * D, K * C * D, D * H * C, F * D, F * D, D * F};
        const float** weights = &l.attention_norm;
        float** grads = &l.grad_attention_norm;
        for (long size : sizes) *weights++ = filled(size), *grads++ = filled(size);
        const long numbers[] = {D, (H + 2 * K) * C, H * C, D, 2 * F};
        float** field = &l.x;
        for (long size : numbers) *field++ = filled(stride * size);
        *field = filled(tokens * H);
    }
    const Batch b{filled(V * D), filled(time * C / 2), filled(time * C / 2), filled(D),
                  ids.data(), documents.data(), positions.data(), starts.data(), output_stride > 1 ? output_indices.data() : nullptr};
    float *last = filled(stride * D), *y = filled(M * D);
    float32_forward(&s, layers.data(), &b, last, y);
    float *grad_norm = filled(D), *grad_embedding = filled(V * D);
    float32_backward(&s, layers.data(), &b, last, filled(M * D), grad_norm, grad_embedding);
}

static void loss(long threads, long tokens) {
    const long D = 48, known = 37, V = 48;
    std::vector<long> targets(tokens);
    for (long i = 0; i < tokens; i++) targets[i] = i * 5 % known;
    for (float scale : {1.f, 90.f}) {
        Loss l{tokens, D, V, known, threads, filled(tokens * D), filled(V * D, scale), targets.data(), filled(tokens), filled(tokens),
               filled(tokens), filled(tokens * D), filled(V * D)};
        float32_log_probability(&l);
        l.slopes = nullptr, l.entropy = nullptr, l.grad_hidden = l.grad_weight = nullptr;
        float32_log_probability(&l);
    }
}

static void optimizers(long threads) {
    const float abc[] = {4.1f, -6.9f, 2.9f, 4.0f, -6.3f, 2.6f, 3.7f, -5.6f, 2.3f, 2.9f, -3.1f, 1.2f};
    for (auto [R, C] : {std::pair<long, long>{48, 48}, {16, 112}, {80, 32}}) {
        const Matrix matrices[] = {{filled(R * C), filled(R * C), filled(R * C)}, {filled(R * C), filled(R * C), filled(R * C)}};
        float32_muon(matrices, 2, R, C, threads, 0.9f, 0.1f, 0.99f, abc, 4);
    }
    float32_adamw(33001, threads, filled(33001), filled(33001), filled(33001), filled(33001, 0.f), 0.9f, 0.9f, 0.5f, 0.1f, 0.99f);
}

static void recurrence(long threads, long rows, long time) {
    const long D = 48, tokens = rows * time;
    std::vector<unsigned char> begins(tokens);
    for (long i = 0; i < tokens; i++) begins[i] = i % time == 0 || i % 5 == 3;
    Recurrence l{rows, time, D, threads, filled(tokens * 4 * D), filled(4 * D * D), begins.data(), filled(tokens * 4 * D), filled(tokens * D),
                 filled(tokens * D), nullptr, nullptr};
    float32_recurrence(&l);
    l.grad_hidden = filled(tokens * D), l.grad_inputs = filled(tokens * 4 * D);
    float32_recurrence(&l);
}

static void experts(long threads, long tokens) {
    const long D = 48, F = 80;
    std::vector<Expert> experts;
    for (long end : {tokens / 2, tokens / 2, tokens})
        experts.push_back({filled(F * D), filled(F * D), filled(D * F), filled(F * D), filled(F * D), filled(D * F), end});
    Experts l{tokens, D, F, 3, threads, experts.data(), filled(tokens * D), filled((tokens | 1) * 2 * F), filled(tokens * D), nullptr, nullptr};
    float32_experts(&l);
    l.grad_out = filled(tokens * D), l.grad_x = filled(tokens * D);
    float32_experts(&l);
}

// A thread that does not run within its chunk gets the core of another, and both may use the same cores as before.
static bool trading() {
    cpu_set_t before, after, after_other, only;
    sched_getaffinity(0, sizeof before, &before);
    if (CPU_COUNT(&before) < 2) return true;
    Place place;
    std::mutex blocked;
    std::atomic<bool> began{false};
    blocked.lock();
    std::thread other([&] {
        place.begin_chunk();
        began = true;
        blocked.lock();
        place.end_chunk();
        sched_getaffinity(0, sizeof after_other, &after_other);
    });
    while (!began) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    bool traded = false;
    for (int core = 0; core < CPU_SETSIZE && !traded; core++) {  // from all but its own core
        if (!CPU_ISSET(core, &before)) continue;
        CPU_ZERO(&only);
        CPU_SET(core, &only);
        sched_setaffinity(0, sizeof only, &only);
        sched_setaffinity(0, sizeof before, &before);
        traded = place.trade();
    }
    sched_getaffinity(0, sizeof after, &after);
    blocked.unlock();
    other.join();
    return traded && !place.trade() && CPU_EQUAL(&before, &after) && CPU_EQUAL(&before, &after_other);
}

int main() {
    if (!trading()) return 2;
    std::deque<std::vector<float>> reference;
    for (long threads : {1, 3}) {
        buffers.clear();
        decoder(threads, 3, 19, 1), decoder(threads, 1, 131, 1), decoder(threads, 5, 1, 1);
        decoder(threads, 3, 131, 3), decoder(threads, 2, 19, 19);
        loss(threads, 5), loss(threads, 131);
        optimizers(threads);
        recurrence(threads, 7, 9), recurrence(threads, 1, 2);
        experts(threads, 1), experts(threads, 211);
        if (threads == 1) reference.swap(buffers);
        else if (reference != buffers) return 1;
    }
    std::puts("sound");
}
