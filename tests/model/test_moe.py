import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from groundup.model import moe
from groundup.model.base import initialise
from groundup.model.decoder import Decoder, DecoderConfig, with_experts
from groundup.model.moe import MixtureOfExperts, Routing

NAMES = ("gate_proj", "up_proj", "down_proj")
DENSE = DecoderConfig(50, 32, 2, 4, 2, 8, 48, 64)


def layer_of(experts=6, per_token=2, normalise=True, seed=0, width=16, inner=24):
    torch.manual_seed(seed)
    layer = MixtureOfExperts(width, inner, experts, per_token, normalise, NAMES)
    layer.gate.weight.data.mul_(8)
    return layer


def slow(layer, x_ND):
    """Token by token, expert by expert."""
    rows = []
    for x in x_ND:
        probabilities = (layer.gate.weight @ x).softmax(-1)
        chosen = sorted(range(len(probabilities)), key=lambda e: -probabilities[e].item())[: layer.per_token]
        total = sum(probabilities[e] for e in chosen) if layer.normalise else 1.0
        result = 0
        for e in chosen:
            gate, up, down = layer.experts[e].matrices()
            result = result + probabilities[e] / total * (down @ (F.silu(gate @ x) * (up @ x)))
        rows.append(result)
    return torch.stack(rows)


@pytest.mark.parametrize("experts,per_token", [(1, 1), (4, 1), (6, 2), (5, 5)])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("run", ["_run", "_grouped"])
def test_dropless_is_a_slow_loop_over_experts_with_its_gradients(experts, per_token, normalise, run, monkeypatch):
    layer = layer_of(experts, per_token, normalise)
    monkeypatch.setattr(layer, "_run", getattr(layer, run))
    x = torch.randn(2, 15, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(2, 15, 16, generator=torch.Generator().manual_seed(2))
    results = []
    for forward in (layer, lambda x: slow(layer, x.flatten(0, 1)).view_as(x)):
        out = forward(x)
        gradients = torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()], materialize_grads=True)
        results.append((out, *gradients))
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)


def test_slices_filled_up_for_bfloat16_give_what_they_give_alone(monkeypatch):
    layer = layer_of(6, 2)
    x = torch.randn(2, 100, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    results = []
    for few in (1, 64):
        monkeypatch.setattr(moe, "ROW_MULTIPLE", few)
        out = layer(x.bfloat16())
        results.append((out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=2e-2, atol=2e-2)


def test_an_expert_without_tokens_has_a_gradient_of_zero_and_costs_nothing_in_generation():
    layer = layer_of(8, 1)
    layer.gate.weight.data[3] = 0
    layer.gate.weight.data[:, 0] = torch.where(torch.arange(8) == 3, -50.0, 0.0)
    x = torch.randn(1, 40, 16).abs()
    layer(x).sum().backward()
    for parameter in layer.experts[3].parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    called = []
    for number, expert in enumerate(layer.experts):
        expert.register_forward_hook(lambda *_, number=number: called.append(number))
    with torch.no_grad():
        layer(x[:, :1])
    assert len(called) == 1


def test_padding_and_other_micro_batches_in_the_load():
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    routings = [Routing(logits, logits.topk(2).indices), Routing(-logits, (-logits).topk(2).indices)]
    load, mask = moe.load(routings), torch.arange(12) < 7
    assert load.shape == (2, 4) and load.sum(-1).tolist() == [24, 24]
    assert torch.equal(moe.load(routings, mask) + moe.load(routings, ~mask), load)
    for half in (mask, ~mask):  # with the load of the whole, the parts' losses add up to the whole's
        assert half.sum() in (5, 7)
    parts = [moe.auxiliary_losses(routings, load, half) for half in (mask, ~mask)]
    whole = moe.auxiliary_losses(routings, load)
    for part, other, together in zip(*parts, whole, strict=True):
        assert (7 * part + 5 * other).item() / 12 == pytest.approx(together.item(), abs=1e-5)


def test_balance_is_one_when_even_and_the_number_of_experts_when_all_go_to_one():
    for logits, expected in (
        (torch.eye(4).repeat(5, 1) * 40, 1.0),
        (torch.tensor([[40.0, 0, 0, 0]]).repeat(20, 1), 4.0),
        (torch.zeros(20, 8), 1.0),
    ):
        routing = Routing(logits, logits.topk(1).indices)
        balance, z = moe.auxiliary_losses([routing], moe.load([routing]))
        assert balance.item() == pytest.approx(expected, abs=1e-5)
        assert z.item() == pytest.approx(logits.logsumexp(-1).square().mean().item())


def test_metrics_show_a_collapse():
    even, sure = torch.eye(4).repeat(5, 1) * 40, torch.tensor([[40.0, 0, 0, 0]]).repeat(20, 1)
    routings = [Routing(logits, logits.topk(1).indices) for logits in (even, sure)]
    found = moe.metrics(routings, moe.load(routings))
    assert found == {"max_load": 4.0, "dead_experts": 3.0, "router_entropy": pytest.approx(0.0, abs=1e-5)}
    uniform = Routing(torch.zeros(8, 4), torch.arange(8)[:, None] % 4)
    found = moe.metrics([uniform], moe.load([uniform]))
    assert found == {"max_load": 1.0, "dead_experts": 0.0, "router_entropy": pytest.approx(1.0)}


def test_the_balance_loss_evens_out_a_router_that_has_collapsed():
    torch.manual_seed(0)
    layer, x = MixtureOfExperts(16, 4, 8, 2, True, NAMES), torch.randn(256, 16)
    with torch.no_grad():
        x[:, 0] = 1.0
        layer.gate.weight[0, 0] = 4.0
    seen = []
    for _ in range(100):
        with moe.recorded(layer) as routings:
            layer(x)
        load = moe.load(routings)
        seen.append(moe.metrics(routings, load))
        balance, z = moe.auxiliary_losses(routings, load)
        [gradient] = torch.autograd.grad(balance + 0.001 * z, [layer.gate.weight])
        with torch.no_grad():
            layer.gate.weight -= 4 * gradient
    assert seen[0]["max_load"] > 3.9 and seen[-1]["max_load"] < 1.2


def test_recording_ends_with_the_block():
    model = Decoder(with_experts(DENSE, 4, 2)[0])
    ids = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(KeyError), moe.recorded(model) as routings:
        model(ids)
        raise KeyError
    model(ids)
    assert len(routings) == 2 and routings[0].logits_NE.shape == (5, 4) and routings[0].chosen_NK.shape == (5, 2)
    with moe.recorded(Decoder(DENSE)) as routings:
        pass
    assert routings == []


@pytest.fixture
def sorter():
    """Expert e of its one layer is for ids e, e + 4, e + 8, ..., surer of the smaller."""
    model = Decoder(with_experts(replace(DENSE, num_hidden_layers=1), 4, 1)[0])
    initialise(model, 0)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        for token in range(50):
            model.model.embed_tokens.weight[token, token % 4] = 1.0
            model.model.embed_tokens.weight[token, 4:].fill_(0.02 * token)
        model.model.layers[0].mlp.gate.weight.copy_(torch.eye(4, 32))
    return model


def test_samples_and_domains_say_what_an_expert_is_for(sorter):
    ids = torch.tensor([[8, 1, 4, 4, 1], [0, 5, 9, 2, 0]])
    samples = moe.token_samples(sorter, ids, layer=0, count=2)
    assert [[ids[row, time].item() for row, time, _ in of_expert] for of_expert in samples] == [[0, 4], [1, 5], [2], []]
    assert all(0 < probability <= 1 for of_expert in samples for _, _, probability in of_expert)
    table = moe.domain_table(sorter, {"even": [ids[:1, [0, 2, 3]], ids[1:, [0, 3]]], "odd": [ids[:, [1]]]}, layer=0)
    assert table == {"even": pytest.approx([0.8, 0, 0.2, 0]), "odd": [0, 1, 0, 0]}


def test_a_mixture_has_as_many_active_parameters_as_the_dense_model():
    dense = Decoder(DENSE)
    config, reasons = with_experts(DENSE, 6, 3)
    sparse = Decoder(config)
    routers = 2 * 6 * 32
    assert config.moe_intermediate_size == 16 and len(reasons) == 2
    assert moe.active_parameters(sparse) == moe.active_parameters(dense) + routers
    assert moe.active_parameters(dense) == sum(parameter.numel() for parameter in dense.parameters())
    for experts, per_token in ((6, 5), (2, 3)):
        with pytest.raises(ValueError, match="cannot share"):
            with_experts(DENSE, experts, per_token)


def test_a_fresh_mixture_is_the_identity_and_its_router_undecided():
    model = Decoder(with_experts(DENSE, 8, 2)[0])
    initialise(model, 0)
    ids = torch.randint(50, (4, 30), generator=torch.Generator().manual_seed(0))
    with moe.recorded(model) as routings:
        hidden = model.model(ids)
    assert torch.allclose(hidden, model.model.norm(model.model.embed_tokens(ids)))
    found = moe.metrics(routings, moe.load(routings))
    assert 0.5 < found["router_entropy"] < 1 and found["dead_experts"] == 0
    assert math.isfinite(found["max_load"])
