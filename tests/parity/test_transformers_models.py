"""Folders that only transformers opens: scores are those of its own logits, and of our reader where both read a folder."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from groundup.core.errors import UserError
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation.open_model import open_model
from groundup.evaluation.scoring import CONVENTIONS, records_of
from groundup.evaluation.tasks import load, open_task
from groundup.evaluation.transformers_models import _half_overlapping
from groundup.model import likelihood, model_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "tokenizer"))
from other_makers import publish

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
CLOSE = 1e-4
KINDS = {
    "gpt2": lambda size: transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "mamba": lambda size: transformers.MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=4),
    # Its logits are squeezed after the head, and its layers see windows by turns.
    "gemma2": lambda size: transformers.Gemma2Config(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, sliding_window=8,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(toy_decoder, toy_tokenizer, tmp_path_factory):
    """Folders by the name of their architecture; "ours" is one that both read."""
    work = tmp_path_factory.mktemp("transformers")
    toy = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=64)
    model_folder.save(work / "ours", toy, toy_tokenizer, chat=False)
    torch.manual_seed(0)
    for name, config in KINDS.items():
        model = transformers.AutoModelForCausalLM.from_config(config(toy_tokenizer.size))
        model.config.eos_token_id = model.generation_config.eos_token_id = toy_tokenizer.end_of_text
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape) * 0.1
        model.save_pretrained(work / name)
        toy_tokenizer.save(work / name, model_max_length=64)
    return work


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    work = tmp_path_factory.mktemp("rows")
    rows = [
        {"subject": "s", "question": f"What is {word}?", "A": "it", "B": "the path", "C": word, "D": "def é", "answer": "C"}
        for word in ("file", "path", "of")
    ]
    (work / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_task("mmlu", work / "q.jsonl", few_shot=0)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_its_logits(kind, place, toy_tokenizer):
    found = open_model(f"hf:{place / kind}")
    pairs = [("the file", " path"), ("", " it returns"), ("the file", " path of the"), ("of", "\n"), ("what " * 40, " it")]
    model = transformers.AutoModelForCausalLM.from_pretrained(place / kind)
    for size in (1, 7):
        for (context, continuation), one in zip(pairs, found.continuations(pairs, size), strict=True):
            ids = [toy_tokenizer.end_of_text, *toy_tokenizer.encode(context + continuation)]
            ids = ids[-found.context - 1 :]
            with torch.no_grad():
                logp = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)[-one.tokens :]
            targets = torch.tensor(ids[-one.tokens :])
            assert one.nats == pytest.approx(float(logp.gather(1, targets[:, None]).sum()), abs=CLOSE)
            assert one.greedy == bool((logp.argmax(-1) == targets).all()) and one.truncated == (len(context) > 99)


def test_a_folder_that_both_read(place, task):
    ours, theirs = open_model(str(place / "ours")), open_model(f"hf:{place / 'ours'}")
    examples = load(task).rows
    for one, other in zip(records_of(ours, task, examples), records_of(theirs, task, examples), strict=True):
        for name in ("answers", "alone", "letters", "listed_answers"):
            assert one[name] == pytest.approx(other[name], abs=CLOSE)
        assert [rule(one) for rule in CONVENTIONS.values()] == [rule(other) for rule in CONVENTIONS.values()]
    prompts = ["the file", "what does it", "of " * 90, ""]
    assert ours.written(prompts, ["\n"], 9, 3) == theirs.written(prompts, ["\n"], 9, 3)
    texts = ["the path", "it returns the path of the file " * 9]
    for windows in ("half", "disjoint"):
        assert ours.texts(texts, windows, 4) == pytest.approx(theirs.texts(texts, windows, 4), abs=1e-3)


def test_an_answer_that_is_encoded_apart_gets_no_space(tmp_path):
    """A token spans the border of the two, so they are encoded apart; Mistral's tokenizer puts a space before a text."""
    path = publish(tmp_path, "mistral")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    pairs = [("12345", "678"), ("the", " cat"), ("", "678")]
    ours, theirs = (open_model(f"{prefix}{path}").continuations(pairs, 2) for prefix in ("", "hf:"))
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens == other.tokens and one.nats == pytest.approx(other.nats, abs=CLOSE)


@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 13, 30])
def test_windows_are_those_of_the_one_likelihood(length, toy_decoder):
    model = toy_decoder(max_position_embeddings=8)
    ids = np.random.default_rng(0).integers(0, 40, length).tolist()
    apart = [likelihood.score(model, [ids_])[0][start - 1 :].sum() for ids_, start in _half_overlapping(ids, 8)]
    assert sum(apart) == pytest.approx(float(likelihood.score(model, [ids])[0].sum()), abs=1e-4)


def test_the_command_takes_it(place, task):
    found = evaluation.evaluate([f"hf:{place / 'gpt2'}", str(place / "ours")], ["mmlu"], task.paths[0], few_shot=0)
    assert [one["label"] for one in found["results"]] == ["gpt2", "ours"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no config.json"),
        ({"config.json": "{}"}, "transformers does not open it"),
        ({"config.json": '{"model_type": "no such thing"}'}, "transformers does not open it"),
        ({"config.json": "not json"}, "transformers does not open it"),
        ({"pytorch_model.bin": "pickle", "config.json": None}, "transformers does not open it"),  # only safetensors are read
    ],
)
def test_what_does_not_open_is_one_line(files, said, place, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((place / "gpt2" / name).read_bytes())
    for name, text in files.items():
        (tmp_path / name).write_text((place / "gpt2" / name).read_text() if text is None else text)
    with pytest.raises(UserError, match=said) as caught:
        open_model(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_the_token_that_begins_texts(place, toy_tokenizer, tmp_path):
    """A text without a context is scored after it, as by lm-eval, though the folder puts none before a text."""
    shutil.copytree(place / "ours", tmp_path / "own")
    path = tmp_path / "own" / "tokenizer_config.json"
    end = toy_tokenizer.end_of_text
    bos, number = next(one for one in toy_tokenizer.special_tokens.items() if one[1] != end)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": bos}))
    path = tmp_path / "own" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    found, before = open_model(f"hf:{tmp_path / 'own'}"), open_model(f"hf:{place / 'ours'}")
    assert (found.opening, found.begin_of_text) == ([], number) and before.begin_of_text == end
    [one], [other] = (model.continuations([("", "it returns")], 1) for model in (found, before))
    assert one.nats != other.nats
