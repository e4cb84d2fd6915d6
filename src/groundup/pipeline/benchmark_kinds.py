"""The kind of step that evaluates a run's model on benchmarks; the recipe names the tasks, the data and the model."""

from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.pipeline.artifacts import Results, reason_skipped, skip
from groundup.pipeline.recipe import Recipe
from groundup.pipeline.run import Step, StepContext


def benchmarks(context: StepContext) -> Results:
    """A model's folder on tasks: `results.json`, records for each example, and what `evaluation.evaluate` returns."""
    from groundup.evaluation.contamination import contamination
    from groundup.evaluation.evaluate import evaluate
    from groundup.evaluation.results_table import table

    settings, folder = context.recipe.benchmarks, context.inputs["model"]
    if reason := reason_skipped(context, "model"):
        return skip(context, reason)
    data = _data(context.recipe)
    board = expanded(settings.leaderboard) if settings.leaderboard else None
    scores = evaluate(
        [str(folder)], settings.tasks, data, limit=settings.limit or None, out=context.work, leaderboard=board,
        final_out=context.work.with_name(context.name),
    )  # fmt: skip
    context.log(table(scores))
    contaminations: dict[str, Any] = {}
    for name in settings.tasks if settings.contamination else []:
        task = Path(name).stem
        try:
            contaminations[task] = contamination(str(folder), name, data, seed=context.recipe.seed)
        except UserError as error:  # a sorted or short file allows no test
            context.log(f"contamination of {task} is left out: {error}")
    board_tables = _standings(board, [result["task"] for result in scores["results"]]) if board else []
    tasks = list(dict.fromkeys(result["task"] for result in scores["results"]))
    return {**scores, "tasks": tasks, "contamination": contaminations, "leaderboard": board_tables}


def _standings(board: Path, tasks: list[str]) -> list[dict[str, Any]]:
    """The largest table of each of these tasks on the leaderboard as it is now, for the report."""
    from groundup.evaluation.leaderboard import load, standings

    rows, _ = load(board)
    return [
        {
            "task": standing["task"],
            "lower_is_better": standing["tables"][0]["lower_is_better"],
            "rows": [
                {"best": row["best"], "worst": row["worst"], "model": row["row"].model, "figure": row["row"].figure}
                for row in standing["tables"][0]["rows"]
            ],
        }
        for standing in standings(rows, board.parent)
        if standing["task"] in tasks
    ]


def _data(recipe: Recipe) -> Path | None:
    return expanded(recipe.benchmarks.data) if recipe.benchmarks.data else None


def _task_files(recipe: Recipe) -> list[Path]:
    """The files of the tasks' examples, and the user's own task files. Raises UserError for a task that does not exist."""
    from groundup.evaluation.tasks import open_task

    if not recipe.benchmarks.tasks:
        raise UserError("benchmarks.tasks is empty: name tasks, such as [\"piqa\"]; `groundup evaluate --list` shows them")
    paths: list[Path] = []
    for name in recipe.benchmarks.tasks:
        task = open_task(name, _data(recipe))
        paths += [*task.paths, *task.few_shot_paths, *([Path(name)] if Path(name).is_file() else [])]
    return list(dict.fromkeys(paths))


BENCHMARKS = Step("benchmarks", ("model",), benchmarks, files=_task_files)
