"""Pairs of answers that people bring as files, and judgements that were made elsewhere.

    prompt, a, b                           a pair; also `pair_id`, `gold` (a, b or tie: the known answer), `model_a`, `model_b`,
                                           and a column that says how far two reward models disagree on it
    ... and choice, annotator              a judgement, as the labelling log has it (`data/simulated_annotator.py`)
    a preference of any format of `data/`  a pair; with `gold`, one of which the better answer is known
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from typing import Any

from groundup.core.errors import UserError
from groundup.core.plain_files import expanded
from groundup.core.text import well_formed
from groundup.data.contracts import no_rows_message, read
from groundup.data.conversations import Conversation, instruction, read_prompt, require_order
from groundup.data.messages import BadRow, refuse_unsupported
from groundup.data.preferences import preference_of
from groundup.data.readers import Refused
from groundup.data.simulated_annotator import side_shown_left
from groundup.labelling.assignment import import_judgement
from groundup.labelling.store import CHOICES, LONGEST_NAME, Pair, Store, annotator_name, now, pair_id_of


@dataclass(frozen=True)
class ImportedPair(Conversation):
    """`messages` lead to the answers of `pair`; `event` is a judgement of it."""

    pair: Pair
    event: Mapping[str, Any] | None


def import_files(
    store: Store, files: Sequence[Path], gold: bool, disagreement: str, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Add what the files hold to a project; what it has already is not added again.

    Returns {"pairs", "judgements", "already_there", "dropped", "first_dropped"}. Raises UserError where a file cannot be read
    or holds nothing that can be used, and for an identifier that names two different pairs; nothing is added then.
    """
    counts, refused = Counter[str](), Refused()
    with store.transaction() as connection:
        store.change_settings(connection, changes)
        for path in files:
            file_refused, formats = Refused(), Counter[str]()
            rows = read(expanded(path), lambda row: imported_pair(row, gold, disagreement), file_refused, formats)
            for number, imported in enumerate(rows):
                is_new = store.add(connection, imported.pair)
                counts["pairs"] += is_new
                judgement_is_new = imported.event is not None and import_judgement(store, connection, dict(imported.event), now())
                counts["judgements"] += judgement_is_new
                counts["already_there"] += not is_new and not judgement_is_new
                counts["rows"] = number + 1
            if not counts.pop("rows", 0):
                raise UserError(f"{path}: {no_rows_message('pairs or preferences', path, file_refused)}")
            refused.merge(file_refused)
    totals = {name: counts[name] for name in ("pairs", "judgements", "already_there")}
    return {**totals, "dropped": dict(sorted(refused.items())), "first_dropped": refused.first}


def imported_pair(row: Mapping[str, Any], gold: bool, disagreement: str) -> ImportedPair:
    """Raises BadRow where it is neither a pair nor a preference. An answer may be empty: people say which is better still."""
    is_pair = row.get("a") is not None and row.get("b") is not None
    if is_pair:
        refuse_unsupported(row)
        messages = instruction(row) if row.get("prompt") is None and row.get("instruction") else read_prompt(row.get("prompt"))
        require_order(messages, add_generation_prompt=True)
        a, b, known = _answer(row, "a"), _answer(row, "b"), _text(row, "gold", 8)
    else:
        preference = preference_of(row)
        messages, a, b, known = preference.prompt, preference.chosen.content, preference.rejected.content, "a" if gold else None
    if a.strip() == b.strip():
        raise BadRow("two equal answers")
    if any("\0" in text or "\ufffd" in well_formed(text) for text in (a, b)):
        raise BadRow("invalid UTF-8", "an answer has characters that are no text")
    prompt = [message.row for message in messages]
    if not is_pair and int(pair_id_of(prompt, a, b), 16) & 1:  # so that a is no better than b
        a, b, known = b, a, known and "b"
    if known not in (None, "a", "b", "tie"):
        raise BadRow("gold must be a, b or tie")
    identifier = _text(row, "pair_id") or pair_id_of(prompt, a, b)
    models = _text(row, "model_a", 200), _text(row, "model_b", 200)
    pair = Pair(identifier, prompt, a, b, *models, known, _number(row, disagreement))
    return ImportedPair(messages, pair, _event(row, identifier) if is_pair and row.get("choice") not in (None, "") else None)


def _answer(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise BadRow("an answer that is no text", f"{name} must be text, not {type(row[name]).__name__}")
    return row[name]


def _event(row: Mapping[str, Any], pair_id: str) -> dict[str, Any]:
    choice, annotator = row["choice"], _annotator(row)
    if choice not in CHOICES:
        raise BadRow(f"choice must be one of {', '.join(CHOICES)}")
    if not annotator:
        raise BadRow("missing column", "a judgement names its annotator")
    shown_left = row.get("shown_left") or side_shown_left(pair_id)
    if shown_left not in ("a", "b"):
        raise BadRow("shown_left must be a or b")
    strength, seconds = _number(row, "strength"), _number(row, "seconds")
    if strength is not None and not 0 <= strength <= 1:
        raise BadRow("strength must be a number from 0 to 1")
    if seconds is not None and seconds < 0:
        raise BadRow("seconds must be at least 0")
    decided = choice in ("a", "b")
    digest = blake2b(f"{pair_id}\0{annotator}\0{choice}\0{strength}".encode("utf-8", "replace"), digest_size=16).hexdigest()
    return {
        "key": f"brought-{digest}", "pair_id": pair_id, "annotator": annotator, "choice": choice, "shown_left": shown_left,
        "strength": (1.0 if strength is None else strength) if decided else 0.0, "seconds": seconds,
        "reason": _text(row, "reason", 10_000),
    }  # fmt: skip


def _annotator(row: Mapping[str, Any]) -> str | None:
    """As the page has the name: it is one annotator, whose judgements there and elsewhere are of one person."""
    name = _text(row, "annotator")
    try:
        return name and annotator_name(name)
    except UserError as error:
        raise BadRow("annotator that is no name", str(error)) from None


def _text(row: Mapping[str, Any], name: str, longest: int = LONGEST_NAME) -> str | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    text = str(value) if isinstance(value, str | int) else ""
    if not text or len(text) > longest or "\0" in text or not (text.isprintable() or name == "reason"):
        raise BadRow(f"{name} must be a text of at most {longest:,} characters")
    return well_formed(text)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """All of CSV is text."""
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) else float("nan")
    except (ValueError, OverflowError):
        number = float("nan")
    if not isfinite(number):
        raise BadRow(f"{name} must be a finite number")
    return abs(number) if name not in ("strength", "seconds") else number
