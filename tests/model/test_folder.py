import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from groundup.errors import UserError
from groundup.model import folder
from groundup.model.decoder import Scorer


@pytest.fixture
def saved(toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=toy_tokenizer.size)
    folder.save(tmp_path, model, toy_tokenizer, chat=True)
    return tmp_path, model


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("shape", [{}, {"tie_word_embeddings": True, "head_dim": 6}, {"rope_theta": 1e6}])
def test_round_trip(toy_decoder, toy_tokenizer, tmp_path, shape):
    model = toy_decoder(vocab_size=toy_tokenizer.size, **shape)
    folder.save(tmp_path, model, toy_tokenizer, chat=False)
    loaded = folder.load_decoder(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != model.config.tie_word_embeddings
    assert not list(tmp_path.glob("*.partial"))


def test_scorer_round_trip(toy_decoder, toy_tokenizer, tmp_path):
    scorer = Scorer(toy_decoder(vocab_size=toy_tokenizer.size).config)
    folder.save(tmp_path, scorer, toy_tokenizer, chat=True)
    loaded = folder.load_scorer(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in scorer.state_dict().items())
    with pytest.raises(UserError, match=r"lm_head\.weight should be \(300, 32\), is absent"):
        folder.load_decoder(tmp_path)


def test_saving_twice_gives_the_same_bytes(saved, toy_tokenizer, tmp_path_factory):
    path, model = saved
    other = tmp_path_factory.mktemp("other")
    folder.save(other, model, toy_tokenizer, chat=True)
    assert sorted(file.name for file in path.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert all(file.read_bytes() == (other / file.name).read_bytes() for file in path.iterdir())


def test_a_chat_model_ends_with_the_message_and_a_base_model_with_the_text(saved, toy_tokenizer, tmp_path_factory):
    path, model = saved
    base = tmp_path_factory.mktemp("base")
    folder.save(base, model, toy_tokenizer, chat=False)
    ends = [json.loads((where / "generation_config.json").read_text())["eos_token_id"] for where in (path, base)]
    assert ends == [[toy_tokenizer.message_end, toy_tokenizer.end_of_text], toy_tokenizer.end_of_text]
    config = json.loads((path / "config.json").read_text())
    assert config["eos_token_id"] == toy_tokenizer.message_end != config["pad_token_id"] == toy_tokenizer.pad
    assert config["bos_token_id"] is None  # nobody doubles a beginning-of-text token


def test_numbers_of_another_type_are_read_as_float32(saved):
    path, model = saved
    weights = load_file(path / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, path / "model.safetensors")
    loaded = folder.load_decoder(path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16().float())


def test_what_is_missing_is_named(saved, tmp_path):
    path, _ = saved
    with pytest.raises(UserError, match=r"nowhere/config\.json: no such file"):
        folder.load_decoder(tmp_path / "nowhere")
    config = json.loads((path / "config.json").read_text())
    del config["head_dim"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: head_dim is missing"):
        folder.load_decoder(path)


def test_weights_that_are_damaged_or_do_not_fit_are_named(saved):
    path, _ = saved
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-5], content[:40], b""):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
            folder.load_decoder(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        folder.load_decoder(path)
    weights.write_bytes(content)
    edit(path / "config.json", intermediate_size=40)
    with pytest.raises(UserError, match=r"gate_proj\.weight should be \(40, 32\), is \(48, 32\)"):
        folder.load_decoder(path)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True, "sliding_window": 16},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_model_that_we_would_compute_wrongly_is_refused(saved, change):
    path, _ = saved
    edit(path / "config.json", **change)
    with pytest.raises(UserError):
        folder.load_decoder(path)
