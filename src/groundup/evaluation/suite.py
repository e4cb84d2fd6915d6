"""What is measured of a base model: held-out bits per byte compared with n-grams and a compressor, sentence pairs, choices."""

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
    """`held_out`: rows with id, url, domain, text. `tokens`: the folder with the training tokens that the n-grams count."""
    documents = [(row["url"], row["text"]) for row in held_out]
    questions = multiple_choice.from_documents(documents, settings.questions, seed)
    pairs = sentence_pairs.from_documents((row["text"] for row in held_out), settings.sentence_pairs, seed)

    def text_log_likelihood(texts: list[str]) -> list[float]:
        scores = score(model, [[tokenizer.begin_of_text, *tokenizer.encode(text)] for text in texts])
        return [float(nats.sum()) for nats in scores]

    completions = samples(model, tokenizer, seed)
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
        "samples": completions,
        "samples_left_out": len(SAMPLE_PROMPTS) - len(completions),  # too long for the model
    }


def compare_predictors(
    model: Decoder, tokenizer: Tokenizer, held_out: Documents, tokens: Path, max_bytes: int, seed: int
) -> dict[str, Any]:
    """Bits per byte of held-out documents by the model, Kneser-Ney n-grams on the same tokens, and xz on the same bytes.

    xz sees the held-out documents only, the n-grams the whole training split. Intervals resample documents; "ahead" has the
    intervals of an n-gram's bits per byte less the model's on the same documents, "ahead_by_domain" on those of each domain.
    Raises UserError when no document fits.
    """
    chosen: list[dict[str, Any]] = []
    bytes_left = max_bytes
    for row in sorted(held_out, key=lambda row: digest(seed, row["id"])):
        if (size := len(row["text"].encode())) <= bytes_left:
            chosen.append(row)
            bytes_left -= size
    if not chosen:
        raise UserError(
            f"held_out_kb = {max_bytes // 1000}: none of {len(held_out)} held-out documents is that short; raise it, or hold "
            "more out"
        )
    sequences = [np.array([tokenizer.begin_of_text, *tokenizer.encode(row["text"])]) for row in chosen]
    sizes = np.array([len(row["text"].encode()) for row in chosen])
    nats = {"model": np.array([-float(log_probabilities.sum()) for log_probabilities in score(model, sequences)])}
    training = np.asarray(TokenFile(tokens / "train").tokens)
    stream = np.concatenate(sequences)
    ends = np.cumsum([len(sequence) for sequence in sequences])
    for order in NGRAMS:
        ngrams = KneserNey.fit(training, order, tokenizer.size, tokenizer.begin_of_text)
        log_probabilities = ngrams.log_probabilities(stream)
        log_probabilities[stream == tokenizer.begin_of_text] = 0.0  # the model is not scored on document ends either
        nats[f"{order}-gram"] = -np.array([part.sum() for part in np.split(log_probabilities, ends[:-1])])
    overall = {name: bits_per_byte(values.sum(), sizes.sum()) for name, values in nats.items()}
    overall["xz"] = xz_bits_per_byte("".join(row["text"] for row in chosen).encode())
    domains = np.array([row["domain"] for row in chosen])

    def interval(values: np.ndarray, selection: np.ndarray | slice = slice(None)) -> tuple[float, float]:
        return bootstrap(np.column_stack((values, sizes))[selection], statistic=ratio_in_bits, seed=seed)

    def advantage(selection: np.ndarray | slice = slice(None)) -> dict[str, tuple[float, float]]:
        return {name: interval(values - nats["model"], selection) for name, values in nats.items() if name != "model"}

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
        "ahead": advantage(),
        "ahead_by_domain": {str(domain): advantage(domains == domain) for domain in np.unique(domains)},
        "documents": len(chosen),
        "bytes": int(sizes.sum()),
        "perplexity": float(np.exp(nats["model"].sum() / (len(stream) - len(chosen)))),
    }


def continuations(model: LanguageModel, tokenizer: Tokenizer, requests: Sequence[tuple[str, str]]) -> list[float]:
    """Log-probability (nats) of each continuation after its context, as in lm-eval. See `encode_pair`."""
    pairs = [encode_pair(tokenizer, context, text) for context, text in requests]
    scores = score(model, [[*context, *continuation] for context, continuation in pairs])
    return [float(nats[len(context) - 1 :].sum()) for nats, (context, _) in zip(scores, pairs, strict=True)]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context, after what the tokenizer puts before texts, and ids of its continuation; without a context, after the
    token that begins a document.

    White space at the end of the context belongs to the continuation, since tokens begin with it. Both are encoded together
    and cut where the context's own tokens end: the ids are those of lm-eval. Where one token spans the border, or the
    context's last token would change, both are encoded apart: lm-eval loses the part of the answer in that token, and an
    answer of which nothing remains is certain, with a log-probability of zero.
    Raises UserError for a continuation without text.
    """
    if not continuation:
        raise UserError("evaluation: a continuation is empty; nothing is certain to follow anything")
    trimmed = context.rstrip()
    continuation, context = context[len(trimmed) :] + continuation, trimmed
    context_ids, all_ids = tokenizer.encode(context), tokenizer.encode(context + continuation)
    together = all_ids[: len(context_ids)] == context_ids and len(all_ids) > len(context_ids)
    added_ids = (
        all_ids[len(context_ids) :] if together else tokenizer.encode_after(continuation, "text" if context else "nothing")
    )
    return tokenizer.prompt(context), added_ids


def samples(model: Decoder, tokenizer: Tokenizer, seed: int) -> list[dict[str, str]]:
    """What the model writes after a few prompts, of those that leave room in its context."""
    sampling = Sampling(64, temperature=0.8, top_p=0.9)
    prompts = {text: tokenizer.prompt(text) for text in SAMPLE_PROMPTS}
    max_prompt = room(model, sampling.max_tokens)
    prompts = {text: ids for text, ids in prompts.items() if len(ids) <= max_prompt}
    written = generate(model, [*prompts.values()], [tokenizer.end_of_text, *model.generation.ends], sampling, seed)
    return [{"prompt": text, "text": tokenizer.decode_within(ids)} for text, ids in zip(prompts, written, strict=True)]
