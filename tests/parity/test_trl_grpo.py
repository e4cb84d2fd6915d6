"""GRPO as TRL 1.16 has it: advantages, and the loss and gradients of the same completions, of every loss type."""

import os
import types

import pytest
import torch

from groundup.model import model_folder
from groundup.posttraining.batches import answer_log_probabilities, collate, prompt_of
from groundup.posttraining.config import GrpoConfig
from groundup.posttraining.grpo import advantages_of, group_objective, updates_of

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
trl = pytest.importorskip("trl", reason="needs the `test` extra")
datasets = pytest.importorskip("datasets", reason="needs the `test` extra")
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()

CPU = torch.device("cpu")
CLOSE = 1e-5
GROUP, MOST = 4, 8
QUESTIONS = ["what does the function return", "the file"]
TEXTS = ["the path", "it returns the path of the file", "file", "", "the", "def path", "what is it", "the file returns it"]
REWARDS = [0.0, 1.0, 0.5, 0.0, 2.0, 2.0, -1.0, 3.0]
TRUNCATED = (1, 6)  # completions without their end


@pytest.fixture(scope="module")
def models(toy_decoder, toy_tokenizer, tmp_path_factory):
    """The policy, the policy that answered, and the reference: three folders, and how many ids a completion has."""
    path = tmp_path_factory.mktemp("grpo")
    shape = {"vocab_size": toy_tokenizer.size, "max_position_embeddings": 128}
    found = {"policy": toy_decoder(seed=1, scale=0.2, **shape)}
    for name, seed in (("before", 2), ("reference", 3)):
        found[name] = toy_decoder(seed=1, scale=0.2, **shape)
        with torch.no_grad():
            for parameter in found[name].parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter += 0.02 * noise
    for name, model in found.items():
        model_folder.save(path / name, model, toy_tokenizer, chat=True)
    return path, found


@pytest.fixture(scope="module")
def completions(toy_tokenizer):
    prompts = [ids for question in QUESTIONS for ids in [prompt_of(toy_tokenizer, question)] * GROUP]
    answers = [
        toy_tokenizer.encode(text)[:MOST] + ([] if number in TRUNCATED else [toy_tokenizer.message_end])
        for number, text in enumerate(TEXTS)
    ]
    return prompts, answers


@pytest.fixture(scope="module")
def trainer(models, tmp_path_factory):
    path, _ = models
    config = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("out")), per_device_train_batch_size=8, num_generations=GROUP, beta=0.1,
        max_completion_length=MOST, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
    made = trl.GRPOTrainer(
        model=str(path / "policy"), reward_funcs=lambda prompts, completions, **rest: REWARDS, args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(path / "policy"),
    )  # fmt: skip
    made.current_gradient_accumulation_steps = 1
    return made


def inputs_of(trainer, models, completions, settings):
    """What TRL makes of the completions and rewards: ids, masks, advantages."""
    prompts, answers = completions
    trainer.scale_rewards, trainer.mask_truncated_completions = settings.scale_rewards, settings.mask_truncated
    trainer.loss_type, trainer.importance_sampling_level = settings.loss_type, settings.importance
    trainer.beta, trainer.epsilon_low, trainer.epsilon_high = settings.beta, settings.clip_low, settings.clip_high
    trainer._generate = types.MethodType(
        lambda self, asked: (prompts, answers, None, TEXTS, None, {}, None, None), trainer
    )
    rows = [{"prompt": [{"role": "user", "content": one}]} for one in QUESTIONS for _ in range(GROUP)]
    return trainer._generate_and_score_completions(rows)


def theirs(trainer, models, completions, settings):
    """TRL's loss and gradients by name, with the log-probabilities of the policy that answered and the reference."""
    path, _ = models
    inputs = inputs_of(trainer, models, completions, settings)
    ids = torch.cat((inputs["prompt_ids"], inputs["completion_ids"]), 1)
    seen = torch.cat((inputs["prompt_mask"], inputs["completion_mask"]), 1)
    for name, key in (("before", "old_per_token_logps"), ("reference", "ref_per_token_logps")):
        model = transformers.AutoModelForCausalLM.from_pretrained(path / name, dtype=torch.float32)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logp = model(input_ids=ids, attention_mask=seen, position_ids=positions).logits.log_softmax(-1)
        found = logp[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -inputs["completion_ids"].shape[1] :]
        inputs[key] = found * inputs["completion_mask"]
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}


def ours(models, completions, toy_tokenizer, settings):
    _, found = models
    prompts, answers = completions
    rows = [(p + a, [0] * len(p) + [1] * len(a)) for p, a in zip(prompts, answers, strict=True)]
    batch = collate(rows, toy_tokenizer.pad, CPU)
    with torch.no_grad():
        batch["logp"] = answer_log_probabilities(found["before"], batch)
        batch["reference"] = answer_log_probabilities(found["reference"], batch)
    batch["advantages"] = advantages_of(torch.tensor(REWARDS), settings)[0][:, None]
    if settings.mask_truncated:
        batch["mask"] = batch["mask"].clone()
        batch["mask"][list(TRUNCATED)] = 0
    ((whole,),) = updates_of(batch, 1, settings, MOST)
    policy = found["policy"]
    policy.zero_grad()
    loss, metrics = group_objective(policy, whole, settings, torch.float32)
    loss.backward()
    return metrics["loss"], {name: one.grad for name, one in policy.named_parameters()}, metrics


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(trainer, models, completions, scale):
    settings = GrpoConfig(generations=GROUP, scale_rewards=scale, beta=0.1)
    found = inputs_of(trainer, models, completions, settings)["advantages"]
    assert advantages_of(torch.tensor(REWARDS), settings)[0].tolist() == pytest.approx(found.tolist(), abs=CLOSE)


@pytest.mark.parametrize(
    "changes",
    [
        *({"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "vespo")),
        {"loss_type": "luspo", "importance": "sequence"},
        {"loss_type": "vespo", "beta": 0.2},
        {"loss_type": "cispo", "clip_high": 2.0},
        {"loss_type": "grpo", "importance": "sequence", "clip_low": 0.01, "clip_high": 0.02},
        {"loss_type": "dapo", "beta": 0.2, "clip_low": 0.05, "clip_high": 0.1},
        {"loss_type": "grpo", "beta": 0.2, "mask_truncated": True, "scale_rewards": "none"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_the_loss_and_the_gradients(trainer, models, completions, toy_tokenizer, changes):
    settings = GrpoConfig(generations=GROUP, **changes)
    loss, gradients, metrics = ours(models, completions, toy_tokenizer, settings)
    expected, others = theirs(trainer, models, completions, settings)
    assert loss == pytest.approx(expected, abs=CLOSE) and abs(loss) > 1e-4
    assert metrics["approx_kl"] > 1e-3
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=CLOSE), name
