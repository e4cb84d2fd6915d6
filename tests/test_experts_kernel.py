"""A mixture's experts by the kernel against PyTorch's."""


import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup import kernels
from groundup.kernels import float32
from groundup.model.moe import MixtureOfExperts
from kernel_models import distance

pytestmark = pytest.mark.float32_kernels


def results(mixture, x, by_kernels):
    mixture.kernel_dtype = x.dtype if by_kernels else None
    mixture.zero_grad()
    x = x.clone().requires_grad_()
    out = mixture(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach(), {"x": x.grad} | {name: one.grad for name, one in mixture.named_parameters()}


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 150), st.sampled_from([(16, 16), (48, 80), (272, 16)]), st.integers(2, 9), st.booleans(), st.integers(0, 9))
def test_results_and_gradients_are_those_of_pytorch(tokens, sizes, experts, lopsided, seed):
    torch.manual_seed(seed)
    width, inner = sizes
    mixture = MixtureOfExperts(width, inner, experts, 2, True, ("gate_proj", "up_proj", "down_proj"))
    x = torch.randn(1, tokens, width)
    if lopsided:  # two experts get all, the others nothing
        x = x[:, :1].expand(1, tokens, width)
    expected, found = (results(mixture, x, by_kernels) for by_kernels in (False, True))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_the_same_to_the_bit_for_any_number_of_threads():
    before, kept = torch.get_num_threads(), []
    x = torch.sin(torch.arange(250 * 48.0)).view(250, 48)
    matrices = [torch.cos(torch.arange(80 * 48.0) * i).view((48, 80) if i % 3 == 2 else (80, 48)) / 9 for i in range(9)]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, gates = float32.experts(x, [107, 107, 250], matrices)
            grad, gradients = float32.experts_backward(torch.ones_like(x), x, [107, 107, 250], matrices, gates)
            kept.append((out, grad, *gradients))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for found in kept[1:] for one, other in zip(kept[0], found, strict=True))
    assert not kept[0][5].any()  # the second expert's


needs_bfloat16 = pytest.mark.skipif(isinstance(kernels.library_or_reason(), str), reason="no kernels in bfloat16")


@needs_bfloat16
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 700), st.sampled_from([(32, 32), (64, 96), (96, 544)]), st.integers(2, 9), st.booleans(), st.integers(0, 9))
def test_in_bfloat16_they_are_about_as_near_to_float32_as_by_pytorch(tokens, sizes, experts, lopsided, seed):
    torch.manual_seed(seed)
    mixture = MixtureOfExperts(*sizes, experts, 2, True, ("gate_proj", "up_proj", "down_proj"))
    x = torch.randn(1, tokens, sizes[0]).bfloat16().float()
    if lopsided:
        x = x[:, :1].expand(1, tokens, sizes[0])
    exact = results(mixture, x, False)
    plain, found = (results(mixture, x.bfloat16(), by_kernels) for by_kernels in (False, True))
    assert distance(found[0], exact[0]) < 1.3 * distance(plain[0], exact[0]) + 1e-3
    for name, gradient in exact[1].items():
        if name != "gate.weight":  # differences between what two experts found: of a few tokens' rounding is a large part
            assert distance(found[1][name], gradient) < 1.3 * distance(plain[1][name], gradient) + 2e-3, name


@needs_bfloat16
def test_in_bfloat16_too_the_same_to_the_bit_for_any_number_of_threads():
    before, kept = torch.get_num_threads(), []
    x = torch.sin(torch.arange(704 * 64.0)).view(704, 64).bfloat16()
    x[90:96], ends = 0, [96, 96, 704]
    matrices = [torch.cos(torch.arange(96 * 64.0) * i).view((64, 96) if i % 3 == 2 else (96, 64)) / 9 for i in range(9)]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, own = kernels.experts(x, ends, matrices)
            grad, gradients = kernels.experts_backward(torch.ones_like(x), x, ends, matrices, own)
            kept.append((out, grad, *gradients))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for found in kept[1:] for one, other in zip(kept[0], found, strict=True))
    assert not kept[0][5].any() and not out[90:96].any()  # the second expert's; what is filled up


@needs_bfloat16
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, ends, some: (x.float(), ends, some), "must be"),
        (lambda x, ends, some: (x.T, ends, some), "without gaps|shapes"),
        (lambda x, ends, some: (x[:, :32].contiguous(), ends, some), "of shapes"),
        (lambda x, ends, some: (x, [32, 40, 96], some), "in blocks of 32"),
        (lambda x, ends, some: (x, [32, 64, 128], some), "cannot be those"),
        (lambda x, ends, some: (x, [64, 96], some), "for 2 experts"),
        (lambda x, ends, some: (x, ends, [one.bfloat16() for one in some]), "must be"),
    ],
)
def test_in_bfloat16_what_has_another_shape_or_format_is_refused(change, reason):
    matrices = [torch.zeros(64, 32) if i % 3 == 2 else torch.zeros(32, 64) for i in range(9)]
    with pytest.raises((TypeError, ValueError), match=reason):
        kernels.experts(*change(torch.zeros(96, 64).bfloat16(), [32, 32, 96], matrices))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, ends, some: (x[:, :16].contiguous(), ends, some), "of shapes"),
        (lambda x, ends, some: (x.double(), ends, some), "float64"),
        (lambda x, ends, some: (x.T, ends, some), "strides"),
        (lambda x, ends, some: (x, [2, 1, 5], some), "cannot be those"),
        (lambda x, ends, some: (x, [1, 2, 6], some), "cannot be those"),
        (lambda x, ends, some: (x, [2, 5], some), "for 2 experts"),
        (lambda x, ends, some: (x, ends, [*some[:8], some[8].T.contiguous()]), "shapes"),
        (lambda x, ends, some: (x[:, :15], ends, some), "strides|shapes"),
    ],
)
def test_what_has_another_shape_or_format_is_refused(change, reason):
    given = torch.zeros(5, 32), [1, 1, 5], [torch.zeros(32, 16) if i % 3 == 2 else torch.zeros(16, 32) for i in range(9)]
    with pytest.raises((TypeError, ValueError), match=reason):
        float32.experts(*change(*given))
