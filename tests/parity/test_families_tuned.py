"""Folders that transformers alone made, of four families, go through SFT and DPO and are still what transformers knows.

Each has the tokenizer and the chat template of its family; `test_other_makers.py` compares tokenizers alone.
"""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import groundup
from groundup.evaluation.open_model import opening_of
from groundup.pipeline.artifacts import tokenizer_of
from groundup.pipeline.recipe import resolve
from groundup.tokenizer.chat import render
from groundup.tokenizer.load import for_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizer"))
from other_makers import publish

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
transformers.logging.set_verbosity_error()

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 160,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
# By family: its tokenizer, and what its configuration has beside the sizes.
FAMILIES = {
    "Qwen3": ("qwen", {"tie_word_embeddings": True}),
    "Qwen2": ("qwen", {}),
    "Llama": ("llama3", {"rope_parameters": LLAMA3}),
    "Mixtral": ("mistral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
}
families = pytest.mark.parametrize("family", FAMILIES)
TALK = [{"role": "user", "content": "the question"}, {"role": "assistant", "content": "the answer"}]
ANSWERS = [("the question", "the answer"), ("the cat", "sat on the mat"), ("It's 7?", "1234567"), ("a\n\nb", "def cat(hat)")]
_made = {}


def published(path, family):
    """The folder as transformers alone writes it."""
    tokenizer, more = FAMILIES[family]
    publish(path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ids = {"bos_token_id": theirs.bos_token_id, "eos_token_id": theirs.eos_token_id, "pad_token_id": theirs.pad_token_id}
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(vocab_size=len(theirs), **SIZES, **ids, **more)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():  # its initialisation is so small that anything would agree
            parameter.mul_(3)
    model.save_pretrained(path)
    return path


@pytest.fixture
def tuned(family, tmp_path_factory):
    """Folders: as it came, after SFT, after DPO."""
    if family not in _made:
        work = tmp_path_factory.mktemp(family)
        model = groundup.load(published(work / "came", family))
        rows = [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]} for asked, said in ANSWERS
        ]
        pairs = [{"prompt": asked, "chosen": said, "rejected": "hat " + said} for asked, said in ANSWERS]
        chat = groundup.sft(model, rows, work / "sft", epochs=2, batch_examples=2)
        groundup.dpo(chat, pairs, work / "dpo", epochs=2, batch_pairs=2)
        _made[family] = work
    return [_made[family] / name for name in ("came", "sft", "dpo")]


@families
def test_transformers_opens_what_came_of_it(tuned):
    before, *after = tuned
    came = transformers.AutoTokenizer.from_pretrained(before)
    first = transformers.AutoModelForCausalLM.from_pretrained(before)
    for path in after:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (path / name).read_bytes() == (before / name).read_bytes()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        assert tokenizer.chat_template == came.chat_template and tokenizer.special_tokens_map == came.special_tokens_map
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        assert type(theirs) is type(first) and theirs.config.rope_parameters == first.config.rope_parameters
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            assert getattr(theirs.config, name) == getattr(first.config, name)
        ours = groundup.load(path)
        for prompt in (True, False):
            talk = TALK[:1] if prompt else TALK
            ids, _ = render(ours.tokenizer, talk, add_generation_prompt=prompt)
            assert ids == tokenizer.apply_chat_template(talk, add_generation_prompt=prompt, return_dict=False)
        with torch.no_grad():
            found, wanted = ours.network(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
        assert wanted.std() > 0.1 and (found - wanted).abs().max() < 1e-4
        assert (wanted - first(torch.tensor([ids])).logits).abs().max() > 1e-3  # it was trained


@families
def test_it_learned_and_nothing_was_left_out(tuned):
    _, sft, dpo = tuned
    for path in (sft, dpo):
        assert not json.loads((path / "stage.json").read_text())["results"]["left_out"]
    steps = [json.loads(line) for line in (sft / "training" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < steps[0]["loss"]
    losses = [json.loads(line)["loss"] for line in (dpo / "training" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.693, abs=1e-3) and losses[-1] < losses[0]


@families
def test_greedy_answers_and_likelihoods(tuned):
    path = tuned[2]
    ours, theirs = groundup.load(path), transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, return_dict=True, return_tensors="pt")
    written = theirs.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
    assert ours.chats and ours.chat(TALK[:1], 12, temperature=0) == tokenizer.decode(written, skip_special_tokens=True).strip()
    text = "the cat sat on the  mat"
    first = ours.tokenizer.begin_of_text
    whole = torch.tensor([[first, *tokenizer.encode(text, add_special_tokens=False)]])
    with torch.no_grad():
        nats = theirs(whole, labels=whole).loss.item() * (whole.shape[1] - 1)
    assert ours.bits_per_byte(text) == pytest.approx(nats / 0.6931471805599453 / len(text), rel=1e-4)
    assert ours.generate("the cat", 5, temperature=0) is not None


@families
def test_a_reward_is_what_their_classifier_says(tuned, tmp_path):
    """Of rows of different lengths, padded; a token that only pads is never the last of an answer."""
    pairs = [{"prompt": asked, "chosen": said, "rejected": "hat " + said} for asked, said in ANSWERS[:2]]
    judge = groundup.reward(groundup.load(tuned[0]), pairs, tmp_path / "reward", epochs=1, batch_pairs=2)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    talks = [TALK, [{"role": "user", "content": "the cat sat on the mat"}, TALK[1]]]
    rows = [render(judge.tokenizer, talk)[0] for talk in talks]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[theirs.config.pad_token_id] * (longest - len(row))] for row in rows])
    attended = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=attended).logits[:, 0].tolist()
    assert [judge.score(talk) for talk in talks] == pytest.approx(wanted, abs=1e-4)


@families
def test_from_the_command_line(tuned, groundup_here, tmp_path):
    done = groundup_here("chat", tuned[2], "--max-tokens", 8, input="the question\n\n")
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["turns"] == 1, done.stderr
    (tmp_path / "lambada.jsonl").write_text(json.dumps({"context": "the cat sat on", "continuation": "mat"}))
    done = groundup_here("evaluate", tuned[2], "--task", "lambada", "--data", tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])["results"][0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tuned[2]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned[2])
    first = opening_of(tuned[2])  # the ids that lm-eval has
    context, whole = (tokenizer.encode(text, add_special_tokens=False) for text in ("the cat sat on", "the cat sat on mat"))
    with torch.no_grad():
        nats = theirs(torch.tensor([[*first, *whole]])).logits[0].log_softmax(-1)
    start = len(first) + len(context)
    wanted = sum(nats[place - 1, ([*first, *whole])[place]].item() for place in range(start, len(first) + len(whole)))
    assert found["perplexity"] == pytest.approx(math.exp(-wanted), rel=1e-3)


@families
def test_a_given_model_keeps_its_template_in_a_recipe(tuned, tmp_path):
    """And a new model that takes a Qwen's tokens, which are our own format's too, does not have it."""
    recipe = resolve({"given": {"base": str(tuned[0])}, "sft": {"data": ["x"]}, "standard": ["sft"], "name": "toy"}, [], "toy")
    assert recipe.continued == str(tuned[0])
    found = tokenizer_of(SimpleNamespace(inputs={"tokenizer": tuned[0]}, recipe=recipe))
    found.save(tmp_path, chat=True)
    assert (tmp_path / "chat_template.jinja").read_bytes() == (tuned[0] / "chat_template.jinja").read_bytes()
    assert found.template is not None and (for_run(tuned[0], "").template is None) == ("Qwen" in tuned[0].parent.name)
