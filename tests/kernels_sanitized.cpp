// Runs `decode` on odd sizes, with every buffer as long as it must be and no longer: built with sanitizers by test_generation_kernels.py.
#include "../src/groundup/kernels/decoding.cpp"

#include <cstdio>
#include <deque>

int main() {
    std::deque<std::vector<float>> kept;
    const auto some = [&](long count) {
        kept.emplace_back(count);
        for (long i = 0; i < count; i++) kept.back()[i] = std::sin(0.7f * i + kept.size()) / 4;
        return kept.back().data();
    };
    std::vector<float> first;
    std::deque<std::vector<float>> firsts;
    for (long threads : {1, 3}) {
        for (long shape = 0; shape < 3; shape++) {
            const long D = 48, H = 6, K = 3 >> shape, C = shape == 2 ? 96 : 32, F = 80, V = 37, rows = 3, room = 71, L = 2;
            kept.clear();
            const StepModel model{L, D, H, K ? K : 1, C, F, V, threads, 0, 1e-6, some(V * D), some(D), some(V * D)};
            const long keys = model.key_heads;
            std::vector<StepLayer> layers;
            for (long i = 0; i < L; i++)
                layers.push_back({some(D), some(H * C * D), some(keys * C * D), some(keys * C * D), shape ? some(H * C) : nullptr,
                                  some(keys * C), some(keys * C), some(C), shape ? some(C) : nullptr, some(D * H * C), some(D),
                                  some(F * D), some(F * D), some(D * F)});
            const StepCache cache{rows, room, some(L * 2 * keys * rows * room * C)};
            std::vector<long> ids, token_rows, positions, wanted;
            for (long row = 0; row < rows; row++)
                for (long n = 0; n < (row == 1 ? room : 5 + row); n++) {
                    if (n % 7 == 3) wanted.push_back(ids.size());
                    ids.push_back((n * 5 + row) % V), token_rows.push_back(row), positions.push_back(n);
                }
            StepTokens tokens{(long)ids.size(), (long)wanted.size(), ids.data(), token_rows.data(), positions.data(), wanted.data(), positions.data(), nullptr};
            const float* turns = some(room * C);
            std::vector<float> logits(wanted.size() * V);
            if (decode(&model, layers.data(), &cache, &tokens, turns, logits.data(), nullptr, nullptr)) return 1;
            if (threads == 1) first.insert(first.end(), logits.begin(), logits.end());
            else if (!std::equal(logits.begin(), logits.end(), first.begin())) return 2;
            else first.erase(first.begin(), first.begin() + logits.size());
            ids[4] = V;
            if (decode(&model, layers.data(), &cache, &tokens, turns, logits.data(), nullptr, nullptr) != 1) return 3;
            ids[4] = 0, positions[4] = room;
            if (decode(&model, layers.data(), &cache, &tokens, turns, logits.data(), nullptr, nullptr) != 2) return 4;
            // A tree behind 9 tokens that are kept: three branches after each fourth token of a trunk, matrices in panels or not.
            const long before = 9;
            std::vector<long> tree, at, slots, parents, every, ends, targets;
            for (long n = 0; n < 61; n++) {
                const long parent = n < 21 ? n - 1 : n % 3 ? n - 1 : n / 4;
                tree.push_back(n % V), parents.push_back(parent), slots.push_back(before + n);
                at.push_back(parent < 0 ? before : at[parent] + 1);
                if (n % 4) every.push_back(n), targets.insert(targets.end(), n % 5, n % V), ends.push_back(targets.size());
            }
            const std::vector<long> zeros(tree.size());
            for (long panels : {0, 1}) {
                StepModel other = model;
                other.panels = panels;
                const StepTokens branches{(long)tree.size(), (long)every.size(), tree.data(),  zeros.data(),
                                          at.data(),         every.data(),       slots.data(), parents.data()};
                other.head = some((V + 15) / 16 * 16 * D);
                std::vector<float> scores(targets.size());
                std::vector<long> likeliest(every.size());
                const StepTargets asked{ends.data(), targets.data(), scores.data(), likeliest.data()};
                if (decode(&other, layers.data(), &cache, &branches, turns, nullptr, &asked, nullptr)) return 5;
                for (long one : likeliest)
                    if (one < 0 || one >= V) return 6;
                for (float one : scores)
                    if (!(one < 0)) return 7;
                if (threads == 1) firsts.push_back(scores);
                else if (firsts.front() != scores) return 8;
                else firsts.pop_front();
            }
        }
    }
    std::puts("sound");
}
