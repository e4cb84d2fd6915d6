"""The database of a labelling project: pairs, annotators, assignments, and an append-only log of judgements.

SQLite in one file, which several server processes may write (a write-ahead log, and a queue for the one writer), or Postgres by
its address. Nothing is ever changed in `events`: an undo is an event of its own, and the judgements are the log read to its end.
"""

import json
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
    TimeoutError,
)

from groundup.core.errors import UserError

BUSY_SECONDS = 10  # that a writer waits for the others; the page gives up after 20 and sends again
LONGEST_NAME = 100
CHOICES = ("a", "b", "tie", "both_bad", "skip")
# What a project may set, and what holds where it does not. `lease_minutes`: how long a pair that was shown is kept for
# its annotator; `gold_every`: one in so many is a pair whose answer is known.
SETTINGS: dict[str, Any] = {
    "guidelines": "Which answer is better? Prefer the one that is true, that helps with what was asked, and that harms nobody; "
    "length alone is no merit.",
    "overlap": 1, "gold_every": 10, "order": "random", "lease_minutes": 30, "cost_per_hour": 0.0,
}  # fmt: skip

metadata = sa.MetaData()
settings = sa.Table(
    "settings", metadata,
    sa.Column("name", sa.String(40), primary_key=True), sa.Column("value", sa.Text, nullable=False),
)  # fmt: skip
pairs = sa.Table(
    "pairs", metadata,
    sa.Column("pair_id", sa.String(100), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False, unique=True),  # in the order in which they came
    sa.Column("prompt", sa.Text, nullable=False),  # JSON: messages
    sa.Column("a", sa.Text, nullable=False), sa.Column("b", sa.Text, nullable=False),
    sa.Column("model_a", sa.Text), sa.Column("model_b", sa.Text),
    sa.Column("gold", sa.String(8)),  # the known answer, of CHOICES
    sa.Column("disagreement", sa.Float), sa.Column("shuffled", sa.Float, nullable=False),  # a random position in the queue
)  # fmt: skip
annotators = sa.Table(
    "annotators", metadata,
    sa.Column("name", sa.String(100), primary_key=True), sa.Column("token", sa.String(64), unique=True),  # its digest
)  # fmt: skip
assignments = sa.Table(
    "assignments", metadata,
    sa.Column("pair_id", sa.ForeignKey("pairs.pair_id"), primary_key=True),
    sa.Column("annotator", sa.ForeignKey("annotators.name"), primary_key=True),
    sa.Column("shown_left", sa.String(1), nullable=False), sa.Column("leased_until", sa.Float, nullable=False),
    sa.Column("state", sa.String(8), nullable=False),  # leased, judged or skipped
)  # fmt: skip
events = sa.Table(
    "events", metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(100), nullable=False, unique=True),  # the client's: what is sent twice is stored once
    sa.Column("pair_id", sa.ForeignKey("pairs.pair_id"), nullable=False),
    sa.Column("annotator", sa.ForeignKey("annotators.name"), nullable=False),
    sa.Column("choice", sa.String(8), nullable=False),  # of CHOICES, or undo
    sa.Column("strength", sa.Float, nullable=False), sa.Column("shown_left", sa.String(1), nullable=False),
    sa.Column("seconds", sa.Float), sa.Column("reason", sa.Text), sa.Column("at", sa.Float, nullable=False),
    sa.Column("undoes", sa.String(100)),  # the key of the event that it takes back
)  # fmt: skip


class DatabaseUnavailable(UserError):
    """The database does not answer, or is busy for too long: nothing was stored, and trying again may help."""


@dataclass(frozen=True)
class Pair:
    """Two answers to the messages of `prompt`."""

    pair_id: str
    prompt: list[dict[str, str]]
    a: str
    b: str
    model_a: str | None = None
    model_b: str | None = None
    gold: str | None = None
    disagreement: float | None = None


def pair_id_of(prompt: list[dict[str, str]], a: str, b: str) -> str:
    return blake2b(json.dumps([prompt, a, b]).encode(), digest_size=8).hexdigest()


class Store:
    """A project. `address`: a file of SQLite, or an address as SQLAlchemy has it."""

    def __init__(self, address: str, engine: sa.Engine) -> None:
        self.address, self.engine = address, engine
        self.shown = _masked(address)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """One writer at a time, whichever process serves the project: all that is read in it stays true until its end.

        Raises DatabaseUnavailable where the database does not answer, UserError for what it does not take.
        """
        try:
            with self.engine.begin() as connection:
                # Postgres locks the row; SQLite has locked its file at BEGIN IMMEDIATE.
                connection.execute(sa.select(settings).where(settings.c.name == "version").with_for_update())
                yield connection
        except (OperationalError, InterfaceError, TimeoutError) as error:
            raise DatabaseUnavailable(f"{self.shown}: {_error_line(error)}") from None
        except SQLAlchemyError as error:
            raise UserError(f"{self.shown}: {_error_line(error)}") from None

    def settings(self, connection: sa.Connection) -> dict[str, Any]:
        stored = {row.name: json.loads(row.value) for row in connection.execute(sa.select(settings))}
        return {name: stored.get(name, value) for name, value in SETTINGS.items()}

    def change_settings(self, connection: sa.Connection, given: Mapping[str, Any]) -> None:
        """Set what is not None."""
        for name, value in given.items():
            if value is None:
                continue
            if name not in SETTINGS:
                raise ValueError(name)
            connection.execute(settings.delete().where(settings.c.name == name))
            connection.execute(settings.insert().values(name=name, value=json.dumps(value)))

    def add(self, connection: sa.Connection, pair: Pair) -> bool:
        """Whether it is new. Raises UserError where its identifier is that of another pair."""
        stored = connection.execute(sa.select(pairs).where(pairs.c.pair_id == pair.pair_id)).one_or_none()
        prompt = json.dumps(pair.prompt, ensure_ascii=False)
        if stored is not None:
            if (stored.prompt, stored.a, stored.b) != (prompt, pair.a, pair.b):
                raise UserError(f"pair {pair.pair_id!r} names two different pairs; give each its own")
            return False
        number = connection.execute(sa.select(sa.func.coalesce(sa.func.max(pairs.c.number), -1) + 1)).scalar_one()
        shuffled = int.from_bytes(blake2b(pair.pair_id.encode(), digest_size=6).digest()) / 2**48
        row = {**pair.__dict__, "prompt": prompt, "number": number, "shuffled": shuffled}
        connection.execute(pairs.insert().values(**row))
        return True

    def ensure_annotator(self, connection: sa.Connection, name: str) -> None:
        """Add the annotator where there is none of this name."""
        if connection.execute(sa.select(annotators.c.name).where(annotators.c.name == name)).one_or_none() is None:
            connection.execute(annotators.insert().values(name=name))

    def invite(self, connection: sa.Connection, name: str, token: str) -> None:
        """Give an annotator a token. Once anybody has one, all who label need theirs; an earlier one of the same name is void."""
        self.ensure_annotator(connection, name)
        connection.execute(annotators.update().where(annotators.c.name == name).values(token=_digest(token)))

    def annotator_of_token(self, connection: sa.Connection, token: str) -> str | None:
        names = connection.execute(sa.select(annotators.c.name).where(annotators.c.token == _digest(token)))
        return names.scalar_one_or_none()

    def wants_tokens(self, connection: sa.Connection) -> bool:
        query = sa.select(annotators.c.name).where(annotators.c.token.is_not(None)).limit(1)
        return connection.execute(query).one_or_none() is not None

    def pairs(self, connection: sa.Connection) -> dict[str, Pair]:
        """In the order in which they came."""
        names = Pair.__dataclass_fields__
        rows = connection.execute(sa.select(*(pairs.c[name] for name in names)).order_by(pairs.c.number)).mappings()
        return {row["pair_id"]: Pair(**{**row, "prompt": json.loads(row["prompt"])}) for row in rows}

    def judgements(self, connection: sa.Connection) -> list[Mapping[str, Any]]:
        """The last judgement of each annotator on each pair that was not undone, in the order of pairs and then of names."""
        events_by_pair: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in connection.execute(sa.select(events).order_by(events.c.number)).mappings():
            events_by_pair.setdefault((row["pair_id"], row["annotator"]), []).append(dict(row))
        numbers = {row.pair_id: row.number for row in connection.execute(sa.select(pairs.c.pair_id, pairs.c.number))}
        last_events = [last for own in events_by_pair.values() if (last := last_standing(own)) is not None]
        return sorted(last_events, key=lambda event: (numbers[event["pair_id"]], event["annotator"]))


def last_standing(own_events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of the events of one annotator on one pair, in their order, the last judgement that was not undone."""
    standing: dict[str, Mapping[str, Any]] = {}
    for event in own_events:
        if event["undoes"] is None:
            standing[event["key"]] = event
        else:
            standing.pop(event["undoes"], None)
    return next(reversed(standing.values()), None)


def annotator_name(given: str) -> str:
    """The same for whatever keyboard writes its accents. Raises UserError for what is no name."""
    name = unicodedata.normalize("NFC", " ".join(given.split()))
    if not name or not name.isprintable() or len(name) > LONGEST_NAME:
        raise UserError(f"{name[:40]!r}: no name; give 1 to {LONGEST_NAME} printable characters")
    return name


def open_store(address: str, make: bool = False) -> Store:
    """The project at `address`, made where there is none if `make`. Raises UserError where there is none, or no database."""
    is_file = "://" not in address
    if is_file and not make and not Path(address).is_file():
        raise UserError(f"{address}: no such project; `groundup label make` or `groundup label import` makes one")
    if is_file and Path(address).exists() and not Path(address).is_file():
        raise UserError(f"{address}: not a plain file")
    if is_file and make:
        Path(address).absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        url = sa.URL.create("sqlite", database=address) if is_file else sa.make_url(address)
        sqlite = url.get_backend_name() == "sqlite"
        waits = {"connect_args": {"timeout": BUSY_SECONDS} if sqlite else {}, "pool_timeout": BUSY_SECONDS}
        engine = sa.create_engine(url, pool_pre_ping=not sqlite, **waits)
        if sqlite:
            sa.event.listen(engine, "connect", _set_pragmas)
            sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        with engine.begin() as connection:
            has_project = sa.inspect(connection).has_table("settings")
            if not has_project and not make:
                raise UserError(f"{_masked(address)}: holds no labelling project; `groundup label make` makes one")
            metadata.create_all(connection)
            if connection.execute(sa.select(settings).where(settings.c.name == "version")).one_or_none() is None:
                connection.execute(settings.insert().values(name="version", value="1"))
    except ImportError as error:
        raise UserError(f"{_masked(address)}: needs a library more ({str(error)[:80]}); pip install it") from None
    except (ArgumentError, NoSuchModuleError):
        raise UserError(f"{_masked(address)}: no address of a database; give a file, or postgresql+psycopg://...") from None
    except SQLAlchemyError as error:
        raise UserError(f"{_masked(address)}: {_error_line(error)}") from None
    return Store(address, engine)


def now() -> float:
    return time.time()


def _set_pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: BEGIN IMMEDIATE does
    for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on"):
        connection.execute(f"pragma {pragma}")


def _digest(token: str) -> str:
    return blake2b(token.encode(), digest_size=32).hexdigest()


def _masked(address: str) -> str:
    """Without a password."""
    if "://" not in address:
        return address
    try:
        return sa.make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        return "the database"


def _error_line(error: SQLAlchemyError) -> str:
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    return f"the database cannot be used ({text[:120]})"
