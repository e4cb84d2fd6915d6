"""One iteration of PPO, 256 rollouts of up to 64 tokens of a model of 6 layers x 256, against the last TRL that had it.

That is TRL 1.12.0, which runs beside today's transformers: `pip install --no-deps --target DIR trl==1.12.0`, then
`--trl DIR`. Both have the same folders for policy, reference, reward and value, the same prompts, four minibatches and one
epoch; bfloat16 where the processor has it on both sides, and then ours in float32 beside them. Every run is a process of its own.
`--before DIR` runs an earlier checkout of ours beside them.
"""

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from common import conclude, machine
from groundup.core.device import has_bfloat16_vectors

ROLLOUTS, TOKENS, MINIBATCHES = 256, 64, 4
REPEATS = 1  # of each; an iteration of 256 rollouts is long enough to stand for itself
OURS, FLOAT32, TRL, BEFORE = "groundup", "groundup float32", "TRL 1.12.0", "before"


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in (OURS, FLOAT32, TRL, BEFORE):
        run_one(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", type=Path, default=Path(__file__).resolve().parents[2] / "trl_ppo")
    parser.add_argument("--before", type=Path, help="an earlier checkout")
    options, _ = parser.parse_known_args()
    has_trl = (options.trl / "trl" / "experimental" / "ppo").is_dir()
    names = [OURS, *([FLOAT32] if has_bfloat16_vectors() else [])]
    names += [*([TRL] if has_trl else []), *([BEFORE] if options.before else [])]
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare(work)
        results_of: dict[str, list[dict]] = {side: [] for side in names}
        for _ in range(REPEATS):
            for side, results in results_of.items():
                command = [sys.executable, __file__, side, str(work), str(options.trl)]
                other = {"PYTHONPATH": f"{options.before}/src"} if side == BEFORE else {}
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | other)
                if done.returncode:
                    sys.exit(f"{side} failed: {done.stderr[-1500:]}")
                results.append(json.loads(done.stdout.splitlines()[-1]))
    rates, memory = {}, {}
    for side, results in results_of.items():
        rates[side] = ROLLOUTS / median(result["seconds"] for result in results)
        memory[side] = max(result["megabytes"] for result in results)
        print(f"{side:<18} {rates[side]:6.2f} rollouts/s, peak memory {memory[side]:,.0f} MB, runs of "
              f"{', '.join(str(round(result['seconds'], 1)) for result in results)} s")  # fmt: skip
    claim = "PPO, 256 rollouts of 64 tokens, 6 x 256"
    if not has_trl:
        reason = f"no TRL with PPO in {options.trl.name}; pip install --no-deps --target DIR trl==1.12.0, then --trl DIR"
        conclude(claim, rates[OURS], "rollouts/s", 3, None, reason=reason)
        return
    share = memory[OURS] / memory[TRL]
    holds = rates[OURS] >= 3 * rates[TRL] and share <= 0.5
    peer = f"{TRL}, {rates[OURS] / rates[TRL]:.2f} times (bar 3) in {share:.2f} of its memory (bar 0.5)"
    conclude(claim, rates[OURS], "rollouts/s", 3, holds, peer=peer, peer_figure=rates[TRL])


def prepare(work: Path) -> None:
    """The folders of a policy and a reward model, and the prompts as ids."""
    import torch

    from groundup.model import model_folder
    from groundup.model.decoder import Decoder, DecoderConfig
    from groundup.posttraining.batches import prompt_of
    from groundup.posttraining.reward import from_policy
    from groundup.tokenizer import bpe
    from groundup.tokenizer.tokenizer import Tokenizer

    torch.manual_seed(0)
    texts = [inspect.getsource(module) for module in (argparse, inspect, subprocess, tempfile)]
    tokenizer = Tokenizer.from_merges(bpe.train(bpe.count_pretokens(texts), 4096))
    config = DecoderConfig(
        vocab_size=tokenizer.size, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        head_dim=64, intermediate_size=768, max_position_embeddings=256,
    )  # fmt: skip
    policy = Decoder(config)
    for parameter in policy.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    model_folder.save(work / "policy", policy, tokenizer, chat=True)
    model_folder.save(work / "reward", from_policy(policy, 0), tokenizer, chat=True)
    words = [word for text in texts for word in text.split() if word.isalpha()]
    questions = [" ".join(words[7 * number : 7 * number + 5 + number % 8]) for number in range(ROLLOUTS)]
    ids = [prompt_of(tokenizer, question) for question in questions]
    (work / "prompts.json").write_text(json.dumps({"questions": questions, "ids": ids}))


def run_one(name: str, work: Path, trl: str) -> None:
    prompts = json.loads((work / "prompts.json").read_text())
    seconds = theirs(work, prompts, trl) if name == TRL else ours(work, prompts, name == FLOAT32)
    print(json.dumps({"seconds": seconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def ours(work: Path, prompts: dict, float32: bool) -> float:
    import torch

    from groundup.core.device import choose
    from groundup.model.model_folder import load_decoder, load_reward_model
    from groundup.posttraining.config import PpoConfig
    from groundup.posttraining.ppo import train
    from groundup.posttraining.rewards import ModelReward
    from groundup.tokenizer.tokenizer import Tokenizer
    from groundup.training.runtime import Runtime

    device = choose(0)
    dtype = torch.float32 if float32 else device.training_dtype
    tokenizer, policy = Tokenizer.load(work / "policy"), load_decoder(work / "policy")
    reward = ModelReward(load_reward_model(work / "reward"), (0.0, 1.0), tokenizer, dtype)
    settings = PpoConfig(iterations=1, rollouts=ROLLOUTS, minibatches=MINIBATCHES, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        runtime = Runtime(replace(device, training_dtype=dtype), Path(folder), "ppo")
        result = train(policy, tokenizer, prompts["questions"], settings, runtime, reward, TOKENS)
        seconds = time.perf_counter() - start
    print(f"mean length {result['last']['length']:.1f}, {result['last']['ended']:.0%} ended")
    return seconds


def theirs(work: Path, prompts: dict, trl: str) -> float:
    sys.path.insert(0, trl)
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(work / "policy", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(work / "policy", dtype=torch.float32) for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(work / "reward", dtype=torch.float32) for _ in range(2)
    )
    bfloat16 = has_bfloat16_vectors()
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=ROLLOUTS // MINIBATCHES, gradient_accumulation_steps=MINIBATCHES,
            num_mini_batches=MINIBATCHES, num_ppo_epochs=1, total_episodes=ROLLOUTS, response_length=TOKENS, temperature=1.0,
            local_rollout_forward_batch_size=64, stop_token="eos", missing_eos_penalty=1.0, use_cpu=True, bf16=bfloat16,
            gradient_checkpointing=False, report_to="none", save_strategy="no", num_sample_generations=0, eval_strategy="no",
        )  # fmt: skip
        rows = Dataset.from_list([{"input_ids": ids} for ids in prompts["ids"]])
        trainer = PPOTrainer(
            args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
            value_model=value, train_dataset=rows, eval_dataset=rows,
        )  # fmt: skip
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
