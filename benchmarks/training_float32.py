"""In float32 a training step by kernels should be 1.7 times as fast as transformers', and post-training twice as without them.

For processors without bfloat16 (AVX2). The model and batch of `training_throughput`: forward, loss, backward and optimizer,
ours with Muon and with AdamW, by kernels and by PyTorch (not compiled), theirs Qwen3ForCausalLM with its own loss and torch's
AdamW. Then an update each of SFT, DPO, reward modelling and PPO on 8 rows of 40 to 240 tokens, half of them the answer.
All in one process by turns; processor time of one thread, of which other programs take least, and the least of the rounds.
"""

import argparse
import copy
import random
import time
from collections.abc import Callable

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
from groundup.posttraining.packing import weighted, weights_of
from groundup.training.by_kernels import in_use
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, one_lr, pretraining_lrs

CLAIM, BAR, TUNING_BAR = "training step in float32, 6 x 256, over transformers'; post-training by kernels over without", 1.7, 2.0
ROWS, SHORTEST, LONGEST = 8, 40, 240
Step = Callable[[], None]


def pretraining(muon: bool, native: bool) -> Step:
    model = Decoder(sizes.our_config())
    initialise(model, 0)
    if native:
        model.use_kernels(sizes.CONTEXT, torch.float32)
    optimizer = Optimizer(model, pretraining_lrs(sizes.WIDTH)[0] if muon else one_lr(1e-3), kernels=native)
    ids, shape = sizes.random_ids(sizes.VOCABULARY), (sizes.ROWS, sizes.CONTEXT)
    batch = {"ids": ids[:, :-1], "targets": ids[:, 1:], "weight": torch.full(shape, 1 / (shape[0] * shape[1]))}

    def step() -> None:
        next_token(model, batch, torch.float32)[0].backward()
        optimizer.step(1.0)

    return step


def rows() -> list[Row]:
    draw = random.Random(0)
    found = []
    for _ in range(ROWS):
        length = draw.randint(SHORTEST, LONGEST)
        ids = [draw.randrange(sizes.VOCABULARY) for _ in range(length)]
        found.append((ids, [0] * (length // 2) + [1] * (length - length // 2)))
    return found


def tuning(kind: str, native: bool) -> Step:
    model = Decoder(sizes.our_config())
    initialise(model, 0)
    scorer = RewardModel(model.config, copy.deepcopy(model.model))
    trained = {"reward": scorer, "PPO": ppo.ActorCritic(model, scorer)}.get(kind, model)
    if native:
        for one in (model, scorer):
            one.use_kernels(sizes.CONTEXT, torch.float32)
    optimizer, some, device = Optimizer(trained, one_lr(1e-5), kernels=in_use(trained)), rows(), torch.device("cpu")
    batch = collate(some, 0, device)
    if kind == "SFT":
        batch = weighted(some, weights_of(some, "token"), 0, device, pack=True)
    if kind == "DPO":
        batch |= {"reference": torch.zeros(ROWS), "share": torch.tensor(1.0)}
    if kind == "PPO":
        drawn = torch.randn(3, *batch["ids"].shape, generator=torch.Generator().manual_seed(0)) * batch["mask"]
        batch |= {"logp": drawn[0] - 8, "values": drawn[1], "returns": drawn[1], "advantages": drawn[2]}
    objectives = {
        "SFT": lambda: next_token(model, batch, torch.float32),
        "DPO": lambda: dpo.objective(model, batch, DpoConfig(), torch.float32),
        "reward": lambda: reward.bradley_terry(scorer, batch, 0.01),
        "PPO": lambda: ppo.clipped_objective(trained, batch, PpoConfig(), torch.float32),
    }

    def step() -> None:
        objectives[kind]()[0].backward()
        optimizer.step(1.0)

    return step


def by_turns(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of processor time of each, the least; the first round does not count."""
    least = dict.fromkeys(steps, float("inf"))
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:
                least[name] = min(least[name], time.process_time() - start)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=sizes.WIDTH, help="64 a layer; 256 has 6 layers")
    given = parser.parse_args()
    choose(1)
    if given.width != sizes.WIDTH:
        sizes.WIDTH, sizes.LAYERS = given.width, given.width // 64
    try:
        steps = {f"{name} by kernels": pretraining(name == "Muon", True) for name in ("Muon", "AdamW")}
        import transformers  # noqa: F401
    except (Unavailable, ImportError) as error:
        return conclude(CLAIM, None, "times", BAR, None, reason=str(error))
    print(machine())
    steps |= {f"{name} by PyTorch": pretraining(name == "Muon", False) for name in ("Muon", "AdamW")}
    steps["transformers"] = sizes.their_step(sizes.PEERS[0])
    seconds = by_turns(steps, given.rounds)
    for name, value in seconds.items():
        print(f"{name:<18} {1e3 * value:6.0f} ms, {sizes.step_flops() / value / 1e9:5.1f} GFLOP/s, "
              f"{seconds['transformers'] / value:.2f} times transformers")  # fmt: skip
    ratios = []
    for kind in ("SFT", "DPO", "reward", "PPO"):
        found = by_turns({side: tuning(kind, side == "kernels") for side in ("kernels", "PyTorch")}, given.rounds)
        ratios.append(found["PyTorch"] / found["kernels"])
        plain = f"without kernels {1e3 * found['PyTorch']:.0f}: {ratios[-1]:.2f} times"
        print(f"{kind:<18} {1e3 * found['kernels']:6.0f} ms, {plain}")
    over = seconds["transformers"] / max(seconds["Muon by kernels"], seconds["AdamW by kernels"])
    holds = over >= BAR and min(ratios) >= TUNING_BAR
    conclude(CLAIM, over, "times", BAR, holds, peer="post-training, the least", peer_figure=min(ratios))


if __name__ == "__main__":
    main()
