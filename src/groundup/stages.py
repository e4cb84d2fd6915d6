"""The road, one function a stage: read a section of the recipe and the artifacts before it, call the chapter, write.

Chapters are imported where they are used, so that `groundup run --dry-run` and a finished run do not wait for torch.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from groundup import ahead
from groundup.core.seals import MANIFEST, SEAL, is_sealed, read_manifest, read_sealed, seal, write_sealed
from groundup.core.text import printable
from groundup.errors import UserError
from groundup.files import read_json, read_jsonl, replacing, write_json, write_jsonl
from groundup.progress import Progress
from groundup.recipe import Recipe, Source
from groundup.run import Context, Run, Stage

if TYPE_CHECKING:
    from groundup.device import Device
    from groundup.model.decoder import Decoder
    from groundup.tokenizer.tokenizer import Tokenizer

Results = dict[str, Any]


def pages(context: Context) -> Results:
    """Sources -> WARC files, one a source."""
    from groundup.corpus.sources import collect

    settings = context.recipe.pages
    counts = {}
    for number, source in enumerate(settings.sources):
        name = _archive(number, source)
        note, archive = context.work / f"{name}.json", context.work / f"{name}.warc.gz"
        found = read_sealed(note) if is_sealed(archive) else None
        if found is None:  # else it was finished before the run was cut off
            label = f"{context.name}: {source.source}"
            found = write_sealed(note, collect(source, context.work, name, settings.requests_per_second, label))
            seal(archive)
        counts[name] = {"source": source.source, "domain": source.domain, **{k: found[k] for k in found if k != SEAL}}
        context.say(
            f"{source.source} -> {name}.warc.gz: {counts[name]['pages']:,} pages, {counts[name]['bytes'] / 1e6:.1f} MB"
        )
    return counts


def annotations(context: Context) -> Results:
    """Pages -> documents with everything that was measured on them; nothing is dropped."""
    from groundup.corpus.annotate import annotate

    recipe = context.recipe
    sources = [
        (context.inputs["pages"] / f"{_archive(number, source)}.warc.gz", source.domain)
        for number, source in enumerate(recipe.pages.sources)
    ]
    workers = recipe.threads if recipe.ray else _workers(context)
    return annotate(sources, context.work, recipe.annotations, workers, context.name, recipe.ray, recipe.memory_mb)


def corpus(context: Context) -> Results:
    """Annotations -> the documents that pass the thresholds, split into training and held-out."""
    from groundup.corpus.select import select

    recipe = context.recipe
    return select(context.inputs["annotations"], context.work, recipe.corpus, recipe.annotations.language, recipe.seed)


def tokenizer(context: Context) -> Results:
    """Training documents -> byte-level BPE; or the one of another folder."""
    from groundup.tokenizer import bpe
    from groundup.tokenizer.tokenizer import Tokenizer, longest_words

    documents = _documents(context, "train")
    settings = context.recipe.tokenizer
    if settings.folder:
        counts, trained = {}, Tokenizer.load(Path(settings.folder))
        context.say(f"vocabulary {trained.size}: the tokenizer of {settings.folder}")
    else:
        with Progress("counting words", sum(len(row["text"]) for row in documents), "characters") as progress:
            counts = bpe.count_pretokens(_watched((row["text"] for row in documents), progress))
        trained = Tokenizer.from_merges(bpe.train(counts, settings.vocabulary))
        if trained.size < settings.vocabulary:
            context.say(
                f"vocabulary {trained.size} instead of {settings.vocabulary}: the corpus has no more pairs to merge"
            )
    trained.save(context.work)
    domains: dict[str, list[int]] = {}
    encoded = trained.encode_batch((row["text"] for row in documents), _workers(context))
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


def tokens(context: Context) -> Results:
    """Documents -> token files, each document after the end-of-text token; and a table of what stands where."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from groundup.tokenizer import token_files

    encoder = _tokenizer(context)
    table, sizes = [], {}
    for split in ("train", "held_out"):
        documents = _documents(context, split)
        encoded = encoder.encode_batch((row["text"] for row in documents), _workers(context))
        sequences = [np.concatenate(([encoder.end_of_text], ids)) for ids in encoded]
        token_files.write(context.work / split, sequences, token_files.dtype_for(encoder.size))
        rows = [
            {
                "split": split,
                "place": place,
                "id": row["id"],
                "domain": row["domain"],
                "best": row["best"],
                "tokens": len(sequence),
                "bytes": len(row["text"].encode()),
            }
            for place, (row, sequence) in enumerate(zip(documents, sequences, strict=True))
        ]
        table += rows
        sizes[split] = {"documents": len(rows), **{name: sum(row[name] for row in rows) for name in ("tokens", "bytes")}}
    with replacing(context.work / "documents.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(table), temporary, compression="zstd")
    return sizes


def base(context: Context) -> Results:
    """Tokens -> a model: warm-up, stable, annealed on the best data. Under torchrun all processes come here."""
    from groundup.model import folder
    from groundup.training import checkpoint, parallel
    from groundup.training.pretraining import pretrain

    recipe, encoder = context.recipe, _tokenizer(context)
    device = _device(context)
    parallel.call("base")
    processes = parallel.start(recipe.base.shard)
    model, results = pretrain(
        context.inputs["tokens"], encoder, recipe.base, recipe.mixture, device, processes, context.work, context.name,
        context.say if processes.first else lambda text: None, recipe.seed,
    )  # fmt: skip
    processes.end()
    if processes.first:
        folder.save(context.work, model, encoder, chat=False)
        for work in (context.work, context.work / "long"):
            checkpoint.clear(work)
    return {**results, "device": device.name}


def evaluation(context: Context) -> Results:
    """The base model against n-grams and a compressor; sentence pairs; multiple choice; samples."""
    from groundup.evaluation.suite import evaluate_base

    results = evaluate_base(
        _model(context, "base"), _tokenizer(context), _documents(context, "held_out"), context.inputs["tokens"],
        context.recipe.evaluation, context.recipe.seed,
    )  # fmt: skip
    for name, bits in results["bits_per_byte"]["overall"].items():
        context.say(f"held-out bits per byte, {name}: {bits:.3f}")
    return results


def sft(context: Context) -> Results:
    """Conversations, one's own or made from docstrings -> a chat model, compared with the base model on held-out ones."""
    from groundup.model import folder
    from groundup.posttraining.own_data import NoQuestions, rows_of_sft
    from groundup.posttraining.sft import compare_with_base, finetune
    from groundup.training import checkpoint

    settings, seed = context.recipe.sft, context.recipe.seed
    try:
        rows = rows_of_sft(((row["url"], row["text"]) for row in _documents(context)), settings, seed, context.say)
    except NoQuestions as reason:
        return _skip(context, str(reason))
    for side, some in rows.items():
        write_jsonl(context.work / f"{side}.jsonl", some)
    context.say(", ".join(f"{side}: {len(some):,} questions" for side, some in rows.items()))
    encoder, model = _tokenizer(context), _model(context, "base")
    left_out: Counter[str] = Counter()
    steps = finetune(
        model, encoder, rows["train"], settings, _device(context), context.work, seed, left_out, rows["held_out"]
    )
    folder.save(context.work, model, encoder, chat=True)
    checkpoint.clear(context.work)
    asked = rows["held_out"][: settings.held_out_questions]
    base = _model(context, "base")
    results = compare_with_base(model, base, encoder, asked, settings.max_answer_tokens, seed, left_out)
    _say_left_out(context, left_out)
    write_jsonl(context.work / "samples.jsonl", results.pop("samples"))
    counts = {side: len(some) for side, some in rows.items()}
    return {"questions": {**counts, "asked": len(asked)}, "steps": steps, "left_out": dict(left_out), **results}


def preferences(context: Context) -> Results:
    """Two sampled answers a prompt, compared by the simulated annotator; the file that people's labels use too."""
    from groundup.posttraining.preferences import label

    settings, seed = context.recipe.preferences, context.recipe.seed
    if reason := _skipped(context, "sft") or ("reward.data and dpo.data are given" if _all_own(context.recipe) else ""):
        return _skip(context, reason)
    encoder, model = _tokenizer(context), _model(context, "sft")
    results = {}
    for split, file, count in (
        ("train", "preference", settings.prompts),
        ("held_out", "held_out", settings.held_out_prompts),
    ):
        rows = read_jsonl(context.inputs["sft"] / f"{file}.jsonl")[:count]
        left_out: Counter[str] = Counter()
        judgements, pairs = label(
            model, encoder, rows, settings, context.recipe.sft.max_answer_tokens, seed, split, left_out
        )
        _say_left_out(context, left_out)
        write_jsonl(context.work / f"{split}.judgements.jsonl", judgements)
        write_jsonl(context.work / f"{split}.jsonl", pairs)
        prompts = len(judgements)
        results[split] = {"prompts": prompts, "pairs": len(pairs), "ties": prompts - len(pairs), "left_out": dict(left_out)}
    return {"annotator": "simulated", **results}


def reward(context: Context) -> Results:
    """Preferences -> a reward model, `Qwen3ForSequenceClassification` with one label."""
    from groundup.model import folder
    from groundup.posttraining.reward import assess, fit
    from groundup.training import checkpoint

    if reason := _skipped(context, "sft"):
        return _skip(context, reason)
    encoder, recipe = _tokenizer(context), context.recipe
    pairs = _pairs(context, recipe.reward.data)
    dtype = _device(context).training_dtype
    left_out: Counter[str] = Counter()
    sft, work = _model(context, "sft"), context.work
    scorer = fit(sft, encoder, pairs["train"], recipe.reward, dtype, work, recipe.seed, left_out)
    folder.save(context.work, scorer, encoder, chat=True)
    checkpoint.clear(context.work)
    results, scored = assess(scorer, encoder, pairs["held_out"] or pairs["train"], left_out)
    _say_left_out(context, left_out)
    write_jsonl(context.work / "scored.jsonl", scored)
    write_json(context.work / "scale.json", {"mean": results["mean"], "deviation": results["deviation"]})
    return {**results, "pairs": {split: len(some) for split, some in pairs.items()}, "left_out": dict(left_out)}


def dpo(context: Context) -> Results:
    """Preferences -> a better policy, directly."""
    from groundup.posttraining.dpo import optimise

    if reason := _skipped(context, "sft"):
        return _skip(context, reason)
    policy, recipe = _model(context, "sft"), context.recipe
    pairs = _pairs(context, recipe.dpo.data)
    dtype = _device(context).training_dtype
    left_out: Counter[str] = Counter()
    steps = optimise(
        policy, _tokenizer(context), pairs["train"], recipe.dpo, dtype, context.work, recipe.seed, left_out,
        pairs["held_out"],
    )  # fmt: skip
    compared = _finish_policy(context, policy, left_out)
    return {"steps": steps, "left_out": dict(left_out), **compared}


def ppo(context: Context) -> Results:
    """Prompts and the reward model -> a better policy, by reinforcement."""
    from groundup.model.folder import load_scorer
    from groundup.posttraining.batches import asked_of
    from groundup.posttraining.own_data import prompts
    from groundup.posttraining.ppo import optimise

    if reason := _skipped(context, "reward"):
        return _skip(context, reason)
    own = context.recipe.ppo.data
    made = context.inputs["sft"] / "preference.jsonl"
    questions = prompts(own, context.say) if own else [asked_of(row) for row in read_jsonl(made)]
    scale = read_json(context.inputs["reward"] / "scale.json")
    scorer = load_scorer(context.inputs["reward"]).to(_device(context).torch_device)
    policy, recipe = _model(context, "sft"), context.recipe
    left_out: Counter[str] = Counter()
    summary = optimise(
        policy, scorer, (scale["mean"], scale["deviation"]), _tokenizer(context), questions, recipe.ppo,
        recipe.sft.max_answer_tokens, _device(context).training_dtype, context.work, recipe.seed, left_out,
    )  # fmt: skip
    compared = _finish_policy(context, policy, left_out)
    return {**summary, "left_out": dict(left_out), **compared}


def report(context: Context) -> Results:
    """Everything above -> one self-contained page."""
    from groundup.report.report import write

    path = context.work / "report.html"
    write(path, context.recipe, context.inputs)
    return {"report": "report/report.html", "kb": round(path.stat().st_size / 1024)}


def _skip(context: Context, reason: str) -> Results:
    """The results of a stage that has nothing to work on: the run says so, and does the others."""
    context.say(f"{context.name} is skipped: {reason}")
    return {"skipped": reason}


def _skipped(context: Context, stage: str) -> str:
    """Why a stage before was skipped, "" if it was not."""
    return read_manifest(context.inputs[stage])["results"].get("skipped", "")


def _all_own(recipe: Recipe) -> bool:
    """Whether nothing is trained on preferences of the simulated annotator."""
    return bool(recipe.reward.data and recipe.dpo.data)


def _pairs(context: Context, files: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Preference rows of "train" and "held_out": of files, or of the stage `preferences`."""
    from groundup.posttraining.own_data import preferences

    if files:
        return preferences(files, context.name, context.say)
    return {split: read_jsonl(context.inputs["preferences"] / f"{split}.jsonl") for split in ("train", "held_out")}


def _say_left_out(context: Context, left_out: Counter[str]) -> None:
    from groundup.posttraining.rows import said

    if left_out:
        context.say(f"{left_out.total():,} rows left out of training or its measures: {said(left_out)}")


def _finish_policy(context: Context, policy: "Decoder", left_out: Counter[str]) -> Results:
    """Save an aligned policy, compare it with the model that it began as, and say what was left out of either."""
    from groundup.model import folder
    from groundup.posttraining.preferences import compare_policies
    from groundup.training import checkpoint

    encoder, settings = _tokenizer(context), context.recipe.preferences
    folder.save(context.work, policy, encoder, chat=True)
    checkpoint.clear(context.work)
    rows = read_jsonl(context.inputs["sft"] / "held_out.jsonl")[: settings.held_out_prompts]
    comparison, samples = compare_policies(
        policy, _model(context, "sft"), encoder, rows, settings.temperature,
        context.recipe.sft.max_answer_tokens, context.recipe.seed, left_out,
    )  # fmt: skip
    _say_left_out(context, left_out)
    write_jsonl(context.work / "samples.jsonl", samples)
    context.say(
        f"preferred over sft in {comparison['win_rate']:.1%} ({comparison['low']:.1%} to {comparison['high']:.1%}) of "
        f"{comparison['n']} held-out prompts (simulated); mean words {comparison['mean_words']:.1f} against "
        f"{comparison['baseline_mean_words']:.1f}"
    )
    return {"against_sft": comparison}


def _archive(number: int, source: Source) -> str:
    """The name of a source's web archive."""
    return f"{number:02d}-{source.domain}"


def _judges_and_signatures(recipe: Recipe) -> list[Path]:
    found = [Path(name) for name in recipe.annotations.judges.values() if name]
    if recipe.annotations.against:
        from groundup.corpus.copies import signatures_of

        found += [signatures_of(Path(folder)) for folder in recipe.annotations.against]
    return found


def _local_sources(recipe: Recipe) -> list[Path]:
    from groundup.corpus.local import local_path

    return [path for source in recipe.pages.sources if (path := local_path(source)) is not None]


def _archived(path: Path) -> str | None:
    """Of the files of `pages`, what the stages after it read: the pages, but not when they were fetched."""
    from groundup.corpus.warc import digest_of_pages

    return digest_of_pages(path) if path.name.endswith(".warc.gz") else None


def _others(folder: Path, but: str) -> list[Path]:
    """Whatever else the folder says besides weights: shape, tokenizer, chat template, sampling; not how we made it."""
    kinds = (".json", ".jinja", ".txt", ".model")
    return sorted(path for path in folder.glob("*") if path.suffix in kinds and path.name not in (but, MANIFEST))


def _own(*sections: str) -> Callable[[Recipe], list[Path]]:
    """The files of a user's own rows that a stage reads."""

    def files(recipe: Recipe) -> list[Path]:
        names = dict.fromkeys(name for section in sections for name in getattr(recipe, section).data)
        return [Path(name).expanduser() for name in names]

    return files


def _given_tokenizer(recipe: Recipe) -> list[Path]:
    folder = Path(recipe.tokenizer.folder)
    return [folder / "tokenizer.json", *_others(folder, "tokenizer.json")] if recipe.tokenizer.folder else []


def _given_model(recipe: Recipe) -> list[Path]:
    folder = Path(recipe.base.start_from)
    weights = sorted(folder.glob("*.safetensors"))
    return [folder / "config.json", *_others(folder, "config.json"), *weights] if recipe.base.start_from else []


def _assist(recipe: Recipe, folder: Path) -> NoReturn:
    """What torchrun's other processes do: wait for the first to train, help it, and say nothing."""
    from groundup.training import parallel

    by_name = {stage.name: stage for stage in STAGES}
    if work := parallel.called():
        inputs = {need: folder / need for need in by_name[work].needs}
        try:
            by_name[work].make(Context(recipe, folder / f"{work}.partial", inputs, work))
        except UserError:
            sys.exit(2)  # the first process has met it too, and says it
    sys.exit(0)


def _device(context: Context) -> "Device":
    from groundup.device import choose

    return choose(context.recipe.threads)


def _workers(context: Context) -> int:
    from groundup.workers import cores

    return context.recipe.threads or cores()


def _tokenizer(context: Context) -> "Tokenizer":
    from groundup.tokenizer.load import for_run

    return for_run(context.inputs["tokenizer"], context.recipe.base.start_from)


def _model(context: Context, stage: str) -> "Decoder":
    from groundup.model.folder import load_decoder

    return load_decoder(context.inputs[stage]).to(_device(context).torch_device)


def _documents(context: Context, split: str | None = None) -> list[dict[str, Any]]:
    from groundup.corpus.tables import read_table

    rows = read_table(context.inputs["corpus"] / "documents.parquet").to_pylist()
    return [row for row in rows if split is None or row["split"] == split]


def _watched(texts: Iterable[str], progress: Progress) -> Iterator[str]:
    for text in texts:
        yield text
        progress.advance(len(text))


STAGES = (
    Stage("pages", (), pages, files=_local_sources, content=_archived),
    Stage("annotations", ("pages",), annotations, files=_judges_and_signatures),
    Stage("corpus", ("annotations",), corpus, files=lambda recipe: [Path(name) for name in recipe.corpus.benchmarks]),
    Stage("tokenizer", ("corpus",), tokenizer, files=_given_tokenizer),
    Stage("tokens", ("corpus", "tokenizer"), tokens),
    Stage("base", ("corpus", "tokenizer", "tokens"), base, ("base", "mixture"), files=_given_model,
          ahead=(("", ahead.base_continues), ("corpus", ahead.base_has_text))),
    Stage("evaluation", ("corpus", "tokenizer", "tokens", "base"), evaluation, ahead=(("corpus", ahead.evaluation),)),
    Stage("sft", ("corpus", "tokenizer", "base"), sft, files=_own("sft"),
          ahead=(("", ahead.own_data), ("corpus", ahead.sft), ("tokenizer", ahead.sft_answers_fit))),
    # With preferences of one's own for both it makes none; what they hold does not matter to it, that they are given does.
    Stage("preferences", ("tokenizer", "sft"), preferences, ("preferences", "sft"),
          files=lambda recipe: _own("reward", "dpo")(recipe) if _all_own(recipe) else []),
    Stage("reward", ("tokenizer", "sft", "preferences"), reward, files=_own("reward"),
          ahead=(("", ahead.own_data), ("tokenizer", ahead.own_pairs_fit))),
    Stage("dpo", ("tokenizer", "sft", "preferences"), dpo, ("dpo", "preferences", "sft"), files=_own("dpo"),
          ahead=(("", ahead.own_data), ("tokenizer", ahead.own_pairs_fit))),
    Stage("ppo", ("tokenizer", "sft", "reward"), ppo, ("ppo", "preferences", "sft"), files=_own("ppo"),
          ahead=(("", ahead.own_data),)),
    Stage("report", ("pages", "annotations", "corpus", "tokenizer", "tokens", "base", "evaluation", "sft", "preferences",
                     "reward", "dpo", "ppo"), report),
)  # fmt: skip


CORPUS_STAGES = STAGES[:3]


def dry(recipe: Recipe, folder: Path, stages: tuple[Stage, ...] = STAGES) -> Results:
    """The plan of a run, printed; nothing is written."""
    plan = Run(folder, recipe, stages).plan()
    for step in plan:
        print(printable(f"{step.state:>5}  {step.stage.name:<12} {step.reason}"), file=sys.stderr)
    return {"run": str(folder), "plan": {step.stage.name: step.state for step in plan}}


def execute(recipe: Recipe, folder: Path) -> dict[str, dict[str, Any]]:
    """Make everything that is not made yet; the manifest of every stage. Of torchrun's processes the first returns."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Run(folder, recipe, STAGES).execute()
    from groundup.training import parallel

    if parallel.rank() > 0:
        _assist(recipe, folder)
    manifests = Run(folder, recipe, STAGES).execute()
    parallel.call("")  # where base was there already, the others wait still
    return manifests


def walk(recipe: Recipe, folder: Path) -> Results:
    """Make everything that is not made yet; the main figures of the whole run."""
    manifests = execute(recipe, folder)
    results = {name: manifest["results"] for name, manifest in manifests.items()}
    seconds = {name: manifest["seconds"] for name, manifest in manifests.items()}
    tested, tuned = results["evaluation"], results["sft"]
    choices = tested["multiple_choice"] or {}
    return {
        "run": str(folder),
        "report": str(folder / results["report"]["report"]),
        "seconds": {**seconds, "all": round(sum(seconds.values()), 1)},
        "figures": {
            "documents": results["corpus"]["left"]["documents"],
            "training_tokens": results["base"]["tokens"],
            "parameters": results["base"]["parameters"]["total"],
            "bits_per_byte": tested["bits_per_byte"]["overall"],
            "sentence_pairs": tested["sentence_pairs"]["all"]["accuracy"],
            "multiple_choice": {how: one["accuracy"] for how, one in choices.items() if isinstance(one, dict)},
            "sft_overlap": {name: one["overlap"] for name, one in tuned.get("held_out", {}).get("overlap", {}).items()},
            "sft_answer_loss": tuned.get("held_out", {}).get("answer_loss"),
            "reward_accuracy": results["reward"].get("accuracy", {}).get("accuracy"),
            "preferred_over_sft": {
                name: {
                    **{key: results[name]["against_sft"][key] for key in ("win_rate", "low", "high", "mean_words")},
                    "sft_mean_words": results[name]["against_sft"]["baseline_mean_words"],
                }
                for name in ("dpo", "ppo")
                if "against_sft" in results[name]
            },
            "skipped": {name: one["skipped"] for name, one in results.items() if "skipped" in one},
        },
    }


def walk_to_corpus(recipe: Recipe, folder: Path) -> Results:
    """Pages, annotations and corpus, as in a whole run, which can go on from here; the figures of the funnel.

    With weights, also the mixture that they come to over as many words as there are in the training documents.
    """
    from groundup.corpus import mixture

    manifests = Run(folder, recipe, CORPUS_STAGES).execute()
    results = manifests["corpus"]["results"]
    found = {
        "out": str(folder),
        "documents": str(folder / "corpus" / "documents.parquet"),
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
        "pages": manifests["annotations"]["results"]["pages"],
        "dropped": {step["step"]: step["dropped"] for step in results["steps"] if "dropped" in step},
        "changed": {step["step"]: step["changed"] for step in results["steps"] if "changed" in step},
        **{name: results[name] for name in ("left", "train", "held_out", "benchmarks")},
    }
    if recipe.mixture.weights:
        words = {domain: sizes["words"] for domain, sizes in results["train"]["by_domain"].items()}
        found["mixture"] = mixture.report(
            mixture.plan(words, recipe.mixture.weights, sum(words.values()), recipe.mixture.max_repeats)
        )
    return found
