"""The short way gives the decoder's own logits, for every family, however rows and prompts come together."""

import pytest
import torch

from groundup.serving import decoding
from groundup.serving.decoding import Decoding

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
STEPS = 6


@pytest.mark.parametrize("at_once", [1, 12, 1024])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_logits_are_the_decoders(toy_decoder, monkeypatch, shape, at_once):
    monkeypatch.setattr(decoding, "READ_AT_ONCE", at_once)
    model, lengths = toy_decoder(seed=1, **shape), [4, 9, 1, 9]
    ids = torch.randint(50, (4, 9 + STEPS), generator=torch.Generator().manual_seed(0))
    whole = model(ids)
    rows = torch.arange(4)
    state = Decoding(model, 4, 9 + STEPS)
    found = state.read([ids[row, :length].tolist() for row, length in enumerate(lengths)])
    places = torch.tensor(lengths)
    assert (found - whole[rows, places - 1]).abs().max() < 1e-4
    for number in range(STEPS):
        if number == 3:  # those of equal length stay
            rows, places = torch.tensor([3, 1]), places[[3, 1]]
            state.select(rows.tolist())
        found = state.step(ids[rows, places][:, None])[:, 0]
        assert (found - whole[rows, places]).abs().max() < 1e-4
        places = places + 1
