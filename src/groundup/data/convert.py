"""Conversations or preferences of any known format as TRL's JSON lines."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.files import replacing
from groundup.core.outputs import require_new
from groundup.core.plain_files import expanded
from groundup.data.contracts import no_rows_message, read
from groundup.data.conversations import Conversation, columns_of, conversation_of, format_of
from groundup.data.file_kinds import PACKED, has_ending
from groundup.data.messages import BadRow
from groundup.data.preferences import Preference, preference_format_of, preference_of
from groundup.data.readers import Refused


def convert(files: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the good rows of the files to `out`; the first known row decides between conversations and preferences.

    Returns {"out", "what", "rows", "formats", "dropped", "first_dropped"}. Raises UserError where a file cannot be read or
    holds no row that can be used, and where `out` exists.
    """
    kind_counts = Counter[str]()

    def make(row: Mapping[str, Any]) -> Conversation | Preference:
        name = "preferences" if preference_format_of(row) else "conversations" if format_of(row) else ""
        if not name:
            raise BadRow("missing column", f"no columns of a conversation or a preference; it has {columns_of(row)}")
        if kind_counts and name not in kind_counts:
            raise BadRow(f"{name} among {next(iter(kind_counts))}")
        kind_counts[name] += 1
        return preference_of(row) if name == "preferences" else conversation_of(row)

    if out.is_dir():
        raise UserError(f"{out}: is a folder; give a file to write")
    if has_ending(out.name, (".parquet", ".csv", ".tsv")) or out.name.lower().endswith(PACKED):
        raise UserError(f"{out}: JSON lines are written, which nobody would look for under this name; call it .jsonl")
    formats, refused, count = Counter[str](), Refused(), 0
    paths = [expanded(path) for path in files]
    if any(path.resolve() == out.resolve() for path in paths):
        raise UserError(f"{out}: is read and written; give another file to write")
    require_new(out)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for path in paths:
            path_refused, before = Refused(), count
            for example in read(path, make, path_refused, formats):
                file.write(json.dumps(example.row, ensure_ascii=False) + "\n")
                count += 1
            if count == before:
                raise UserError(f"{path}: {no_rows_message('conversations or preferences', path, path_refused)}")
            refused.merge(path_refused)
    return {
        "out": str(out),
        "what": next(iter(kind_counts)),
        "rows": count,
        "formats": dict(formats),
        "dropped": dict(sorted(refused.items())),
        "first_dropped": refused.first,
    }
