"""A GGUF that `groundup export` wrote, read by llama.cpp itself: the same ids, greedy text, probabilities and rendered chat.

llama.cpp is that of node-llama-cpp, which has it compiled: `npm install --omit=optional node-llama-cpp@3.21.1
@node-llama-cpp/linux-x64@3.21.1` in a folder, and `--node DIR`. The model is a Qwen3 of 3 layers x 192 with vocabulary 2,000,
trained for half a minute on the topics that Python documents. 1,000 texts of the same, cut anywhere, with numbers and
code, are tokenized by both; 10 prompts are continued greedily for 64 tokens by both, from f32, f16 and q8_0. After each of
the last 16 tokens of the prompts all log-probabilities are compared, with llama.cpp's cache in f32 (in f16, as it is if not told
so, the cache's rounding is larger): those of f32 may differ by 1e-4, and of f16 the Kullback-Leibler divergence from ours by
1e-4. The chat template is read from the file by llama.cpp and rendered by node-llama-cpp's engine (@huggingface/jinja); text and
ids must be ours. One thread, since llama.cpp's wait for each other by spinning.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch

import timed
from common import conclude, machine
from groundup.generation.engine import Sampling, generate
from groundup.model import model_folder as model_folder
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.serving.gguf_file import export
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

CLAIM = "llama.cpp on a GGUF of ours: texts of 1,000 with the same ids"
SHAPE = DecoderConfig(2000, 192, 3, 3, 3, 64, 576, 256)
STEPS, NEW, TAIL = 600, 64, 16
CHATS = [
    [{"role": "user", "content": "What does `len` return?"}],
    [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": " 1234 and <b>this</b>? "},
     {"role": "assistant", "content": "No.\n"}, {"role": "user", "content": "Why not?\n\n"}],
]  # fmt: skip
SCRIPT = """
import {getLlama} from "node-llama-cpp";
import {Template} from "@huggingface/jinja";
import {readFileSync, writeFileSync} from "fs";
const {file, texts, prompts, tokens, tail, chats} = JSON.parse(readFileSync(process.argv[2], "utf8"));
const quiet = {progressLogs: false, logLevel: "error"};
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, usePrebuiltBinaries: true, ...quiet});
const model = await llama.loadModel({modelPath: file});
const ids = texts.map(text => model.tokenize(text, false));
const exact = {flashAttention: false, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"};
const context = await model.createContext({contextSize: 256, threads: 1, ...exact});
const answers = [], probabilities = [];
for (const prompt of prompts) {
  const sequence = context.getSequence(), answer = [];
  for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    answer.push(token);
    if (answer.length === tokens) break;
  }
  answers.push(answer);
  await sequence.clearHistory();
  const evaluated = await sequence.controlledEvaluate(
    prompt.map((token, index) => index < prompt.length - tail ? token : [token, {generateNext: {probabilities: true}}]));
  for (const {next} of evaluated.filter(Boolean)) {
    const row = new Array(next.probabilities.size);
    for (const [token, probability] of next.probabilities) row[token] = probability;
    probabilities.push(row);
  }
  await sequence.clearHistory();
  sequence.dispose();
}
const template = model.fileInfo.metadata.tokenizer.chat_template, end = model.detokenize([model.tokens.bos], true);
const rendered = chats.map(messages => new Template(template).render({messages, add_generation_prompt: true, bos_token: end}));
const chatIds = rendered.map(text => model.tokenize(text, true));
// A pipe is cut at 64 KB where a process exits.
writeFileSync(process.argv[3], JSON.stringify({ids, answers, probabilities, rendered, chatIds}));
process.exit(0);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", type=Path, help="where node-llama-cpp is installed")
    options, _ = parser.parse_known_args()
    if options.node is None or not (options.node / "node_modules" / "node-llama-cpp").is_dir():
        return conclude(CLAIM, None, "texts", 1000, None, reason="node-llama-cpp is missing; give --node DIR")
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        model, tokenizer = trained(Path(work))
        texts, prompts = cut(tokenizer)
        same: dict[str, tuple[int, int]] = {}
        mine = generate(model, prompts, [], Sampling(NEW, temperature=0), 0)
        ours = log_probabilities(model, prompts)
        far: dict[str, float] = {}
        for kind in ("f32", "f16", "q8_0"):
            export(Path(work) / "model", Path(work) / f"{kind}.gguf", kind)
            answered = theirs(options.node, Path(work) / f"{kind}.gguf", texts, prompts)
            ids = sum(a == list(tokenizer.encode(text)) for a, text in zip(answered["ids"], texts, strict=True))
            same[kind] = ids, sum(a == b for a, b in zip(answered["answers"], mine, strict=True))
            probabilities = np.array(answered["probabilities"])
            other = np.log(probabilities / probabilities.sum(1, keepdims=True))  # theirs add up to 1 in float32
            far[kind], kl = float(np.abs(other - ours).max()), float((np.exp(ours) * (ours - other)).sum(1).mean())
            print(f"{kind}: {ids} of {len(texts)} texts have the same ids, {same[kind][1]} of {len(prompts)} answers; "
                  f"log-probabilities differ by {far[kind]:.1e} at most, KL {kl:.1e}")  # fmt: skip
            far[f"{kind} KL"] = kl
        chats = chat_is_the_same(tokenizer, answered)
    equal = ", ".join(f"{kind} {answers}" for kind, (_, answers) in same.items())
    note = (
        f"greedy answers of 10 that are equal: {equal}; log-probabilities of f32 within {far['f32']:.1e}; KL of f16 "
        f"{far['f16 KL']:.1e}, of q8_0 {far['q8_0 KL']:.1e}; rendered chats {'equal' if chats else 'differ'}"
    )
    holds = same["f32"] == (1000, 10) and far["f32"] <= 1e-4 and far["f16 KL"] < 1e-4 and chats
    return conclude(CLAIM, same["f32"][0], "texts", 1000, holds, peer=note)


@torch.inference_mode()
def log_probabilities(model: Decoder, prompts: list[list[int]]) -> np.ndarray:
    """Of all tokens after each of the last TAIL tokens of each prompt: (prompts x TAIL, vocabulary)."""
    rows = [torch.log_softmax(model(torch.tensor([prompt]))[0, -TAIL:].double(), -1) for prompt in prompts]
    return torch.cat(rows).numpy()


def chat_is_the_same(tokenizer: Tokenizer, answered: dict) -> bool:
    ours = [render(tokenizer, messages, add_generation_prompt=True)[0] for messages in CHATS]
    special = {number: name for name, number in tokenizer.special_tokens.items()}
    texts = ["".join(special.get(token) or tokenizer.token_bytes(token).decode() for token in ids) for ids in ours]
    print(f"chats: rendered alike {answered['rendered'] == texts}, the same ids {answered['chatIds'] == ours}")
    return answered["rendered"] == texts and answered["chatIds"] == ours


def trained(work: Path) -> tuple[Decoder, Tokenizer]:
    texts = [text for text in topics.values() if len(text) > 500]
    tokenizer = timed.byte_pairs(texts, SHAPE.vocab_size)
    model = Decoder(SHAPE)
    initialise(model, 0)
    stream = timed.stream(timed.encoded(work / "tokens", texts * 20, tokenizer), tokenizer, SHAPE.max_position_embeddings)
    timed.train(model, stream, 8, 0, steps=STEPS)
    model_folder.save(work / "model", model, tokenizer, chat=True)
    return model_folder.load_decoder(work / "model"), tokenizer


def cut(tokenizer: Tokenizer) -> tuple[list[str], list[list[int]]]:
    """Texts, and prompts as ids."""
    random, all_text = np.random.default_rng(0), "\n".join(topics.values())
    starts = random.integers(0, len(all_text) - 400, 1000)
    texts = [all_text[start : start + random.integers(1, 400)] for start in starts]
    for number in range(0, len(texts), 4):
        texts[number] += f" {random.integers(10**6)}.{random.integers(100)}"
    return texts, [[tokenizer.end_of_text, *tokenizer.encode(text)][:40] for text in texts[1:11]]


def theirs(node: Path, file: Path, texts: list[str], prompts: list[list[int]]) -> dict:
    script, program_input = node / "groundup-compare.mjs", file.with_suffix(".json")
    script.write_text(SCRIPT)
    content = {"file": str(file), "texts": texts, "prompts": prompts, "tokens": NEW, "tail": TAIL, "chats": CHATS}
    program_input.write_text(json.dumps(content))
    output = file.with_suffix(".found.json")
    subprocess.run(["node", script.name, program_input, output], cwd=node, capture_output=True, check=True)
    return json.loads(output.read_text())


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
