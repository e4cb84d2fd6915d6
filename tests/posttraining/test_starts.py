"""What holds before anything is learned, in every architecture: ratios of one, no divergence, ln 2, and margins by sign."""

import copy

import pytest
import torch

from groundup.core.device import Device
from groundup.generation.engine import Sampling
from groundup.model.lstm import LSTM, LSTMConfig
from groundup.posttraining import grpo, ppo
from groundup.posttraining.batches import collate, prompt_of, row_of
from groundup.posttraining.config import DpoConfig, GrpoConfig, PpoConfig
from groundup.posttraining.dpo import objective, sequence_log_probability
from groundup.posttraining.rewards import ProgramReward, Prompt

CPU = torch.device("cpu")
FLOAT32 = Device(CPU, torch.float32, 1, "cpu", ())
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ASKED = ["what is the path", "the file", "return"]


@pytest.fixture(scope="module", params=["dense", "experts", "LSTM"])
def model(request, toy_decoder, toy_tokenizer):
    if request.param == "LSTM":
        torch.manual_seed(0)
        return LSTM(LSTMConfig(toy_tokenizer.size, 32, 2, 128))
    changes = EXPERTS if request.param == "experts" else {}
    return toy_decoder(seed=1, scale=0.2, vocab_size=toy_tokenizer.size, max_position_embeddings=128, **changes)


@pytest.fixture(scope="module")
def prompts(toy_tokenizer):
    return [Prompt(asked, prompt_of(toy_tokenizer, asked)) for asked in ASKED]


@pytest.fixture(scope="module")
def reward(toy_tokenizer):
    return ProgramReward("length", lambda prompts, completions: [len(text) for text in completions], toy_tokenizer, CPU)


def test_of_ppo(model, prompts, reward, toy_tokenizer):
    settings = PpoConfig(kl_coefficient=0.3)
    setup = ppo.RewardSetup(copy.deepcopy(model), reward, settings, torch.float32)
    actor = ppo.ActorCritic(model, ppo.value_of(model, reward))
    batch, rolled, *_ = ppo.rollout(
        actor, setup, prompts * 3, [toy_tokenizer.message_end], toy_tokenizer.pad, Sampling(6), seed=1
    )
    _, metrics = ppo.clipped_objective(actor, batch, settings, torch.float32)
    assert rolled["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-6) and metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-9) and metrics["loss"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_of_groups(model, prompts, reward, toy_tokenizer, importance):
    settings = GrpoConfig(generations=3, beta=0.2, importance=importance)
    setup = grpo.GroupSetup(copy.deepcopy(model), reward, settings, 6, torch.float32)
    whole, rolled, *_ = grpo.rollout(
        model, setup, prompts, [toy_tokenizer.message_end], toy_tokenizer.pad, Sampling(6), 1
    )
    ((batch,),) = grpo.updates_of(whole, 1, settings, 6)
    _, metrics = grpo.group_objective(model, batch, settings, torch.float32)
    assert rolled["kl"] == pytest.approx(0, abs=1e-5) and metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-9) and metrics["clip_fraction"] == 0
    advantages = (whole["advantages"] * whole["mask"]).sum() / whole["mask"].sum()
    assert metrics["loss"] == pytest.approx(-advantages.item(), abs=1e-5)  # every ratio is one


@torch.no_grad()
def test_of_preferences_and_their_opposites(model, toy_tokenizer):
    """With a reference that is another model the rewards are not nothing; swapped pairs have the margin's negative."""
    chosen, rejected = (
        [row_of(toy_tokenizer, asked, answer) for asked in ASKED] for answer in ("the path of the file", "it returns")
    )
    whole = torch.tensor(1.0)

    def measured(rows, moved):
        batch = collate(rows, toy_tokenizer.pad, CPU) | {"share": whole}
        batch["reference"] = sequence_log_probability(model, batch) + moved
        return objective(model, batch, DpoConfig(), torch.float32)[1]

    start = measured(chosen + rejected, 0.0)
    assert start["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert start["reward_chosen"] == pytest.approx(0, abs=1e-6) and start["reward_rejected"] == pytest.approx(0, abs=1e-6)
    moved = torch.linspace(-3, 2, 6)
    straight, swapped = measured(chosen + rejected, moved), measured(rejected + chosen, torch.cat(moved.chunk(2)[::-1]))
    margins = [one["reward_chosen"] - one["reward_rejected"] for one in (straight, swapped)]
    assert margins[0] == pytest.approx(-margins[1], abs=1e-5) and abs(margins[0]) > 0.1
