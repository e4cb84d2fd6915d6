"""Settings of the tests made from held-out documents; and the keys of a task file."""

from typing import Annotated, Literal

from pydantic import Field

from groundup.core.config import MOST, Positive, Section


class EvaluationConfig(Section):
    held_out_kb: Positive = 1000
    sentence_pairs: Positive = 400
    questions: Positive = 300


class BenchmarksConfig(Section):
    """For steps of kind benchmarks, which a run has only if its recipe adds one."""

    tasks: list[str] = []  # shipped ones by name, or task files
    data: str = ""  # the folder of their examples
    limit: Annotated[int, Field(ge=0, le=MOST)] = 0  # examples per task; 0: all
    contamination: bool = False  # also whether each task was trained on: order and overlap with the run's corpus
    leaderboard: str = ""  # a file that gets the rows


# What counts as an answer that one does not know, without case.
ABSTENTIONS = [
    "I don't know", "I do not know", "don't know", "do not know", "not sure", "unsure", "no idea", "unknown", "cannot say",
    "can't say", "does not exist", "doesn't exist", "do not exist", "don't exist", "did not exist", "never existed",
    "no such", "there is no", "there's no", "there was no", "is not a real", "isn't a real", "not aware of",
    "not familiar with", "never heard of", "have no information", "no information", "no record", "cannot find", "can't find",
    "could not find", "couldn't find", "not find any", "unable to", "fictional", "fictitious", "made up", "made-up",
]  # fmt: skip


class FewShot(Section):
    count: Annotated[int, Field(ge=0, le=100)]
    files: list[str] = []  # none: the task's own files, without the question itself
    choose: Literal["first", "random"] = "first"  # of the example's group; random as lm-eval draws, with its seed


class TaskFile(Section):
    """A template is text with jinja in `{{ }}` over the columns of a row; an expression is what is inside the braces."""

    title: str = ""
    kind: Literal["choices", "pairs", "last word", "generation", "perplexity", "toxicity", "existence"]
    files: list[str]  # examples, in the folder of the data; each may be compressed
    group: str = ""  # template: a subject or passage; intervals are clustered by it, few-shot examples taken from it
    by: dict[str, str] = {}  # name -> template: a part of the examples, such as a category, that has a figure of its own
    few_shot: FewShot | None = None
    description: str = ""  # template: what stands before all examples
    delimiter: str = " "  # between a prompt and its answer
    prompt: str = ""  # template
    # choices
    choices: str = ""  # expression: the list of answers
    answer: str = ""  # expression: the right one's index from 0, its letter, or its text
    listed: str = ""  # template: a prompt that lists the answers by letters
    listed_description: str = ""
    convention: str = ""  # the headline's; of choices "answer" if not given
    # pairs
    alternatives: str = ""  # expression: the texts to compare, of which `answer` (0 if not given) is the right one
    # last word: `target` is a template; of pairs too, where both continue with it; generation: an expression, one or several
    target: str = ""
    until: list[str] = ["\n"]
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    extract: str = ""  # regular expression whose first group is the answer in a continuation; if not given all of it
    extract_which: Literal["first", "last"] = "first"
    match: Literal["exact", "words"] = "exact"  # words: SQuAD's exact match and F1, without case, articles, punctuation
    # perplexity: `text` is a template. Windows of a text longer than the context overlap by half, so that each token has half
    # a context before it; or they are disjoint as in lm-eval, where a token has from one token to a whole context before it.
    text: str = ""
    windows: Literal["half", "disjoint"] = "half"
    # toxicity: `samples` continuations of `prompt`, of `max_tokens` each, are scored by the classifier, a file in the folder of
    # the examples. Gehman et al. 2020 take 25 of 20 tokens with top_p 0.9.
    classifier: str = ""
    samples: Annotated[int, Field(ge=1, le=100)] = 25
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    # existence: expression, false for rows about what does not exist. `target` has one or several accepted answers of the others.
    # `corpus`: files, in the folder of the examples, with the names, links and citations that exist.
    exists: str = ""
    abstentions: list[str] = ABSTENTIONS
    corpus: list[str] = []
    made_of: Literal["", "docstrings"] = ""  # docstrings: questions are made of Python source; files have `url` and `text`
