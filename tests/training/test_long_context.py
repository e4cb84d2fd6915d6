"""A decoder trained on for a longer context: its positions, its documents, and a kill in the middle."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.data.config import MixtureConfig
from groundup.model import model_folder as model_folder
from groundup.training import loop, pretraining
from groundup.training.config import LongContextConfig, PretrainingConfig
from groundup.training.long_context import lengthened, long_documents, train_longer
from groundup.training.runtime import Runtime

sys.path.insert(0, str(Path(__file__).parent))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

SHORT = PretrainingConfig(depth=1, context_length=16)
LONG = LongContextConfig(context_length=32, tokens=5 * 64, batch_tokens=64)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder, DOCUMENTS, tokenizer())
    return folder


def model(**changes):
    return pretraining.starting_model(SHORT.model_copy(update=changes), tokenizer(), 0)[0]


def train(files, folder, said=None, start=None, mixture=None, **changes):
    said = [] if said is None else said
    return train_longer(
        start or model(), tokenizer(), files, LONG.model_copy(update=changes),
        Runtime(choose(1), folder, "long", 1, said.append), mixture,
    )  # fmt: skip


def rows(folder):
    return [json.loads(line) for line in (folder / "training" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("architecture", ["dense", "experts"])
def test_longer_context(tokens, tmp_path, architecture):
    said = []
    trained, results = train(tokens, tmp_path, said, model(architecture=architecture))
    assert trained.config.max_position_embeddings == 32
    assert trained.config.rope_theta == pytest.approx(10_000 * 2 ** (64 / 62))
    assert results["context"] == {"before": 16, "after": 32} and results["steps"] == len(rows(tmp_path)) == 5
    assert results["held_out_loss"] > 0 and results["rope_base"]["after"] == trained.config.rope_theta
    assert any("at 0.1 of the learning rates; RoPE base 10,000 -> 20,4" in line for line in said), said
    assert any(line.startswith("learning rates: matrices 0.002 by Muon") for line in said)
    model_folder.save(tmp_path / "saved", trained, tokenizer(), chat=False)
    assert model_folder.load_decoder(tmp_path / "saved").config == trained.config


def test_four_times_the_context_where_nothing_is_said(tokens, tmp_path):
    assert train(tokens, tmp_path, context_length=0)[0].config.max_position_embeddings == 64
    assert train(tokens, tmp_path / "odd", context_length=20, tokens=200)[1]["context"]["after"] == 20  # no multiple of 16


def test_no_document_is_read_more_often_than_the_mixture_allows(tokens, tmp_path):
    said = []
    _, results = train(tokens, tmp_path, said, mixture=MixtureConfig(max_repeats=1), tokens=10**6)
    table = pq.read_table(tokens / "documents.parquet").to_pylist()
    long = [row["tokens"] for row in table if row["split"] == "train" and row["tokens"] > 16]
    assert 0.9 * sum(long) < results["tokens"] < sum(long) + 64 and results["documents"] == len(long)
    assert any("as many as the mixture gives, instead of 1,000,000" in line for line in said)


def test_what_cannot_be_is_refused_before_any_training(tokens, tmp_path):
    for changes, why in (
        ({"context_length": 4096, "mixture": MixtureConfig(max_repeats=1)}, "do not fill one row of 4096 tokens"),
        ({"context_length": 16}, "context_length = 16: the model already has 16"),
        ({"start": model(architecture="lstm")}, "for dense decoders and mixtures of experts, not for"),
        ({"start": model(context_length=1024), "context_length": 2048}, "no training document of the .* longer than 1024"),
    ):
        with pytest.raises(UserError, match=why):
            train(tokens, tmp_path, **changes)
    assert not (tmp_path / "training" / "metrics.jsonl").exists()


def test_the_slowest_channels_are_stretched_as_the_context_and_the_fastest_not_at_all():
    short = model()
    config, longer = short.config, lengthened(short, 64)
    half = config.head_dim // 2
    before, after = (c.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half) for c in (config, longer))
    stretched = before / after
    assert stretched[0] == 1 and stretched[-1].item() == pytest.approx(4) and (stretched.diff() > 0).all()


def test_only_long_documents_are_read():
    table = [{"domain": row["domain"], "tokens": 10 * n, "best": True} for n, row in enumerate(DOCUMENTS)]
    mixture = MixtureConfig(weights={"code": 0.5, "prose": 0.5})
    numbers, same = long_documents(table, mixture, 75)
    assert numbers.tolist() == [8, 9, 10, 11] and same == mixture
    numbers, only_prose = long_documents(table[:-1], mixture, 95)
    assert numbers.tolist() == [10] and only_prose.weights == {"prose": 0.5}  # code has no document that long
    with pytest.raises(UserError, match="no training document of the mixture is longer than 200 tokens"):
        long_documents(table, mixture, 200)


class Killed(BaseException):
    pass


def test_killed_it_ends_with_the_same_bits(tokens, tmp_path, monkeypatch):
    whole, results = train(tokens, tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    plain = pretraining.Stream.batches

    def killed(stream, step, *arguments):
        if step == 3:
            raise Killed
        return plain(stream, step, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(pretraining.Stream, "batches", killed)
        train(tokens, tmp_path / "cut")
    assert len(rows(tmp_path / "cut")) == 3
    again, found = train(tokens, tmp_path / "cut")
    assert found == results
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
