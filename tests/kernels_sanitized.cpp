// Runs `decode` on odd sizes with buffers of exact size: built with sanitizers by test_generation_kernels.py.
#include "../src/groundup/kernels/decoding.cpp"

#include <cstdio>
#include <deque>

int main() {
    std::deque<std::vector<float>> buffers;
    const auto filled = [&](long count) {
        buffers.emplace_back(count);
        for (long i = 0; i < count; i++) buffers.back()[i] = std::sin(0.7f * i + buffers.size()) / 4;
        return buffers.back().data();
    };
    std::vector<float> reference;
    std::deque<std::vector<float>> reference_scores;
    for (long threads : {1, 3}) {
        for (long shape = 0; shape < 3; shape++) {
            const long D = 48, H = 6, K = 3 >> shape, C = shape == 2 ? 96 : 32, F = 80, V = 37, rows = 3, capacity = 71, L = 2;
            buffers.clear();
            const StepModel model{L, D, H, K ? K : 1, C, F, V, threads, 0, 1e-6, filled(V * D), filled(D), filled(V * D)};
            const long keys = model.key_heads;
            std::vector<StepLayer> layers;
            for (long i = 0; i < L; i++)
                layers.push_back({filled(D), filled(H * C * D), filled(keys * C * D), filled(keys * C * D), shape ? filled(H * C) : nullptr,
                                  filled(keys * C), filled(keys * C), filled(C), shape ? filled(C) : nullptr, filled(D * H * C), filled(D),
                                  filled(F * D), filled(F * D), filled(D * F)});
            const StepCache cache{rows, capacity, filled(L * 2 * keys * rows * capacity * C)};
            std::vector<long> ids, token_rows, positions, logit_indices;
            for (long row = 0; row < rows; row++)
                for (long n = 0; n < (row == 1 ? capacity : 5 + row); n++) {
                    if (n % 7 == 3) logit_indices.push_back(ids.size());
                    ids.push_back((n * 5 + row) % V), token_rows.push_back(row), positions.push_back(n);
                }
            StepTokens tokens{(long)ids.size(), (long)logit_indices.size(), ids.data(), token_rows.data(), positions.data(), logit_indices.data(), positions.data(), nullptr};
            const float* rope_cache = filled(capacity * C);
            std::vector<float> logits(logit_indices.size() * V);
            if (decode(&model, layers.data(), &cache, &tokens, rope_cache, logits.data(), nullptr, nullptr)) return 1;
            if (threads == 1) reference.insert(reference.end(), logits.begin(), logits.end());
            else if (!std::equal(logits.begin(), logits.end(), reference.begin())) return 2;
            else reference.erase(reference.begin(), reference.begin() + logits.size());
            ids[4] = V;
            if (decode(&model, layers.data(), &cache, &tokens, rope_cache, logits.data(), nullptr, nullptr) != 1) return 3;
            ids[4] = 0, positions[4] = capacity;
            if (decode(&model, layers.data(), &cache, &tokens, rope_cache, logits.data(), nullptr, nullptr) != 2) return 4;
            // A tree after 9 cached tokens: three branches after each fourth token of a trunk, matrices in panels or not.
            const long prefix_length = 9;
            std::vector<long> tree, tree_positions, slots, parents, tree_logit_indices, ends, targets;
            for (long n = 0; n < 61; n++) {
                const long parent = n < 21 ? n - 1 : n % 3 ? n - 1 : n / 4;
                tree.push_back(n % V), parents.push_back(parent), slots.push_back(prefix_length + n);
                tree_positions.push_back(parent < 0 ? prefix_length : tree_positions[parent] + 1);
                if (n % 4) tree_logit_indices.push_back(n), targets.insert(targets.end(), n % 5, n % V), ends.push_back(targets.size());
            }
            const std::vector<long> zeros(tree.size());
            for (long panels : {0, 1}) {
                StepModel panel_model = model;
                panel_model.panels = panels;
                const StepTokens tree_tokens{(long)tree.size(), (long)tree_logit_indices.size(), tree.data(),  zeros.data(),
                                             tree_positions.data(),         tree_logit_indices.data(),       slots.data(), parents.data()};
                panel_model.head = filled((V + 15) / 16 * 16 * D);
                std::vector<float> scores(targets.size());
                std::vector<long> likeliest(tree_logit_indices.size());
                const StepTargets step_targets{ends.data(), targets.data(), scores.data(), likeliest.data()};
                if (decode(&panel_model, layers.data(), &cache, &tree_tokens, rope_cache, nullptr, &step_targets, nullptr)) return 5;
                for (long value : likeliest)
                    if (value < 0 || value >= V) return 6;
                for (float value : scores)
                    if (!(value < 0)) return 7;
                if (threads == 1) reference_scores.push_back(scores);
                else if (reference_scores.front() != scores) return 8;
                else reference_scores.pop_front();
            }
        }
    }
    std::puts("sound");
}
