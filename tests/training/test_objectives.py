import pytest
import torch
import torch.nn.functional as F

from groundup.model import moe
from groundup.training.objectives import Z_LOSS, BalancedNextToken, next_token


def batch(mask=None):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (3, 12), generator=generator)
    targets = torch.randint(50, (3, 12), generator=generator)
    weight = torch.ones(3, 12) if mask is None else mask
    return {"ids": ids, "targets": targets, "weight": weight / weight.sum()}


def test_is_cross_entropy(toy_decoder):
    model, some = toy_decoder(), batch()
    loss, metrics = next_token(model, some, torch.float32)
    expected = F.cross_entropy(model(some["ids"]).flatten(0, 1), some["targets"].flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5) and metrics == {"loss": loss.item()}


def test_only_weighted_targets_count(toy_decoder):
    mask = (torch.arange(12) >= 7).float().expand(3, 12)
    model, some = toy_decoder(), batch(mask)
    loss, _ = next_token(model, some, torch.float32)
    expected = F.cross_entropy(model(some["ids"])[:, 7:].flatten(0, 1), some["targets"][:, 7:].flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    changed = some | {"targets": torch.where(mask.bool(), some["targets"], 0)}
    assert next_token(model, changed, torch.float32)[0].item() == loss.item()


def test_bfloat16_is_close(toy_decoder):
    model, some = toy_decoder(scale=0.1), batch()
    exact, _ = next_token(model, some, torch.float32)
    rounded, _ = next_token(model, some, torch.bfloat16)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02) and rounded.dtype == torch.float32
    rounded.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


MIXTURE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def split(some, *edges):
    parts = [{name: tensor[start:end] for name, tensor in some.items()} for start, end in edges]
    return [part | {"last": torch.tensor(part is parts[-1])} for part in parts]


def test_a_mixture_is_balanced_over_the_whole_batch(toy_decoder):
    model, some = toy_decoder(**MIXTURE), batch()
    with moe.recorded(model) as routings:
        plain, _ = next_token(model, some, torch.float32)
    load = moe.load(routings)
    even, small = moe.auxiliary_losses(routings, load)
    objective = BalancedNextToken(torch.float32, 0.1)
    for edges in ([(0, 3)], [(0, 1), (1, 3)]):
        found = [objective(model, part) for part in split(some, *edges)]
        totals = {name: sum(metrics[name] for _, metrics in found) for name in found[0][1]}
        assert totals == pytest.approx({"loss": plain.item(), **moe.metrics(routings, load)}, abs=1e-5)
        if len(edges) == 1:
            assert found[0][0].item() == pytest.approx((plain + 0.1 * even + Z_LOSS * small).item(), abs=1e-5)
    with torch.no_grad():  # held-out text in between changes nothing
        assert objective(model, some)[0].item() == plain.item()
    assert objective.load == 0.0


def test_rows_that_weigh_nothing_are_no_load(toy_decoder):
    model, some = toy_decoder(**MIXTURE), batch(torch.tensor([[1.0], [1.0], [0.0]]).expand(3, 12).clone())
    [whole], [part] = split(some, (0, 3)), split(some, (0, 2))
    found = [BalancedNextToken(torch.float32, 0.1)(model, rows) for rows in (whole, part)]
    assert found[0][0].item() == pytest.approx(found[1][0].item(), abs=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)
    empty = whole | {"weight": torch.zeros(3, 12)}
    loss, metrics = BalancedNextToken(torch.float32, 0.1)(model, empty | {"last": torch.tensor(False)})
    assert loss.item() == 0 and metrics["loss"] == 0 == metrics["router_entropy"]
    loss.backward()
