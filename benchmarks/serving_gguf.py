"""A GGUF that `groundup export` wrote, read by llama.cpp itself: the same ids, the same greedy text.

llama.cpp is that of node-llama-cpp, which has it compiled: `npm install --omit=optional node-llama-cpp@3.21.1
@node-llama-cpp/linux-x64@3.21.1` in a folder, and `--node DIR`. The model is a Qwen3 of 3 layers x 192 with vocabulary 2,000,
trained for half a minute on the topics that Python documents. 1,000 texts of the same, cut anywhere, with numbers and
code, are tokenized by both; 10 prompts are continued greedily for 64 tokens by both, from f32 and from q8_0.
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
from groundup.model import folder as model_folder
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, DecoderConfig
from groundup.serving.gguf_file import export
from groundup.tokenizer.tokenizer import Tokenizer

CLAIM = "llama.cpp on a GGUF of ours: texts of 1,000 with the same ids"
SHAPE = DecoderConfig(2000, 192, 3, 3, 3, 64, 576, 256)
SECONDS, NEW = 30, 64
SCRIPT = """
import {getLlama} from "node-llama-cpp";
import {readFileSync, writeFileSync} from "fs";
const {file, texts, prompts, tokens} = JSON.parse(readFileSync(process.argv[2], "utf8"));
const quiet = {progressLogs: false, logLevel: "error"};
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, usePrebuiltBinaries: true, ...quiet});
const model = await llama.loadModel({modelPath: file});
const ids = texts.map(text => model.tokenize(text, false));
const exact = {flashAttention: false, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"};
const context = await model.createContext({contextSize: 256, threads: 2, ...exact});
const answers = [];
for (const prompt of prompts) {
  const sequence = context.getSequence(), found = [];
  for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    found.push(token);
    if (found.length === tokens) break;
  }
  answers.push(found);
  await sequence.clearHistory();
  sequence.dispose();
}
writeFileSync(process.argv[3], JSON.stringify({ids, answers}));  // a pipe is cut at 64 KB where a process exits
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
        for kind in ("f32", "q8_0"):
            export(Path(work) / "model", Path(work) / f"{kind}.gguf", kind)
            found = theirs(options.node, Path(work) / f"{kind}.gguf", texts, prompts)
            ids = sum(a == list(tokenizer.encode(text)) for a, text in zip(found["ids"], texts, strict=True))
            same[kind] = ids, sum(a == b for a, b in zip(found["answers"], mine, strict=True))
            print(f"{kind}: {ids} of {len(texts)} texts have the same ids, {same[kind][1]} of {len(prompts)} answers")
    beside = f"greedy answers of 10 that are equal: f32 {same['f32'][1]}, q8_0 {same['q8_0'][1]}"
    return conclude(CLAIM, same["f32"][0], "texts", 1000, same["f32"] == (1000, 10), peer=beside)


def trained(work: Path) -> tuple[Decoder, Tokenizer]:
    texts = [text for text in topics.values() if len(text) > 500]
    tokenizer = timed.byte_pairs(texts, SHAPE.vocab_size)
    model = Decoder(SHAPE)
    initialise(model, 0)
    stream = timed.stream(timed.encoded(work / "tokens", texts * 20, tokenizer), tokenizer, SHAPE.max_position_embeddings)
    timed.train(model, stream, 8, SECONDS)
    model_folder.save(work / "model", model, tokenizer, chat=False)
    return model_folder.load_decoder(work / "model"), tokenizer


def cut(tokenizer: Tokenizer) -> tuple[list[str], list[list[int]]]:
    """Texts, and prompts as ids."""
    random, whole = np.random.default_rng(0), "\n".join(topics.values())
    starts = random.integers(0, len(whole) - 400, 1000)
    texts = [whole[start : start + random.integers(1, 400)] for start in starts]
    for number in range(0, len(texts), 4):
        texts[number] += f" {random.integers(10**6)}.{random.integers(100)}"
    return texts, [[tokenizer.end_of_text, *tokenizer.encode(text)][:40] for text in texts[1:11]]


def theirs(node: Path, file: Path, texts: list[str], prompts: list[list[int]]) -> dict:
    script, given = node / "groundup-compare.mjs", file.with_suffix(".json")
    script.write_text(SCRIPT)
    given.write_text(json.dumps({"file": str(file), "texts": texts, "prompts": prompts, "tokens": NEW}))
    found = file.with_suffix(".found.json")
    subprocess.run(["node", script.name, given, found], cwd=node, capture_output=True, check=True)
    return json.loads(found.read_text())


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
