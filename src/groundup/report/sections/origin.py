import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from groundup.core import toml
from groundup.core.text import visible
from groundup.report.run_results import RunResults

TITLE = "How it was made, and what to try next"
STAGES = ()  # of every run
RECIPE = "recipe.toml"  # beside the page

# The files of a stage that people read, and what they hold.
RAW = {
    "stage.json": "every figure of the stage, its settings, inputs, versions and time",
    "README.md": "what the model is, and how to load it",
    "training/metrics.jsonl": "every step of the training",
    "training/rollouts.jsonl": "every iteration of PPO",
    "funnel.json": "every step of selection",
    "training/samples.jsonl": "questions and answers",
    "training/scored.jsonl": "rewards of held-out answers",
    "train.judgements.jsonl": "the comparisons that were trained on",
}


def gather(run: RunResults) -> dict[str, Any]:
    return {
        "seed": run.recipe["seed"],
        "machines": _by_value(run, lambda manifest: _machine(manifest.get("machine") or {})),
        "device": run.results.get("base", {}).get("device", ""),
        "versions": _by_value(
            run, lambda manifest: ", ".join(f"{library} {version}" for library, version in manifest["versions"].items())
        ),
        "files": [
            {"stage": stage, "name": name, "what": what, "link": _link(run.page, folder / name)}
            for stage, folder in run.folders.items()
            for name, what in RAW.items()
            if (folder / name).is_file()
        ],
        "recipe": visible(toml.dumps(run.recipe)),
        "recipe_file": RECIPE,
        "commands": [{"what": what, "command": visible(command)} for what, command in commands(run)],
    }


def commands(run: RunResults) -> list[tuple[str, str]]:
    """(purpose, command) of each command to try next, to be typed where the run was started."""
    folder = next(iter(run.folders.values()), run.page).parent  # in a run of added steps alone that of the page
    recipe = folder / "report" / RECIPE
    base, results = run.recipe["base"], run.results
    entries = []
    talkative = [stage for stage in ("dpo", "ppo", "grpo", "sft", "base") if stage in results]
    for stage in talkative[:2]:
        entries.append((f"Talk to the model of {stage}.", ["chat", folder, "--stage", stage]))
    if "base" in results:
        deeper = f"base.depth={base['depth'] + 1}"
        entries.append(("Make the model larger.", ["run", recipe, "--run", f"{folder}-deeper", "--set", deeper]))
        longer = f"base.tokens={2 * results['base']['tokens']}"
        entries.append(("Train it on twice as many tokens.", ["run", recipe, "--run", f"{folder}-longer", "--set", longer]))
        entries.append(("Look at its curves in TensorBoard.", ["tensorboard", folder]))
    if "dpo" in results:
        beta = "dpo.beta={:g}".format(2 * run.recipe["dpo"]["beta"])
        entries.append(("Hold DPO closer to the fine-tuned model.", ["run", recipe, "--run", f"{folder}-closer", "--set", beta]))
    if "corpus" in results:
        entries.append(("See what other thresholds would keep.", ["corpus", "tune", folder]))
    if "tokenizer" in results and "corpus" in results:
        report = ["tokenizer", "report", folder / "tokenizer", "--on", folder, "--out", f"{folder}-tokenizer.html"]
        entries.append(("See what the tokenizer does to texts.", report))
    return [(what, shlex.join(["groundup", *map(str, words)])) for what, words in entries]


def _machine(machine: dict[str, Any]) -> str:
    if not machine:
        return "not noted"
    memory = f", {machine['memory_gb']:g} GB of memory" if machine["memory_gb"] else ""
    return f"{machine['processor']}, {machine['cores']} cores{memory}, {machine['system']}"


def _by_value(run: RunResults, value: Any) -> list[dict[str, Any]]:
    """Each distinct value and the names of its stages; without names where all stages have the same value."""
    stages_of: dict[str, list[str]] = {}
    for stage, manifest in run.manifests.items():
        stages_of.setdefault(value(manifest), []).append(stage)
    return [{"value": text, "stages": stages if len(stages_of) > 1 else []} for text, stages in stages_of.items()]


def _link(page: Path, path: Path) -> str:
    return quote(Path(os.path.relpath(path, page)).as_posix())
