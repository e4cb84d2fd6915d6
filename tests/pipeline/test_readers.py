"""Each reader of a run refuses what was altered since it was made."""

import pytest

from groundup.cli import talk as chat
from groundup.core.errors import UserError
from groundup.core.files import write_text
from groundup.corpus.select import thresholds
from groundup.model import model_folder as model_folder
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Run, Step
from groundup.report.tensorboard import export
from groundup.tokenizer import bpe, documents, load
from groundup.tokenizer.glitch_tokens import read_embeddings
from groundup.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def other_tokenizer():
    """Of the same size as toy_tokenizer, and other merges."""
    return Tokenizer.from_merges(bpe.train(bpe.count_pretokens(["another corpus about dogs and other animals in zoos"] * 9), 300))


@pytest.fixture
def run(tmp_path, toy_decoder, toy_tokenizer):
    def dpo(context):
        model_folder.save(context.work, toy_decoder(vocab_size=toy_tokenizer.size), toy_tokenizer, chat=True)
        write_text(context.work / "training" / "metrics.jsonl", '{"step": 0, "loss": 1.25}\n')
        write_text(context.work / "rows.jsonl", '{"text": "one"}\n')
        return {}

    recipe = Recipe.model_validate({"name": "x", "pages": {"sources": [{"source": "topics:", "domain": "a"}]}})
    Run(tmp_path / "run", recipe, (Step("dpo", (), dpo),)).execute()
    return tmp_path / "run"


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def talk(run):
    return chat.talk(run, "dpo", 0.0, 4, 0)


def test_chat_refuses_a_flipped_bit_of_the_model(run, monkeypatch):
    flip(run / "dpo" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors was altered since stage dpo made it"):
        talk(run)


def test_chat_refuses_the_tokenizer_of_another_run(run, other_tokenizer):
    before = (run / "dpo" / "tokenizer.json").read_bytes()
    other_tokenizer.save(run / "dpo", model_max_length=64, chat=True)
    assert (run / "dpo" / "tokenizer.json").read_bytes() != before
    with pytest.raises(UserError, match=r"tokenizer\.json was altered"):
        talk(run)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("training/metrics.jsonl", lambda run: export(run, run / "boards")),
        ("tokenizer.json", lambda run: load.load(run / "dpo")),
        ("tokenizer.json", lambda run: Tokenizer.load(run / "dpo")),
        ("model.safetensors", lambda run: read_embeddings(run / "dpo")),
        ("rows.jsonl", lambda run: documents.find([run / "dpo" / "rows.jsonl"])),
    ],
)
def test_other_readers_check_what_they_read_and_only_that(run, name, read):
    read(run)
    flip(run / "dpo" / "config.json")  # which none of these reads
    read(run)
    flip(run / "dpo" / name)
    with pytest.raises(UserError, match="was altered since stage dpo made it"):
        read(run)


def test_tune_checks_the_annotations(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def annotations(context):
        table = pa.table({"url": ["u", "v"], "text": ["a b", "c d"], "words": pa.array([2, 2], pa.int32()), "personal": [[], []]})
        pq.write_table(table, context.work / "annotations-00-a-00000.parquet")
        return {}

    recipe = Recipe.model_validate({"name": "x", "pages": {"sources": [{"source": "topics:", "domain": "a"}]}})
    Run(tmp_path, recipe, (Step("annotations", (), annotations),)).execute()
    assert thresholds.tune(tmp_path, ["words"], 1)["documents"] == 2
    flip(tmp_path / "annotations" / "annotations-00-a-00000.parquet")
    for folder in (tmp_path, tmp_path / "annotations"):
        with pytest.raises(UserError, match=r"annotations-00-a-00000\.parquet was altered"):
            thresholds.tune(folder, ["words"], 1)
