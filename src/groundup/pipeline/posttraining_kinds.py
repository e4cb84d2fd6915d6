"""Post-training's kinds of steps: read a section of the recipe and the artifacts before it, call the chapter, write.

Chapters are imported where they are used, as in `step_kinds.py`.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from groundup.core.errors import UserError
from groundup.core.files import read_jsonl, write_json, write_jsonl
from groundup.pipeline.artifacts import (
    Results,
    all_processes,
    device_of,
    documents_of,
    model_of,
    reason_skipped,
    runtime_of,
    skip,
    tokenizer_of,
)
from groundup.pipeline.model_cards import tuned
from groundup.pipeline.run import StepContext

if TYPE_CHECKING:
    from groundup.model.decoder import Decoder
    from groundup.posttraining.config import DpoConfig, RewardConfig
    from groundup.training.runtime import Runtime


def sft(context: StepContext) -> Results:
    """Conversations, the user's or made from docstrings -> a chat model, compared with the base model on held-out ones."""
    from groundup.model import model_folder
    from groundup.posttraining.sft import compare_with_base, train
    from groundup.posttraining.user_data import NoQuestions, rows_of_sft
    from groundup.training import checkpoint

    settings, seed = context.recipe.sft, context.recipe.seed
    try:
        rows = rows_of_sft(lambda: ((row["url"], row["text"]) for row in documents_of(context)), settings, seed, context.log)
    except NoQuestions as reason:
        return skip(context, str(reason))
    context.log(", ".join(f"{side}: {len(side_rows):,} questions" for side, side_rows in rows.items()))
    tokenizer, model = tokenizer_of(context), model_of(context, "base")
    with all_processes(context) as runtime:
        steps = train(model, tokenizer, rows["train"], settings, runtime, rows["held_out"])
    if not runtime.processes.first:
        return {}
    for side, side_rows in rows.items():
        write_jsonl(context.work / f"{side}.jsonl", side_rows)
    left_out = runtime.left_out
    base, limit = model_of(context, "base"), settings.held_out_questions
    results = compare_with_base(model, base, tokenizer, rows["held_out"], settings.max_answer_tokens, seed, left_out, limit)
    _log_left_out(context, left_out)
    write_jsonl(runtime.training / "samples.jsonl", results.pop("samples"))
    counts = {side: len(side_rows) for side, side_rows in rows.items()}
    figures = {"on held-out questions": {name: results["held_out"][name] for name in ("answer_loss", "bits_per_byte", "overlap")}}
    card = tuned("sft", {"steps": steps, "conversations": counts}, figures)
    model_folder.save(context.work, model, tokenizer, chat=True, card=card, dtype=settings.save_dtype)
    checkpoint.clear(runtime.training)
    asked_count = results["held_out"]["answer_loss"]["conversations"]
    return {"questions": {**counts, "asked": asked_count}, "steps": steps, "left_out": dict(left_out), **results}


def preferences(context: StepContext) -> Results:
    """Two sampled answers per prompt, compared by the simulated annotator, in the file format of people's labels."""
    from groundup.posttraining.policy_comparison import label

    settings, seed = context.recipe.preferences, context.recipe.seed
    if reason := reason_skipped(context, "sft"):
        return skip(context, reason)
    tokenizer, model = tokenizer_of(context), model_of(context, "sft")
    results = {}
    for split, file, count in (
        ("train", "preference", settings.prompts),
        ("held_out", "held_out", settings.held_out_prompts),
    ):
        rows = read_jsonl(context.inputs["sft"] / f"{file}.jsonl")
        left_out: Counter[str] = Counter()
        judgements, pairs = label(
            model, tokenizer, rows, settings, context.recipe.sft.max_answer_tokens, seed, split, left_out, count
        )
        _log_left_out(context, left_out)
        write_jsonl(context.work / f"{split}.judgements.jsonl", judgements)
        write_jsonl(context.work / f"{split}.jsonl", pairs)
        prompts = len(judgements)
        results[split] = {"prompts": prompts, "pairs": len(pairs), "ties": prompts - len(pairs), "left_out": dict(left_out)}
    return {"annotator": "simulated", **results}


def reward(context: StepContext) -> Results:
    """Preferences -> a reward model, `Qwen3ForSequenceClassification` with one label."""
    from groundup.model import model_folder
    from groundup.posttraining.reward import assess, train
    from groundup.training import checkpoint

    if reason := reason_skipped(context, "sft"):
        return skip(context, reason)
    tokenizer, recipe = tokenizer_of(context), context.recipe
    pairs = _pairs(context, recipe.reward)
    sft = model_of(context, "sft")
    with all_processes(context) as runtime:
        reward_model = train(sft, tokenizer, pairs["train"], recipe.reward, runtime)
    if not runtime.processes.first:
        return {}
    left_out = runtime.left_out
    results, scored = assess(reward_model, tokenizer, pairs["held_out"] or pairs["train"], left_out, sft)
    _log_left_out(context, left_out)
    write_jsonl(runtime.training / "scored.jsonl", scored)
    write_json(context.work / "reward_scale.json", {name: results[name] for name in ("reward_mean", "reward_std")})
    counts = {split: len(split_pairs) for split, split_pairs in pairs.items()}
    card = tuned("reward", {"pairs": counts}, results)
    model_folder.save(context.work, reward_model, tokenizer, chat=True, card=card, dtype=recipe.reward.save_dtype)
    checkpoint.clear(runtime.training)
    return {**results, "pairs": counts, "left_out": dict(left_out)}


def dpo(context: StepContext) -> Results:
    """Preferences -> a better policy, directly."""
    from groundup.posttraining.dpo import assess, train

    if reason := reason_skipped(context, "sft"):
        return skip(context, reason)
    policy, recipe, tokenizer = model_of(context, "sft"), context.recipe, tokenizer_of(context)
    pairs = _pairs(context, recipe.dpo)
    with all_processes(context) as runtime:
        cache = runtime.training / "reference_log_probabilities"
        steps = train(policy, tokenizer, pairs["train"], recipe.dpo, runtime, pairs["held_out"], cache)
    if not runtime.processes.first:
        return {}
    shutil.rmtree(cache, ignore_errors=True)  # training is over
    counts = {split: len(split_pairs) for split, split_pairs in pairs.items()}
    before = model_of(context, "sft")
    held_out = assess(policy, before, tokenizer, pairs["held_out"], recipe.dpo)
    if recipe.dpo.data:  # no step before has answered these prompts
        held_out |= _answer_form(context, pairs["held_out"], {"before": before, "after": policy})
    compared = _compare_and_save(context, policy, runtime, "dpo", {"steps": steps, "pairs": counts}, recipe.dpo.save_dtype)
    return {"steps": steps, "left_out": dict(runtime.left_out), "held_out": held_out, **compared}


def _answer_form(context: StepContext, pairs: list[dict[str, Any]], models: "dict[str, Decoder]") -> Results:
    """The mean words of each model's answers to the prompts of pairs, and the share that ended; empty where no prompt fits."""
    from groundup.generation.engine import Sampling
    from groundup.posttraining.reference_answers import answer, form_of, with_room

    recipe, tokenizer = context.recipe, tokenizer_of(context)
    max_tokens, model = recipe.sft.max_answer_tokens, models["after"]
    try:
        rows, count = [{"messages": row["prompt"]} for row in pairs], recipe.sft.held_out_questions
        answerable = with_room(model, tokenizer, rows, max_tokens, "dpo", most_rows=count)
    except UserError as none_fits:
        context.log(f"answers are not measured: {none_fits}")
        return {}
    questions = [row["messages"] for row in answerable]
    if not questions:
        return {}
    forms = {
        name: form_of(answer(model, tokenizer, questions, Sampling(max_tokens, temperature=1.0), recipe.seed))
        for name, model in models.items()
    }
    measures = {key: {name: form[key] for name, form in forms.items()} for key in ("words", "ended")}
    context.log(
        f"answers to {len(questions)} held-out prompts: "
        f"{measures['words']['before']:.1f} -> {measures['words']['after']:.1f} words, "
        f"{measures['ended']['before']:.0%} -> {measures['ended']['after']:.0%} ended"
    )
    return {"answers": len(questions), **measures}


def ppo(context: StepContext) -> Results:
    """Prompts and a reward -> a better policy, by reinforcement."""
    from groundup.posttraining.ppo import train

    return _reinforce(context, train)


def grpo(context: StepContext) -> Results:
    """Prompts and a reward -> a better policy: answers are reinforced that are better than others to the same prompt."""
    from groundup.posttraining.grpo import train

    return _reinforce(context, train)


def _reinforce(context: StepContext, train: Callable[..., Results]) -> Results:
    from groundup.posttraining.batches import question_of
    from groundup.posttraining.rewards import of_folder, open_reward
    from groundup.posttraining.user_data import prompts

    recipe, device = context.recipe, device_of(context)
    kind = train.__module__.rpartition(".")[2]
    settings = getattr(recipe, kind)
    if reason := reason_skipped(context, "sft" if settings.reward else "reward"):
        return skip(context, reason)
    prompt_file = context.inputs["sft"] / "preference.jsonl"
    if not settings.data and not prompt_file.is_file():
        raise UserError(f"{kind}: the model that it begins as was made by no step sft, so there are no prompts; give {kind}.data")
    runtime = runtime_of(context)
    if settings.data:
        sides = prompts(settings.data, context.name, context.log, settings.held_out, settings.strict, runtime.left_out)
    else:
        sides = {"train": [question_of(row) for row in read_jsonl(prompt_file)], "held_out": []}
    policy, tokenizer = model_of(context, "sft"), tokenizer_of(context)
    setup = tokenizer, device.training_dtype, device.torch_device
    reward = open_reward(settings.reward, *setup) if settings.reward else of_folder(context.inputs["reward"], *setup)
    max_tokens = recipe.sft.max_answer_tokens
    summary = train(policy, tokenizer, sides["train"], settings, runtime, reward, max_tokens, sides["held_out"])
    for concern in summary["concerns"]:
        context.log(f"{context.name}: {concern}")
    data = {"iterations": summary["iterations"], "prompts": len(sides["train"])}
    compared = _compare_and_save(context, policy, runtime, kind, data, settings.save_dtype)
    return {**summary, "left_out": dict(runtime.left_out), **compared}


def _pairs(context: StepContext, settings: "RewardConfig | DpoConfig") -> dict[str, list[dict[str, Any]]]:
    """The preference rows of "train" and "held_out", from files or from the step `preferences`."""
    from groundup.posttraining.user_data import preferences

    if settings.data:
        return preferences(settings.data, context.name, context.log, settings.held_out, settings.strict)
    return {split: read_jsonl(context.inputs["preferences"] / f"{split}.jsonl") for split in ("train", "held_out")}


def _log_left_out(context: StepContext, left_out: Counter[str]) -> None:
    from groundup.posttraining.tokenize_rows import top_reasons

    if left_out:
        context.log(f"{left_out.total():,} rows left out of training or its measures: {top_reasons(left_out)}")


def _compare_and_save(
    context: StepContext, policy: "Decoder", runtime: "Runtime", kind: str, data: dict[str, Any], dtype: str
) -> Results:
    """Compare an aligned policy with the model that it began as, log what was left out, and save the policy."""
    from groundup.model import model_folder
    from groundup.training import checkpoint

    compared = _compare_with_sft(context, policy, runtime)
    model_folder.save(context.work, policy, tokenizer_of(context), chat=True, card=tuned(kind, data, compared), dtype=dtype)
    checkpoint.clear(runtime.training)
    return compared


def _compare_with_sft(context: StepContext, policy: "Decoder", runtime: "Runtime") -> Results:
    from groundup.posttraining.policy_comparison import compare_policies

    tokenizer, settings, left_out = tokenizer_of(context), context.recipe.preferences, runtime.left_out
    held_out = context.inputs["sft"] / "held_out.jsonl"
    if not held_out.is_file():  # a user's own model comes without questions
        _log_left_out(context, left_out)
        context.log("not compared with sft: the model that it began as was made by no step sft, so no questions are held out")
        return {"against_sft": None}
    comparison, samples = compare_policies(
        policy, model_of(context, "sft"), tokenizer, read_jsonl(held_out), settings.temperature,
        context.recipe.sft.max_answer_tokens, context.recipe.seed, left_out, settings.held_out_prompts,
    )  # fmt: skip
    _log_left_out(context, left_out)
    write_jsonl(runtime.training / "samples.jsonl", samples)
    context.log(
        f"preferred over sft in {comparison['win_rate']:.1%} ({comparison['low']:.1%} to {comparison['high']:.1%}) of "
        f"{comparison['n']} held-out prompts (simulated); mean words {comparison['mean_words']:.1f} against "
        f"{comparison['baseline_mean_words']:.1f}"
    )
    return {"against_sft": comparison}
