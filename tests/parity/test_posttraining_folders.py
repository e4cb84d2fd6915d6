"""A published model goes through post-training commands and opens in transformers, with the chat template that it came with."""

import json
import sys
from pathlib import Path

import pytest

from groundup.tokenizer.chat import render
from groundup.tokenizer.load import of_model

sys.path.insert(0, str(Path(__file__).parent))
from test_continuing import publish, template
from test_families_tuned import published

transformers = pytest.importorskip("transformers", reason="needs the `test` extra")
SAID = [("what is a", "the path", "def"), ("what is b", "the file", "it"), ("what is c", "it returns", "the")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows")
    talks = [{"instruction": asked, "output": chosen} for asked, chosen, _ in SAID]
    pairs = [{"prompt": asked, "chosen": chosen, "rejected": rejected} for asked, chosen, rejected in SAID]
    for name, some in (("sft", talks), ("dpo", pairs)):
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    return path


FAMILIES = {"llama": "Llama", "mixtral": "Mixtral"}  # with the tokenizers of Llama 3 and of Mistral


@pytest.mark.parametrize("kind, name", [("qwen3", "qwen3"), ("qwen2", "qwen2_5"), ("llama", ""), ("mixtral", "")])
def test_fine_tuned_and_aligned_it_stays_the_model_that_it_was(groundup_here, rows, tmp_path, kind, name):
    if name:
        source = publish(tmp_path / "model", kind, template(name))
    else:
        source = published(tmp_path / "model", FAMILIES[kind])
    before, model = (source / "chat_template.jinja").read_text(), source
    for command in ("sft", "dpo"):
        outcome = groundup_here(
            command, model, "--data", rows / f"{command}.jsonl", "--out", tmp_path / "run", "--set", "learning_rate=1e-3"
        )
        assert outcome.returncode == 0, outcome.stderr
        model = tmp_path / "run" / command
        assert (model / "chat_template.jinja").read_text() == before
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    talk = [{"role": "user", "content": "what is a"}, {"role": "assistant", "content": "the path"}]
    theirs = tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]
    assert theirs == render(of_model(model), talk)[0]
    tuned = transformers.AutoModelForCausalLM.from_pretrained(model)
    original = transformers.AutoModelForCausalLM.from_pretrained(source)
    assert tuned.config.model_type == kind and not tuned.lm_head.weight.equal(original.lm_head.weight)
