"""A JSONL of texts in German, from corpus to base and evaluation; and what such a run goes on without, said plainly."""

import json
import math
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

WORDS = {
    "who": ["Der Bäcker", "Die Lehrerin", "Das Mädchen", "Der Müller", "Die Ärztin", "Der Fährmann", "Die Gärtnerin"],
    "does": ["findet", "trägt", "zählt", "flickt", "verkauft", "bemalt", "sucht", "hütet"],
    "what": ["Brote", "Laternen", "Landkarten", "Äpfel", "Briefe", "Körbe", "Bücher", "Schlüssel"],
    "where": ["am Hafen", "hinter der Mühle", "unter der Brücke", "in der Straße am Fluss", "auf dem Hügel", "neben der Kirche"],
    "when": ["jeden Morgen", "nach dem Regen", "vor dem Winter", "bis zum späten Abend", "seit dem letzten Frühjahr"],
}
RECIPE = """
name = "deutsch"
seed = 3
threads = 1

[[pages.sources]]
source = "{folder}/texte.jsonl"
domain = "prosa"
text_column = "inhalt"

[annotations]
language = "de"

[corpus]
min_words = 20
min_quality = 0.0
held_out = 0.2

[tokenizer]
vocabulary = 500

[base]
depth = 1
context_length = 256
tokens = 30_000
batch_tokens = 1536

[evaluation]
held_out_kb = 20
sentence_pairs = 10
"""


ENGLISH = json.loads((Path(__file__).parents[1] / "corpus" / "languages.json").read_text(encoding="utf-8"))["en"]


def plain(draw):
    """A sentence without a comma, as sentence pairs are made of, and with an umlaut."""
    who, does, what, where, when = (draw.choice(words) for words in WORDS.values())
    return f"{who} {does} {when} für die Nachbarn {draw.randint(2, 90)} {what} {where}"


def sentence(draw):
    return f"{plain(draw)}, weil es wieder so ist"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, run_groundup):
    folder, draw = tmp_path_factory.mktemp("deutsch"), random.Random(5)
    with (folder / "texte.jsonl").open("w", encoding="utf-8") as file:
        for number in range(60):
            lines = [f"{sentence(draw)}, und {plain(draw)}. {plain(draw)}." for _ in range(10)]
            text = f"Bericht {number}\n\n" + "\n\n".join(lines)
            file.write(json.dumps({"nummer": number, "inhalt": text}, ensure_ascii=number % 2 == 0) + "\n")
        file.write(json.dumps({"inhalt": " ".join(ENGLISH)}) + "\n")
        file.write('{"nummer": 61, "inhalt": null}\n')
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    done = run_groundup("run", folder / "recipe.toml", "--run", folder / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", json.loads(done.stdout)["figures"], done.stderr


def test_german_texts_become_a_model_that_is_measured(outcome):
    folder, figures, said = outcome
    kept = pq.read_table(folder / "corpus" / "documents.parquet").to_pylist()
    assert len(kept) == figures["documents"] == 60 and all("es wieder so ist" in row["text"] for row in kept)
    assert [row["reason"] for row in pq.read_table(folder / "corpus" / "dropped.parquet").to_pylist()] == ["language"]
    assert "texte.jsonl: 1 passed over (no text: 1; first" in said and "texte.jsonl: row 62: no text)" in said
    bytes_per_token = json.loads((folder / "tokenizer" / "stage.json").read_text())["results"]["bytes_per_token"]["prosa"]
    assert figures["bits_per_byte"]["model"] < 0.8 * math.log2(500) / bytes_per_token  # what a model that learned nothing needs
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "ĠfÃ¼r" in tokenizer
    assert "without sentence pairs" not in said


def test_what_it_goes_on_without_is_said_before_the_training_and_in_the_report(outcome):
    folder, figures, said = outcome
    before = said[: said.index("] tokenizer")]
    assert "evaluation leaves out multiple choice: no documented Python source is held out" in before
    assert "sft and what comes after it will be skipped: no questions for train" in before
    assert list(figures["skipped"]) == ["sft", "preferences", "reward", "dpo", "ppo"]
    assert figures["multiple_choice"] == {} and 0 <= figures["sentence_pairs"] <= 1
    report = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "Skipped, as there was nothing to work on: sft (no questions" in report
