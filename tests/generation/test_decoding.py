"""The short way gives the decoder's own logits, for every family, however rows and prompts come together."""

from itertools import pairwise

import pytest
import torch

from groundup import kernels
from groundup.generation import decoding
from groundup.generation.decoding import Decoding

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHAPES = {
    "qwen3": {},
    "one key head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "as many key heads, large eps": {"num_key_value_heads": 4, "rms_norm_eps": 0.5, "head_dim": 6},
    "yarn": {"rope_scaling": YARN},
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3_moe": {"model_type": "qwen3_moe", **EXPERTS},
    "mixtral": {"model_type": "mixtral", **EXPERTS},
}
# Sizes that the kernels take: see `generation.native_steps`.
SHAPES |= {
    "qwen3, wide heads": {"head_dim": 32},
    "wide heads, one key head, tied, large eps": {
        "head_dim": 64, "num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 0.5,
    },
    "yarn, wide heads": {"head_dim": 32, "rope_scaling": YARN},
    "llama, wide heads": {"head_dim": 32, "model_type": "llama"},
    "qwen2, wide heads": {"head_dim": 32, "model_type": "qwen2"},
}  # fmt: skip
STEPS = 6


def has_kernels():
    try:
        return bool(kernels.float32_library())
    except kernels.Unavailable:
        return False


needs_kernels = pytest.mark.skipif(not has_kernels(), reason="no kernels on this machine")


@pytest.mark.parametrize("at_once", [1, 12, 1024])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_logits_are_the_decoders(toy_decoder, monkeypatch, shape, at_once):
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", at_once)
    model, lengths = toy_decoder(seed=1, **shape), [4, 9, 1, 9]
    ids = torch.randint(50, (4, 9 + STEPS), generator=torch.Generator().manual_seed(0))
    whole = model(ids)
    rows = torch.arange(4)
    state = Decoding(model, 4, 9 + STEPS)
    assert bool(state.steps) == (shape.get("head_dim", 8) >= 32 and has_kernels())
    found = state.prefill([ids[row, :length].tolist() for row, length in enumerate(lengths)])
    places = torch.tensor(lengths)
    assert (found - whole[rows, places - 1]).abs().max() < 1e-4
    for number in range(STEPS):
        if number == 3:  # those of equal length stay
            rows, places = torch.tensor([3, 1]), places[[3, 1]]
            state.select(rows.tolist())
        found = state.decode(ids[rows, places][:, None])[:, 0]
        assert (found - whole[rows, places]).abs().max() < 1e-4
        places = places + 1


@needs_kernels
@torch.inference_mode()
def test_by_kernels_a_token_has_the_same_logits_in_any_company(toy_decoder):
    """To the bit: alone or among rows, one at a time or several, by one thread or three."""
    model, lengths = toy_decoder(head_dim=32, vocab_size=60), [3, 20, 9, 1, 17]
    ids = torch.randint(50, (5, 60), generator=torch.Generator().manual_seed(0))

    def logits(rows, ends, threads=1):
        torch.set_num_threads(threads)
        try:
            state = Decoding(model, len(rows), 60)
        finally:
            torch.set_num_threads(1)
        for place, row in enumerate(rows):  # each by itself, since reading several at once rounds in another way
            state._prefill_part([ids[row, : lengths[row]].tolist()], place)
        places = torch.tensor([lengths[row] for row in rows])[:, None]
        some = [torch.arange(start, end) + places for start, end in pairwise(ends)]
        return torch.cat([state.decode(ids[torch.tensor(rows)[:, None], one]) for one in some], dim=1)

    whole = logits(range(5), [0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert torch.equal(logits(range(5), [0, 8]), whole)
    assert torch.equal(logits(range(5), [0, 2, 7, 8], threads=3), whole)
    for row in range(5):
        assert torch.equal(logits([row], [0, 5, 8]), whole[row : row + 1])


@needs_kernels
@torch.inference_mode()
def test_by_kernels_guesses_beyond_the_room_harm_no_other_row(toy_decoder):
    model, ids = toy_decoder(head_dim=32), list(range(20))
    alone, crowded = Decoding(model, 1, 22), Decoding(model, 2, 22)
    alone.prefill([ids])
    crowded.prefill([ids, ids])
    expected = alone.decode(torch.tensor([[5]]))[:, 0]
    found = crowded.decode(torch.tensor([[5, 1, 2, 3, 4, 6], [5, 3, 3, 3, 3, 3]]))[:, 0]
    assert torch.equal(found, expected.expand(2, -1))


@pytest.mark.parametrize("token", [-1, 50])
@pytest.mark.parametrize("channels", [8, 32])
@torch.inference_mode()
def test_an_id_that_is_none_is_refused(toy_decoder, channels, token):
    state = Decoding(toy_decoder(head_dim=channels), 1, 4)
    state.prefill([[1]])
    with pytest.raises(IndexError):
        state.decode(torch.tensor([[token]]))
