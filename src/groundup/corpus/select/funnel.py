"""The funnel of a selection: what each step dropped or changed, in documents, bytes and words, by domain, with samples."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from groundup.corpus.annotate import personal

Row = dict[str, Any]
Reason = str | None  # why a document is dropped; None: it is kept
SAMPLES_PER_STEP = 3
SIZES = ("documents", "bytes", "words")


class Sizes(Counter[tuple[str, str]]):
    """Documents, bytes and words, by domain and name in `SIZES`."""

    def add(self, row: Row) -> None:
        for what, size in zip(SIZES, (1, row["bytes"], row["words"]), strict=True):
            self[row["domain"], what] += size

    def as_dict(self) -> dict[str, Any]:
        domains = sorted({domain for (domain, what), size in self.items() if what == "documents" and size})
        by_domain = {domain: {what: self[domain, what] for what in SIZES} for domain in domains}
        return {what: sum(sizes[what] for sizes in by_domain.values()) for what in SIZES} | {"by_domain": by_domain}


@dataclass
class FunnelStep:
    """A filter, whose `reason_of` returns why a document is dropped (None: it is kept), or else a `change` of its text."""

    name: str
    reason_of: Callable[[Row], Reason] | None = None
    code_exempt: bool = False
    change: Callable[[Row], Counter[str]] | None = None  # returns counts of what it changed
    exempt: int = 0
    removed: Sizes = field(default_factory=Sizes)
    changed: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, str]] = field(default_factory=list)

    def keeps(self, row: Row) -> bool:
        """Whether the document passes; if not, its `reason` and `detail` are set."""
        if self.change:
            sizes_before = row["bytes"], row["words"]
            self.changed.update(self.change(row))
            self.removed[row["domain"], "bytes"] += sizes_before[0] - row["bytes"]
            self.removed[row["domain"], "words"] += sizes_before[1] - row["words"]
            return True
        if self.code_exempt and row["kind"] == "code":
            self.exempt += 1
            return True
        reason = self.reason_of(row) if self.reason_of else None
        if reason is not None:
            self.drop(row, reason)
        return reason is None

    def drop(self, row: Row, detail: str) -> None:
        row["reason"], row["detail"] = self.name, detail
        self.removed.add(row)
        # Rows are in order of id, a digest: the first are a random sample, the same each time.
        if len(self.samples) < SAMPLES_PER_STEP:
            text = personal.redact(row["text"], [personal.Span(**span) for span in row.get("personal", [])])
            self.samples.append({"url": row["url"], "detail": detail, "text": text[:200]})


def report(steps: list[FunnelStep], all_rows: Sizes) -> list[dict[str, Any]]:
    """A row for each step, with the sizes before and after it."""
    rows = []
    remaining = Sizes(all_rows)
    for step in steps:
        before = remaining.as_dict()
        remaining.subtract(step.removed)
        sizes = {"before": before, "after": remaining.as_dict()}
        if step.change:
            rows.append({"step": step.name, "changed": dict(sorted(step.changed.items())), **sizes})
        else:
            dropped = sum(size for (_, what), size in step.removed.items() if what == SIZES[0])
            counts = {"step": step.name, "dropped": dropped, "code_exempt": step.exempt}
            rows.append({**counts, **sizes, "samples": step.samples})
    return rows
