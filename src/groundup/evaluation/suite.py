"""What is measured of a base model: held-out bits per byte beside n-grams and a compressor, sentence pairs, choices."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from groundup.core.errors import UserError
from groundup.core.statistics import bootstrap
from groundup.data.docstring_questions import digest
from groundup.data.token_files import TokenFile
from groundup.evaluation import multiple_choice, sentence_pairs
from groundup.evaluation.config import EvaluationConfig
from groundup.evaluation.next_tokens import next_tokens
from groundup.evaluation.text_scores import ratio_in_bits
from groundup.evaluation.xz_baseline import xz_bits_per_byte
from groundup.generation.engine import Sampling, generate, room
from groundup.model.base import LanguageModel
from groundup.model.decoder import Decoder
from groundup.model.likelihood import bits_per_byte, score
from groundup.model.ngram import KneserNey
from groundup.tokenizer.tokenizer import Tokenizer

NGRAMS = (3, 5)
SAMPLE_PROMPTS = ("The os module ", "def read(self", "Return a new ", "class Path(", "The mouse ate the ")

NEXT_TEXTS = ["Return the number of", "    def __init__(self", "import os\n", "This function returns a list of"]

Documents = Sequence[dict[str, Any]]


def evaluate_base(
    model: Decoder, tokenizer: Tokenizer, held_out: Documents, tokens: Path, settings: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """`held_out`: rows with id, url, domain, text. `tokens`: the folder whose training tokens the n-grams count."""
    documents = [(row["url"], row["text"]) for row in held_out]
    questions = multiple_choice.from_documents(documents, settings.questions, seed)
    pairs = sentence_pairs.from_documents((row["text"] for row in held_out), settings.sentence_pairs, seed)

    def text_log_likelihood(texts: list[str]) -> list[float]:
        found = score(model, [[tokenizer.begin_of_text, *tokenizer.encode(text)] for text in texts])
        return [float(nats.sum()) for nats in found]

    written = samples(model, tokenizer, seed)
    return {
        "bits_per_byte": compare_predictors(model, tokenizer, held_out, tokens, settings.held_out_kb * 1000, seed),
        # None without plain sentences.
        "sentence_pairs": sentence_pairs.score(pairs, text_log_likelihood) if pairs else None,
        "lecture_pairs": [
            {"right": pair["right"], "wrong": pair["wrong"], "nats": text_log_likelihood([pair["right"], pair["wrong"]])}
            for pair in sentence_pairs.LECTURE_PAIRS
        ],
        # None without documented Python source.
        "multiple_choice": multiple_choice.score(questions, partial(continuations, model, tokenizer)) if questions else None,
        "multiple_choice_example": questions[0] if questions else None,
        "next_tokens": next_tokens(model, tokenizer, [pair["right"] for pair in sentence_pairs.LECTURE_PAIRS[:1]] + NEXT_TEXTS),
        "samples": written,
        "samples_left_out": len(SAMPLE_PROMPTS) - len(written),  # too long for the model
    }


def compare_predictors(
    model: Decoder, tokenizer: Tokenizer, held_out: Documents, tokens: Path, max_bytes: int, seed: int
) -> dict[str, Any]:
    """Bits per byte of held-out documents by the model, Kneser-Ney n-grams on the same tokens, and xz on the same bytes.

    xz sees the held-out documents only, the n-grams the whole training split. Intervals resample documents; "ahead" is
    that of the bits per byte that the model needs less than an n-gram on the same documents, and on those of a domain.
    Raises UserError when no document fits.
    """
    chosen: list[dict[str, Any]] = []
    room = max_bytes
    for row in sorted(held_out, key=lambda row: digest(seed, row["id"])):
        if (size := len(row["text"].encode())) <= room:
            chosen.append(row)
            room -= size
    if not chosen:
        raise UserError(
            f"held_out_kb = {max_bytes // 1000}: none of {len(held_out)} held-out documents is that short; raise it, or hold "
            "more out"
        )
    sequences = [np.array([tokenizer.begin_of_text, *tokenizer.encode(row["text"])]) for row in chosen]
    sizes = np.array([len(row["text"].encode()) for row in chosen])
    nats = {"model": np.array([-float(found.sum()) for found in score(model, sequences)])}
    training = np.asarray(TokenFile(tokens / "train").tokens)
    stream = np.concatenate(sequences)
    ends = np.cumsum([len(sequence) for sequence in sequences])
    for order in NGRAMS:
        counted = KneserNey.fit(training, order, tokenizer.size, tokenizer.begin_of_text)
        found = counted.log_probabilities(stream)
        found[stream == tokenizer.begin_of_text] = 0.0  # the model is not asked for document ends here either
        nats[f"{order}-gram"] = -np.array([part.sum() for part in np.split(found, ends[:-1])])
    overall = {name: bits_per_byte(values.sum(), sizes.sum()) for name, values in nats.items()}
    overall["xz"] = xz_bits_per_byte("".join(row["text"] for row in chosen).encode())
    domains = np.array([row["domain"] for row in chosen])

    def interval(values: np.ndarray, among: np.ndarray | slice = slice(None)) -> tuple[float, float]:
        return bootstrap(np.column_stack((values, sizes))[among], statistic=ratio_in_bits, seed=seed)

    def ahead(among: np.ndarray | slice = slice(None)) -> dict[str, tuple[float, float]]:
        return {name: interval(values - nats["model"], among) for name, values in nats.items() if name != "model"}

    return {
        "overall": overall,
        "by_domain": {
            str(domain): {
                name: bits_per_byte(values[domains == domain].sum(), sizes[domains == domain].sum())
                for name, values in nats.items()
            }
            for domain in np.unique(domains)
        },
        "interval": interval(nats["model"]),
        "ahead": ahead(),
        "ahead_by_domain": {str(domain): ahead(domains == domain) for domain in np.unique(domains)},
        "documents": len(chosen),
        "bytes": int(sizes.sum()),
        "perplexity": float(np.exp(nats["model"].sum() / (len(stream) - len(chosen)))),
    }


def continuations(model: LanguageModel, tokenizer: Tokenizer, wanted: Sequence[tuple[str, str]]) -> list[float]:
    """Log-probability (nats) of each continuation after its context, as lm-eval has it. See `encode_pair`."""
    pairs = [encode_pair(tokenizer, context, text) for context, text in wanted]
    found = score(model, [[*context, *continuation] for context, continuation in pairs])
    return [float(nats[len(context) - 1 :].sum()) for nats, (context, _) in zip(found, pairs, strict=True)]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context, which begin with the token that begins texts, and of what continues it.

    White space at the end of the context belongs to the continuation, since tokens begin with it, and both are encoded
    together and cut where the context's own tokens end: the ids are those of lm-eval. Where one token spans the border, or
    the context's last token would be another, both are encoded apart: lm-eval loses what is on the far side, and an
    answer of which nothing is left is certain, with a log-probability of zero.
    Raises UserError for a continuation without text.
    """
    if not continuation:
        raise UserError("evaluation: a continuation is empty; nothing is certain to follow anything")
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    first, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
    together = whole[: len(first)] == first and len(whole) > len(first)
    rest = whole[len(first) :] if together else tokenizer.encode_after(continuation, "text" if context else "nothing")
    return [tokenizer.begin_of_text, *first], rest


def samples(model: Decoder, tokenizer: Tokenizer, seed: int) -> list[dict[str, str]]:
    """What the model writes after a few beginnings: of those that leave its context room for more."""
    sampling = Sampling(64, temperature=0.8, top_p=0.9)
    prompts = {text: [tokenizer.begin_of_text, *tokenizer.encode(text)] for text in SAMPLE_PROMPTS}
    most = room(model, sampling.max_tokens)
    prompts = {text: ids for text, ids in prompts.items() if len(ids) <= most}
    written = generate(model, [*prompts.values()], [tokenizer.end_of_text, *model.generation.ends], sampling, seed)
    return [{"prompt": text, "text": tokenizer.decode_within(ids)} for text, ids in zip(prompts, written, strict=True)]
