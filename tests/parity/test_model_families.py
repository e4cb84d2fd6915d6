"""Folders of Qwen3, Qwen3-MoE, Llama, Qwen2.5 and Mixtral that transformers made are ours, and ours are theirs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from groundup.core.device import choose
from groundup.generation.engine import Sampling, generate
from groundup.model import model_folder, moe
from groundup.model.decoder import Decoder, DecoderConfig, RewardModel, with_experts
from groundup.tokenizer.bpe import SPECIAL_TOKENS
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training.config import PretrainingConfig
from groundup.training.objectives import next_token
from groundup.training.pretraining import pretrain
from groundup.training.runtime import Runtime

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 2.0}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Ours by DecoderConfig, beyond the toy's sizes.
SHAPES = {
    "qwen3": {"model_type": "qwen3"},
    "qwen3 plain": {"model_type": "qwen3", "num_key_value_heads": 4},
    "qwen3 tied": {"model_type": "qwen3", "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3 wide heads": {"model_type": "qwen3", "head_dim": 24, "rope_theta": 1e6},
    "qwen3 deep": {"model_type": "qwen3", "head_dim": 6, "num_hidden_layers": 4, "rms_norm_eps": 1e-5},
    "qwen3 yarn": {"model_type": "qwen3", "head_dim": 24, "rope_scaling": YARN},
    "qwen3 linear": {"model_type": "qwen3", "rope_scaling": LINEAR},
    "llama": {"model_type": "llama"},
    "llama3": {"model_type": "llama", "rope_theta": 5e5, "head_dim": 16, "rope_scaling": LLAMA3},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen3_moe": {"model_type": "qwen3_moe", **EXPERTS, "norm_topk_prob": True},
    "qwen3_moe unnormalised": {"model_type": "qwen3_moe", **EXPERTS, "norm_topk_prob": False},
    "mixtral": {"model_type": "mixtral", **EXPERTS, "num_experts_per_tok": 3, "rope_theta": 1e6},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def some(*shape, seed=0, size=296):
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


def theirs_like(config: DecoderConfig):
    """transformers' own random model of these sizes, made without any code of ours."""
    classes = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    }
    sizes = {name: value for name, value in config.as_dict().items() if name not in ("rope_scaling", "model_type")}
    sizes["rope_parameters"] = {**(config.rope_scaling or {"rope_type": "default"}), "rope_theta": sizes.pop("rope_theta")}
    if config.model_type == "mixtral":
        sizes |= {"num_local_experts": sizes.pop("num_experts"), "intermediate_size": sizes.pop("moe_intermediate_size")}
    config_class, model_class = classes[config.model_type]
    torch.manual_seed(2)
    model = model_class(config_class(**sizes, pad_token_id=None, bos_token_id=None, eos_token_id=None)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Its initialisation is so small that anything would agree, and its biases are zero.
            parameter.copy_(torch.randn(parameter.shape)) if name.endswith("bias") else parameter.mul_(3)
    return model


def read_by_transformers(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@shapes
@torch.no_grad()
def test_their_folder_gives_the_same_logits(toy_decoder, tmp_path, shape):
    config = toy_decoder(**shape).config
    theirs = theirs_like(config)
    theirs.save_pretrained(tmp_path)
    ours = model_folder.load_decoder(tmp_path)
    assert ours.config.model_type == theirs.config.model_type == config.model_type
    ids = some(3, 40, size=50)
    expected = theirs(ids).logits
    assert expected.std() > 0.1 and (ours(ids) - expected).abs().max() < 1e-4


@shapes
@torch.no_grad()
def test_our_folder_gives_the_same_logits(saved, shape):
    ours, path = saved(**shape)
    theirs = read_by_transformers(path)
    assert theirs.config.model_type == shape["model_type"]
    ids = some(3, 40)
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4
    again = model_folder.load_decoder(path)
    assert replace(again.config, intermediate_size=0) == replace(ours.config, intermediate_size=0)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


@shapes
def test_our_parameters_have_the_names_of_their_files(saved, shape, tmp_path):
    ours, path = saved(**shape)
    read_by_transformers(path).save_pretrained(tmp_path / "theirs")
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    parameters = dict(ours.named_parameters())
    assert stored.keys() == parameters.keys()
    assert all(torch.equal(stored[name], parameters[name]) for name in stored)


@shapes
def test_one_step_has_the_same_gradients(saved, shape):
    ours, path = saved(**shape)
    theirs = read_by_transformers(path)
    ids = some(2, 33)
    weight = torch.full((2, 32), 1 / 64)
    loss, _ = next_token(ours, {"ids": ids[:, :-1], "targets": ids[:, 1:], "weight": weight}, torch.float32)
    loss.backward()
    expected = theirs(ids, labels=ids).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad - their_gradient(gradients, name)).abs().max() < 1e-4, name


def their_gradient(gradients, name):
    """transformers 5 keeps the experts of a layer in two tensors; its files and ours have three for each expert."""
    if ".experts." not in name:
        return gradients[name.replace("block_sparse_moe", "mlp")]
    start, rest = name.replace("block_sparse_moe", "mlp").split(".experts.")
    expert, matrix, _ = rest.split(".")
    if matrix in ("down_proj", "w2"):
        return gradients[f"{start}.experts.down_proj"][int(expert)]
    gate, up = gradients[f"{start}.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if matrix in ("gate_proj", "w1") else up


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "qwen3 tied", "qwen3 yarn", "qwen3_moe", "mixtral"])
@torch.no_grad()
def test_greedy_answers_are_the_same(saved, name):
    ours, path = saved(**SHAPES[name])
    theirs = read_by_transformers(path)
    ends = json.loads((path / "generation_config.json").read_text())["eos_token_id"]
    prompts = [some(length, seed=length).tolist() for length in (3, 11, 20)]
    answers = generate(ours, prompts, ends, Sampling(24, temperature=0), seed=0)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        found = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, temperature=None, top_p=None
        )
        assert found[0, len(prompt) :].tolist() == answer


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@torch.no_grad()
def test_the_reward_model_is_their_sequence_classifier(toy_decoder, toy_tokenizer, tmp_path, name):
    reward_model = RewardModel(toy_decoder(vocab_size=toy_tokenizer.size, **SHAPES[name]).config)
    model_folder.save(tmp_path, reward_model, toy_tokenizer, chat=True)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = some(2, 9)
    expected = theirs(ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    assert (reward_model(ids)[:, -1] - expected).abs().max() < 1e-4


@torch.no_grad()
def test_a_folder_in_parts_is_read_like_one_file(toy_decoder, tmp_path):
    theirs = theirs_like(toy_decoder(**SHAPES["mixtral"]).config)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    ids = some(2, 20, size=50)
    assert (model_folder.load_decoder(tmp_path)(ids) - theirs(ids).logits).abs().max() < 1e-4


@torch.no_grad()
def test_configs_as_releases_before_transformers_5_wrote_them(toy_decoder, tmp_path):
    """As Llama-3.1 and Qwen2.5 are published: rope_scaling, and no head_dim."""
    for name, shape in {"new": LLAMA3, "old": YARN}.items():
        kind = "llama" if name == "new" else "qwen2"
        theirs = theirs_like(toy_decoder(model_type=kind, rope_scaling=shape, rope_theta=5e5).config)
        path = tmp_path / name
        theirs.save_pretrained(path)
        description = json.loads((path / "config.json").read_text())
        del description["rope_parameters"]
        description.pop("head_dim", None)
        description |= {"rope_theta": 5e5, "rope_scaling": shape}
        if name == "old":
            description["rope_scaling"] = {"type": "yarn", **{k: v for k, v in shape.items() if k != "rope_type"}}
        (path / "config.json").write_text(json.dumps(description))
        ids = some(2, 40, size=50)
        assert (model_folder.load_decoder(path)(ids) - theirs(ids).logits).abs().max() < 1e-4


def test_the_balance_loss_is_theirs_per_choice(toy_decoder):
    """With one layer; over several transformers mixes the layers' experts, ours balances each layer."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config, _ = with_experts(toy_decoder(num_hidden_layers=1).config, 8, 2)
    model = Decoder(config)
    ids, mask = some(3, 20, size=50), torch.arange(20) < torch.tensor([[20], [5], [11]])
    with moe.recorded(model) as routings:
        model(ids)
    for chosen in (None, mask):
        balance, _ = moe.auxiliary_losses(routings, moe.load(routings, chosen), chosen)
        attention = None if chosen is None else chosen.long()
        expected = load_balancing_loss_func((routings[0].logits_NE,), 8, 2, attention)
        assert balance.item() * 2 == pytest.approx(expected.item(), abs=1e-5)


@torch.no_grad()
def test_positions_stretched_by_hand_are_those_that_transformers_reads(saved):
    _, path = saved(model_type="qwen3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"rope_scaling": YARN}))  # beside rope_parameters
    ours, theirs = model_folder.load_decoder(path), read_by_transformers(path)
    assert ours.config.rope_scaling == YARN
    ids = some(2, 40)
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4


def test_a_qwen_is_continued_with_its_own_tokenizer(toy_decoder, tmp_path):
    """As Qwen2.5's: head tied, composed text, no <|pad|>, more rows in the embedding than tokens in the tokenizer."""
    published, continued = tmp_path / "published", tmp_path / "continued"
    special = (*SPECIAL_TOKENS[:3], "<|object_ref_start|>")
    own = Tokenizer.from_merges(tokenizer().merges, special=special, composed=True)
    config = toy_decoder(**SHAPES["qwen2 tied"]).config
    theirs = theirs_like(replace(config, vocab_size=own.size + 12, max_position_embeddings=32))
    theirs.save_pretrained(published)
    own.save(published)
    encoder = Tokenizer.load(published)
    write_tokens(tmp_path / "tokens", DOCUMENTS, encoder)
    settings = PretrainingConfig(start_from=str(published), context_length=32, tokens=20 * 64, batch_tokens=64, lr_scale=0.3)
    model, results = pretrain(
        encoder, tmp_path / "tokens", settings, Runtime(choose(1), tmp_path / "work", "base", 1, print)
    )
    first = json.loads((tmp_path / "work" / "training" / "metrics.jsonl").read_text().splitlines()[0])
    assert results["held_out_loss"] < first["loss"] - 1
    model_folder.save(continued, model, encoder, chat=False)
    loaded = transformers.AutoTokenizer.from_pretrained(continued)
    text = DOCUMENTS[0]["text"]
    assert loaded.encode(text) == [own.end_of_text, *own.encode(text)] and loaded.pad_token_id == own.end_of_text
    ids = torch.tensor([own.encode(text)[:32]])
    with torch.no_grad():
        assert (model(ids) - read_by_transformers(continued)(ids).logits).abs().max() < 1e-4
