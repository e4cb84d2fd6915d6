"""Questions of a Stack Exchange site with their answers, from `Posts.xml` of its dump (unpack the .7z first).

The file is ordered by time, so an answer can be far behind its question. A temporary SQLite database on disk, without a name,
joins them in 64 MB of memory however large the dump is.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from groundup.core.plain_files import open_plain
from groundup.corpus.archive.warc import Page
from groundup.corpus.archive.xml_records import Element, elements
from groundup.corpus.extract.blocks import render
from groundup.corpus.extract.page_text import parse
from groundup.corpus.urls import canonical
from groundup.data import streams
from groundup.data.file_kinds import Kind
from groundup.data.readers import Refused

QUESTION, ANSWER = "1", "2"
CACHE_KB = 64 << 10
BATCH = 1000


@dataclass
class StackExchangeDump:
    """`base_url` begins the URLs of pages unless the folder has the name of the site: `bees.stackexchange.com/Posts.xml`."""

    path: Path
    kind: Kind
    base_url: str
    refused: Refused

    def pages(self) -> Iterator[Page]:
        """One page per question, in the order of their numbers: title, question, answers by score, the accepted one first."""
        site = self.path.resolve().parent.name
        questions_url = canonical(f"https://{site}/questions") if "." in site else None
        with closing(sqlite3.connect("")) as posts:
            posts.executescript(
                f"PRAGMA cache_size = -{CACHE_KB}; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE;"
                "CREATE TABLE post (question INTEGER, id INTEGER, score INTEGER, accepted INTEGER, title TEXT, body TEXT)"
            )
            self._store(posts)
            posts.execute("CREATE INDEX by_question ON post (question)")
            # The number of the accepted answer is stored with the question.
            questions = posts.execute(
                "SELECT id, accepted, title, body FROM post WHERE question = id ORDER BY question, rowid"
            )
            previous = None
            for number, accepted, title, body in questions:
                if number == previous:
                    self.refused.add("damaged", f"{self.path}: question {number} is there twice")
                    continue
                previous = number
                answers = posts.execute(
                    "SELECT body FROM post WHERE question = ? AND id != ? ORDER BY id != ?, -score, id",
                    (number, number, accepted),
                )
                texts = [_text(part) for part in (body, *(answer for (answer,) in answers))]
                text = "\n\n".join([title, *filter(None, texts)])
                yield Page(f"{questions_url or self.base_url}/{number}", "text/plain", text.encode("utf-8", "replace"), "utf-8")
            orphans = (
                "SELECT count(*) FROM post AS answer WHERE id != question"
                " AND NOT EXISTS (SELECT 1 FROM post WHERE question = answer.question AND id = question)"
            )
            self.refused.add("answer without question", str(self.path), posts.execute(orphans).fetchone()[0])

    def _store(self, posts: sqlite3.Connection) -> None:
        with open_plain(self.path) as file:
            stream = streams.content(file, self.kind.packing, self.kind.encoding, self.kind.mark)
            rows = elements(stream, ("row",), str(self.path), self.refused)
            posts.executemany("INSERT INTO post VALUES (?, ?, ?, ?, ?, ?)", self._posts(rows))
            posts.commit()

    def _posts(self, rows: Iterator[Element]) -> Iterator[tuple[int, int, int, int, str, str]]:
        for row in rows:
            post_type = row.attribute("@PostTypeId")
            if post_type not in (QUESTION, ANSWER):
                self.refused.add("neither question nor answer", str(self.path))
                continue
            number = _integer(row.attribute("@Id"))
            question = number if post_type == QUESTION else _integer(row.attribute("@ParentId"))
            if number is None or question is None or (post_type == ANSWER and number == question):
                self.refused.add("damaged", f"{self.path}: a post without a number")
                continue
            accepted, score = _integer(row.attribute("@AcceptedAnswerId")) or 0, _integer(row.attribute("@Score")) or 0
            yield question, number, score, accepted, row.attribute("@Title"), row.attribute("@Body")


def _integer(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def _text(html: str) -> str:
    """The text of a post, without its markup."""
    try:
        blocks = parse(html)[1]
        return render(blocks, list(range(len(blocks.text))))
    except Exception:  # a parser's trouble with one post must not end the run, as in `extract`
        return ""
