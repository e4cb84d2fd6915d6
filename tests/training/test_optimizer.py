import math

import pytest
import torch
from torch import nn

from groundup.training.optimizer import Optimizer, one_lr, orthogonalise, pretraining_lrs


@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32), (64, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_brings_singular_values_near_one(shape, dtype):
    sizes = torch.tensor([1e-3, 1, 50])[:, None, None]
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) * sizes
    found = orthogonalise(matrices, dtype)
    assert found.shape == matrices.shape and found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    # The smallest of a square random matrix is nearly zero; Muon lets it stay small.
    if shape[0] == shape[1]:
        values = values[:, : int(shape[0] * 0.9)]
    assert values.min() > 0.7 and values.max() < 1.3


def test_orthogonalise_keeps_the_directions():
    matrix = torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(2))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(orthogonalise(matrix, torch.float32), left @ right, atol=0.2)
    assert orthogonalise(torch.zeros(2, 4, 8), torch.float32).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_of_one_direction_stays_bounded(dtype):
    for matrix in (torch.ones(64, 96), torch.outer(torch.arange(96.0), torch.arange(64.0)), torch.ones(1, 1)):
        for size in (1e-6, 1, 1e6):
            assert 0.7 < torch.linalg.matrix_norm(orthogonalise(matrix[None] * size, dtype)[0], 2) < 1.3


def test_each_matrix_of_a_stack_is_treated_by_itself():
    stack = torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([orthogonalise(matrix[None], torch.float32) for matrix in stack])
    assert torch.allclose(orthogonalise(stack, torch.float32), alone, atol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_that_of_torch(weight_decay):
    def network():
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3))

    ours, theirs = network(), network()
    optimizer = Optimizer(ours, one_lr(3e-3), betas=(0.9, 0.95), weight_decay=weight_decay)
    peer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    for step in range(20):
        x = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
        multiplier = 1 - step / 40
        for model in (ours, theirs):
            (model(x) - 1).square().mean().backward()
        for group in peer.param_groups:
            group["lr"] = 3e-3 * multiplier
        optimizer.step(multiplier)
        peer.step()
        peer.zero_grad()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-6, rtol=0)
            assert one.grad is None


def test_a_muon_step_moves_every_direction_by_the_rate():
    model = nn.Linear(16, 48, bias=False)
    before = model.weight.detach().clone()
    optimizer = Optimizer(model, lambda name, parameter: ("muon", 0.02))
    model.weight.grad = torch.randn(48, 16, generator=torch.Generator().manual_seed(5)) * 1e-4
    gradient = model.weight.grad.clone()
    optimizer.step(0.5)
    step = before - model.weight.detach()
    # rate x multiplier x sqrt(rows / columns), whatever the size of the gradient; downhill.
    assert torch.linalg.svdvals(step) == pytest.approx(torch.full((16,), 0.01 * math.sqrt(3)), rel=0.3)
    assert (step * gradient).sum() > 0


def test_matrices_of_one_shape_are_updated_as_if_alone():
    torch.manual_seed(6)
    together = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(3)])
    gradients = [torch.randn(8, 8) for _ in range(3)]
    alone = []
    for layer, gradient in zip(together, gradients, strict=True):
        single = nn.Linear(8, 8, bias=False)
        single.load_state_dict(layer.state_dict())
        single.weight.grad = gradient.clone()
        Optimizer(single, lambda name, parameter: ("muon", 0.1)).step(1.0)
        alone.append(single.weight)
        layer.weight.grad = gradient.clone()
    Optimizer(together, lambda name, parameter: ("muon", 0.1)).step(1.0)
    for layer, expected in zip(together, alone, strict=True):
        assert torch.allclose(layer.weight, expected, atol=1e-5)


def test_roles_decide_the_method(toy_decoder):
    model = toy_decoder()
    rates, reasons = pretraining_lrs(768, scale=2.0)
    optimizer = Optimizer(model, rates)
    assert optimizer.methods["model.embed_tokens.weight"] == ("adamw", 0.5)
    assert optimizer.methods["lm_head.weight"] == ("adamw", pytest.approx(2 * 1.8 / 768))
    assert optimizer.methods["model.norm.weight"] == ("adamw", 0.02)
    assert optimizer.methods["model.layers.0.mlp.up_proj.weight"] == ("muon", 0.04)
    assert optimizer.methods.keys() == dict(model.named_parameters()).keys()
    assert all(tensor.dtype == torch.float32 for name, tensor in optimizer.state.items() if name != "updates")
    assert len(reasons) == 1
    assert pretraining_lrs(192)[0]("model.embed_tokens.weight", model.lm_head.weight)[1] == 0.25
    narrow = [pretraining_lrs(width)[0]("lm_head.weight", model.lm_head.weight)[1] for width in (32, 64, 80)]
    assert narrow == [1.8 / 80] * 3, "a narrow model's head learns no faster"
