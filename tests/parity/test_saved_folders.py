"""Folders as they are saved by choice: in bfloat16 they hold what transformers gets, and the card's lines load them."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from groundup.core.errors import UserError
from groundup.model import architectures, model_folder
from groundup.model.decoder import RewardModel
from groundup.pipeline.recipe import resolve

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHAPES = {"dense": {}, "tied": {"tie_word_embeddings": True}, "experts": EXPERTS}


def formats(path):
    with safe_open(path / "model.safetensors", framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_in_bfloat16_we_get_what_transformers_gets(toy_decoder, toy_tokenizer, tmp_path, shape):
    model = toy_decoder(vocab_size=toy_tokenizer.size, **shape)
    model_folder.save(tmp_path / "whole", model, toy_tokenizer, chat=True)
    model_folder.save(tmp_path / "half", model, toy_tokenizer, chat=True, dtype="bfloat16")
    stated = json.loads((tmp_path / "half" / "config.json").read_text())
    assert stated["dtype"] == stated["torch_dtype"] == "bfloat16" and formats(tmp_path / "half") == {"BF16"}
    assert formats(tmp_path / "whole") == {"F32"} and model.config.origin.dtype == "float32"
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert 1.7 < sizes[0] / sizes[1] < 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert theirs.dtype == torch.bfloat16
    theirs = theirs.float()
    ours = model_folder.load_decoder(tmp_path / "half")
    ids = torch.randint(toy_tokenizer.size, (2, 30), generator=torch.Generator().manual_seed(1))
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4
    assert (ours(ids) - model(ids)).abs().max() > 1e-3  # or nothing was rounded
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).bfloat16().float())
    model_folder.save(tmp_path / "again", ours, toy_tokenizer, chat=True)  # what began in bfloat16 stays so, unless it is said
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "half" / name).read_bytes()
    model_folder.save(tmp_path / "back", ours, toy_tokenizer, chat=True, dtype="float32")
    assert formats(tmp_path / "back") == {"F32"}
    assert transformers.AutoConfig.from_pretrained(tmp_path / "back").dtype == torch.float32


@torch.no_grad()
def test_a_reward_model_and_an_lstm_in_bfloat16(toy_decoder, toy_tokenizer, tmp_path):
    policy = toy_decoder(vocab_size=toy_tokenizer.size)
    reward = RewardModel(policy.config, policy.model)
    torch.nn.init.normal_(reward.score.weight, generator=torch.Generator().manual_seed(2))
    model_folder.save(tmp_path / "reward", reward, toy_tokenizer, chat=True, dtype="bfloat16")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert theirs.dtype == torch.bfloat16
    ids = torch.randint(toy_tokenizer.size - 5, (2, 20), generator=torch.Generator().manual_seed(1))
    ours = model_folder.load_reward_model(tmp_path / "reward")
    assert (ours(ids)[:, -1] - theirs.float()(ids).logits[:, 0]).abs().max() < 1e-4
    lstm, _ = architectures.build("lstm", 1, toy_tokenizer.size, 32, 0)
    model_folder.save(tmp_path / "lstm", lstm, toy_tokenizer, chat=False, dtype="bfloat16")
    assert formats(tmp_path / "lstm") == {"BF16"}
    assert model_folder.load_decoder(tmp_path / "lstm").config.origin.dtype == "bfloat16"


def test_a_recipe_asks_for_it_of_each_step_that_writes_a_model():
    pages = {"sources": [{"source": "topics:", "domain": "reference"}]}
    for section in ("base", "sft", "reward", "dpo", "ppo"):
        recipe = resolve({"name": "x", "pages": pages}, [f"{section}.save_dtype=bfloat16"], "x")
        assert getattr(recipe, section).save_dtype == "bfloat16"
        with pytest.raises(UserError, match=rf"{section}.save_dtype = 'float8'"):
            resolve({"name": "x", "pages": pages}, [f"{section}.save_dtype=float8"], "x")


@pytest.mark.parametrize("chat", [False, True])
def test_the_lines_of_the_card_load_the_model(toy_decoder, toy_tokenizer, tmp_path, capsys, chat):
    model = toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=256)
    model_folder.save(tmp_path / "model", model, toy_tokenizer, chat=chat)
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("FOLDER", str(tmp_path / "model")).replace("max_new_tokens=64", "max_new_tokens=4"), {})
    assert capsys.readouterr().out
    model_folder.save(tmp_path / "reward", RewardModel(model.config, model.model), toy_tokenizer, chat=True)
    first, second = re.findall(r"```python\n(.*?)```", (tmp_path / "reward" / "README.md").read_text(), re.DOTALL)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for block in (first, second):
        exec(block.replace("FOLDER", str(tmp_path / "reward")), {"messages": messages})
