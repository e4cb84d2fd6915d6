"""The results of a run, as far as it went, for the sections of its report."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from groundup.core.files import read_jsonl
from groundup.core.seals import read_manifest
from groundup.core.text import visible

SHOWN_SAMPLES = 10
SHOWN_ANSWER = 400  # characters


@dataclass(frozen=True)
class RunResults:
    """`folders`: of the finished stages, in the order of the run. The results read from them are safe to show: see `visible`.

    `page`: the folder that the page will be in.
    """

    recipe: dict[str, Any]  # its sections, as plain data
    folders: dict[str, Path]
    page: Path

    @cached_property
    def manifests(self) -> dict[str, dict[str, Any]]:
        return {name: visible(read_manifest(folder)) for name, folder in self.folders.items()}

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        return {name: manifest["results"] for name, manifest in self.manifests.items()}

    @cached_property
    def seconds(self) -> dict[str, float]:
        return {name: float(manifest["seconds"]) for name, manifest in self.manifests.items()}

    def rows(self, stage: str, file: str) -> list[dict[str, Any]]:
        return read_jsonl(self.folders[stage] / file)

    def samples(self, stage: str) -> list[dict[str, str]]:
        return shown(self.rows(stage, "training/samples.jsonl")[:SHOWN_SAMPLES])


def shown(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Samples as the page shows them: visible characters, and long ones cut."""
    return [{key: visible(_cut(str(value))) for key, value in row.items()} for row in rows]


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]  # the file has "nan" or "inf" for a value that is not finite


def measured(rows: list[dict[str, Any]], name: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """(step * scale, value) of the rows that have a value: held-out measures are taken after some steps only."""
    return [(scale * (row["step"] + 1), float(row[name])) for row in rows if name in row]


def epoch_ends(steps: int, epochs: int) -> list[float]:
    """The steps, but for the last, after which every row was seen once more."""
    return [steps * epoch / epochs for epoch in range(1, epochs)]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_ANSWER else text[:SHOWN_ANSWER] + " …"
