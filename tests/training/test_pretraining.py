import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from groundup.core.device import choose
from groundup.core.errors import UserError
from groundup.data import token_files
from groundup.data.config import MixtureConfig
from groundup.data.token_files import TokenFile
from groundup.model import model_folder as model_folder
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.training import loop, pretraining
from groundup.training.config import PretrainingConfig
from groundup.training.runtime import Runtime

sys.path.insert(0, str(Path(__file__).parent))
from toy_corpus import DOCUMENTS, tokenizer, write_tokens

SETTINGS = PretrainingConfig(depth=1, context_length=16, tokens=8 * 64, batch_tokens=64)
BYTES = Tokenizer.from_merges([])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder, DOCUMENTS, tokenizer())
    return folder


def pretrain(token_files, folder, said=None, encoder=None, mixture=None, **changes):
    settings = SETTINGS.model_copy(update=changes)
    said = [] if said is None else said
    return pretraining.pretrain(
        encoder or tokenizer(), token_files, settings, Runtime(choose(1), folder, "base", 1, said.append), mixture
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "training" / "metrics.jsonl").read_text().splitlines()]


def test_every_decision_is_said_and_the_model_learns(tokens, tmp_path):
    said = []
    model, results = pretrain(tokens, tmp_path, said, tokens=40 * 64)
    assert results["steps"] == 40 and results["tokens"] == 40 * 64 and results["skipped_steps"] == 0
    assert results["held_out_loss"] < math.log(tokenizer().size) - 1
    assert any(line.startswith("40 steps of 4 x 16 tokens") for line in said)
    assert any("GFLOP/s" in line for line in said)
    assert rows(tmp_path)[-1]["held_out"] == results["held_out_loss"]
    # What it ended at is no single batch's loss.
    last = [row["loss"] for row in rows(tmp_path)[-2:]]
    assert results["train_loss_steps"] == 2 and results["train_loss"] == pytest.approx(sum(last) / 2, rel=1e-6)
    assert any(line.startswith(f"loss {sum(last) / 2:.3f}, mean of the last 2 steps; on held-out") for line in said)


def test_what_the_settings_leave_open_follows_from_the_depth(tokens, tmp_path):
    said = []
    table = pq.read_table(tokens / "documents.parquet").to_pylist()
    available = sum(row["tokens"] for row in table if row["split"] == "train")
    model, results = pretrain(tokens, tmp_path, said, mixture=MixtureConfig(max_repeats=2), tokens=0, batch_tokens=0)
    parameters = results["parameters"]["without_embedding"]
    assert 2 * available < 12 * parameters  # so the data decide
    assert 2 * available - results["tokens"] < 256
    assert any("as many as the mixture gives" in line for line in said)
    assert any("tokens per step: 4,096 x" in line for line in said)
    assert any("no weight decay" in line for line in said)


def test_no_document_is_read_more_often_than_the_mixture_allows(tokens, tmp_path):
    said = []
    mixture = MixtureConfig(max_repeats=1)
    _, results = pretrain(tokens, tmp_path, said, mixture=mixture, tokens=10**6)
    table = pq.read_table(tokens / "documents.parquet").to_pylist()
    lengths = [row["tokens"] for row in table if row["split"] == "train"]
    assert 0.9 * sum(lengths) < results["tokens"] < sum(lengths) + 64
    assert any("as many as the mixture gives, instead of 1,000,000" in line for line in said)


def test_a_step_of_more_tokens_than_there_are_reads_them_no_more_often(tokens, tmp_path):
    table = pq.read_table(tokens / "documents.parquet").to_pylist()
    available = sum(row["tokens"] for row in table if row["split"] == "train")
    _, results = pretrain(tokens, tmp_path, mixture=MixtureConfig(max_repeats=1), tokens=10**6, batch_tokens=100_000)
    assert results["steps"] == 1 and 0.9 * available < results["tokens"] <= available


def test_weight_decay_is_of_matrices_alone(tokens, tmp_path):
    found = [
        pretrain(tokens, tmp_path / str(decay), weight_decay=decay, tokens=20 * 64)[0].state_dict() for decay in (0.0, 20.0)
    ]
    smaller = {name for name in found[0] if found[1][name].norm() < 0.8 * found[0][name].norm()}
    assert smaller == {name for name in found[0] if ".layers." in name and name.endswith("proj.weight")}


def test_without_a_row_of_held_out_text_there_is_no_held_out_loss(tokens, tmp_path):
    nothing = shutil.copytree(tokens, tmp_path / "tokens")
    token_files.write(nothing / "held_out", [], np.dtype(np.uint16))
    _, results = pretrain(nothing, tmp_path / "run")
    assert results["held_out_loss"] is None and "held_out" not in rows(tmp_path / "run")[-1]


ARCHITECTURES = ["dense", "experts", "lstm", "convolution", "patches"]


@pytest.fixture(scope="module")
def byte_tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    write_tokens(folder, DOCUMENTS, BYTES)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_trained_saved_and_stands_a_kill(
    tokens, byte_tokens, tmp_path, monkeypatch, architecture
):
    encoder, files = (BYTES, byte_tokens) if architecture == "patches" else (tokenizer(), tokens)
    changes = {"architecture": architecture, "tokens": 20 * 64, "micro_batch_tokens": 32}
    said = []
    model, results = pretrain(files, tmp_path / "whole", said, encoder, **changes)
    assert results["held_out_loss"] < rows(tmp_path / "whole")[0]["loss"] - 1
    assert results["flop"] > 0 and results["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    model_folder.save(tmp_path / "saved", model, encoder, chat=False)
    loaded = model_folder.load_decoder(tmp_path / "saved")
    ids = torch.arange(20)[None]
    assert type(loaded) is type(model) and torch.equal(loaded(ids), model(ids))

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    plain = pretraining.Stream.batches

    def killed(stream, step, *arguments):
        if step == 12:
            raise Killed
        return plain(stream, step, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(pretraining.Stream, "batches", killed)
        pretrain(files, tmp_path / "cut", encoder=encoder, **changes)
    pretrain(files, tmp_path / "cut", encoder=encoder, **changes)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_experts_are_balanced_and_the_metrics_show_it(tokens, tmp_path):
    said = []
    _, results = pretrain(tokens, tmp_path, said, architecture="experts", experts=4, micro_batch_tokens=32)
    assert results["parameters"]["active"] < results["parameters"]["total"]
    assert any("4 experts of 96, 2 a token" in line for line in said)
    for row in rows(tmp_path):
        assert 1 <= row["max_load"] <= 2 and 0 <= row["dead_experts"] <= 4 and 0 < row["router_entropy"] <= 1


def test_what_an_architecture_cannot_do_is_refused_in_a_line(tokens, tmp_path):
    with pytest.raises(UserError, match=r"'patches' reads bytes, but the tokenizer has \d+ tokens; train one of 260"):
        pretrain(tokens, tmp_path, architecture="patches")
    with pytest.raises(UserError, match=r"experts_per_token: 5 of 8 experts cannot share an MLP of 192"):
        pretrain(tokens, tmp_path, architecture="experts", experts_per_token=5)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def published(tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model, _ = pretrain(tokens, folder / "work", tokens=40 * 64)
    model_folder.save(folder / "model", model, tokenizer(), chat=False)
    return folder / "model"


def test_training_continues_from_a_folder(tokens, tmp_path, published):
    said = []
    _, anew = pretrain(tokens, tmp_path / "anew")
    model, continued = pretrain(tokens, tmp_path / "on", said, start_from=str(published), depth=7, lr_scale=0.1)
    assert rows(tmp_path / "on")[0]["loss"] < rows(tmp_path / "anew")[0]["loss"] - 1
    assert continued["held_out_loss"] < anew["held_out_loss"]
    assert model.config == model_folder.load_decoder(published).config
    assert any(str(published) in line for line in said)


def test_another_tokenizer_or_a_longer_context_is_refused(tokens, tmp_path, published):
    other = Tokenizer.from_merges(tokenizer().merges[:-1])
    with pytest.raises(UserError, match=r"its tokenizer \(\d+ tokens\) is not the one .* encode the texts with its own"):
        pretrain(tokens, tmp_path, encoder=other, start_from=str(published))
    with pytest.raises(UserError, match=r"^context_length = 64: the model in .* was trained on 16; .* a longer context"):
        pretrain(tokens, tmp_path, start_from=str(published), context_length=64)


def test_token_files_of_another_vocabulary_are_refused_before_training(tokens, tmp_path):
    largest = int(TokenFile(tokens / "train").tokens.max())
    smaller = Tokenizer.from_merges(tokenizer().merges[:4])
    assert largest >= smaller.size
    with pytest.raises(
        UserError, match=rf"train.bin: document \d+ holds token id \d+, the vocabulary has {smaller.size}"
    ):
        pretrain(tokens, tmp_path, encoder=smaller)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("documents", [3, 30])
def test_a_table_of_other_documents_is_refused(tokens, tmp_path, documents):
    other = shutil.copytree(tokens, tmp_path / "tokens")
    token_files.write(other / "train", [np.arange(90)] * documents, np.dtype(np.uint16))
    with pytest.raises(UserError, match=r"documents.parquet lists other documents than train.bin holds; encode"):
        pretrain(other, tmp_path / "run")


@pytest.mark.parametrize("changes", [{"context_length": 4096}, {"mixture": MixtureConfig(max_repeats=1e-6)}])
def test_documents_that_do_not_fill_a_row_are_refused(tokens, tmp_path, changes):
    with pytest.raises(UserError, match=r"do not fill one row of \d+ tokens; take more pages"):
        pretrain(tokens, tmp_path, **changes)


def test_the_measured_peak_is_a_rate_of_this_machine():
    for dtype in (torch.float32, torch.bfloat16):
        assert 1e8 < pretraining.measured_peak(torch.device("cpu"), dtype) < 1e15
