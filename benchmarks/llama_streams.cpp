// Greedy continuations of several prompts at once by llama.cpp's own library: llama.py compiles it and says what goes in.
//
//     llama_streams MODEL LIBRARIES THREADS NEW EXACT ROUNDS < prompts
//
// `prompts`: how many, then of each its length and its ids. Out: the most tokens a second of a round without prompts, the most of a
// round with them, then the ids of each answer, a line each. Ends of text do not end an answer. EXACT = 1: the cache in f32 and no
// flash attention; else both as llama.cpp has them if not told.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

using Ids = std::vector<llama_token>;

static void fail(const char *what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static std::vector<Ids> read_prompts() {
    int count = 0;
    if (std::scanf("%d", &count) != 1) fail("no prompts");
    std::vector<Ids> prompts(count);
    for (Ids &prompt : prompts) {
        int length = 0;
        if (std::scanf("%d", &length) != 1) fail("no length");
        prompt.resize(length);
        for (llama_token &id : prompt)
            if (std::scanf("%d", &id) != 1) fail("no id");
    }
    return prompts;
}

static void add(llama_batch &batch, llama_token id, int position, int sequence, bool logits) {
    const int n = batch.n_tokens++;
    batch.token[n] = id, batch.pos[n] = position, batch.n_seq_id[n] = 1, batch.seq_id[n][0] = sequence, batch.logits[n] = logits;
}

static llama_token likeliest(llama_context *context, int place, int vocabulary) {
    const float *logits = llama_get_logits_ith(context, place);
    return static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
}

int main(int count, char **words) {
    if (count != 7) fail("MODEL LIBRARIES THREADS NEW EXACT ROUNDS");
    const int threads = std::atoi(words[3]), fresh = std::atoi(words[4]), rounds = std::atoi(words[6]);
    const bool exact = std::atoi(words[5]) == 1;
    llama_log_set([](ggml_log_level level, const char *text, void *) { if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr); },
                  nullptr);
    ggml_backend_load_all_from_path(words[2]);
    llama_model *model = llama_model_load_from_file(words[1], llama_model_default_params());
    if (!model) fail("the model does not load");
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const std::vector<Ids> prompts = read_prompts();
    const int rows = static_cast<int>(prompts.size());
    int longest = 0, all = 0;
    for (const Ids &prompt : prompts) longest = std::max(longest, static_cast<int>(prompt.size())), all += static_cast<int>(prompt.size());
    llama_context_params settings = llama_context_default_params();
    settings.n_ctx = rows * (longest + fresh);
    settings.n_batch = settings.n_ubatch = std::max(512, all);
    settings.n_seq_max = rows;
    settings.n_threads = settings.n_threads_batch = threads;
    if (exact) {
        settings.type_k = settings.type_v = GGML_TYPE_F32;
        settings.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    llama_context *context = llama_init_from_model(model, settings);
    if (!context) fail("no context");
    llama_batch batch = llama_batch_init(std::max(all, rows), 0, 1);
    std::vector<Ids> answers;
    double least = 1e9, least_whole = 1e9;
    for (int round = 0; round < rounds; ++round) {
        llama_memory_clear(llama_get_memory(context), true);
        answers.assign(rows, {});
        std::vector<int> places(rows);
        const double start = now();
        batch.n_tokens = 0;
        for (int row = 0; row < rows; ++row) {
            const int length = static_cast<int>(prompts[row].size());
            for (int n = 0; n < length; ++n) add(batch, prompts[row][n], n, row, n + 1 == length);
            places[row] = batch.n_tokens - 1;
        }
        if (llama_decode(context, batch)) fail("a prompt was not read");
        for (int row = 0; row < rows; ++row) answers[row].push_back(likeliest(context, places[row], vocabulary));
        const double read = now();
        for (int step = 1; step < fresh; ++step) {
            batch.n_tokens = 0;
            for (int row = 0; row < rows; ++row)
                add(batch, answers[row].back(), static_cast<int>(prompts[row].size()) + step - 1, row, true);
            if (llama_decode(context, batch)) fail("a step failed");
            for (int row = 0; row < rows; ++row) answers[row].push_back(likeliest(context, row, vocabulary));
        }
        const double end = now();
        least = std::min(least, end - read), least_whole = std::min(least_whole, end - start);
    }
    std::printf("%.1f %.1f\n", rows * (fresh - 1) / least, rows * fresh / least_whole);
    for (const Ids &answer : answers) {
        for (llama_token id : answer) std::printf("%d ", id);
        std::puts("");
    }
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
}
