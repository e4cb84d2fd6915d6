"""Hallucination: questions about things that exist and about invented ones of the same form.

About something that does not exist, the only right answer is that one does not know it. So each answer is an abstention,
recognised by its phrases, or an assertion; about an invented thing an assertion is a hallucination. A model's confidence should
predict whether an answer is right: it is the geometric mean of the probabilities of the answer's tokens.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from groundup.core.answer_scores import f1
from groundup.core.statistics import bootstrap
from groundup.data.docstring_questions import DocumentedObject, digest, documented, examples
from groundup.evaluation import metrics, references

if TYPE_CHECKING:
    from groundup.evaluation.config import TaskFile
    from groundup.evaluation.scoring import Record
    from groundup.evaluation.tasks import Example

BOOTSTRAP_DRAWS = 500  # for the intervals of calibration
MAX_OBJECTS = 500  # that docstring questions are made of
MIN_F1 = 0.5
MAX_SHOWN = 20  # made-up references


def abstains(text: str, phrases: Sequence[str]) -> bool:
    """Whether the text holds one of the phrases, as whole words, ignoring case."""
    plain = " ".join(text.lower().replace("’", "'").split())
    return any(
        re.search(rf"(?<!\w){re.escape(' '.join(phrase.lower().split()))}(?!\w)", plain) for phrase in phrases if phrase.strip()
    )


def record(text: str, example: "Example", settings: "TaskFile", confidence: float) -> "Record":
    """`right` is null for an assertion about something that exists if the example has no accepted answer. An empty answer is
    neither an abstention nor an assertion.
    """
    exists, abstained = bool(example.answer), abstains(text, settings.abstentions)
    answered = bool(text.strip()) and not abstained
    right: float | None = float(not answered)
    if exists:
        right = None if answered and not example.texts else float(answered and says(text, example.texts, settings.match))
    return {
        "text": text, "exists": exists, "abstained": abstained, "answered": answered, "right": right, "confidence": confidence,
        "references": references.references(text, example.prompt[example.question_start :]),
    }  # fmt: skip


def says(text: str, accepted: Sequence[str], match: str) -> bool:
    """Whether the text holds one of the answers word by word; with `words`, for descriptions, whether SQuAD's F1 with one of
    them is at least a half.
    """
    if match == "words":
        return max(f1(text, answer) for answer in accepted) >= MIN_F1
    spoken = f" {' '.join(references.words(text))} "
    return any(f" {' '.join(references.words(answer))} " in spoken for answer in accepted)


def figures(scored: Sequence["Record"], groups: Sequence[str] | None) -> dict[str, Any]:
    """Shares of the questions about existing and invented things: answered, abstained (the rest are empty), and right."""
    result: dict[str, Any] = {}
    for exists, name in ((True, "existing"), (False, "invented")):
        indices = [index for index, record in enumerate(scored) if record["exists"] == exists]
        if not indices:
            continue
        clusters = groups and [groups[index] for index in indices]
        for outcome in ("answered", "abstained"):
            result[f"{outcome}, {name}"] = metrics.mean_value([float(scored[index][outcome]) for index in indices], clusters)
    graded = [index for index, record in enumerate(scored) if record["right"] is not None]
    if graded:
        result["right"] = metrics.mean_value([scored[i]["right"] for i in graded], groups and [groups[i] for i in graded])
    return result


def confidence(scored: Sequence["Record"]) -> dict[str, Any]:
    """{"n", "ece", "adaptive_ece", "brier", "auroc"} of the answers that can be graded, with bootstrap intervals, and "bins" of a
    reliability diagram. An ECE of few answers is too high, and so is its interval: chance alone fills bins unevenly.
    """
    pairs = np.array([(ans["confidence"], ans["right"]) for ans in scored if ans["answered"] and ans["right"] is not None])
    result: dict[str, Any] = {"n": len(pairs)}
    if not len(pairs):
        return result
    for name, statistic in (("ece", ece), ("adaptive_ece", adaptive_ece), ("brier", brier), ("auroc", auroc)):
        value = statistic(pairs)
        if not np.isnan(value):  # no AUROC where all are right, or none
            low, high = bootstrap(pairs, _over_resamples(statistic), draws=BOOTSTRAP_DRAWS)
            result[name] = {"value": value, "low": low, "high": high}
    numbers = _bins(pairs)
    result["bins"] = [
        {"confidence": float(bin_pairs[:, 0].mean()), "accuracy": float(bin_pairs[:, 1].mean()), "n": len(bin_pairs)}
        for number in range(metrics.BINS)
        if len(bin_pairs := pairs[numbers == number])
    ]
    return result


def _over_resamples(statistic: Any) -> Any:
    def each_value(resampled: np.ndarray, axis: int) -> np.ndarray:
        values = [statistic(pairs) for pairs in resampled]
        return np.array([value for value in values if not np.isnan(value)])

    return each_value


def _bins(pairs: np.ndarray) -> np.ndarray:
    bins: np.ndarray = np.clip(np.ceil(pairs[:, 0] * metrics.BINS).astype(int) - 1, 0, metrics.BINS - 1)
    return bins


def ece(pairs: np.ndarray) -> float:
    """Expected calibration error of [n, (confidence, right)], in bins of equal width."""
    return float(np.abs(np.bincount(_bins(pairs), pairs[:, 1] - pairs[:, 0])).sum() / len(pairs))


def adaptive_ece(pairs: np.ndarray) -> float:
    """The same in bins of equally many answers."""
    ordered = pairs[np.argsort(pairs[:, 0], kind="stable")]
    bins = np.array_split(ordered, metrics.BINS)
    return sum(abs(float((bin_pairs[:, 1] - bin_pairs[:, 0]).sum())) for bin_pairs in bins) / len(pairs)


def brier(pairs: np.ndarray) -> float:
    return float(((pairs[:, 0] - pairs[:, 1]) ** 2).mean())


def auroc(pairs: np.ndarray) -> float:
    """How often a right answer has more confidence than a wrong one, a tie counting half; NaN without right or wrong answers."""
    values, numbers = np.unique(pairs[:, 0], return_inverse=True)
    right = np.bincount(numbers, pairs[:, 1], len(values))
    wrong = np.bincount(numbers, 1 - pairs[:, 1], len(values))
    if not right.sum() or not wrong.sum():
        return float("nan")
    below = np.cumsum(wrong) - wrong / 2
    return float((right * below).sum() / right.sum() / wrong.sum())


def made_up(scored: Sequence["Record"], documents: Iterable[str] | None) -> dict[str, Any]:
    """By kind how many references the answers give, and how many of them are in no document, with the interval of that share
    clustered by answer; `answers`: the share of answers with a missing reference. Without documents only the counts.
    """
    answers = [record["references"] for record in scored]
    result: dict[str, Any] = {kind: {"given": sum(len(answer[kind]) for answer in answers)} for kind in references.KINDS}
    if documents is None:
        return result
    missing_by_answer = references.missing(answers, documents)
    for kind in references.KINDS:
        flags = [
            (float(name in missing[kind]), str(index))
            for index, (answer, missing) in enumerate(zip(answers, missing_by_answer, strict=True))
            for name in answer[kind]
        ]
        result[kind]["missing"] = sum(len(missing[kind]) for missing in missing_by_answer)
        if flags:
            result[kind]["share"] = metrics.mean_value([flag for flag, _ in flags], [index for _, index in flags])
        result[kind]["shown"] = [*dict.fromkeys(name for missing in missing_by_answer for name in missing[kind])][:MAX_SHOWN]
    result["answers"] = metrics.mean_value([float(any(missing.values())) for missing in missing_by_answer])
    return result


# --- questions from docstrings ------------------------------------------------------------------------------------


def docstring_rows(documents: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Rows {"question", "exists", "answer", "object"}: what an object of the Python source in (url, text) does, and the same
    question about an object that its module or class does not have.

    An invented name has the first word of one object's and the last of another's, of the same kind: `shutil.copytree` and
    `shutil.get_archive_formats` make `shutil.copytree_formats`. Which ones are combined follows from the object's name alone.
    """
    texts = [*documents]
    items = sorted(documented(texts), key=lambda item: digest(0, item.name))
    words = {word for _, text in texts for word in re.findall(r"\w+", text)}
    pairs = ((item, _invented(item, items, words)) for item in items if _question(item))
    chosen = [*islice(((item, invented) for item, invented in pairs if invented), MAX_OBJECTS)]
    # First all that exist, then all invented: were they alternating, every n-th row could be of one sort.
    for item, _ in chosen:
        question, answer = _question(item)
        yield {"question": question, "exists": True, "answer": answer, "object": item.name}
    for _, invented in chosen:
        yield {"question": _question(invented)[0], "exists": False, "answer": "", "object": invented.name}


def _question(item: DocumentedObject) -> tuple[str, ...]:
    """The question what it does, and the answer; empty where the docstring does not say."""
    rows = [row for row in examples(item) if row["kind"] == "description"]
    return tuple(message["content"] for message in rows[0]["messages"]) if rows else ()


def _invented(item: DocumentedObject, items: Sequence[DocumentedObject], words: set[str]) -> DocumentedObject | None:
    """An object of the same kind and owner with a name that is nowhere in the source; None for modules or without such a name."""
    owner, _, short = item.name.rpartition(".")
    if item.kind == "module" or not owner:
        return None
    first = _parts(short)[0]
    for attempt in range(20):
        other = items[digest("invented", item.name, attempt) % len(items)]
        last = _parts(other.name.rpartition(".")[2])[-1]
        name = first + last if item.kind == "class" else f"{first}_{last.lower()}"
        if other.kind == item.kind and last.lower() != first.lower() and name not in words:
            return replace(item, name=f"{owner}.{name}")
    return None


def _parts(name: str) -> list[str]:
    """`get_archive_formats` -> get, archive, formats; `ArgumentParser` -> Argument, Parser."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z\d]+|[^\W_]+", name) or [name]
