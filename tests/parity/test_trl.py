"""What TRL and transformers make of our folders and rows: the same rewards, and the same losses and gradients."""

import inspect
import os
from functools import partial
from typing import get_args

import pytest
import torch

from groundup.data import simulated_annotator
from groundup.model import model_folder
from groundup.posttraining import tokenize_rows
from groundup.posttraining.batches import answer_log_probabilities, collate
from groundup.posttraining.config import DpoConfig, Loss, SftConfig
from groundup.posttraining.dpo import objective, sequence_log_probability, sum_log_probabilities
from groundup.posttraining.reward import bradley_terry, from_policy, score_rows
from groundup.posttraining.sft import batches_of
from groundup.training.objectives import next_token
from groundup.training.optimizer import Optimizer, one_lr

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
        model_folder.save(path / name, model, toy_tokenizer, chat=True)
    return path


def causal(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def classifier(path):
    return transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()


class Gradients(transformers.TrainerCallback):
    """Of every step, as they come before they are clipped."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **rest):
        self.steps.append({name: one.grad.clone() for name, one in model.named_parameters()})


def trained(kind, model, examples, path, tmp_path, more=None, steps=1, **settings):
    """What TRL logs of steps on all the examples at once, on this processor in float32; and the gradients of each."""
    seen = Gradients()
    settings = {"per_device_train_batch_size": len(examples), **settings}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path), max_steps=steps, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True,
        bf16=False, gradient_checkpointing=False, disable_tqdm=True, max_grad_norm=0.0, **settings,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(examples), callbacks=[seen],
        processing_class=transformers.AutoTokenizer.from_pretrained(path), **(more or {}),
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history[:steps], seen.steps


def first_step(*arguments, **settings):
    """(what is logged, gradients) of one step."""
    logged, gradients = trained(*arguments, **settings)
    return logged[0], gradients[0]


def ours(model, objective, *batches):
    """(loss, gradients) of a step."""
    model.zero_grad(set_to_none=True)
    losses = [objective(model, batch)[0] for batch in batches]
    sum(losses).backward()
    return sum(losses).item(), {name: one.grad for name, one in model.named_parameters()}


def require_same(ours, theirs):
    (loss, gradients), (logged, others) = ours, theirs
    assert logged["loss"] == pytest.approx(loss, rel=CLOSE, abs=CLOSE) and gradients.keys() == others.keys()
    scale = max(1.0, *(gradient.abs().max().item() for gradient in others.values()))
    for name, gradient in others.items():
        assert torch.allclose(gradients[name], gradient, atol=CLOSE * scale), name
    assert max(gradient.abs().max() for gradient in others.values()) > 1e-3


def fine_tuning(model, batch):
    return next_token(model, batch, torch.float32)


@torch.no_grad()
def test_their_classifier_gives_our_rewards(reward_model, folders, toy_tokenizer):
    path = folders / "reward"
    tokenizer, theirs = transformers.AutoTokenizer.from_pretrained(path), classifier(path)
    assert theirs.config.pad_token_id == toy_tokenizer.pad != theirs.config.eos_token_id
    some = [tokenize_rows.conversation(toy_tokenizer, {"messages": c}) for c in CONVERSATIONS]
    ours = score_rows(reward_model, toy_tokenizer, some)
    alone = [theirs(**tokenizer.apply_chat_template(c, return_tensors="pt", return_dict=True)) for c in CONVERSATIONS]
    assert [found.logits.item() for found in alone] == pytest.approx(ours.tolist(), abs=CLOSE)
    assert ours.std() > 0.1
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer.apply_chat_template(CONVERSATIONS, return_tensors="pt", return_dict=True, padding=True)
        assert (batch["input_ids"] == toy_tokenizer.pad).any()
        assert theirs(**batch).logits[:, 0].tolist() == pytest.approx(ours.tolist(), abs=CLOSE)


@pytest.mark.parametrize("packing", [False, True])
def test_the_first_step_of_fine_tuning(policy, folders, toy_tokenizer, tmp_path, packing):
    """Packed in rows of the context there, of the longest conversation here: the loss is the same."""
    path = folders / "sft"
    some = [tokenize_rows.conversation(toy_tokenizer, {"messages": conversation}) for conversation in CONVERSATIONS]
    more = {"packing": True, "max_length": 128, "per_device_train_batch_size": 2} if packing else {}
    found = first_step(
        "SFT", causal(path), [{"messages": c} for c in CONVERSATIONS], path, tmp_path / "a", assistant_only_loss=True, **more
    )
    [batch] = batches_of(some, toy_tokenizer.pad, SftConfig(packing=packing), CPU)
    require_same(ours(policy, fine_tuning, batch), found)


def test_the_first_step_of_fine_tuning_on_prompts_and_completions(policy, folders, toy_tokenizer, tmp_path):
    path = folders / "sft"
    examples = [{"prompt": c[:-1], "completion": c[-1:]} for c in CONVERSATIONS]
    some = [tokenize_rows.conversation(toy_tokenizer, one) for one in examples]  # the last answer is learned
    found = first_step("SFT", causal(path), examples, path, tmp_path)
    require_same(ours(policy, fine_tuning, *batches_of(some, toy_tokenizer.pad, SftConfig(), CPU)), found)


def dpo_batch(reference, tokenizer, settings):
    read = [tokenize_rows.pair(tokenizer, pair) for pair in PAIRS]
    batch = collate([pair[side] for side in (0, 1) for pair in read], tokenizer.pad, CPU) | {"share": torch.tensor(1.0)}
    with torch.no_grad():
        return batch | {"reference": sum_log_probabilities(answer_log_probabilities(reference, batch), batch["mask"], settings)}


def preferring(settings):
    return lambda model, batch: objective(model, batch, settings, torch.float32)


@pytest.fixture(scope="module")
def reference(folders):
    """Another model: with itself for reference any two agree on ln 2."""
    return model_folder.load_decoder(folders / "reference")


THEIRS = [name for name in get_args(Loss) if name not in ("conservative", "simpo")]
OTHERS = [
    ("sigmoid", {"ld_alpha": 0.3}), ("ipo", {"ld_alpha": 0.3}), ("sigmoid", {"divergence": "forward_kl"}),
    ("sigmoid", {"divergence": "js_divergence"}), ("hinge", {"divergence": "alpha_divergence"}),
]  # fmt: skip


MIXED = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}  # mixed preference optimisation (Wang et al. 2024)


def test_each_loss_of_theirs_is_ours():
    said = " ".join(inspect.getdoc(trl.DPOConfig).split()).partition("Possible values are: ")[2].partition(". If")[0]
    assert len(said.split(", ")) == len(THEIRS) and {name.strip("`'") for name in said.split(", ")} == set(THEIRS)


@pytest.mark.parametrize("loss, changes", [*((name, {}) for name in THEIRS), *OTHERS, (MIXED, {})], ids=str)
def test_the_first_step_of_each_loss_of_preferences(policy, reference, folders, toy_tokenizer, tmp_path, loss, changes):
    path = folders / "sft"
    smoothing = 0.1 if str(loss) in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0
    settings = DpoConfig(loss=loss, beta=0.1, label_smoothing=smoothing, **changes)
    theirs = {"ld_alpha": changes["ld_alpha"]} if "ld_alpha" in changes else {}
    if "divergence" in changes:
        theirs = {"f_divergence_type": changes["divergence"], "f_alpha_divergence_coef": settings.alpha_divergence}
    found = first_step(
        "DPO", causal(path), PAIRS, path, tmp_path, {"ref_model": causal(folders / "reference")}, beta=0.1,
        loss_type=list(settings.losses), loss_weights=list(settings.losses.values()), label_smoothing=smoothing, **theirs,
    )  # fmt: skip
    batch = dpo_batch(reference, toy_tokenizer, settings)
    require_same(ours(policy, preferring(settings), batch), found)
    if loss == "sigmoid" and not changes:
        chosen, rejected = sequence_log_probability(policy, batch).detach().chunk(2)
        assert abs(found[0]["loss"] - 0.6931) > 0.01
        assert found[0]["logps/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-4)
        assert found[0]["logps/rejected"] == pytest.approx(rejected.mean().item(), abs=1e-4)


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
@pytest.mark.parametrize("centring", [0.0, 0.01])
def test_the_first_step_of_the_reward_model(reward_model, folders, toy_tokenizer, tmp_path, examples, centring):
    path = folders / "reward"
    read = [tokenize_rows.pair(toy_tokenizer, row) for row in examples]
    batch = collate([pair[side] for side in (0, 1) for pair in read], toy_tokenizer.pad, CPU)
    margins = torch.tensor([margin for *_, margin in read])
    found = first_step("Reward", classifier(path), examples, path, tmp_path, center_rewards_coefficient=centring or None)
    scoring = partial(bradley_terry, centring=centring)
    require_same(ours(reward_model, scoring, batch | {"margin": margins}), found)
    if "margin" in examples[0]:
        assert margins.tolist() == pytest.approx([0, 1 / 3, 1, 0])
        assert abs(ours(reward_model, scoring, batch)[0] - found[0]["loss"]) > 1e-3


ADAMW = {
    "learning_rate": 1e-3, "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.0, "lr_scheduler_type": "constant",
}  # fmt: skip


@pytest.mark.parametrize(
    "kind, loss",
    [("SFT", ""), ("SFT", "packed"), ("Reward", ""), *(("DPO", one) for one in ("sigmoid", "ipo", "hinge", "sigmoid_norm"))],
)
def test_three_steps_are_theirs(folders, reference, toy_tokenizer, tmp_path, kind, loss):
    """With the same AdamW at the same rate, all rows in each step."""
    path, examples, more, settings = folders / ("reward" if kind == "Reward" else "sft"), PAIRS, {}, {}
    model = model_folder.load_reward_model(path) if kind == "Reward" else model_folder.load_decoder(path)
    chosen = DpoConfig(loss=loss) if kind == "DPO" else DpoConfig()
    batches = [dpo_batch(reference, toy_tokenizer, chosen)]
    minimised = partial(bradley_terry, centring=0.0) if kind == "Reward" else preferring(chosen)
    if kind == "SFT":
        some = [tokenize_rows.conversation(toy_tokenizer, {"messages": conversation}) for conversation in CONVERSATIONS]
        batches, minimised = batches_of(some, toy_tokenizer.pad, SftConfig(packing=bool(loss)), CPU), fine_tuning
        examples, settings = [{"messages": c} for c in CONVERSATIONS], {"assistant_only_loss": True}
        settings |= {"packing": True, "max_length": 128, "per_device_train_batch_size": 2} if loss else {}
    elif kind == "DPO":
        more, settings = {"ref_model": causal(folders / "reference")}, {"beta": 0.1, "loss_type": [loss]}
    theirs = classifier(path) if kind == "Reward" else causal(path)
    logged, _ = trained(kind, theirs, examples, path, tmp_path, more, steps=3, **settings, **ADAMW)
    optimizer = Optimizer(model, one_lr(1e-3))
    for step in range(3):
        assert ours(model, minimised, *batches)[0] == pytest.approx(logged[step]["loss"], abs=CLOSE)
        optimizer.step(1.0)
    assert abs(logged[2]["loss"] - logged[0]["loss"]) > 1e-3
