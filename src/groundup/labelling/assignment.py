"""Which annotator is shown which pair, and their judgements.

A pair is open until `overlap` people have judged it. Whoever is shown one has a lease on it, so that two people at work
get different pairs; what is not judged in that time goes to somebody else. A judgement that comes later is stored all the same.
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from groundup.core.errors import UserError
from groundup.labelling.store import Store, assignments, events, last_standing, pairs

UNDO = "undo"
STRENGTHS = {"better": 1.0, "slightly": 0.5}  # of a vote; `margin` is their mean over the annotators


@dataclass(frozen=True)
class ShownPair:
    """A pair as its annotator sees it: which answer is on which side is random, and known to the database alone."""

    pair_id: str
    prompt: list[dict[str, str]]
    left: str
    right: str


@dataclass(frozen=True)
class Judgement:
    """What an annotator sends. `choice`: left, right, tie, both_bad, skip; or undo, of the event with the key `undoes`."""

    key: str
    pair_id: str
    choice: str
    strength: str = "better"
    seconds: float | None = None
    reason: str | None = None
    undoes: str | None = None


def lease_pairs(store: Store, connection: sa.Connection, annotator: str, count: int, now: float) -> list[ShownPair]:
    """Up to `count` pairs for an annotator: first those that are leased to them already, with the same sides."""
    settings = store.settings(connection)
    leased_until = now + 60 * settings["lease_minutes"]
    store.ensure_annotator(connection, annotator)
    pair_ids = _leased_pairs(connection, annotator, settings, now)[:count]
    if pair_ids:
        _update(connection, annotator, pair_ids, leased_until=leased_until)
    while len(pair_ids) < count:
        pair_id = _next_pair(connection, annotator, settings, now)
        if pair_id is None:
            break
        row = {"pair_id": pair_id, "annotator": annotator, "shown_left": secrets.choice("ab")}
        connection.execute(assignments.insert().values(**row, leased_until=leased_until, state="leased"))
        pair_ids.append(pair_id)
    return [_shown_pair(connection, annotator, pair_id) for pair_id in pair_ids]


def record(connection: sa.Connection, annotator: str, judgement: Judgement, now: float, lease_minutes: float) -> bool:
    """Store a judgement; False where it is stored already. Raises UserError for one that cannot be."""
    this_assignment = (assignments.c.pair_id == judgement.pair_id) & (assignments.c.annotator == annotator)
    shown = connection.execute(sa.select(assignments).where(this_assignment)).one_or_none()
    if shown is None:
        raise UserError(f"pair {judgement.pair_id[:40]!r} was not shown to {annotator}")
    other = "b" if shown.shown_left == "a" else "a"
    choice = {"left": shown.shown_left, "right": other}.get(judgement.choice, judgement.choice)
    stored = connection.execute(sa.select(events).where(events.c.key == judgement.key)).one_or_none()
    if stored is not None:
        if (stored.pair_id, stored.annotator, stored.choice) != (judgement.pair_id, annotator, choice):
            raise UserError(f"key {judgement.key[:40]!r} is that of another judgement")
        return False
    if judgement.choice == UNDO:
        undone = connection.execute(sa.select(events).where(events.c.key == judgement.undoes)).one_or_none()
        if undone is None or (undone.pair_id, undone.annotator) != (judgement.pair_id, annotator) or undone.choice == UNDO:
            raise UserError("what is to be undone is no judgement of yours on this pair")
    strength = STRENGTHS[judgement.strength] if choice in ("a", "b") else 0.0
    row = {"key": judgement.key, "pair_id": judgement.pair_id, "annotator": annotator, "choice": choice, "strength": strength}
    row |= {"shown_left": shown.shown_left, "seconds": judgement.seconds, "reason": judgement.reason or None, "at": now}
    connection.execute(events.insert().values(**row, undoes=judgement.undoes))
    own_events = sa.select(events).where(events.c.pair_id == judgement.pair_id, events.c.annotator == annotator)
    last = last_standing(connection.execute(own_events.order_by(events.c.number)).mappings())
    if last is None:
        _update(connection, annotator, [judgement.pair_id], state="leased", leased_until=now + 60 * lease_minutes)
    else:  # after an undo, what was judged in another tab
        _update(connection, annotator, [judgement.pair_id], state="skipped" if last["choice"] == "skip" else "judged")
    return True


def import_judgement(store: Store, connection: sa.Connection, event: dict[str, Any], at: float) -> bool:
    """Store a judgement that was made elsewhere, an event with `key`; False where it is stored already."""
    if connection.execute(sa.select(events.c.key).where(events.c.key == event["key"])).one_or_none() is not None:
        return False
    store.ensure_annotator(connection, event["annotator"])
    assignment = {name: event[name] for name in ("pair_id", "annotator", "shown_left")}
    state = "skipped" if event["choice"] == "skip" else "judged"
    this_assignment = (assignments.c.pair_id == event["pair_id"]) & (assignments.c.annotator == event["annotator"])
    connection.execute(assignments.delete().where(this_assignment))
    connection.execute(assignments.insert().values(**assignment, leased_until=at, state=state))
    connection.execute(events.insert().values(**event, at=at))
    return True


def progress(store: Store, connection: sa.Connection, annotator: str | None = None) -> dict[str, Any]:
    """How much is done. Labels are judgements but skips, of pairs without a known answer; time and cost are of all."""
    settings = store.settings(connection)
    count, judged = sa.select(sa.func.count()), assignments.c.state == "judged"
    of_pairs = count.select_from(assignments.join(pairs)).where(judged, pairs.c.gold.is_(None))
    labels = connection.execute(of_pairs).scalar_one()
    judged_by_annotator = count.select_from(assignments).where(judged, assignments.c.annotator == annotator)
    ordinary = connection.execute(count.select_from(pairs).where(pairs.c.gold.is_(None))).scalar_one()
    seconds = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(events.c.seconds), 0.0))).scalar_one()
    cost = seconds / 3600 * settings["cost_per_hour"]
    return {
        "yours": connection.execute(judged_by_annotator).scalar_one(), "labels": labels, "wanted": ordinary * settings["overlap"],
        "seconds": seconds, "seconds_per_label": seconds / labels if labels else None,
        "cost": cost, "cost_per_label": cost / labels if labels else None,
    }  # fmt: skip


def _update(connection: sa.Connection, annotator: str, pair_ids: list[str], **values: Any) -> None:
    these_assignments = assignments.c.pair_id.in_(pair_ids) & (assignments.c.annotator == annotator)
    connection.execute(assignments.update().where(these_assignments).values(**values))


def _is_leased(settings: dict[str, Any], now: float) -> sa.ColumnElement[bool]:
    """Whether the lease still runs. One that ends far off was made before the clock was set back, and does not count."""
    until = assignments.c.leased_until
    return (until > now) & (until <= now + 2 * 60 * settings["lease_minutes"])


def _taker_count(settings: dict[str, Any], now: float) -> sa.ScalarSelect[Any]:
    """How many people have judged a pair, or have a lease on it."""
    holds = (assignments.c.state == "judged") | ((assignments.c.state == "leased") & _is_leased(settings, now))
    counted = sa.select(sa.func.count()).where(assignments.c.pair_id == pairs.c.pair_id, holds)
    return counted.correlate(pairs).scalar_subquery()


def _leased_pairs(connection: sa.Connection, annotator: str, settings: dict[str, Any], now: float) -> list[str]:
    """Pairs that were shown and not judged, unless the lease is over and others have them."""
    leased_to_annotator = (assignments.c.annotator == annotator) & (assignments.c.state == "leased")
    open_still = _is_leased(settings, now) | pairs.c.gold.is_not(None) | (_taker_count(settings, now) < settings["overlap"])
    pair_ids = sa.select(pairs.c.pair_id).join(assignments, assignments.c.pair_id == pairs.c.pair_id)
    return list(connection.execute(pair_ids.where(leased_to_annotator, open_still).order_by(*_order(settings))).scalars())


def _next_pair(connection: sa.Connection, annotator: str, settings: dict[str, Any], now: float) -> str | None:
    shown_before = sa.select(assignments.c.pair_id).where(assignments.c.annotator == annotator)
    fresh = sa.select(pairs.c.pair_id).where(pairs.c.pair_id.not_in(shown_before)).order_by(*_order(settings)).limit(1)
    seen = connection.execute(sa.select(sa.func.count()).select_from(shown_before.subquery())).scalar_one()
    open_still = _taker_count(settings, now) < settings["overlap"]
    wanted = connection.execute(fresh.where(pairs.c.gold.is_(None), open_still)).scalar_one_or_none()
    if wanted is None or (seen + 1) % settings["gold_every"]:
        return wanted
    return connection.execute(fresh.where(pairs.c.gold.is_not(None))).scalar_one_or_none() or wanted


def _order(settings: dict[str, Any]) -> list[Any]:
    if settings["order"] == "disagreement":
        return [sa.func.coalesce(pairs.c.disagreement, -1).desc(), pairs.c.shuffled]
    return [pairs.c.shuffled, pairs.c.pair_id]


def _shown_pair(connection: sa.Connection, annotator: str, pair_id: str) -> ShownPair:
    query = sa.select(pairs.c.prompt, pairs.c.a, pairs.c.b, assignments.c.shown_left).join(assignments)
    row = connection.execute(query.where(pairs.c.pair_id == pair_id, assignments.c.annotator == annotator)).one()
    left, right = (row.a, row.b) if row.shown_left == "a" else (row.b, row.a)
    return ShownPair(pair_id, json.loads(row.prompt), left, right)
