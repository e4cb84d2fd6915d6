"""Who is shown which pair, and what became of it.

A pair is wanted until `overlap` people have judged it. Who is shown one holds it for a while, so that two people at work
get different pairs; what is not judged in that time goes to somebody else. A judgement that comes later is kept all the same.
"""

import json
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from groundup.core.errors import UserError
from groundup.labelling.store import Store, assignments, events, pairs

UNDO = "undo"
STRENGTHS = {"better": 1.0, "slightly": 0.5}  # of a vote; `margin` is their mean over the annotators


@dataclass(frozen=True)
class Shown:
    """A pair as its annotator sees it: which answer is on which side is random, and known to the database alone."""

    pair_id: str
    prompt: list[dict[str, str]]
    left: str
    right: str


@dataclass(frozen=True)
class Said:
    """What an annotator says. `choice`: left, right, tie, both_bad, skip; or undo, of the event with the key `undoes`."""

    key: str
    pair_id: str
    choice: str
    strength: str = "better"
    seconds: float | None = None
    reason: str | None = None
    undoes: str | None = None


def take(store: Store, connection: sa.Connection, annotator: str, count: int, now: float) -> list[Shown]:
    """Up to `count` pairs for an annotator: first those that they hold already, each on the side where it was."""
    settings = store.settings(connection)
    until = now + 60 * settings["lease_minutes"]
    store.meet(connection, annotator)
    found = _held(connection, annotator, settings, now)[:count]
    if found:
        _update(connection, annotator, found, leased_until=until)
    while len(found) < count:
        pair_id = _next(connection, annotator, settings, now)
        if pair_id is None:
            break
        row = {"pair_id": pair_id, "annotator": annotator, "shown_left": secrets.choice("ab")}
        connection.execute(assignments.insert().values(**row, leased_until=until, state="leased"))
        found.append(pair_id)
    return [_shown(connection, annotator, pair_id) for pair_id in found]


def record(connection: sa.Connection, annotator: str, said: Said, now: float, lease_minutes: float) -> bool:
    """Store what was said; False where it is stored already. Raises UserError for what cannot be."""
    mine = (assignments.c.pair_id == said.pair_id) & (assignments.c.annotator == annotator)
    shown = connection.execute(sa.select(assignments).where(mine)).one_or_none()
    if shown is None:
        raise UserError(f"pair {said.pair_id[:40]!r} was not shown to {annotator}")
    other = "b" if shown.shown_left == "a" else "a"
    choice = {"left": shown.shown_left, "right": other}.get(said.choice, said.choice)
    there = connection.execute(sa.select(events).where(events.c.key == said.key)).one_or_none()
    if there is not None:
        if (there.pair_id, there.annotator, there.choice) != (said.pair_id, annotator, choice):
            raise UserError(f"key {said.key[:40]!r} is that of another judgement")
        return False
    if said.choice == UNDO:
        undone = connection.execute(sa.select(events).where(events.c.key == said.undoes)).one_or_none()
        if undone is None or (undone.pair_id, undone.annotator) != (said.pair_id, annotator) or undone.choice == UNDO:
            raise UserError("what is to be undone is no judgement of yours on this pair")
    strength = STRENGTHS[said.strength] if choice in ("a", "b") else 0.0
    row = {"key": said.key, "pair_id": said.pair_id, "annotator": annotator, "choice": choice, "strength": strength}
    row |= {"shown_left": shown.shown_left, "seconds": said.seconds, "reason": said.reason or None, "at": now}
    connection.execute(events.insert().values(**row, undoes=said.undoes))
    if said.choice == UNDO:
        _update(connection, annotator, [said.pair_id], state="leased", leased_until=now + 60 * lease_minutes)
    else:
        _update(connection, annotator, [said.pair_id], state="skipped" if said.choice == "skip" else "judged")
    return True


def bring(store: Store, connection: sa.Connection, event: dict[str, Any], at: float) -> bool:
    """Store a judgement that was made elsewhere, an event with `key`; False where it is stored already."""
    if connection.execute(sa.select(events.c.key).where(events.c.key == event["key"])).one_or_none() is not None:
        return False
    store.meet(connection, event["annotator"])
    here = {name: event[name] for name in ("pair_id", "annotator", "shown_left")}
    state = "skipped" if event["choice"] == "skip" else "judged"
    mine = (assignments.c.pair_id == event["pair_id"]) & (assignments.c.annotator == event["annotator"])
    connection.execute(assignments.delete().where(mine))
    connection.execute(assignments.insert().values(**here, leased_until=at, state=state))
    connection.execute(events.insert().values(**event, at=at))
    return True


def progress(store: Store, connection: sa.Connection, annotator: str | None = None) -> dict[str, Any]:
    """How much is done. Labels are judgements but skips, of pairs but those with a known answer; time and money are of all."""
    settings = store.settings(connection)
    count, judged = sa.select(sa.func.count()), assignments.c.state == "judged"
    of_pairs = count.select_from(assignments.join(pairs)).where(judged, pairs.c.gold.is_(None))
    labels = connection.execute(of_pairs).scalar_one()
    mine = count.select_from(assignments).where(judged, assignments.c.annotator == annotator)
    ordinary = connection.execute(count.select_from(pairs).where(pairs.c.gold.is_(None))).scalar_one()
    seconds = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(events.c.seconds), 0.0))).scalar_one()
    cost = seconds / 3600 * settings["cost_per_hour"]
    return {
        "yours": connection.execute(mine).scalar_one(), "labels": labels, "wanted": ordinary * settings["overlap"],
        "seconds": seconds, "seconds_per_label": seconds / labels if labels else None,
        "cost": cost, "cost_per_label": cost / labels if labels else None,
    }  # fmt: skip


def _update(connection: sa.Connection, annotator: str, pair_ids: list[str], **values: Any) -> None:
    mine = assignments.c.pair_id.in_(pair_ids) & (assignments.c.annotator == annotator)
    connection.execute(assignments.update().where(mine).values(**values))


def _holds(settings: dict[str, Any], now: float) -> sa.ColumnElement[bool]:
    """Whether its time is not over; if it is far off, the clock was set back, and nobody may hold a pair until then."""
    until = assignments.c.leased_until
    return (until > now) & (until <= now + 2 * 60 * settings["lease_minutes"])


def _taken(settings: dict[str, Any], now: float) -> sa.ScalarSelect[Any]:
    """How many people have judged a pair, or hold it."""
    holds = (assignments.c.state == "judged") | ((assignments.c.state == "leased") & _holds(settings, now))
    counted = sa.select(sa.func.count()).where(assignments.c.pair_id == pairs.c.pair_id, holds)
    return counted.correlate(pairs).scalar_subquery()


def _held(connection: sa.Connection, annotator: str, settings: dict[str, Any], now: float) -> list[str]:
    """What was shown and not judged, unless its time is over and others have it."""
    mine = (assignments.c.annotator == annotator) & (assignments.c.state == "leased")
    open_still = _holds(settings, now) | pairs.c.gold.is_not(None) | (_taken(settings, now) < settings["overlap"])
    found = sa.select(pairs.c.pair_id).join(assignments, assignments.c.pair_id == pairs.c.pair_id)
    return list(connection.execute(found.where(mine, open_still).order_by(*_order(settings))).scalars())


def _next(connection: sa.Connection, annotator: str, settings: dict[str, Any], now: float) -> str | None:
    mine = sa.select(assignments.c.pair_id).where(assignments.c.annotator == annotator)
    fresh = sa.select(pairs.c.pair_id).where(pairs.c.pair_id.not_in(mine)).order_by(*_order(settings)).limit(1)
    seen = connection.execute(sa.select(sa.func.count()).select_from(mine.subquery())).scalar_one()
    open_still = _taken(settings, now) < settings["overlap"]
    wanted = connection.execute(fresh.where(pairs.c.gold.is_(None), open_still)).scalar_one_or_none()
    if wanted is None or (seen + 1) % settings["gold_every"]:
        return wanted
    return connection.execute(fresh.where(pairs.c.gold.is_not(None))).scalar_one_or_none() or wanted


def _order(settings: dict[str, Any]) -> list[Any]:
    if settings["order"] == "disagreement":
        return [sa.func.coalesce(pairs.c.disagreement, -1).desc(), pairs.c.shuffled]
    return [pairs.c.shuffled, pairs.c.pair_id]


def _shown(connection: sa.Connection, annotator: str, pair_id: str) -> Shown:
    both = sa.select(pairs.c.prompt, pairs.c.a, pairs.c.b, assignments.c.shown_left).join(assignments)
    row = connection.execute(both.where(pairs.c.pair_id == pair_id, assignments.c.annotator == annotator)).one()
    left, right = (row.a, row.b) if row.shown_left == "a" else (row.b, row.a)
    return Shown(pair_id, json.loads(row.prompt), left, right)
