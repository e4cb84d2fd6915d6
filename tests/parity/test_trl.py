"""What TRL and transformers make of our folders and rows: the same rewards, and the same losses at the first step."""

import os

import pytest
import torch

from groundup.data import simulated_annotator
from groundup.model import folder
from groundup.model.decoder import Decoder
from groundup.posttraining import rows
from groundup.posttraining.batches import collate
from groundup.posttraining.dpo import preference_loss, sequence_log_probability
from groundup.posttraining.reward import bradley_terry, from_policy, score_rows
from groundup.training.objectives import next_token

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
trl = pytest.importorskip("trl", reason="needs the `test` extra")
datasets = pytest.importorskip("datasets", reason="needs the `test` extra")
transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()

CPU = torch.device("cpu")
CLOSE = 1e-5


def said(role, content):
    return {"role": role, "content": content}


SYSTEM = said("system", "the file")
CONVERSATIONS = [
    [said("user", "what does the function return"), said("assistant", "the path of the file")],
    [SYSTEM, said("user", " path?\n"), said("assistant", "\nit returns it "), said("user", "ok"), said("assistant", "")],
    [said("user", "漢字"), said("assistant", "def path(file):\n    return file")],
]
PAIRS = [
    {
        "prompt": conversation[:-1],
        "chosen": conversation[-1:],
        "rejected": [said("assistant", other)],
    }
    for conversation, other in zip(CONVERSATIONS, ("file", "the path of it", "it returns"), strict=True)
]


@pytest.fixture(scope="module")
def policy(toy_decoder, toy_tokenizer):
    return toy_decoder(seed=1, vocab_size=toy_tokenizer.size, max_position_embeddings=128)


@pytest.fixture(scope="module")
def reward_model(policy):
    return from_policy(policy, seed=2)


@pytest.fixture(scope="module")
def folders(policy, reward_model, toy_decoder, toy_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("folders")
    reference = toy_decoder(seed=5, vocab_size=toy_tokenizer.size, max_position_embeddings=128)
    for name, model in (("sft", policy), ("reference", reference), ("reward", reward_model)):
        folder.save(path / name, model, toy_tokenizer, chat=True)
    return path


def causal(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def classifier(path):
    return transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()


def first_step(kind, model, examples, path, tmp_path, more=None, **settings):
    """What TRL logs of one step on all the examples at once, on this processor in float32."""
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path), max_steps=1, logging_steps=1, per_device_train_batch_size=len(examples),
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        **settings,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(examples),
        processing_class=transformers.AutoTokenizer.from_pretrained(path), **(more or {}),
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history[0]


def next_token_loss(model: Decoder, tokenizer, some):
    batch = collate(some, tokenizer.pad, CPU)
    return next_token(model, batch | {"weight": batch["mask"] / batch["mask"].sum()}, torch.float32)[1]["loss"]


@torch.no_grad()
def test_their_classifier_gives_our_rewards(reward_model, folders, toy_tokenizer):
    path = folders / "reward"
    tokenizer, theirs = transformers.AutoTokenizer.from_pretrained(path), classifier(path)
    assert theirs.config.pad_token_id == toy_tokenizer.pad != theirs.config.eos_token_id
    ours = score_rows(reward_model, toy_tokenizer, [rows.conversation(toy_tokenizer, {"messages": c}) for c in CONVERSATIONS])
    alone = [theirs(**tokenizer.apply_chat_template(c, return_tensors="pt", return_dict=True)) for c in CONVERSATIONS]
    assert [found.logits.item() for found in alone] == pytest.approx(ours.tolist(), abs=CLOSE)
    assert ours.std() > 0.1
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.apply_chat_template(CONVERSATIONS, return_tensors="pt", return_dict=True, padding=True)
        assert (batch["input_ids"] == toy_tokenizer.pad).any()
        assert theirs(**batch).logits[:, 0].tolist() == pytest.approx(ours.tolist(), abs=CLOSE)


def test_the_first_loss_of_fine_tuning(policy, folders, toy_tokenizer, tmp_path):
    path = folders / "sft"
    some = [rows.conversation(toy_tokenizer, {"messages": conversation}) for conversation in CONVERSATIONS]
    found = first_step(
        "SFT", causal(path), [{"messages": c} for c in CONVERSATIONS], path, tmp_path / "a", assistant_only_loss=True
    )
    assert found["loss"] == pytest.approx(next_token_loss(policy, toy_tokenizer, some), abs=CLOSE)


def test_the_first_loss_of_fine_tuning_on_prompts_and_completions(policy, folders, toy_tokenizer, tmp_path):
    path = folders / "sft"
    examples = [{"prompt": c[:-1], "completion": c[-1:]} for c in CONVERSATIONS]
    some = [rows.pair(toy_tokenizer, pair)[0] for pair in PAIRS]  # the last answer is learned
    found = first_step("SFT", causal(path), examples, path, tmp_path)
    assert found["loss"] == pytest.approx(next_token_loss(policy, toy_tokenizer, some), abs=CLOSE)


@torch.no_grad()
def ours_of_dpo(policy, reference, tokenizer, beta):
    read = [rows.pair(tokenizer, pair) for pair in PAIRS]
    batch = collate([pair[side] for side in (0, 1) for pair in read], tokenizer.pad, CPU)
    policy_logp, reference_logp = (sequence_log_probability(model, batch) for model in (policy, reference))
    return preference_loss(policy_logp, reference_logp, beta)[1]["loss"], policy_logp.chunk(2)


def test_the_first_loss_of_direct_preference_optimisation(policy, folders, toy_tokenizer, tmp_path):
    """Against another reference: with itself for reference any two agree on ln 2."""
    path = folders / "sft"
    loss, (chosen, rejected) = ours_of_dpo(policy, folder.load_decoder(folders / "reference"), toy_tokenizer, 0.1)
    found = first_step(
        "DPO", causal(path), PAIRS, path, tmp_path, {"ref_model": causal(folders / "reference")}, beta=0.1
    )
    assert found["loss"] == pytest.approx(loss, abs=CLOSE) and abs(loss - 0.6931) > 0.01
    assert found["logps/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-4)
    assert found["logps/rejected"] == pytest.approx(rejected.mean().item(), abs=1e-4)


def labelled():
    """Rows of the labelling log: one vote of the simulated annotator alone, and the votes of several people."""
    log = [simulated_annotator.judgement("what", "the path of the file", "it", "the path", "p0", 0.0, "a")]
    votes = {"p1": "aab", "p2": "bbb", "p3": "a"}
    for pair, cast in votes.items():
        for who, choice in enumerate(cast):
            event = {"pair_id": pair, "prompt": f"{pair} path", "a": "file", "b": "the file returns", "shown_left": "a"}
            log.append(event | {"choice": choice, "annotator": f"person {who}"})
    return simulated_annotator.preferences(log)


@pytest.mark.parametrize("examples", [PAIRS, labelled()], ids=["without a margin", "labelled"])
def test_the_first_loss_of_the_reward_model(reward_model, folders, toy_tokenizer, tmp_path, examples):
    path = folders / "reward"
    read = [rows.pair(toy_tokenizer, row) for row in examples]
    batch = collate([pair[side] for side in (0, 1) for pair in read], toy_tokenizer.pad, CPU)
    margins = torch.tensor([margin for *_, margin in read])
    with torch.no_grad():
        loss, _ = bradley_terry(reward_model, batch | {"margin": margins})
        without, _ = bradley_terry(reward_model, batch)
    found = first_step("Reward", classifier(path), examples, path, tmp_path, center_rewards_coefficient=0.01)
    assert found["loss"] == pytest.approx(loss.item(), abs=CLOSE)
    if "margin" in examples[0]:
        assert margins.tolist() == pytest.approx([0, 1 / 3, 1, 0]) and abs(loss - without) > 1e-3
