"""Perturbed questions: what stays, what changes, the same for the same seed, and the figures of a case worked by hand."""

import gzip
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.core.errors import UserError
from groundup.evaluation import evaluate as evaluation
from groundup.evaluation import robustness
from groundup.evaluation.perturbations import LONG_OF, SHORT_OF, perturb, read_misspellings, reordered
from groundup.evaluation.tasks import Example, Examples, load, open_task
from groundup.model import model_folder

QUESTION = "Question: Maybe the old river doesn't end as it is shown in `map_of.the_river`; which of the 12 seas is it?\nAnswer:"
EXAMPLE = Example(
    3, "", "shown before\n\n" + QUESTION, ("the North Sea", "the old river", "the 3rd"), 1,
    QUESTION.replace("\nAnswer:", "\nA. the North Sea\nB. the old river\nC. the 3rd\nAnswer:"), 14, 0,
)  # fmt: skip
KINDS = [kind for kind in robustness.PERTURBATIONS if kind != "order"]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    path = tmp_path_factory.mktemp("typos") / "codespell.txt.gz"
    lines = [
        "thw->the",
        "shwon->shown",
        "wich->which, witch,",
        "teh->the",
        "sea->seas",
        "seeas->seas",
        "note",
        "endd->end",
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return read_misspellings(path)


def test_misspellings_of_a_file(known, tmp_path):
    assert known.by_word == {"the": ("teh", "thw"), "shown": ("shwon",), "seas": ("sea", "seeas"), "end": ("endd",)}
    path = tmp_path / "none"
    path.write_text("no such lines\n")
    with pytest.raises(UserError, match="no misspellings"):
        read_misspellings(path)
    assert robustness.misspellings(None, tmp_path).by_word is None
    (tmp_path / "typos").mkdir()
    (tmp_path / "typos" / "words.txt").write_text("teh->the\n")
    assert robustness.misspellings(None, tmp_path).by_word == {"the": ("teh",)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "case",
            QUESTION.replace("Maybe", "maybe"),
        ),
        ("contracted", QUESTION.replace("it is shown", "it's shown")),
        ("expanded", QUESTION.replace("doesn't", "does not")),
    ],
)
def test_by_hand(known, kind, expected):
    new = perturb(EXAMPLE, kind, known, 0)
    assert new.prompt == "shown before\n\n" + expected and (new.texts, new.answer) == (EXAMPLE.texts, 1)
    assert new.listed == expected.replace("\nAnswer:", "\nA. the North Sea\nB. the old river\nC. the 3rd\nAnswer:")


def test_real_slips_and_our_own(known):
    wrong = {slip for slips in known.by_word.values() for slip in slips}
    for seed in range(20):
        for misspellings in (known, read_misspellings(None)):
            new = perturb(EXAMPLE, "typos", misspellings, seed)
            before, after = EXAMPLE.prompt.split(" "), new.prompt.split(" ")
            changed = [(old, now) for old, now in zip(before, after, strict=True) if old != now]
            assert changed and new.prompt.startswith("shown before\n\nQuestion: Maybe the old river ")
            assert misspellings is not known or all(now.lower() in wrong for _, now in changed)
            assert "`map_of.the_river`; " in new.prompt and " 12 " in new.prompt
            for _, now in changed:  # in both prompts
                assert now in new.listed


def test_spaces_are_more_of_them(known):
    new = perturb(EXAMPLE, "spaces", known, 0)
    assert new.prompt != EXAMPLE.prompt and new.prompt.split() == EXAMPLE.prompt.split() and "    " not in new.prompt


def test_the_right_option_is_followed():
    seen = set()
    for seed in range(40):
        new = reordered(EXAMPLE, seed)
        seen.add(new.texts)
        assert new.texts[new.answer] == "the old river" and sorted(new.texts) == sorted(EXAMPLE.texts)
        assert new.listed.endswith("".join(f"\n{'ABC'[n]}. {text}" for n, text in enumerate(new.texts)) + "\nAnswer:")
        assert new.prompt == EXAMPLE.prompt
    assert len(seen) == 5  # of 6, but for the order that it had


@pytest.mark.parametrize(
    "text", ["all of the above", "None of these", "both A and B", "neither of the above", "B or C", "the above"]
)
def test_options_that_speak_of_others_stay(text):
    listed = EXAMPLE.listed.replace("C. the 3rd", f"C. {text}")
    assert reordered(replace(EXAMPLE, texts=(*EXAMPLE.texts[:2], text), listed=listed), 0).listed == listed


@pytest.mark.parametrize("mark", [". ", ") ", ": "])
def test_options_that_stand_in_other_words(mark):
    """`A` stands in `Answer`, `4` in `44`, and in the question."""
    texts = ("44", "4", "A")
    listed = "Is 4 or 44 A?\n" + "".join(f"{'ABC'[n]}{mark}{text}\n" for n, text in enumerate(texts)) + "Answer:"
    new = reordered(Example(0, "", "", texts, 0, listed), 1)
    assert new.texts != texts and new.texts[new.answer] == "44"
    assert (
        new.listed
        == "Is 4 or 44 A?\n" + "".join(f"{'ABC'[n]}{mark}{text}\n" for n, text in enumerate(new.texts)) + "Answer:"
    )


def test_alternatives_change_alike(known):
    texts = (
        "The river that Ann had shown to Bea was as old as Ann",
        "The river that Ann had shown to Bea was as old as Bea",
    )
    example = Example(0, "", "has shown.", texts, 0)
    for kind in KINDS:
        new = perturb(example, kind, known, 0, alternatives=True)
        assert new.prompt == example.prompt and [text[-3:] for text in new.texts] == ["Ann", "Bea"]
        assert new.texts[0][:-3] == new.texts[1][:-3]
        assert (new.texts != texts) == (kind in ("typos", "case", "spaces"))


@settings(max_examples=30)
@given(st.text(max_size=80), st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=4), st.integers(0, 99))
def test_any_text(text, options, number):
    """Twice the same, digits and code stay, and the answers as often as before."""
    known = read_misspellings(None)
    example = Example(number, "", f"{text} `code X` 2x3 stays", tuple(options), 0)
    for kind in robustness.PERTURBATIONS:
        new = perturb(example, kind, known, 0)
        assert new == perturb(example, kind, known, 0)
        assert kind == "order" or new.texts == example.texts
        assert "2x3" in new.prompt and [one for one in new.prompt if one.isdigit()] == [
            one for one in example.prompt if one.isdigit()
        ]


@given(st.sampled_from(sorted(SHORT_OF)))
def test_contractions_are_each_others_inverse(long):
    example = Example(0, "", f"so {long} there", ("a", "b"))
    short = perturb(example, "contracted", read_misspellings(None), 0)
    assert short.prompt == f"so {SHORT_OF[long]} there" and LONG_OF[SHORT_OF[long].lower()].lower() in (long, "cannot")
    assert perturb(short, "expanded", read_misspellings(None), 0).prompt.lower() in (example.prompt, "so cannot there")


def test_figures_by_hand():
    """Of 4: clean 1101; slips change two (0, 1) and turn the first; case changes all, of which one cannot be scored."""
    task = open_task("existence")  # any without groups
    clean = {n: (right, "g") for n, right in enumerate((1.0, 1.0, 0.0, 1.0))}

    def variant(kind, numbers):
        return replace(task, perturbation=f"{kind} 0"), Examples([Example(n, "", "", ()) for n in numbers])

    some = [variant("typos", (0, 1)), variant("case", (0, 1, 2, 3))]
    found = robustness.figures(clean, some, [{0: (0.0, "g"), 1: (1.0, "g")}, {0: (1.0, "g"), 1: (0.0, "g"), 2: (1.0, "g")}])
    # Of 0, 1, 2: clean 110, slips 010, case 101.
    assert found["skipped"] == 1 and found["clean"]["accuracy"] == pytest.approx(2 / 3)
    assert found["typos"]["accuracy"] == pytest.approx(1 / 3) and found["typos"]["changed"] == 2
    assert (
        found["typos"]["difference"]["difference"] == pytest.approx(-1 / 3) and found["typos"]["difference"]["p"] == 1.0
    )
    assert found["case"]["accuracy"] == pytest.approx(2 / 3) and found["case"]["difference"]["difference"] == 0
    assert found["mean"]["accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)
    assert found["worst"]["accuracy"] == 0 and found["worst"]["n"] == 3


# --- with a model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(toy_decoder, toy_tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("robust") / "one"
    model_folder.save(
        place, toy_decoder(vocab_size=toy_tokenizer.size, max_position_embeddings=256), toy_tokenizer, chat=False
    )
    return place


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    place = tmp_path_factory.mktemp("rows")
    words = ["file", "path", "it returns", "object"]
    rows = [
        f"{'xy'[n % 2]},What is {words[n % 4]} "
        f"that isn't returned where it is wanted?,{words[n % 3]},the path,{n},it returns it,{'ABCD'[n % 4]}"
        for n in range(12)
    ]
    (place / "mmlu_test.csv").write_text("subject,question,A,B,C,D,answer\n" + "\n".join(rows))
    lines = [{"sentence_good": "it returns", "sentence_bad": "returns it", "UID": "x"}] * 3
    (place / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return place


def test_the_verb(groundup_here, model, rows, tmp_path):
    words = [
        "evaluate",
        model,
        "--task",
        "mmlu",
        "--data",
        rows / "mmlu_test.csv",
        "--few-shot",
        0,
        "--out",
        tmp_path / "out",
    ]
    done = groundup_here(*words, "--misspellings", tmp_path)
    assert done.returncode == 2 and "--misspellings needs --robustness" in done.stderr
    done = groundup_here(*words, "--robustness")
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout.splitlines()[-1])["results"]
    found = result["robustness"]
    assert [*found] == ["skipped", "clean", *robustness.PERTURBATIONS, "mean", "worst"]
    assert found["clean"]["accuracy"] == result["accuracy"]["letter"]["accuracy"]
    assert found["worst"]["accuracy"] <= min(found[kind]["accuracy"] for kind in robustness.PERTURBATIONS)
    assert "perturbed" in done.stderr and "worst" in done.stderr
    records = [json.loads(line) for line in (tmp_path / "out/one/mmlu.case.jsonl").read_text().splitlines()]
    assert len(records) == 12
    # Other slips are other records.
    (tmp_path / "slips").write_text("retrned->returned\n")
    done = groundup_here(*words, "--robustness", "--misspellings", tmp_path / "slips")
    assert done.returncode == 0 and done.stderr.count("started again") == 1 and "mmlu.typos" in done.stderr


def test_what_a_perturbation_leaves_is_the_clean_result(model, rows):
    """By all examples scored anew: those that it did not change come out as before."""
    task = open_task("mmlu", rows / "mmlu_test.csv", 0)
    examples = load(task)
    [(variant, changed)] = [
        one for one in robustness.variants(task, examples, read_misspellings(None)) if ".order" in one[0].name
    ]
    assert [row.number for row in changed.rows] == [*range(12)]
    found = evaluation.evaluate([str(model)], ["mmlu"], rows / "mmlu_test.csv", few_shot=0, robust=True)["results"][0][
        "robustness"
    ]
    scored = evaluation.records_of(evaluation.open_model(str(model)), variant, changed.rows)
    right = [
        record["letters"].index(max(record["letters"])) == row.answer
        for record, row in zip(scored, changed.rows, strict=True)
    ]
    assert found["order"]["accuracy"] == pytest.approx(sum(right) / 12)


def test_minimal_pairs_are_not_perturbed(model, rows, monkeypatch):
    said = []
    monkeypatch.setattr(robustness.logger, "warning", lambda text, *_: said.append(text))
    [result] = evaluation.evaluate([str(model)], ["blimp"], rows, robust=True)["results"]
    assert "robustness" not in result and "very form" in said[0]
