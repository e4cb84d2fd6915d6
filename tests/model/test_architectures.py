"""What every architecture must do: see no future, keep documents apart, continue from a cache, be saved and read."""

import itertools
import json
import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from groundup.core.errors import UserError
from groundup.model import base, convolution, decoder, lstm, model_folder, moe, patches
from groundup.model.convolution import Convolution, ConvolutionConfig
from groundup.model.decoder import Decoder, DecoderConfig, with_experts
from groundup.model.likelihood import score, token_log_probabilities
from groundup.model.lstm import LSTM, LSTMConfig
from groundup.model.patches import PatchedBytes, PatchesConfig
from groundup.posttraining.reward import from_policy
from groundup.training.objectives import next_token

DENSE = DecoderConfig(50, 32, 2, 4, 2, 8, 48, 64)
SPARSE, _ = with_experts(DENSE, 4, 2)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def patched(size):
    return PatchesConfig(size, 64, replace(DENSE, vocab_size=1), replace(DENSE, hidden_size=24, num_hidden_layers=1))


MODELS = {
    "dense": lambda: Decoder(DENSE),
    "one head of keys, tied": lambda: Decoder(replace(DENSE, num_key_value_heads=1, head_dim=6, tie_word_embeddings=True)),
    "three heads": lambda: Decoder(replace(DENSE, num_attention_heads=3, num_key_value_heads=3, rope_theta=1e6)),
    "llama yarn": lambda: Decoder(replace(DENSE, model_type="llama", rope_scaling=YARN)),
    "qwen2": lambda: Decoder(replace(DENSE, model_type="qwen2")),
    "experts": lambda: Decoder(SPARSE),
    "mixtral": lambda: Decoder(replace(SPARSE, model_type="mixtral")),
    "lstm": lambda: LSTM(LSTMConfig(50, 32, 2, 64)),
    "convolution": lambda: Convolution(ConvolutionConfig(50, 32, 3, 3, 64)),
    "patches of 1": lambda: PatchedBytes(patched(1)),
    "patches of 3": lambda: PatchedBytes(patched(3)),
    "patches of 4": lambda: PatchedBytes(patched(4)),
}
models = pytest.mark.parametrize("name", MODELS)


def some_ids(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def randomised(name, scale=0.3):
    model, generator = MODELS[name](), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(1 + noise if parameter.dim() == 1 else noise)
    return model


def widened(name):
    """Of random weights, with as many ids as the toy tokenizer."""
    config = MODELS[name]().config
    if isinstance(config, PatchesConfig):
        config = replace(config, within=replace(config.within, vocab_size=300))
    else:
        config = replace(config, vocab_size=300)
    return type(MODELS[name]())(config)


@models
@torch.no_grad()
def test_no_token_is_seen_before_its_time(name):
    model, ids = randomised(name), some_ids(3, 11)
    before = model(ids)
    for t in range(11):  # at least two patches, and a part of a third
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 7) % 50
        after = model(changed)
        if moe.active_parameters(model) == sum(p.numel() for p in model.parameters()):
            assert torch.equal(after[:, :t], before[:, :t])
        else:  # an expert that has more tokens, or fewer, may round the product for the others differently
            assert torch.allclose(after[:, :t], before[:, :t], atol=1e-5)
        assert (after[:, t] != before[:, t]).any(-1).all()


@models
@torch.no_grad()
def test_the_length_of_a_row_does_not_matter(name):
    model, ids = randomised(name), some_ids(2, 15)
    whole = model(ids)
    for length in range(1, 15):
        assert torch.allclose(model(ids[:, :length]), whole[:, :length], atol=1e-4)


@models
@settings(max_examples=12)
@given(cuts=st.lists(st.sets(st.integers(1, 17)), min_size=2, max_size=2))
@torch.no_grad()
def test_documents_in_one_row_are_as_if_alone(name, cuts):
    model, ids = randomised(name), some_ids(2, 18)
    documents = torch.stack([torch.bucketize(torch.arange(18), torch.tensor(sorted(cut)), right=True) for cut in cuts])
    packed = model(ids, documents)
    for row, cut in enumerate(cuts):
        edges = [0, *sorted(cut), 18]
        for start, end in itertools.pairwise(edges):
            alone = model(ids[row : row + 1, start:end])[0]
            assert torch.allclose(packed[row, start:end], alone, atol=1e-4)


PACKED = torch.tensor([[0] * 7 + [1] * 6 + [2] * 5, [3] * 1 + [4] * 9 + [5] * 8])


@models
@torch.no_grad()
def test_packed_documents_have_the_loss_of_unpacked_ones(name):
    model, ids, targets = randomised(name, scale=0.1), some_ids(2, 18), some_ids(2, 18, seed=1)
    batch = {"ids": ids, "targets": targets, "documents": PACKED, "weight": torch.full((2, 18), 1 / 36)}
    packed, _ = next_token(model, batch, torch.float32)
    alone = 0.0
    for document in range(6):
        row, places = int(PACKED[1].eq(document).any()), PACKED.eq(document).any(0)
        some = {name: batch[name][row : row + 1, places] for name in ("ids", "targets", "weight")}
        alone += next_token(model, some, torch.float32)[0].item()
    assert packed.item() == pytest.approx(alone, abs=1e-5)


@models
@torch.no_grad()
def test_a_changed_document_changes_no_other(name):
    model, ids = randomised(name), some_ids(2, 18)
    before = model(ids, PACKED)
    for document in range(6):
        changed = torch.where(PACKED.eq(document), (ids + 7) % 50, ids)
        after, others = model(changed, PACKED), PACKED.ne(document)
        if moe.active_parameters(model) == sum(p.numel() for p in model.parameters()):
            assert torch.equal(after[others], before[others])
        else:  # an expert that has more tokens, or fewer, may round the product for the others differently
            assert torch.allclose(after[others], before[others], atol=1e-5)
        assert not torch.allclose(after[~others], before[~others], atol=1e-2)


@models
@torch.no_grad()
def test_cache_gives_what_the_whole_gives(name):
    """Prompts of different lengths, then token by token, then a chunk, then fewer rows."""
    model, ids, lengths = randomised(name), some_ids(3, 30), torch.tensor([4, 9, 1])
    cache, rows = model.new_cache(3, 30, torch.device("cpu")), torch.arange(3)
    whole = model.model(ids)
    prompts = torch.where(torch.arange(9) < lengths[:, None], ids[:, :9], 0)
    first = model.model(prompts, cache=cache, lengths_B=lengths)
    for row, length in enumerate(lengths):
        assert torch.allclose(first[row, :length], whole[row, :length], atol=1e-4)
    for places in (lengths + more for more in range(12)):
        step = model.model(ids[rows, places][:, None], cache=cache)[:, 0]
        assert torch.allclose(step, whole[rows, places], atol=1e-4)
    assert cache.filled.tolist() == (lengths + 12).tolist()
    places = cache.filled[:, None] + torch.arange(5)
    chunk = model.model(ids[rows[:, None], places], cache=cache)
    assert torch.allclose(chunk, whole[rows[:, None], places], atol=1e-4)
    cache.select(torch.tensor([2, 0]))
    places = cache.filled
    step = model.model(ids[[2, 0], places][:, None], cache=cache)[:, 0]
    assert torch.allclose(step, whole[[2, 0], places], atol=1e-4)


@models
def test_every_parameter_gets_a_gradient(name):
    model = randomised(name)
    model(some_ids(2, 16), some_ids(2, 1).expand(2, 16)).square().mean().backward()
    none = {part for part, one in model.named_parameters() if one.grad is None or not one.grad.any()}
    # In a patch of one byte it sees itself alone, whatever queries and keys are: their gradient is zero but for rounding.
    alone = {part for part in none if name == "patches of 1" and "within" in part and (".q_" in part or ".k_" in part)}
    assert none == alone


@models
def test_bfloat16_products_are_close_and_parameters_stay_float32(name):
    model, ids = randomised(name, scale=0.1), some_ids(2, 16)
    exact, rounded = model(ids), model(ids, dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16 and all(parameter.dtype == torch.float32 for parameter in model.parameters())
    # A token that the router nearly sent elsewhere may go there when what it reads is rounded.
    assert (exact - rounded).abs().median() < 0.02 * exact.abs().max()


@models
@torch.no_grad()
def test_the_one_likelihood_serves_all(name):
    model, ids = randomised(name), some_ids(2, 12)
    logp = token_log_probabilities(model, ids[:, :-1], ids[:, 1:])
    expected = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    assert torch.allclose(logp, expected, atol=1e-4)
    long = some_ids(100, seed=3).tolist()
    assert len(score(model, [long])[0]) == 99


@models
def test_a_folder_keeps_every_bit(name, toy_tokenizer, tmp_path):
    model = widened(name)
    model_folder.save(tmp_path, model, toy_tokenizer, chat=False)
    loaded = model_folder.load_decoder(tmp_path)
    assert type(loaded) is type(model)
    ids = some_ids(2, 12)
    assert torch.equal(loaded(ids), model(ids))
    if loaded.config.model_type.startswith("groundup"):
        assert loaded.config == model.config
        description = json.loads((tmp_path / "config.json").read_text())
        del description["max_position_embeddings"]
        (tmp_path / "config.json").write_text(json.dumps(description))
        with pytest.raises(UserError, match=r"config\.json: max_position_embeddings is missing"):
            model_folder.load_decoder(tmp_path)


@models
def test_a_reward_model_stands_on_any_backbone(name, toy_tokenizer, tmp_path):
    policy = randomised(name)
    reward_model = from_policy(policy, seed=1)
    ids = some_ids(2, 12)
    scores = reward_model(ids)
    assert torch.allclose(scores, reward_model.score(policy.model(ids)).squeeze(-1), atol=1e-5)
    scores.sum().backward()
    assert all(parameter.grad is None for parameter in policy.parameters())
    wide = widened(name)
    model_folder.save(tmp_path, from_policy(wide, seed=1), toy_tokenizer, chat=True)
    loaded = model_folder.load_reward_model(tmp_path)
    assert torch.equal(loaded(ids), from_policy(wide, seed=1)(ids))


BUILDERS = {
    "dense": (decoder.shape_for, Decoder, base.initialise),
    "lstm": (lstm.shape_for, LSTM, lstm.initialise),
    "convolution": (convolution.shape_for, Convolution, base.initialise),
    "patches": (patches.shape_for, PatchedBytes, base.initialise),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_one_dial_gives_a_fresh_model_that_knows_nothing(name):
    shape_for, build, initialise = BUILDERS[name]
    config, reasons = shape_for(2, 300, 64)
    assert config.max_position_embeddings == 64 and config.vocab_size == 300 and reasons
    first, second = build(config), build(config)
    for model in (first, second):
        initialise(model, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    logp = torch.log_softmax(first(some_ids(2, 9)), -1)
    assert torch.allclose(logp, torch.full_like(logp, -math.log(300)))
    assert torch.isfinite(first.model(some_ids(2, 9))).all()


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("name", ["lstm", "convolution"])
def test_blocks_have_about_as_many_parameters_as_the_decoders(name, depth):
    def of_blocks(name):
        shape_for, build, _ = BUILDERS[name]
        model = build(shape_for(depth, 300, 256)[0])
        return sum(parameter.numel() for parameter in model.model.layers.parameters())

    assert of_blocks(name) == pytest.approx(of_blocks("dense"), rel=0.1)


def test_a_forget_gate_begins_open():
    model = LSTM(LSTMConfig(50, 32, 2, 64))
    lstm.initialise(model, 0)
    for layer in model.model.layers:
        gates = (layer.lstm.bias_ih_l0 + layer.lstm.bias_hh_l0).view(4, 32)  # torch's order: i, f, g, o
        assert gates.tolist() == [[0] * 32, [1] * 32, [0] * 32, [0] * 32]


@torch.no_grad()
def test_an_lstm_follows_its_equations():
    model, ids = randomised("lstm"), some_ids(2, 6)
    layer = model.model.layers[0]
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    h = c = torch.zeros(2, 32)
    for t in range(6):
        gates = x[:, t] @ layer.lstm.weight_ih_l0.T + h @ layer.lstm.weight_hh_l0.T
        i, f, g, o = (gates + layer.lstm.bias_ih_l0 + layer.lstm.bias_hh_l0).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    outputs, (hidden, cells) = layer(model.model.embed_tokens(ids), None, None)
    assert torch.allclose(hidden[0], h, atol=1e-5) and torch.allclose(cells[0], c, atol=1e-5)
    assert torch.allclose(outputs[:, -1], model.model.embed_tokens(ids[:, -1]) + h, atol=1e-5)


@torch.no_grad()
def test_a_gated_convolution_is_torchs():
    config = ConvolutionConfig(50, 32, 3, 4, 64)
    model, x = Convolution(config), torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(0))
    assert config.dilations == [1, 4, 16] and config.receptive_field == 64
    for block, dilation in zip(model.model.layers, config.dilations, strict=True):
        taps = block.in_proj.weight.view(64, 4, 32).flip(1).permute(0, 2, 1)  # torch's kernels begin with the oldest
        inputs = torch.nn.functional.pad(block.input_layernorm(x).mT, (3 * dilation, 0))
        values, gates = torch.nn.functional.conv1d(inputs, taps, dilation=dilation).mT.chunk(2, -1)
        assert torch.allclose(block(x, None), x + block.o_proj(values * gates.sigmoid()), atol=1e-5)


@torch.no_grad()
def test_a_convolution_sees_just_as_far_as_it_says():
    config = ConvolutionConfig(50, 32, 2, 3, 10)
    model = Convolution(config)
    ids = some_ids(1, 20)
    assert config.dilations == [1, 3] and config.receptive_field == 9
    last = model(ids)[0, -1]
    for back in range(1, 20):
        changed = ids.clone()
        changed[0, -1 - back] = (changed[0, -1 - back] + 1) % 50
        assert torch.equal(model(changed)[0, -1], last) == (back >= 9)
