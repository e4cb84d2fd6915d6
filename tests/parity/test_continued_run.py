"""One recipe over a folder that transformers wrote: pre-trained further on own texts, tuned on own conversations, aligned."""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from groundup.model import model_folder as model_folder
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from test_continuing import TALK, formats, publish, same_to_transformers, template
from toy_corpus import SENTENCES

transformers = pytest.importorskip("transformers")

RECIPE = """
name = "continued"
seed = 3
threads = 1
standard = ["pages", "annotations", "corpus", "tokenizer", "tokens", "base", "evaluation", "sft", "dpo"]

[[pages.sources]]
source = "{folder}/texts.jsonl"
domain = "notes"

[corpus]
min_words = 20
min_quality = 0.0
held_out = 0.2

[tokenizer]
folder = "{folder}/published"

[base]
start_from = "{folder}/published"
context_length = 128
tokens = 12_000
batch_tokens = 1024
lr_scale = 0.3

[evaluation]
held_out_kb = 5
sentence_pairs = 4

[sft]
data = "{folder}/talks.jsonl"
max_answer_tokens = 16

[dpo]
data = "{folder}/better.jsonl"
"""


def said(role, content):
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_groundup):
    folder, draw = tmp_path_factory.mktemp("theirs"), random.Random(5)
    publish(folder / "published", template=template("qwen3"))
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(30):
            lines = (" ".join(draw.choices(words, k=9)) for _ in range(8))
            file.write(json.dumps({"text": f"Note {number}. " + ". ".join(lines) + "."}) + "\n")
    with (folder / "talks.jsonl").open("w") as talks, (folder / "better.jsonl").open("w") as better:
        for number in range(12):
            before = [said("system", "be short"), said("user", f"where is file {number}"), said("assistant", "no file"),
                      said("user", "what is it")]  # fmt: skip
            talks.write(json.dumps({"messages": [*before, said("assistant", "the path")]}) + "\n")
            sides = {"chosen": [said("assistant", "the path")], "rejected": [said("assistant", "it is an error")]}
            better.write(json.dumps({"prompt": before, **sides}) + "\n")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    done = run_groundup("run", folder / "recipe.toml", "--run", folder / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout)["figures"], done.stderr


def test_every_model_of_the_run_is_to_transformers_what_was_published(run):
    folder, figures, err = run
    published = folder / "published"
    assert "sft data: 12 conversations" in err and "dpo data: 12 preferences" in err and "skipped" not in figures
    for step in ("base", "sft", "dpo"):
        same_to_transformers(published, folder / "run" / step, chat=step != "base")
        assert (folder / "run" / step / "chat_template.jinja").read_bytes() == (published / "chat_template.jinja").read_bytes()
        assert formats(folder / "run" / step) == {"BF16"}
    paths = [published, *(folder / "run" / step for step in ("base", "sft", "dpo"))]
    for one, other in pairwise(model_folder.load_decoder(path).lm_head.weight for path in paths):
        assert not torch.equal(one, other)


def test_transformers_chats_with_the_last_one_by_the_template_that_was_published(run):
    folder, _, _ = run
    path = folder / "run" / "dpo"
    reader, own = transformers.AutoTokenizer.from_pretrained(path), Tokenizer.load(path)
    ids = reader.apply_chat_template(TALK[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == render(own, TALK[:1], add_generation_prompt=True)[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ours = model_folder.load_decoder(path).float()
    with torch.no_grad():
        assert torch.allclose(theirs(torch.tensor([ids])).logits, ours(torch.tensor([ids])), atol=1e-4)
    answer = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8)[0, len(ids) :]
    assert reader.decode(answer)
