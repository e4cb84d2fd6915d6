import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from groundup.core.errors import UserError
from groundup.encoder import bert
from groundup.model import model_folder, weights
from groundup.model.decoder import RewardModel
from groundup.tokenizer import load as tokenizers


@pytest.fixture
def saved(toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=toy_tokenizer.size)
    model_folder.save(tmp_path, model, toy_tokenizer, chat=True)
    return tmp_path, model


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("shape", [{}, {"tie_word_embeddings": True, "head_dim": 6}, {"rope_theta": 1e6}])
def test_round_trip(toy_decoder, toy_tokenizer, tmp_path, shape):
    model = toy_decoder(vocab_size=toy_tokenizer.size, **shape)
    model_folder.save(tmp_path, model, toy_tokenizer, chat=False)
    loaded = model_folder.load_decoder(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != model.config.tie_word_embeddings
    assert not list(tmp_path.glob("*.partial"))


def test_scorer_round_trip(toy_decoder, toy_tokenizer, tmp_path):
    reward_model = RewardModel(toy_decoder(vocab_size=toy_tokenizer.size).config)
    model_folder.save(tmp_path, reward_model, toy_tokenizer, chat=True)
    loaded = model_folder.load_reward_model(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in reward_model.state_dict().items())
    with pytest.raises(UserError, match=r"lm_head\.weight should be \(300, 32\), is absent"):
        model_folder.load_decoder(tmp_path)


def test_saving_twice_gives_the_same_bytes(saved, toy_tokenizer, tmp_path_factory):
    path, model = saved
    other = tmp_path_factory.mktemp("other")
    model_folder.save(other, model, toy_tokenizer, chat=True)
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert all(file.read_bytes() == (other / file.name).read_bytes() for file in path.iterdir())


def test_a_chat_model_ends_with_the_message_and_a_base_model_with_the_text(saved, toy_tokenizer, tmp_path_factory):
    path, model = saved
    base = tmp_path_factory.mktemp("base")
    model_folder.save(base, model, toy_tokenizer, chat=False)
    ends = [json.loads((where / "generation_config.json").read_text())["eos_token_id"] for where in (path, base)]
    assert ends == [[toy_tokenizer.message_end, toy_tokenizer.end_of_text], toy_tokenizer.end_of_text]
    config = json.loads((path / "config.json").read_text())
    assert config["eos_token_id"] == toy_tokenizer.message_end != config["pad_token_id"] == toy_tokenizer.pad
    assert config["bos_token_id"] == toy_tokenizer.end_of_text  # which every document begins with in training


def test_numbers_of_another_type_are_read_as_float32(saved):
    path, model = saved
    weights = load_file(path / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, path / "model.safetensors")
    loaded = model_folder.load_decoder(path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16().float())


def test_what_is_missing_is_named(saved, tmp_path):
    path, _ = saved
    with pytest.raises(UserError, match=r"nowhere/config\.json: no such file"):
        model_folder.load_decoder(tmp_path / "nowhere")
    config = json.loads((path / "config.json").read_text())
    del config["head_dim"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: head_dim is missing"):
        model_folder.load_decoder(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "there is pytorch_model.bin, pickled, which is never opened: get the weights as safetensors"),
        ("model-00001-of-00002.safetensors", "there is model-00001-of-00002.safetensors, without the index of its parts"),
        ("consolidated.safetensors", "there is consolidated.safetensors"), ("weights.npz", r"model\.safetensors: no such file$"),
    ],
)  # fmt: skip
def test_weights_in_other_files_are_said(saved, name, said):
    path, _ = saved
    (path / "model.safetensors").rename(path / name)
    with pytest.raises(UserError, match=said):
        model_folder.load_decoder(path)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_of_an_older_form_is_said(saved, name):
    path, _ = saved
    (path / "tokenizer.json").rename(path / name)
    for read in (tokenizers.load, tokenizers.of_model):
        with pytest.raises(UserError, match=f"no such file; transformers makes it of {name}"):
            read(path)


def test_weights_that_are_damaged_or_do_not_fit_are_named(saved):
    path, _ = saved
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-5], content[:40], b""):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
            model_folder.load_decoder(path)
    weights.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(UserError, match=r"model\.safetensors: a pointer of Git LFS: get the weights themselves"):
        model_folder.load_decoder(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        model_folder.load_decoder(path)
    weights.write_bytes(content)
    edit(path / "config.json", intermediate_size=40)
    with pytest.raises(UserError, match=r"down_proj\.weight should be \(32, 40\), is \(32, 48\)"):
        model_folder.load_decoder(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gemma3"}, r"model_type is 'gemma3'; decoders that groundup computes are qwen3, "),
        ({"model_type": "llama"}, r"self_attn\.k_norm\.weight is not a parameter of a llama model"),
        ({"model_type": "qwen2"}, r"q_proj\.bias should be \(32,\), is absent"),
        ({"attention_bias": True}, "attention_bias is not what"),
        ({"hidden_act": "gelu"}, "hidden_act is not what"),
        ({"use_sliding_window": True, "sliding_window": 16}, "sliding_window is not what"),
        (
            {"use_sliding_window": True, "sliding_window": 16, "max_position_embeddings": 8192},
            "sliding_window is not what",
        ),
        ({"hidden_size": "32"}, "hidden_size is '32'; it must be a whole number above zero"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be a whole"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be a whole"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it must be true or false"),
        ({"model_type": ["qwen3"]}, r"model_type is \['qwen3'\]"),
        ({"num_key_value_heads": 3}, "the heads a multiple of those of keys and values"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be an object"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor is '4'; it must be a number above zero"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is not what"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, "rope_type is 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor of rope_type linear is missing"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale": 1.0}}, "mscale of rope"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 1e4}}, "partial_rot"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": None}, "rope_theta is missing"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 4.0}}, r"rope_theta is 1.0; it must be above 1"),
        ({"rope_parameters": None, "rope_theta": 0.5}, r"rope_theta is 0.5; it must be above 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not what"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "low_freq_factor of rope_type llama3 must be below high_freq_factor",
        ),
        ({"vocab_size": 301}, r"embed_tokens\.weight should be \(301, 32\), is \(300, 32\)|lm_head"),
        ({"vocab_size": 200}, r"config\.json: bos_token_id is 296; ids are 0 to 199"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_model_that_we_would_compute_wrongly_is_refused_in_a_line(saved, change, said):
    path, _ = saved
    edit(path / "config.json", **change)
    with pytest.raises(UserError, match=said) as error:
        model_folder.load_decoder(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize("kind", [YARN, {**YARN, "original_max_position_embeddings": 8}])
def test_a_first_context_length_beside_the_positions_counts_before_one_among_them(saved, kind):
    """As in transformers; it was passed over, and every position was another."""
    path, _ = saved
    edit(path / "config.json", rope_scaling=kind, rope_parameters=None, rope_theta=1e4, original_max_position_embeddings=32)
    assert model_folder.load_decoder(path).config.rope_scaling["original_max_position_embeddings"] == 32


SPARSE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@pytest.mark.parametrize(
    "change",
    [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}, {"num_experts_per_tok": None}, {"num_local_experts": 5}],
    ids=lambda change: next(iter(change)),
)
def test_a_mixture_that_we_would_compute_wrongly_is_refused(toy_decoder, toy_tokenizer, tmp_path, change):
    model_folder.save(tmp_path, toy_decoder(vocab_size=300, **SPARSE), toy_tokenizer, chat=False)
    model_folder.load_decoder(tmp_path)
    edit(tmp_path / "config.json", **change)
    with pytest.raises(UserError):
        model_folder.load_decoder(tmp_path)


def test_a_tokenizer_of_another_model_is_not_saved(toy_decoder, toy_tokenizer, tmp_path):
    with pytest.raises(UserError, match="the tokenizer has 300 tokens, the model 50"):
        model_folder.save(tmp_path / "model", toy_decoder(), toy_tokenizer, chat=False)
    assert not (tmp_path / "model").exists()
    model_folder.save(tmp_path / "padded", toy_decoder(vocab_size=320), toy_tokenizer, chat=False)
    assert model_folder.load_decoder(tmp_path / "padded").config.vocab_size == 320


def test_a_folder_in_parts_of_which_one_is_gone_or_cut(saved):
    path, model = saved
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for part, of_part in parts.items():
        save_file({name: weights[name] for name in of_part}, path / part)
    index = {"weight_map": {name: part for part, of_part in parts.items() for name in of_part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = model_folder.load_decoder(path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    whole = (path / "b.safetensors").read_bytes()
    (path / "b.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"b\.safetensors: not a readable safetensors file"):
        model_folder.load_decoder(path)
    (path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors: no such file"):
        model_folder.load_decoder(path)
    (path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: not an index"):
        model_folder.load_decoder(path)


def test_a_head_stored_twice_is_read_once_and_another_head_refused(toy_decoder, toy_tokenizer, tmp_path):
    model = toy_decoder(vocab_size=300, tie_word_embeddings=True)
    model_folder.save(tmp_path, model, toy_tokenizer, chat=False)
    weights = load_file(tmp_path / "model.safetensors")
    head = model.lm_head.weight.detach().clone()
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model.safetensors")
    assert torch.equal(model_folder.load_decoder(tmp_path).lm_head.weight, head)
    save_file({**weights, "lm_head.weight": head + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight is not the embedding"):
        model_folder.load_decoder(tmp_path)


def test_a_config_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    for load in (model_folder.load_decoder, bert.load_config):
        with pytest.raises(UserError, match=r"config\.json: not a JSON object"):
            load(tmp_path)


def test_a_window_that_config_does_not_say_is_transformers_own(saved):
    path, _ = saved
    config = json.loads((path / "config.json").read_text())
    config.pop("sliding_window", None)
    (path / "config.json").write_text(
        json.dumps(config | {"use_sliding_window": True, "max_position_embeddings": 4096})
    )
    model_folder.load_decoder(path)
    edit(path / "config.json", max_position_embeddings=8192)
    with pytest.raises(UserError, match="sliding_window is not what"):
        model_folder.load_decoder(path)
    edit(path / "config.json", sliding_window=None)
    model_folder.load_decoder(path)


def test_a_window_of_mixtrals_has_no_switch(toy_decoder, toy_tokenizer, tmp_path):
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    model_folder.save(tmp_path, toy_decoder(vocab_size=300, model_type="mixtral", **sizes), toy_tokenizer, chat=False)
    model_folder.load_decoder(tmp_path)
    edit(tmp_path / "config.json", sliding_window=16)
    with pytest.raises(UserError, match="sliding_window is not what"):
        model_folder.load_decoder(tmp_path)


def test_digest_of_weights_and_shape(toy_decoder):
    model = toy_decoder()
    first = weights.digest_of_model(model)
    assert first == weights.digest_of_model(toy_decoder())
    assert first not in (weights.digest_of_model(toy_decoder(seed=1)), weights.digest_of_model(toy_decoder(rope_theta=1e6)))
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    assert weights.digest_of_model(model) != first


def test_what_other_tools_train_by_is_kept_in_config_json(saved, toy_tokenizer, tmp_path_factory):
    """Of a published model that is trained on: as transformers keeps them. What holds only of the folder's own files is not."""
    path, _ = saved
    stated = {"initializer_range": 0.041, "router_aux_loss_coef": 0.01, "output_router_logits": True}
    edit(path / "config.json", **stated, router_jitter_noise="high", pretraining_tp=1e300, auto_map={"AutoModel": "theirs.Model"})
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    model_folder.save(first, model_folder.load_decoder(path), toy_tokenizer, chat=True)
    model_folder.save(second, RewardModel(model_folder.load_decoder(first).config), toy_tokenizer, chat=True)
    for folder in (first, second):
        written = json.loads((folder / "config.json").read_text())
        assert {name: written[name] for name in stated} == stated
        assert not {"router_jitter_noise", "pretraining_tp", "auto_map"} & written.keys()


def test_a_run_in_place_of_a_model_is_told_where_its_models_are(saved):
    path, _ = saved
    (path / "run" / "dpo").mkdir(parents=True)
    (path / "config.json").rename(path / "run" / "dpo" / "config.json")
    for load in (model_folder.load_decoder, model_folder.load_reward_model, model_folder.outline):
        with pytest.raises(UserError, match=f"models are in folders below it: name one of them, as {path}/run/dpo"):
            load(path / "run")
