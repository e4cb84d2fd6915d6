"""The kinds of steps up to the base model and its evaluation, one function each, and the table of all kinds.

Each reads a section of the recipe and the artifacts before it, calls the chapter, and writes. Chapters are imported where they
are used, so that `groundup run --dry-run` and a finished run do not wait for torch.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.core.progress import Progress
from groundup.core.seals import MANIFEST, SEAL, is_sealed, read_sealed, seal, write_sealed
from groundup.corpus.config import SourceConfig
from groundup.pipeline import minutes, preflight
from groundup.pipeline.artifacts import (
    Results,
    documents_of,
    model_of,
    tokenizer_of,
    train_and_save_pretrained,
    workers_of,
)
from groundup.pipeline.benchmark_kinds import BENCHMARKS
from groundup.pipeline.posttraining_kinds import dpo, grpo, ppo, preferences, reward, sft
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Step, StepContext

if TYPE_CHECKING:
    from groundup.model.base import LanguageModel
    from groundup.training.runtime import Runtime


def pages(context: StepContext) -> Results:
    """Sources -> WARC files, one per source."""
    from groundup.corpus.acquire.sources import collect

    settings = context.recipe.pages
    counts = {}
    for number, source in enumerate(settings.sources):
        name = _archive_name(number, source)
        note, archive = context.work / f"{name}.json", context.work / f"{name}.warc.gz"
        collected = read_sealed(note) if is_sealed(archive) else None
        if collected is None:  # else it was finished before the run was cut off
            label = f"{context.name}: {source.source}"
            collected = write_sealed(note, collect(source, context.work, name, settings.requests_per_second, label))
            seal(archive)
        counts[name] = {"source": source.source, "domain": source.domain, **{k: collected[k] for k in collected if k != SEAL}}
        context.log(
            f"{source.source} -> {name}.warc.gz: {counts[name]['pages']:,} pages, {counts[name]['bytes'] / 1e6:.1f} MB"
        )
    return counts


def annotations(context: StepContext) -> Results:
    """Pages -> documents with everything that was measured on them; nothing is dropped."""
    from groundup.corpus.annotate.measure import annotate

    recipe = context.recipe
    sources = _archives(context.inputs["pages"])
    workers = recipe.threads if recipe.ray else workers_of(context)
    results = annotate(sources, context.work, recipe.annotations, workers, context.name, recipe.ray, recipe.memory_mb)
    again = f", {results['repeated_pages']:,} of them a second time" if results["repeated_pages"] else ""
    context.log(f"{results['pages']:,} pages{again} -> {results['documents']:,} documents")
    return results


def _archives(folder: Path) -> list[tuple[Path, str]]:
    """The archives that a step `pages` wrote, of this run or given, each with its domain, in the order of the sources."""
    named = [(path, re.fullmatch(r"(\d+)-([a-z0-9_-]+)\.warc\.gz", path.name)) for path in folder.iterdir()]
    archives = sorted((int(name[1]), path, name[2]) for path, name in named if name)
    if not archives:
        raise UserError(f"{folder}: no archives of the step pages, as 00-web.warc.gz; name yours in pages.sources instead")
    return [(path, domain) for _, path, domain in archives]


def corpus(context: StepContext) -> Results:
    """Annotations -> the documents that pass the thresholds, split into training and held-out."""
    from groundup.corpus.select.selection import select

    recipe, languages = context.recipe, context.recipe.annotations.wanted_languages
    results = select(context.inputs["annotations"], context.work, recipe.corpus, languages, recipe.seed)
    dropped = {step["step"]: step["dropped"] for step in results["steps"] if step.get("dropped")}
    reasons = ", ".join(f"{count:,} {name}" for name, count in sorted(dropped.items(), key=lambda item: -item[1]))
    total, languages_note = results["left"]["documents"] + sum(dropped.values()), f" (only {', '.join(languages)} wanted)"
    context.log(f"{results['left']['documents']:,} of {total:,} documents kept" + (f"; dropped: {reasons}" if reasons else "")
                + (languages_note if "language" in dropped else ""))  # fmt: skip
    return results


def tokenizer(context: StepContext) -> Results:
    """Training documents -> byte-level BPE; or the tokenizer of another folder."""
    from groundup.tokenizer import bpe
    from groundup.tokenizer.load import of_model
    from groundup.tokenizer.tokenizer import Tokenizer, longest_words

    documents = documents_of(context, "train")
    settings = context.recipe.tokenizer
    if settings.folder:
        counts, trained = {}, of_model(Path(settings.folder))
        context.log(f"vocabulary {trained.size}: the tokenizer of {settings.folder}")
    else:
        with Progress("counting words", sum(len(row["text"]) for row in documents), "characters") as progress:
            counts = bpe.count_pretokens(_with_progress((row["text"] for row in documents), progress))
        trained = Tokenizer.from_merges(bpe.train(counts, settings.vocabulary))
        if trained.size < settings.vocabulary:
            context.log(
                f"vocabulary {trained.size} instead of {settings.vocabulary}: the corpus has no more pairs to merge"
            )
    trained.save(context.work)
    domains: dict[str, list[int]] = {}
    encoded = trained.encode_batch((row["text"] for row in documents), workers_of(context))
    for row, ids in zip(documents, encoded, strict=True):
        totals = domains.setdefault(row["domain"], [0, 0])
        totals[0] += len(row["text"].encode())
        totals[1] += len(ids)
    return {
        "vocabulary": trained.size,
        "bytes_per_token": {domain: count / max(tokens, 1) for domain, (count, tokens) in sorted(domains.items())},
        "distinct_words_counted": len(counts),
        "longest_tokens": longest_words(trained, 12),
    }


def vocabulary_sweep(context: StepContext) -> Results:
    """Documents -> a small model for each size of vocabulary, and the size to choose."""
    from groundup.report import vocabulary_page
    from groundup.scaling.vocabulary_sweep import sweep

    settings = context.recipe.vocabulary_sweep
    results = sweep(
        [context.inputs["corpus"] / "documents.parquet"], settings.sizes, context.work, depth=settings.depth,
        tokens=settings.tokens, context=settings.context_length, held_out_kb=settings.held_out_kb, text_mb=settings.text_mb,
        seed=context.recipe.seed, workers=workers_of(context), threads=context.recipe.threads,
    )  # fmt: skip
    vocabulary_page.write(context.work, results)
    context.log(f"a vocabulary of {results['recommended']:,}: {results['reason']}")
    return results


def tokens(context: StepContext) -> Results:
    """Documents -> token files, each document after the end-of-text token, and a table of the documents in them."""
    from groundup.tokenizer import token_folder

    splits = {split: documents_of(context, split) for split in ("train", "held_out")}
    return token_folder.write(context.work, splits, tokenizer_of(context), workers_of(context))


def base(context: StepContext) -> Results:
    """Tokens -> a model: warm-up, stable, annealed on the best data."""
    from groundup.training.pretraining import pretrain

    recipe = minutes.with_planned_sizes(context.recipe, context.inputs.get("plan"))

    def train(runtime: "Runtime") -> "tuple[LanguageModel, Results]":
        model, results = pretrain(tokenizer_of(context), context.inputs["tokens"], recipe.base, runtime, recipe.mixture)
        if "plan" in context.inputs and runtime.processes.first:
            results["planned"] = minutes.outcome(context.inputs["plan"], model, context.inputs["tokens"], runtime.log)
        return model, results

    return train_and_save_pretrained(context, recipe.base, train)


def long_context(context: StepContext) -> Results:
    """Tokens and a decoder -> the same with a longer context."""
    from groundup.training.long_context import train_longer

    recipe = context.recipe
    return train_and_save_pretrained(context, recipe.long_context, lambda runtime: train_longer(
        model_of(context, "base"), tokenizer_of(context), context.inputs["tokens"], recipe.long_context, runtime,
        recipe.mixture,
    ))  # fmt: skip


def evaluation(context: StepContext) -> Results:
    """The base model against n-grams and a compressor; sentence pairs; multiple choice; samples."""
    from groundup.evaluation.suite import evaluate_base

    results = evaluate_base(
        model_of(context, "base"), tokenizer_of(context), documents_of(context, "held_out"), context.inputs["tokens"],
        context.recipe.evaluation, context.recipe.seed,
    )  # fmt: skip
    for name, bits in results["bits_per_byte"]["overall"].items():
        context.log(f"held-out bits per byte, {name}: {bits:.3f}")
    if left_out := results["samples_left_out"]:
        context.log(f"{left_out} samples left out: their beginnings leave the model's context no room")
    return results


def report(context: StepContext) -> Results:
    """The results of all steps -> one self-contained page."""
    from groundup.report.report import write

    path = context.work / "report.html"
    write(path, minutes.with_planned_sizes(context.recipe, context.inputs.get("plan")).model_dump(), context.inputs)
    return {"report": "report/report.html", "kb": round(path.stat().st_size / 1024)}


def _archive_name(number: int, source: SourceConfig) -> str:
    """The name of a source's web archive."""
    return f"{number:02d}-{source.domain}"


def _classifiers_and_signatures(recipe: Recipe) -> list[Path]:
    paths = [Path(name) for name in recipe.annotations.classifiers.values() if name]
    if recipe.annotations.against:
        from groundup.corpus.dedup.resolve import signatures_of

        paths += [signatures_of(Path(folder)) for folder in recipe.annotations.against]
    return paths


def _local_sources(recipe: Recipe) -> list[Path]:
    from groundup.corpus.acquire.local import local_path

    return [path for source in recipe.pages.sources if (path := local_path(source)) is not None]


def _digest_of_archive(path: Path) -> str | None:
    """The digest of what later steps read of a file of `pages`: the pages, but not when they were fetched."""
    from groundup.corpus.archive.warc import digest_of_pages

    return digest_of_pages(path) if path.name.endswith(".warc.gz") else None


def _files_besides_weights(folder: Path, but: str) -> list[Path]:
    """A model folder's files of shape, tokenizer, chat template and sampling, but not our manifest or the file `but`."""
    kinds = (".json", ".jinja", ".txt", ".model")
    return sorted(path for path in folder.glob("*") if path.suffix in kinds and path.name not in (but, MANIFEST))


def _own_rows(*sections: str) -> Callable[[Recipe], list[Path]]:
    """The files of a user's own rows that a step reads."""

    def files(recipe: Recipe) -> list[Path]:
        configs = [getattr(recipe, section) for section in sections]
        names = dict.fromkeys(name for config in configs for name in (*config.data, *getattr(config, "held_out", ())))
        return [expanded(name) for name in names]

    return files


def _prompts_and_reward(section: str) -> Callable[[Recipe], list[Path]]:
    """The files of prompts, and those of a reward other than the run's own."""

    def files(recipe: Recipe) -> list[Path]:
        from groundup.posttraining.reward_files import files_of

        return [*_own_rows(section)(recipe), *files_of(getattr(recipe, section).reward)]

    return files


def _given_tokenizer(recipe: Recipe) -> list[Path]:
    folder = Path(recipe.tokenizer.folder)
    return [folder / "tokenizer.json", *_files_besides_weights(folder, "tokenizer.json")] if recipe.tokenizer.folder else []


def _given_model(recipe: Recipe) -> list[Path]:
    folder = Path(recipe.base.start_from)
    weights = sorted(folder.glob("*.safetensors"))
    return [folder / "config.json", *_files_besides_weights(folder, "config.json"), *weights] if recipe.base.start_from else []


def _with_progress(texts: Iterable[str], progress: Progress) -> Iterator[str]:
    for text in texts:
        yield text
        progress.advance(len(text))


STANDARD = (
    Step("pages", (), pages, files=_local_sources, content=_digest_of_archive),
    Step("annotations", ("pages",), annotations, files=_classifiers_and_signatures,
         checks=(("", preflight.languages),)),
    Step("corpus", ("annotations",), corpus, files=lambda recipe: [Path(name) for name in recipe.corpus.benchmarks],
         checks=(("", preflight.benchmarks),)),
    Step("tokenizer", ("corpus",), tokenizer, files=_given_tokenizer),
    Step("tokens", ("corpus", "tokenizer"), tokens),
    Step("base", ("corpus", "tokenizer", "tokens"), base, ("base", "mixture"), files=_given_model,
          checks=(("", preflight.base_continues), ("corpus", preflight.base_has_text))),
    Step("evaluation", ("corpus", "tokenizer", "tokens", "base"), evaluation, checks=(("corpus", preflight.evaluation),)),
    Step("sft", ("corpus", "tokenizer", "base"), sft, files=_own_rows("sft"),
          checks=(("", preflight.sft_data), ("corpus", preflight.sft), ("tokenizer", preflight.sft_answers_fit))),
    Step("preferences", ("tokenizer", "sft"), preferences, ("preferences", "sft")),
    Step("reward", ("tokenizer", "sft", "preferences"), reward, files=_own_rows("reward"),
          checks=(("", preflight.reward_data), ("tokenizer", preflight.reward_pairs_fit))),
    Step("dpo", ("tokenizer", "sft", "preferences"), dpo, ("dpo", "preferences", "sft"), files=_own_rows("dpo"),
          checks=(("", preflight.dpo_data), ("tokenizer", preflight.dpo_pairs_fit))),
    Step("ppo", ("tokenizer", "sft", "reward"), ppo, ("ppo", "preferences", "sft"), files=_prompts_and_reward("ppo"),
          checks=(("", preflight.ppo_data),)),
    Step("report", ("pages", "annotations", "corpus", "tokenizer", "tokens", "base", "evaluation", "sft", "preferences",
                     "reward", "dpo", "ppo"), report),
)  # fmt: skip


CORPUS_STEPS = STANDARD[:3]
OPTIONAL = (  # those that `standard` may name
    Step("grpo", ("tokenizer", "sft", "reward"), grpo, ("grpo", "preferences", "sft"), files=_prompts_and_reward("grpo"),
          checks=(("", preflight.grpo_data),)),
)  # fmt: skip
ADDED = (  # in no standard run: `[[steps]]` of a recipe adds them
    Step("long_context", ("corpus", "tokenizer", "tokens", "base"), long_context, ("long_context", "mixture"),
          checks=(("", preflight.long_context_is_for_decoders), ("tokens", preflight.long_context_has_text))),
    Step("vocabulary_sweep", ("corpus",), vocabulary_sweep),
)  # fmt: skip
# Comes before the base model in a run of base.minutes. Later steps depend on its sizes, not on the figures they follow from.
PLAN = Step("plan", ("corpus", "tokenizer", "tokens"), minutes.plan, ("base", "mixture"), content=minutes.digest_of_chosen)
# A kind of step is one of these under another name.
KINDS = {step.name: step for step in (*STANDARD[:-1], *OPTIONAL, *ADDED, BENCHMARKS)}
