"""What the tests of kernels share: weights with which every part counts, batches, distances, updates."""

import torch


def randomised(model):
    """Weights with which every part of a layer matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else noise / parameter.shape[1] ** 0.5)
    return model


def a_batch(vocabulary=100, shape=(3, 96)):
    """Ids, targets, weights of which a fifth is zero, and documents."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (shape[0], shape[1] + 1), generator=generator)
    documents = (torch.rand(shape, generator=generator) < 0.05).cumsum(1)
    weights = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.8)
    return ids[:, :-1], ids[:, 1:].contiguous(), weights / weights.sum(), documents


def distance(one, other):
    return ((one.float() - other.float()).norm() / (other.float().norm() + 1e-6)).item()


def update_alike(models, optimizers):
    """Three updates of each by the same gradients, after which what the optimizers remember is the same."""
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step(1.0)
    for name, tensor in optimizers[1].state.items():
        torch.testing.assert_close(tensor, optimizers[0].state[name], rtol=1e-5, atol=1e-6)
