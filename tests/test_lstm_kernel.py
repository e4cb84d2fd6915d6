"""The LSTM's recurrent steps by the kernel against PyTorch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.kernels import float32
from groundup.model.lstm import LSTM, LSTMConfig

pytestmark = pytest.mark.float32_kernels


def a_model(width, layers=2):
    torch.manual_seed(0)
    return LSTM(LSTMConfig(40, width, layers, 64))


def results(model, ids, documents, by_kernels):
    if by_kernels:
        model.use_kernels(ids.shape[1], torch.float32)
    model.zero_grad()
    hidden = model.model(ids, documents)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    model.drop_kernels()
    return hidden.detach(), {name: one.grad for name, one in model.model.named_parameters()}


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 29), st.integers(1, 9), st.sampled_from([16, 48, 272]), st.booleans(), st.integers(0, 99))
def test_hidden_states_and_gradients_are_those_of_pytorch(rows, time, width, packed, seed):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, (rows, time), generator=draw)
    documents = (torch.rand((rows, time), generator=draw) < 0.3).cumsum(1) if packed else None
    model = a_model(width)
    expected, found = (results(model, ids, documents, by_kernels) for by_kernels in (False, True))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=2e-5)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


def test_the_same_to_the_bit_for_any_number_of_threads():
    before, ids, model = torch.get_num_threads(), torch.arange(35).view(7, 5), a_model(48)
    kept = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            inputs = torch.sin(torch.arange(7 * 5 * 4 * 48.0)).view(7, 5, -1)
            weight, begins = model.model.layers[0].lstm.weight_hh_l0.detach(), ids % 4 == 0
            gates, cells, hidden = float32.recurrence(inputs, weight, begins)
            kept.append((hidden, float32.recurrence_backward(torch.ones_like(hidden), weight, begins, gates, cells)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for found in kept[1:] for one, other in zip(kept[0], found, strict=True))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda inputs, weight, begins: (inputs[..., :-1], weight, begins), "they must be"),
        (lambda inputs, weight, begins: (inputs[..., :16].contiguous(), weight, begins), "must be as gates|they must be"),
        (lambda inputs, weight, begins: (inputs.double(), weight, begins), "float64"),
        (lambda inputs, weight, begins: (inputs, weight.T.contiguous().T, begins), "strides"),
        (lambda inputs, weight, begins: (inputs, weight[:, :8], begins), "they must be"),
        (lambda inputs, weight, begins: (inputs, weight, begins[:, :2]), "they must be"),
        (lambda inputs, weight, begins: (inputs, weight, begins.int()), "bool"),
    ],
)
def test_what_has_another_shape_or_format_is_refused(change, reason):
    given = torch.zeros(2, 3, 64), torch.zeros(64, 16), torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(TypeError, match=reason):
        float32.recurrence(*change(*given))
