import math

import pytest
import torch

from groundup.model.base import initialise, parameter_counts
from groundup.model.decoder import Decoder, RMSNorm, shape_for


def some_ids(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


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
