"""The kinds of steps, one function each: read a section of the recipe and the artifacts before it, call the chapter, write.

Chapters are imported where they are used, so that `groundup run --dry-run` and a finished run do not wait for torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core.errors import UserError
from groundup.core.files import read_json, read_jsonl, write_json, write_jsonl
from groundup.core.progress import Progress
from groundup.core.seals import MANIFEST, SEAL, is_sealed, read_manifest, read_sealed, seal, write_sealed
from groundup.corpus.config import SourceConfig
from groundup.pipeline import preflight
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Step, StepContext

if TYPE_CHECKING:
    from groundup.core.device import Device
    from groundup.model.decoder import Decoder
    from groundup.tokenizer.tokenizer import Tokenizer

Results = dict[str, Any]


def pages(context: StepContext) -> Results:
    """Sources -> WARC files, one a source."""
    from groundup.corpus.acquire.sources import collect

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
        context.log(
            f"{source.source} -> {name}.warc.gz: {counts[name]['pages']:,} pages, {counts[name]['bytes'] / 1e6:.1f} MB"
        )
    return counts


def annotations(context: StepContext) -> Results:
    """Pages -> documents with everything that was measured on them; nothing is dropped."""
    from groundup.corpus.annotate.measure import annotate

    recipe = context.recipe
    sources = [
        (context.inputs["pages"] / f"{_archive(number, source)}.warc.gz", source.domain)
        for number, source in enumerate(recipe.pages.sources)
    ]
    workers = recipe.threads if recipe.ray else _workers(context)
    return annotate(sources, context.work, recipe.annotations, workers, context.name, recipe.ray, recipe.memory_mb)


def corpus(context: StepContext) -> Results:
    """Annotations -> the documents that pass the thresholds, split into training and held-out."""
    from groundup.corpus.select.selection import select

    recipe = context.recipe
    return select(context.inputs["annotations"], context.work, recipe.corpus, recipe.annotations.language, recipe.seed)


def tokenizer(context: StepContext) -> Results:
    """Training documents -> byte-level BPE; or the one of another folder."""
    from groundup.tokenizer import bpe
    from groundup.tokenizer.tokenizer import Tokenizer, longest_words

    documents = _documents(context, "train")
    settings = context.recipe.tokenizer
    if settings.folder:
        counts, trained = {}, Tokenizer.load(Path(settings.folder))
        context.log(f"vocabulary {trained.size}: the tokenizer of {settings.folder}")
    else:
        with Progress("counting words", sum(len(row["text"]) for row in documents), "characters") as progress:
            counts = bpe.count_pretokens(_watched((row["text"] for row in documents), progress))
        trained = Tokenizer.from_merges(bpe.train(counts, settings.vocabulary))
        if trained.size < settings.vocabulary:
            context.log(
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


def tokens(context: StepContext) -> Results:
    """Documents -> token files, each document after the end-of-text token; and a table of what stands where."""
    from groundup.tokenizer import token_folder

    splits = {split: _documents(context, split) for split in ("train", "held_out")}
    return token_folder.write(context.work, splits, _tokenizer(context), _workers(context))


def base(context: StepContext) -> Results:
    """Tokens -> a model: warm-up, stable, annealed on the best data. Under torchrun all processes come here."""
    from groundup.model import folder
    from groundup.training import checkpoint, parallel
    from groundup.training.pretraining import pretrain

    recipe, tokenizer = context.recipe, _tokenizer(context)
    device = _device(context)
    parallel.call(context.name)
    processes = parallel.start(recipe.base.shard)
    model, results = pretrain(
        context.inputs["tokens"], tokenizer, recipe.base, recipe.mixture, device, processes, context.work, context.name,
        context.log if processes.first else lambda text: None, recipe.seed,
    )  # fmt: skip
    processes.end()
    if processes.first:
        folder.save(context.work, model, tokenizer, chat=False)
        for work in (context.work, context.work / "long"):
            checkpoint.clear(work)
    return {**results, "device": device.name}


def evaluation(context: StepContext) -> Results:
    """The base model against n-grams and a compressor; sentence pairs; multiple choice; samples."""
    from groundup.evaluation.suite import evaluate_base

    results = evaluate_base(
        _model(context, "base"), _tokenizer(context), _documents(context, "held_out"), context.inputs["tokens"],
        context.recipe.evaluation, context.recipe.seed,
    )  # fmt: skip
    for name, bits in results["bits_per_byte"]["overall"].items():
        context.log(f"held-out bits per byte, {name}: {bits:.3f}")
    if left_out := results["samples_left_out"]:
        context.log(f"{left_out} samples left out: their beginnings leave the model's context no room")
    return results


def sft(context: StepContext) -> Results:
    """Conversations, one's own or made from docstrings -> a chat model, compared with the base model on held-out ones."""
    from groundup.model import folder
    from groundup.posttraining.own_data import NoQuestions, rows_of_sft
    from groundup.posttraining.sft import compare_with_base, train
    from groundup.training import checkpoint

    settings, seed = context.recipe.sft, context.recipe.seed
    try:
        rows = rows_of_sft(lambda: ((row["url"], row["text"]) for row in _documents(context)), settings, seed, context.log)
    except NoQuestions as reason:
        return _skip(context, str(reason))
    for side, some in rows.items():
        write_jsonl(context.work / f"{side}.jsonl", some)
    context.log(", ".join(f"{side}: {len(some):,} questions" for side, some in rows.items()))
    tokenizer, model = _tokenizer(context), _model(context, "base")
    left_out: Counter[str] = Counter()
    steps = train(
        model, tokenizer, rows["train"], settings, _device(context), context.work, seed, left_out, rows["held_out"]
    )
    folder.save(context.work, model, tokenizer, chat=True)
    checkpoint.clear(context.work)
    asked = rows["held_out"][: settings.held_out_questions]
    base = _model(context, "base")
    results = compare_with_base(model, base, tokenizer, asked, settings.max_answer_tokens, seed, left_out)
    _log_left_out(context, left_out)
    write_jsonl(context.work / "samples.jsonl", results.pop("samples"))
    counts = {side: len(some) for side, some in rows.items()}
    return {"questions": {**counts, "asked": len(asked)}, "steps": steps, "left_out": dict(left_out), **results}


def preferences(context: StepContext) -> Results:
    """Two sampled answers a prompt, compared by the simulated annotator; the file that people's labels use too."""
    from groundup.posttraining.preferences import label

    settings, seed = context.recipe.preferences, context.recipe.seed
    if reason := _skipped(context, "sft"):
        return _skip(context, reason)
    tokenizer, model = _tokenizer(context), _model(context, "sft")
    results = {}
    for split, file, count in (
        ("train", "preference", settings.prompts),
        ("held_out", "held_out", settings.held_out_prompts),
    ):
        rows = read_jsonl(context.inputs["sft"] / f"{file}.jsonl")[:count]
        left_out: Counter[str] = Counter()
        judgements, pairs = label(
            model, tokenizer, rows, settings, context.recipe.sft.max_answer_tokens, seed, split, left_out
        )
        _log_left_out(context, left_out)
        write_jsonl(context.work / f"{split}.judgements.jsonl", judgements)
        write_jsonl(context.work / f"{split}.jsonl", pairs)
        prompts = len(judgements)
        results[split] = {"prompts": prompts, "pairs": len(pairs), "ties": prompts - len(pairs), "left_out": dict(left_out)}
    return {"annotator": "simulated", **results}


def reward(context: StepContext) -> Results:
    """Preferences -> a reward model, `Qwen3ForSequenceClassification` with one label."""
    from groundup.model import folder
    from groundup.posttraining.reward import assess, train
    from groundup.training import checkpoint

    if reason := _skipped(context, "sft"):
        return _skip(context, reason)
    tokenizer, recipe = _tokenizer(context), context.recipe
    pairs = _pairs(context, recipe.reward.data)
    dtype = _device(context).training_dtype
    left_out: Counter[str] = Counter()
    sft, work = _model(context, "sft"), context.work
    reward_model = train(sft, tokenizer, pairs["train"], recipe.reward, dtype, work, recipe.seed, left_out)
    folder.save(context.work, reward_model, tokenizer, chat=True)
    checkpoint.clear(context.work)
    results, scored = assess(reward_model, tokenizer, pairs["held_out"] or pairs["train"], left_out)
    _log_left_out(context, left_out)
    write_jsonl(context.work / "scored.jsonl", scored)
    write_json(context.work / "reward_scale.json", {name: results[name] for name in ("reward_mean", "reward_std")})
    return {**results, "pairs": {split: len(some) for split, some in pairs.items()}, "left_out": dict(left_out)}


def dpo(context: StepContext) -> Results:
    """Preferences -> a better policy, directly."""
    from groundup.posttraining.dpo import train

    if reason := _skipped(context, "sft"):
        return _skip(context, reason)
    policy, recipe = _model(context, "sft"), context.recipe
    pairs = _pairs(context, recipe.dpo.data)
    dtype = _device(context).training_dtype
    left_out: Counter[str] = Counter()
    steps = train(
        policy, _tokenizer(context), pairs["train"], recipe.dpo, dtype, context.work, recipe.seed, left_out,
        pairs["held_out"],
    )  # fmt: skip
    compared = _finish_policy(context, policy, left_out)
    return {"steps": steps, "left_out": dict(left_out), **compared}


def ppo(context: StepContext) -> Results:
    """Prompts and the reward model -> a better policy, by reinforcement."""
    from groundup.model.folder import load_reward_model
    from groundup.posttraining.batches import asked_of
    from groundup.posttraining.own_data import prompts
    from groundup.posttraining.ppo import train

    if reason := _skipped(context, "reward"):
        return _skip(context, reason)
    own = context.recipe.ppo.data
    made = context.inputs["sft"] / "preference.jsonl"
    if not own and not made.is_file():
        raise UserError("ppo: the model of sft was not made in a run, so there are no prompts; give ppo.data")
    questions = prompts(own, context.log) if own else [asked_of(row) for row in read_jsonl(made)]
    scale = read_json(context.inputs["reward"] / "reward_scale.json")
    reward_model = load_reward_model(context.inputs["reward"]).to(_device(context).torch_device)
    policy, recipe = _model(context, "sft"), context.recipe
    left_out: Counter[str] = Counter()
    summary = train(
        policy, reward_model, (scale["reward_mean"], scale["reward_std"]), _tokenizer(context), questions, recipe.ppo,
        recipe.sft.max_answer_tokens, _device(context).training_dtype, context.work, recipe.seed, left_out,
    )  # fmt: skip
    compared = _finish_policy(context, policy, left_out)
    return {**summary, "left_out": dict(left_out), **compared}


def report(context: StepContext) -> Results:
    """Everything above -> one self-contained page."""
    from groundup.report.report import write

    path = context.work / "report.html"
    write(path, context.recipe.model_dump(), context.inputs)
    return {"report": "report/report.html", "kb": round(path.stat().st_size / 1024)}


def _skip(context: StepContext, reason: str) -> Results:
    """The results of a stage that has nothing to work on: the run says so, and does the others."""
    context.log(f"{context.name} is skipped: {reason}")
    return {"skipped": reason}


def _skipped(context: StepContext, need: str) -> str:
    """Why a step before was skipped, "" if it was not, or is somebody's folder."""
    folder = context.inputs[need]
    return read_manifest(folder)["results"].get("skipped", "") if (folder / MANIFEST).is_file() else ""


def _pairs(context: StepContext, files: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Preference rows of "train" and "held_out": of files, or of the stage `preferences`."""
    from groundup.posttraining.own_data import preferences

    if files:
        return preferences(files, context.name, context.log)
    return {split: read_jsonl(context.inputs["preferences"] / f"{split}.jsonl") for split in ("train", "held_out")}


def _log_left_out(context: StepContext, left_out: Counter[str]) -> None:
    from groundup.posttraining.rows import said

    if left_out:
        context.log(f"{left_out.total():,} rows left out of training or its measures: {said(left_out)}")


def _finish_policy(context: StepContext, policy: "Decoder", left_out: Counter[str]) -> Results:
    """Save an aligned policy, compare it with the model that it began as, and say what was left out of either."""
    from groundup.model import folder
    from groundup.posttraining.preferences import compare_policies
    from groundup.training import checkpoint

    tokenizer, settings = _tokenizer(context), context.recipe.preferences
    folder.save(context.work, policy, tokenizer, chat=True)
    checkpoint.clear(context.work)
    held_out = context.inputs["sft"] / "held_out.jsonl"
    if not held_out.is_file():  # a model that is given comes without questions
        _log_left_out(context, left_out)
        context.log("not compared with sft: it was not made in a run, so no questions are held out")
        return {"against_sft": None}
    rows = read_jsonl(held_out)[: settings.held_out_prompts]
    comparison, samples = compare_policies(
        policy, _model(context, "sft"), tokenizer, rows, settings.temperature,
        context.recipe.sft.max_answer_tokens, context.recipe.seed, left_out,
    )  # fmt: skip
    _log_left_out(context, left_out)
    write_jsonl(context.work / "samples.jsonl", samples)
    context.log(
        f"preferred over sft in {comparison['win_rate']:.1%} ({comparison['low']:.1%} to {comparison['high']:.1%}) of "
        f"{comparison['n']} held-out prompts (simulated); mean words {comparison['mean_words']:.1f} against "
        f"{comparison['baseline_mean_words']:.1f}"
    )
    return {"against_sft": comparison}


def _archive(number: int, source: SourceConfig) -> str:
    """The name of a source's web archive."""
    return f"{number:02d}-{source.domain}"


def _classifiers_and_signatures(recipe: Recipe) -> list[Path]:
    found = [Path(name) for name in recipe.annotations.classifiers.values() if name]
    if recipe.annotations.against:
        from groundup.corpus.dedup.resolve import signatures_of

        found += [signatures_of(Path(folder)) for folder in recipe.annotations.against]
    return found


def _local_sources(recipe: Recipe) -> list[Path]:
    from groundup.corpus.acquire.local import local_path

    return [path for source in recipe.pages.sources if (path := local_path(source)) is not None]


def _archived(path: Path) -> str | None:
    """Of the files of `pages`, what the stages after it read: the pages, but not when they were fetched."""
    from groundup.corpus.archive.warc import digest_of_pages

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


def _device(context: StepContext) -> "Device":
    from groundup.core.device import choose

    return choose(context.recipe.threads)


def _workers(context: StepContext) -> int:
    from groundup.core.executor import cores

    return context.recipe.threads or cores()


def _tokenizer(context: StepContext) -> "Tokenizer":
    from groundup.tokenizer.load import for_run

    return for_run(context.inputs["tokenizer"], context.recipe.base.start_from)


def _model(context: StepContext, stage: str) -> "Decoder":
    from groundup.model.folder import load_decoder

    return load_decoder(context.inputs[stage]).to(_device(context).torch_device)


def _documents(context: StepContext, split: str | None = None) -> list[dict[str, Any]]:
    from groundup.corpus.tables import read_table

    rows = read_table(context.inputs["corpus"] / "documents.parquet").to_pylist()
    return [row for row in rows if split is None or row["split"] == split]


def _watched(texts: Iterable[str], progress: Progress) -> Iterator[str]:
    for text in texts:
        yield text
        progress.advance(len(text))


STANDARD = (
    Step("pages", (), pages, files=_local_sources, content=_archived),
    Step("annotations", ("pages",), annotations, files=_classifiers_and_signatures),
    Step("corpus", ("annotations",), corpus, files=lambda recipe: [Path(name) for name in recipe.corpus.benchmarks]),
    Step("tokenizer", ("corpus",), tokenizer, files=_given_tokenizer),
    Step("tokens", ("corpus", "tokenizer"), tokens),
    Step("base", ("corpus", "tokenizer", "tokens"), base, ("base", "mixture"), files=_given_model,
          ahead=(("", preflight.base_continues), ("corpus", preflight.base_has_text))),
    Step("evaluation", ("corpus", "tokenizer", "tokens", "base"), evaluation, ahead=(("corpus", preflight.evaluation),)),
    Step("sft", ("corpus", "tokenizer", "base"), sft, files=_own("sft"),
          ahead=(("", preflight.sft_data), ("corpus", preflight.sft), ("tokenizer", preflight.sft_answers_fit))),
    Step("preferences", ("tokenizer", "sft"), preferences, ("preferences", "sft")),
    Step("reward", ("tokenizer", "sft", "preferences"), reward, files=_own("reward"),
          ahead=(("", preflight.reward_data), ("tokenizer", preflight.reward_pairs_fit))),
    Step("dpo", ("tokenizer", "sft", "preferences"), dpo, ("dpo", "preferences", "sft"), files=_own("dpo"),
          ahead=(("", preflight.dpo_data), ("tokenizer", preflight.dpo_pairs_fit))),
    Step("ppo", ("tokenizer", "sft", "reward"), ppo, ("ppo", "preferences", "sft"), files=_own("ppo"),
          ahead=(("", preflight.ppo_data),)),
    Step("report", ("pages", "annotations", "corpus", "tokenizer", "tokens", "base", "evaluation", "sft", "preferences",
                     "reward", "dpo", "ppo"), report),
)  # fmt: skip


CORPUS_STEPS = STANDARD[:3]
KINDS = {step.name: step for step in STANDARD[:-1]}  # a kind of step is a standard step under another name
MODELS = ("base", "sft", "dpo", "ppo")  # steps that write a model with its tokenizer
