// Greedy continuations of several prompts in one batch by llama.cpp's own library; llama.py compiles and calls it.
//
//     llama_streams MODEL LIBRARIES THREADS NEW EXACT ROUNDS < prompts
//
// `prompts`: their number, then the length and the ids of each. Prints tokens per second of the fastest round, without and with
// prefill, then the ids of each answer, a line each. Ends of text do not end an answer. EXACT = 1: the cache in f32 and no flash
// attention; else llama.cpp's defaults.
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

static llama_token argmax_token(llama_context *context, int index, int vocabulary) {
    const float *logits = llama_get_logits_ith(context, index);
    return static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
}

int main(int count, char **arguments) {
    if (count != 7) fail("MODEL LIBRARIES THREADS NEW EXACT ROUNDS");
    const int threads = std::atoi(arguments[3]), new_tokens = std::atoi(arguments[4]), rounds = std::atoi(arguments[6]);
    const bool exact = std::atoi(arguments[5]) == 1;
    llama_log_set([](ggml_log_level level, const char *text, void *) { if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr); },
                  nullptr);
    ggml_backend_load_all_from_path(arguments[2]);
    llama_model *model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    if (!model) fail("the model does not load");
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    const std::vector<Ids> prompts = read_prompts();
    const int rows = static_cast<int>(prompts.size());
    int longest = 0, prompt_tokens = 0;
    for (const Ids &prompt : prompts) longest = std::max(longest, static_cast<int>(prompt.size())), prompt_tokens += static_cast<int>(prompt.size());
    llama_context_params settings = llama_context_default_params();
    settings.n_ctx = rows * (longest + new_tokens);
    settings.n_batch = settings.n_ubatch = std::max(512, prompt_tokens);
    settings.n_seq_max = rows;
    settings.n_threads = settings.n_threads_batch = threads;
    if (exact) {
        settings.type_k = settings.type_v = GGML_TYPE_F32;
        settings.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    llama_context *context = llama_init_from_model(model, settings);
    if (!context) fail("no context");
    llama_batch batch = llama_batch_init(std::max(prompt_tokens, rows), 0, 1);
    std::vector<Ids> answers;
    double decode_seconds = 1e9, total_seconds = 1e9;
    for (int round = 0; round < rounds; ++round) {
        llama_memory_clear(llama_get_memory(context), true);
        answers.assign(rows, {});
        std::vector<int> logit_indices(rows);
        const double start = now();
        batch.n_tokens = 0;
        for (int row = 0; row < rows; ++row) {
            const int length = static_cast<int>(prompts[row].size());
            for (int n = 0; n < length; ++n) add(batch, prompts[row][n], n, row, n + 1 == length);
            logit_indices[row] = batch.n_tokens - 1;
        }
        if (llama_decode(context, batch)) fail("a prompt was not read");
        for (int row = 0; row < rows; ++row) answers[row].push_back(argmax_token(context, logit_indices[row], vocabulary));
        const double prefilled = now();
        for (int step = 1; step < new_tokens; ++step) {
            batch.n_tokens = 0;
            for (int row = 0; row < rows; ++row)
                add(batch, answers[row].back(), static_cast<int>(prompts[row].size()) + step - 1, row, true);
            if (llama_decode(context, batch)) fail("a step failed");
            for (int row = 0; row < rows; ++row) answers[row].push_back(argmax_token(context, row, vocabulary));
        }
        const double end = now();
        decode_seconds = std::min(decode_seconds, end - prefilled), total_seconds = std::min(total_seconds, end - start);
    }
    std::printf("%.1f %.1f\n", rows * (new_tokens - 1) / decode_seconds, rows * new_tokens / total_seconds);
    for (const Ids &answer : answers) {
        for (llama_token id : answer) std::printf("%d ", id);
        std::puts("");
    }
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
}
