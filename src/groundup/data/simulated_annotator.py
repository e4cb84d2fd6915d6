"""A simulated annotator, and the labelling log that it shares with people.

Human judgements are slow and expensive. Here every prompt has a reference answer in the documentation, so an annotator can
be simulated: of two answers it prefers the one that overlaps more with the reference. It replaces people in an automatic
run, as in AlpacaFarm (Dubois et al. 2023), and every row says so (`"annotator": "simulated"`). It ignores meaning: it
measures shared words, and must never be reported as a human preference.

A judgement by anyone is one event of the log:
    {"pair_id", "prompt", "a", "b", "shown_left": "a"|"b", "choice": "a"|"b"|"tie"|"skip"|"both_bad", "annotator"}
`prompt` is a question, or the messages before the answer where there are several. The simulated annotator adds
`strength`, the distance between the two answers. `preferences` turns any such log into the preference rows of TRL.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from groundup.core.errors import UserError

SIMULATED = "simulated"
_WORD = re.compile(r"\w+(?:[.'-]\w+)*")  # `os.path.join` and "re-raise" are one word each


def overlap(answer: str, reference: str) -> float:
    """F1 between the multisets of lower-cased words, in [0, 1]; two texts without words overlap fully.

    As SQuAD's F1 (Rajpurkar et al. 2016) with two differences: articles count, and a dotted name is one word, so a wrong name
    does not match in part.
    """
    ours, theirs = Counter(_WORD.findall(answer.lower())), Counter(_WORD.findall(reference.lower()))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0


def compare(a: str, b: str, reference: str, min_gap: float) -> str:
    """The answer that overlaps more with the reference, "a" or "b"; "tie" when equal or closer than `min_gap`."""
    gap = overlap(a, reference) - overlap(b, reference)
    if gap == 0 or abs(gap) < min_gap:
        return "tie"
    return "a" if gap > 0 else "b"


def side_shown_left(pair_id: str) -> str:
    """Either "a" or "b" by digest, about half of the time each: people favour a side, so no answer may keep one."""
    return "ab"[hashlib.blake2b(f"{SIMULATED}\0{pair_id}".encode(), digest_size=1).digest()[0] & 1]


def judgement(
    prompt: str | Sequence[Mapping[str, Any]], a: str, b: str, reference: str, pair_id: str, min_gap: float, shown_left: str
) -> dict[str, Any]:
    """The simulated annotator's event for the labelling log (see the top of this file)."""
    return {
        "pair_id": pair_id,
        "prompt": prompt,
        "a": a,
        "b": b,
        "shown_left": shown_left,
        "choice": compare(a, b, reference, min_gap),
        "annotator": SIMULATED,
        "strength": abs(overlap(a, reference) - overlap(b, reference)),
    }


def preferences(judgements: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One TRL preference row per pair that has a winner, in order of first appearance; ties are dropped.

    Every judgement is a vote: `strength` (1 when absent, as of a person) for its choice, nothing for "tie" and
    "both_bad"; "skip" is no judgement. An annotator who judged a pair again replaces the earlier vote. `margin`, by which
    the rewards must differ (`reward.py`, TRL), is the absolute mean vote in [0, 1]: for people, the winner's share of votes
    minus the loser's. A single vote says nothing of certainty: its margin is 0, as if there were none.
    Raises UserError on an unknown choice, or a pair identifier that names two different pairs.
    """
    pairs: dict[str, dict[str, Any]] = {}
    votes: dict[str, dict[str, float]] = defaultdict(dict)
    for event in judgements:
        pair = pairs.setdefault(event["pair_id"], event)
        if any(pair[key] != event[key] for key in ("prompt", "a", "b")):
            raise UserError(f"labels: pair {event['pair_id']!r} names two different pairs; give each its own")
        sign = {"a": 1, "b": -1, "tie": 0, "both_bad": 0, "skip": None}.get(event["choice"], event["choice"])
        if isinstance(sign, str):
            raise UserError(f"labels: pair {event['pair_id']!r} has choice {sign!r}; use a, b, tie, both_bad or skip")
        if sign is None:
            votes[event["pair_id"]].pop(event["annotator"], None)
        else:
            votes[event["pair_id"]][event["annotator"]] = sign * event.get("strength", 1.0)
    rows = []
    for identifier, pair in pairs.items():
        cast = votes[identifier]
        mean = sum(cast.values()) / len(cast) if cast else 0.0
        if mean == 0:
            continue
        prompt = pair["prompt"]
        chosen, rejected = (pair["a"], pair["b"]) if mean > 0 else (pair["b"], pair["a"])
        rows.append(
            {
                "prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt,
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "margin": abs(mean) if len(cast) > 1 else 0.0,
                "annotator": ", ".join(sorted(cast)),
            }
        )
    return rows
