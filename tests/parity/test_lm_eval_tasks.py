"""Shipped tasks and lm-eval's own, on one folder and the same local rows: the same prompts, likelihoods and accuracies."""

import json
import os
from pathlib import Path

import pytest

from groundup.evaluation import evaluate as evaluation
from groundup.evaluation.open_model import open_model
from groundup.evaluation.scoring import records_of
from groundup.evaluation.tasks import load, open_task
from groundup.model import model_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
pytest.importorskip("lm_eval", reason="needs the `test` extra")
pytest.importorskip("transformers", reason="needs the `test` extra")
pytest.importorskip("datasets", reason="needs the `test` extra")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from groundup.core.errors import UserError
from groundup.evaluation.lm_eval_model import GroundupLM

CLOSE = 1e-4
TASKS = Path(lm_eval.__file__).with_name("tasks")
ARC = [
    {"question": "What is it?", "choices": {"text": ["the path", "it", "def"], "label": ["A", "B", "C"]}, "answerKey": "B"},
    {"question": "What is 漢?", "choices": {"text": ["é", "what", "a path"], "label": ["1", "2", "3"]}, "answerKey": "3"},
]
MMLU = [
    {"question": " Which path? ", "subject": "college_biology", "choices": ["file", "the path of", "it", "no"], "answer": 2},
    {"question": "What does the\nfunction return", "subject": "college_biology", "choices": ["1", "2", "3", "4"], "answer": 0},
    {"question": "What returns?", "subject": "college_biology", "choices": ["def", "return", "the", "file "], "answer": 3},
]
# The task of ours, lm-eval's file, and rows as the Hugging Face Hub has them.
CASES = {
    "piqa": ("piqa/piqa.yaml", [
        {"goal": "return the file", "sol1": "by its path", "sol2": "by the function of the file", "label": 1},
        {"goal": "", "sol1": "def", "sol2": "it returns", "label": 0},
    ]),
    "arc_easy": ("arc/arc_easy.yaml", ARC),
    "arc_challenge": ("arc/arc_challenge.yaml", ARC[::-1]),
    "hellaswag": ("hellaswag/hellaswag.yaml", [
        {"activity_label": "Files", "ctx_a": "[header] How to return [title] a path [step] Now.", "ctx_b": "it", "label": "1",
         "endings": ["returns [title] the  file.", "[substeps] is the path.", "does what", "a [x] b [y"]},
    ]),
    "winogrande": ("winogrande/default.yaml", [
        {"sentence": "The file returns the path, so the _ does it.", "option1": "file", "option2": "path", "answer": "2"},
    ]),
    "copa": ("super_glue/copa/default.yaml", [
        {"premise": "It returns the file.", "question": "cause", "choice1": "The path is it.", "choice2": "What?", "label": 0},
        {"premise": "The file is def. ", "question": "effect", "choice1": "It returns.", "choice2": "The path.", "label": 1},
    ]),
    "lambada": ("lambada/lambada_openai.yaml", [
        {"text": "it returns the path of the file"}, {"text": "what does the function\n\nreturn the path"},
    ]),
    "blimp": ("blimp/wh_island.yaml", [
        {"sentence_good": "What does it return?", "sentence_bad": "What it does return?", "UID": "wh_island"},
        {"sentence_good": "The file returns.", "sentence_bad": "The file return.", "UID": "wh_island"},
    ]),
    "mmlu": ("mmlu/default/mmlu_college_biology.yaml", MMLU),
    "crows_pairs": ("crows_pairs/crows_pairs_english.yaml", [
        {"sent_more": "the file is it", "sent_less": "the path is it", "bias_type": "x"},
    ]),
}  # fmt: skip
GSM8K = [{"question": f"What is {n} + {n}?", "answer": f"It returns {2 * n}.\n#### {2 * n}"} for n in range(9)]
DEV = [{"question": f"What is {word}?", "subject": "college_biology", "choices": [word, "it", "a file", "def"], "answer": n % 4}
       for n, word in enumerate(["path", "return", "the", "of", "function", "does"])]  # fmt: skip


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def place(toy_decoder, toy_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "model"
    # Shorter than one of the prompts of five examples, so that both cut it; of sizes that the kernels score.
    model = toy_decoder(seed=1, scale=0.2, vocab_size=toy_tokenizer.size, max_position_embeddings=330, head_dim=32)
    model_folder.save(path, model, toy_tokenizer, chat=False)
    return path


DRIVEN = ("piqa", "blimp", "lambada")
SERVED = ("piqa", "lambada", "mmlu")


@pytest.fixture(scope="module")
def theirs(place, tmp_path_factory):
    """Samples of lm-eval by task of ours, and of another number of examples; by "driven" where it drives our object.

    By "samples" what finds them for another model.
    """
    work = tmp_path_factory.mktemp("lm_eval")
    write_rows(work / "dev.jsonl", DEV)
    for name, (built_in, rows) in {**CASES, "gsm8k": ("gsm8k/gsm8k.yaml", GSM8K[:3])}.items():
        write_rows(work / f"{name}.jsonl", rows)
        # Its tasks ask for their other splits even where they read none of them.
        files = {split: str(work / f"{name}.jsonl") for split in ("train", "validation", "test")}
        if name == "mmlu":
            files["dev"] = str(work / "dev.jsonl")
        if name == "gsm8k":
            files["train"] = str(work / "gsm8k_train.jsonl")
            write_rows(work / "gsm8k_train.jsonl", GSM8K[3:])
        yaml = f"""include: {TASKS / built_in}
task: ours_{name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs: {{cache_dir: {work / 'cache'}, data_files: {json.dumps(files)}}}
"""
        (work / f"{name}.yaml").write_text(yaml)
    manager = TaskManager(include_path=str(work), include_defaults=False)
    peer = HFLM(str(place), device="cpu", dtype="float32", batch_size=3)

    def samples(names, shots, model=peer):
        found = lm_eval.simple_evaluate(
            model=model, tasks=[f"ours_{name}" for name in names], num_fewshot=shots, task_manager=manager, log_samples=True,
            bootstrap_iters=0, gen_kwargs="max_gen_toks=4" if "gsm8k" in names else None,
        )  # fmt: skip
        return {name: sorted(found["samples"][f"ours_{name}"], key=lambda one: one["doc_id"]) for name in names}

    driven = samples(DRIVEN, 0, GroundupLM(str(place), 3)) | samples(["gsm8k"], 2, GroundupLM(str(place), 2))
    found = samples([*CASES], 0) | {"mmlu 5": samples(["mmlu"], 5)["mmlu"]} | samples(["gsm8k"], 2)
    return found | {"driven": driven, "samples": samples}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same rows under the names of our tasks' files."""
    work = tmp_path_factory.mktemp("data")
    for name, (_, rows) in CASES.items():
        write_rows(work / f"{name}.jsonl", rows)
    return work


def ours(place, data, name, shots=0):
    task = open_task(name, data / f"{name}.jsonl", shots)
    examples = load(task)
    assert not examples.refused
    return task, examples, records_of(open_model(str(place)), task, examples.rows)


def prompts_and_nats(name, example, record):
    """What lm-eval calls arguments, and our likelihoods of them."""
    if name == "mmlu":
        return [(example.listed, f" {letter}") for letter in "ABCD"], record["letters"]
    if name == "lambada":
        return [(example.prompt, " " + example.texts[0])], [record["nats"]]
    if name == "winogrande":
        return [(text, " " + example.prompt) for text in example.texts], record["answers"]
    space = {"crows_pairs": "", "copa": "  "}.get(name, " ")
    return [(example.prompt, space + text) for text in example.texts], record["answers"]


@pytest.mark.parametrize("name", [*CASES, "mmlu 5"])
def test_prompts_likelihoods_and_accuracies(name, place, theirs, data):
    if name == "mmlu 5":
        (data / "mmlu_dev.csv").write_text(
            "subject,question,A,B,C,D,answer\n"
            + "".join(f"{r['subject']},{r['question']},{','.join(r['choices'])},{'ABCD'[r['answer']]}\n" for r in DEV)
        )
    task, examples, records = ours(place, data, name.split()[0], 5 if name == "mmlu 5" else 0)
    assert len(records) == len(theirs[name]) == len(CASES[name.split()[0]][1])
    for example, record, sample in zip(examples.rows, records, theirs[name], strict=True):
        arguments, nats = prompts_and_nats(name.split()[0], example, record)
        assert [tuple(one) for one in sample["arguments"]] == arguments
        assert nats == pytest.approx([one[0][0] for one in sample["resps"]], abs=CLOSE)
        assert not record["truncated"] or name == "mmlu 5"
    found = evaluation.summary(task, examples, records)
    if name == "crows_pairs":
        assert found["accuracy"]["answer"]["accuracy"] == sum(one["pct_stereotype"] for one in theirs[name]) / len(records)
        return
    mine = found["accuracy"]["letter" if name.startswith("mmlu") else "answer"]["accuracy"]
    assert mine == pytest.approx(sum(one["acc"] for one in theirs[name]) / len(records))
    if "acc_norm" in theirs[name][0]:
        mine = found["accuracy"]["answer per character"]["accuracy"]
        assert mine == pytest.approx(sum(one["acc_norm"] for one in theirs[name]) / len(records))


def test_lm_eval_drives_our_object(place, theirs, data):
    """The same as its hf model on the same folder, and as `groundup evaluate` on the same rows."""
    for name in DRIVEN:
        for ours_, theirs_ in zip(theirs["driven"][name], theirs[name], strict=True):
            assert [one[0][0] for one in ours_["resps"]] == pytest.approx([one[0][0] for one in theirs_["resps"]], abs=CLOSE)
            assert [one[0][1] for one in ours_["resps"]] == [one[0][1] for one in theirs_["resps"]]
            assert (ours_["acc"], ours_.get("acc_norm")) == (theirs_["acc"], theirs_.get("acc_norm"))
        _, examples, records = ours(place, data, name)
        for example, record, sample in zip(examples.rows, records, theirs["driven"][name], strict=True):
            _, nats = prompts_and_nats(name, example, record)
            assert nats == pytest.approx([one[0][0] for one in sample["resps"]], abs=1e-5)
    written = [one["resps"] for one in theirs["driven"]["gsm8k"]]
    assert written == [one["resps"] for one in theirs["gsm8k"]] and any(text for [[text]] in written)


def test_lm_eval_asks_our_server(place, theirs, data, listening):
    """Choices, last words and letters, worked answers, and perplexity: as `groundup evaluate` finds them in the folder."""
    pytest.importorskip("fastapi", reason="needs the `serve` extra")
    pytest.importorskip("tenacity", reason="needs lm-eval's `api` extra")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from groundup.serving.loaded_models import Capacity, open_all

    with listening(open_all([f"toy={place}"], Capacity())) as address:
        settings = {"tokenizer_backend": "huggingface", "tokenizer": str(place), "add_bos_token": True, "max_length": 330}
        peer = LocalCompletionsAPI(base_url=f"{address}/v1/completions", model="toy", batch_size=4, **settings)
        found = theirs["samples"](SERVED, 0, peer) | theirs["samples"](["gsm8k"], 2, peer)
    for name in SERVED:
        task, examples, records = ours(place, data, name)
        for example, record, sample in zip(examples.rows, records, found[name], strict=True):
            _, nats = prompts_and_nats(name, example, record)
            assert nats == pytest.approx([one[0][0] for one in sample["resps"]], abs=CLOSE)
        mine = evaluation.summary(task, examples, records)["accuracy"]["letter" if name == "mmlu" else "answer"]["accuracy"]
        assert mine == pytest.approx(sum(one["acc"] for one in found[name]) / len(records))
    assert [one["resps"] for one in found["gsm8k"]] == [one["resps"] for one in theirs["gsm8k"]]


def test_what_our_object_cannot_answer(place):
    model = GroundupLM(str(place))
    sampled = Instance(request_type="generate_until", doc={}, arguments=("the", {"until": "x", "do_sample": True}), idx=0)
    with pytest.raises(UserError, match="greedy"):
        model.generate_until([sampled])
    long = Instance(request_type="loglikelihood", doc={}, arguments=("the", " path" * 400), idx=0)
    with pytest.raises(UserError, match="longer than the model"):
        model.loglikelihood([long])


def test_random_examples_are_the_same(theirs, tmp_path):
    """Drawn for each question, by the same generator in the same order."""
    write_rows(tmp_path / "gsm8k_test.jsonl", GSM8K[:3])
    write_rows(tmp_path / "gsm8k_train.jsonl", GSM8K[3:])
    prompts = [example.prompt for example in load(open_task("gsm8k", tmp_path, few_shot=2)).rows]
    samples = {sample["doc_id"]: sample["arguments"][0][0] for sample in theirs["gsm8k"]}  # one for each of two filters
    assert prompts == [*samples.values()] and len({*prompts}) == 3


def test_perplexity_in_its_windows(place, tmp_path):
    """Told to put nothing before a text but the first token, which it predicts from; else it predicts that one too."""
    texts = ["the path", "it returns the path of the file " * 9, "what does the function é return\n" * 60]
    write_rows(tmp_path / "texts.jsonl", [{"t": text} for text in texts])
    settings = 'kind = "perplexity"\nfiles = ["texts.jsonl"]\ntext = "{{ t }}"\nwindows = "disjoint"\n'
    (tmp_path / "own.toml").write_text(settings)
    task = open_task(str(tmp_path / "own.toml"))
    examples = load(task)
    records = records_of(open_model(str(place)), task, examples.rows)
    peer = HFLM(str(place), device="cpu", dtype="float32", batch_size=3, add_bos_token=False)
    asked = [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for text in texts]
    theirs = peer.loglikelihood_rolling(asked, disable_tqdm=True)
    assert GroundupLM(str(place)).loglikelihood_rolling(asked) == pytest.approx(theirs, rel=1e-6)
    assert [record["nats"] for record in records] == pytest.approx(theirs, rel=1e-6)
    found = evaluation.summary(task, examples, records)
    sizes, words = (sum(map(len, some)) for some in ([text.encode() for text in texts], [text.split() for text in texts]))
    assert found["bits_per_byte"] == pytest.approx(bits_per_byte([*zip(theirs, [sizes, 0, 0], strict=True)]), rel=1e-6)
    assert found["word_perplexity"] == pytest.approx(weighted_perplexity([*zip(theirs, [words, 0, 0], strict=True)]), rel=1e-6)
