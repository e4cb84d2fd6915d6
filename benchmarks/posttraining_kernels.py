"""An update of SFT, DPO, reward modelling and PPO by our kernels, in the processor's number format, over the same without them.

A Qwen3 of 6 layers x 256, vocabulary 4,096; 8 rows of 40 to 240 tokens, half of them the answer; pairs share their question.
PyTorch is not compiled, as it is not where lengths change with every batch. Both sides by turns, all cores, by the clock;
medians. `GROUNDUP_KERNELS=avx2` has it in float32 on any processor.
"""

import argparse
import copy
import random

import torch

import training_throughput as sizes
from common import conclude, machine
from groundup.core.device import choose
from groundup.kernels import Unavailable
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, RewardModel
from groundup.posttraining import dpo, ppo, reward
from groundup.posttraining.batches import Row, collate
from groundup.posttraining.config import DpoConfig, PpoConfig
from groundup.posttraining.packing import weighted_batch, weights_of
from groundup.training.by_kernels import in_use
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, one_lr
from training_float32 import Step, by_turns

CLAIM, BAR = "an update of SFT, DPO, reward model and PPO by kernels over PyTorch's, the least", 2.0
ROWS, SHORTEST, LONGEST = 8, 40, 240


def rows(pairs: bool) -> list[Row]:
    """Of pairs the first half are the chosen: the same questions as of the second half, with as long an answer."""
    draw = random.Random(0)

    def random_ids(count: int) -> list[int]:
        return [draw.randrange(sizes.VOCABULARY) for _ in range(count)]

    questions = [random_ids(draw.randint(SHORTEST, LONGEST) // 2) for _ in range(ROWS // 2 if pairs else ROWS)]
    return [(ids + random_ids(len(ids)), [0] * len(ids) + [1] * len(ids)) for ids in questions * (2 if pairs else 1)]


def update(kind: str, native: bool, dtype: torch.dtype) -> Step:
    model = Decoder(sizes.our_config())
    initialise(model, 0)
    scorer = RewardModel(model.config, copy.deepcopy(model.model))
    trained = {"reward": scorer, "PPO": ppo.ActorCritic(model, scorer)}.get(kind, model)
    if native:
        for network in (model, scorer):
            network.use_kernels(sizes.CONTEXT, dtype)
    optimizer = Optimizer(trained, one_lr(1e-5), kernels=in_use(trained))
    batch_rows, device = rows(kind in ("DPO", "reward")), torch.device("cpu")
    batch = collate(batch_rows, 0, device)
    if kind == "SFT":
        batch = weighted_batch(batch_rows, weights_of(batch_rows, "token"), 0, device, pack=True)
    if kind == "DPO":
        batch |= {"reference": torch.zeros(ROWS), "share": torch.tensor(1.0)}
    if kind == "PPO":
        drawn = torch.randn(3, *batch["ids"].shape, generator=torch.Generator().manual_seed(0)) * batch["mask"]
        batch |= {"logp": drawn[0] - 8, "values": drawn[1], "returns": drawn[1], "advantages": drawn[2]}
    objectives = {
        "SFT": lambda: next_token(model, batch, dtype),
        "DPO": lambda: dpo.objective(model, batch, DpoConfig(), dtype),
        "reward": lambda: reward.bradley_terry(scorer, batch, 0.01, dtype),
        "PPO": lambda: ppo.clipped_objective(trained, batch, PpoConfig(), dtype),
    }

    def step() -> None:
        objectives[kind]()[0].backward()
        optimizer.step(1.0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options, _ = parser.parse_known_args()
    dtype, ratios = choose().training_dtype, {}
    print(f"{machine()}, {dtype}", flush=True)
    for kind in ("SFT", "DPO", "reward", "PPO"):
        try:
            sides = {side: update(kind, side == "kernels", dtype) for side in ("kernels", "PyTorch")}
        except Unavailable as error:
            return conclude(CLAIM, None, "times", BAR, None, reason=str(error))
        seconds = by_turns(sides, options.rounds)
        ratios[kind] = seconds["PyTorch"] / seconds["kernels"]
        plain = f"by PyTorch {1e3 * seconds['PyTorch']:.0f}: {ratios[kind]:.2f} times"
        print(f"{kind:<8} {1e3 * seconds['kernels']:6.0f} ms, {plain}", flush=True)
    ratios_listed = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items())
    conclude(CLAIM, min(ratios.values()), "times", BAR, min(ratios.values()) >= BAR, peer=f"PyTorch, {dtype}; {ratios_listed}")


if __name__ == "__main__":
    main()
