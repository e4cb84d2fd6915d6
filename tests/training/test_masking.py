from functools import partial

import pytest
import torch
import torch.nn.functional as F

from groundup.encoder.bert import EncoderConfig, MaskedLanguageModel, initialise
from groundup.encoder.masking import masked, masked_token
from groundup.tokenizer.wordpiece import WordPiece, count_words, train
from groundup.training import loop
from groundup.training.optimizer import Optimizer, one_lr

TOKENIZER = WordPiece(train(count_words(["the mouse ate the cheese", "a cat saw the mouse run"] * 3), 80))
SPECIAL = torch.tensor(sorted(TOKENIZER.special_tokens.values()))


def rows(count, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    some = torch.randint(len(SPECIAL), TOKENIZER.size, (count, time), generator=generator)
    some[:, 0], some[:, -1] = TOKENIZER.classify, TOKENIZER.separator
    return some


def model(width=32):
    made = MaskedLanguageModel(EncoderConfig(TOKENIZER.size, width, 2, 2, 4 * width, 32, pad_token_id=TOKENIZER.pad))
    initialise(made, 0)
    return made


def test_what_is_asked_for_is_as_bert_has_it():
    some = rows(200, 32)
    batch = masked(some, TOKENIZER, seed=1)
    asked, ids = batch["weight"] > 0, batch["ids"]
    assert torch.equal(batch["targets"], some) and torch.equal(ids[~asked], some[~asked])
    assert not torch.isin(some[asked], SPECIAL).any()
    assert asked[:, 1:-1].float().mean().item() == pytest.approx(0.15, abs=0.015)
    as_mask, kept = ids[asked] == TOKENIZER.mask, ids[asked] == some[asked]
    assert as_mask.float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.04)
    assert not torch.isin(ids[asked][~as_mask], SPECIAL).any()
    assert batch["weight"].sum().item() == pytest.approx(1)
    assert torch.equal(masked(some, TOKENIZER, seed=1)["ids"], ids)
    assert not torch.equal(masked(some, TOKENIZER, seed=2)["ids"], ids)


def test_one_token_is_enough_and_none_is_refused():
    batch = masked(torch.tensor([[TOKENIZER.classify, 9, TOKENIZER.separator]]), TOKENIZER, seed=0)
    assert (batch["weight"] > 0).tolist() == [[False, True, False]]
    with pytest.raises(ValueError, match="all are special"):
        masked(torch.full((2, 3), TOKENIZER.pad), TOKENIZER, seed=0)


def test_loss_and_accuracy_are_of_what_is_asked():
    made, batch = model(), masked(rows(4, 16), TOKENIZER, seed=3)
    loss, metrics = masked_token(made, batch, torch.float32)
    asked = batch["weight"] > 0
    logits = made(batch["ids"])[asked]
    assert loss.item() == pytest.approx(F.cross_entropy(logits, batch["targets"][asked]).item(), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == batch["targets"][asked]).float().mean().item())


def test_an_encoder_learns_what_stands_behind_the_masks(tmp_path):
    made = model()
    some = torch.arange(10, 26).repeat(8, 1)  # every row is the same
    history = loop.train(
        made, partial(masked_token, dtype=torch.float32), lambda step: [masked(some, TOKENIZER, seed=step)],
        Optimizer(made, one_lr(3e-3)), lambda step: 1.0, 60, tmp_path, "masked",
    )  # fmt: skip
    assert history[0]["accuracy"] < 0.4 and sum(row["accuracy"] for row in history[-10:]) / 10 > 0.9
