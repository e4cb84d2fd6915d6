import math

import pytest
import torch

from groundup.model.base import initialise, parameter_counts
from groundup.model.decoder import Decoder, KeyValueCache, RewardModel, RMSNorm, shape_for

SHAPES = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "head_dim": 6, "tie_word_embeddings": True},
    {"rope_theta": 1e6, "num_attention_heads": 3, "num_key_value_heads": 3},
]


def some_ids(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_sees_only_what_is_before_it(toy_decoder, shape):
    model, ids = toy_decoder(**shape), some_ids(2, 20)
    changed = ids.clone()
    changed[:, 12:] = some_ids(2, 8, seed=1)
    before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :12], after[:, :12], atol=1e-5)
    assert not torch.allclose(before[:, 12:], after[:, 12:], atol=1e-2)
    assert torch.allclose(model(ids[:, :5]), before[:, :5], atol=1e-4)  # nor does the length of the row matter


@pytest.mark.parametrize("shape", SHAPES)
def test_documents_in_one_row_are_as_if_alone(toy_decoder, shape):
    model, ids = toy_decoder(**shape), some_ids(2, 18)
    documents = torch.tensor([[1] * 7 + [2] * 11, [5] * 10 + [6] * 2 + [9] * 6])
    packed = model(ids, documents)
    for row, start, end in ((0, 0, 7), (0, 7, 18), (1, 0, 10), (1, 10, 12), (1, 12, 18)):
        alone = model(ids[row : row + 1, start:end])[0]
        assert torch.allclose(packed[row, start:end], alone, atol=1e-4)  # positions are relative


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_cache_gives_what_the_whole_gives(toy_decoder, shape):
    model, ids, lengths = toy_decoder(**shape), some_ids(3, 16), torch.tensor([4, 9, 1])
    cache = KeyValueCache.empty(model.config, 3, 16, torch.device("cpu"))
    whole = model.model(ids)
    prompts = torch.where(torch.arange(9) < lengths[:, None], ids[:, :9], 0)
    first = model.model(prompts, cache=cache, lengths_B=lengths)
    for row, length in enumerate(lengths):
        assert torch.allclose(first[row, :length], whole[row, :length], atol=1e-4)
    for more in range(4):
        places = lengths + more
        step = model.model(ids[torch.arange(3), places][:, None], cache=cache)[:, 0]
        assert torch.allclose(step, whole[torch.arange(3), places], atol=1e-4)
    assert cache.filled.tolist() == (lengths + 4).tolist()
    cache.select(torch.tensor([2, 0]))
    step = model.model(ids[[2, 0], cache.filled][:, None], cache=cache)[:, 0]
    assert torch.allclose(step, whole[[2, 0], [5, 8]], atol=1e-4)


def test_a_fresh_model_knows_nothing_and_every_block_is_the_identity():
    config, _ = shape_for(2, 300, 32)
    model = Decoder(config)
    initialise(model, seed=3)
    ids = some_ids(2, 9)
    assert torch.equal(model(ids), torch.zeros(2, 9, 300))
    hidden = model.model(ids)
    assert torch.allclose(hidden, model.model.norm(model.model.embed_tokens(ids)))
    logp = torch.log_softmax(model(ids), dim=-1)
    assert logp[0, 0, 0].item() == pytest.approx(-math.log(300))


def test_initialisation_is_a_function_of_the_seed():
    config, _ = shape_for(2, 300, 32)
    models = [Decoder(config) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(len(models))  # whatever the global generator says
        initialise(model, seed)
    first, second, third = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], third["model.embed_tokens.weight"])
    matrix = first["model.layers.1.mlp.gate_proj.weight"]
    assert matrix.var().item() == pytest.approx(1 / 128, rel=0.05)  # 1 / fan-in


def test_every_parameter_gets_a_gradient(toy_decoder):
    model = toy_decoder()
    model(some_ids(2, 8)).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_bfloat16_products_are_close_and_parameters_stay_float32(toy_decoder):
    model, ids = toy_decoder(scale=0.1), some_ids(2, 16)
    exact, rounded = model(ids), model(ids, dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16 and model.lm_head.weight.dtype == torch.float32
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_the_scorer_reads_the_same_backbone(toy_decoder):
    model, ids = toy_decoder(), some_ids(2, 8)
    reward_model = RewardModel(model.config)
    reward_model.model.load_state_dict(model.model.state_dict())
    expected = (model.model(ids) * reward_model.score.weight[0]).sum(-1)
    assert reward_model(ids).shape == (2, 8) and torch.allclose(reward_model(ids), expected, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6, 8, 12])
def test_one_dial_gives_a_shape_that_fits_together(depth):
    config, reasons = shape_for(depth, 4096, 512)
    assert config.hidden_size == 64 * depth == config.num_attention_heads * config.head_dim
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert (config.num_hidden_layers, config.vocab_size, config.max_position_embeddings) == (depth, 4096, 512)
    assert str(config.hidden_size) in reasons[0] and str(config.num_key_value_heads) in reasons[1]


def test_parameters_are_counted_by_both_conventions(toy_decoder):
    model, tied = toy_decoder(), toy_decoder(tie_word_embeddings=True)
    # Attention 32 x (32 + 16 + 16) + 32 x 32, norms of 8; MLP 3 x 32 x 48; two norms of 32; twice; the last norm.
    blocks = 2 * (32 * 64 + 32 * 32 + 2 * 8 + 3 * 32 * 48 + 2 * 32) + 32
    assert parameter_counts(model) == {"total": blocks + 2 * 50 * 32, "without_embedding": blocks + 50 * 32}
    assert parameter_counts(tied) == {"total": blocks + 50 * 32, "without_embedding": blocks}


def test_the_gradient_of_a_norm_is_that_of_autograd():
    torch.manual_seed(0)
    norm = RMSNorm(8, 1e-6)
    norm.weight.data = torch.randn(8)
    x = torch.randn(3, 5, 8, requires_grad=True)
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * norm.weight
    weights = torch.randn(3, 5, 8)
    ours = torch.autograd.grad((norm(x) * weights).sum(), (x, norm.weight))
    theirs = torch.autograd.grad((plain * weights).sum(), (x, norm.weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
