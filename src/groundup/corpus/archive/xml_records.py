"""The repeated elements of a large XML file, one after another, in memory for one of them: dumps, harvested records.

Read by expat, which fetches nothing from outside; an entity that the file itself defines ends the reading before it can
expand. Where the XML breaks, reading resumes at the next element of the name, and the place is counted: a dump that is cut
off, or has a wrong byte in one article, gives all the others.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO
from xml.parsers import expat

from groundup.data.readers import DAMAGE, MAX_TEXT_BYTES, Refused

CHUNK = 1 << 16
MAX_DEPTH = 100
MAX_BREAKS = 1000  # places where the XML breaks, before the rest is given up
MAX_TOKEN = 4 << 20  # bytes of a tag with its attributes: expat before 2.6 reads it from its start with every chunk
LONGEST_NAME = 64
PER_ITEM = 1024  # bytes that a text, an attribute or a piece counts beside its own: an element has few


@dataclass
class Element:
    """Texts by the path below the element ("revision/text", "" for its own), and attributes by path and name
    ("redirect@title", "@Id"): lists, since a path can occur many times. Names are without their prefixes."""

    name: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def text(self, path: str) -> str:
        """The first text of a path; "" where there is none."""
        return self.texts.get(path, [""])[0].strip()

    def attribute(self, name: str) -> str:
        """The first value of an attribute; "" where there is none."""
        return self.attributes.get(name, [""])[0]


class Entity(Exception):
    """The file defines an entity."""


class Broken(Exception):
    """Beyond our bounds, or an element within one of its own kind: the end of the outer one is missing."""


def elements(
    stream: IO[bytes], names: tuple[str, ...], place: str, refused: Refused, max_bytes: int = MAX_TEXT_BYTES
) -> Iterator[Element]:
    """Each element of one of the names, wherever it stands; none of them within another.

    `refused` counts what is "damaged", elements of more than `max_bytes` ("size"), and "entities", after which nothing is
    read.
    """
    starts = re.compile("|".join(rf"<(?:\w{{1,{LONGEST_NAME}}}:)?{name}[\s/>]" for name in names).encode())
    reader: _Reader | None = _Reader(names, max_bytes)
    data, breaks = b"", 0
    while True:
        try:
            chunk = stream.read(CHUNK)
        except DAMAGE:
            refused.add("damaged", place)
            return
        data += chunk
        while True:
            if reader is None:  # after a break
                found = starts.search(data)
                if not found:
                    data = data[-2 * LONGEST_NAME :]  # in which one may begin
                    break
                data, reader = data[found.start() :], _Reader(names, max_bytes, amid=True)
            try:
                broken_at = reader.feed(data, final=not chunk)
            except Entity:
                refused.add("entities", place)
                return
            yield from reader.done
            reader.done = []
            if broken_at is None:
                data = b""
                break
            # What closes elements that were opened before an earlier break is no break of its own.
            reason = "size" if reader.size > max_bytes else "damaged"
            refused.add(reason, place, int(not reader.amid or reader.element is not None))
            data, reader, breaks = data[broken_at:], None, breaks + 1
            if breaks > MAX_BREAKS:
                return
        if not chunk:
            return


class _Reader:
    """One expat parser, for as long as the XML is well formed. `amid`: what it is fed begins with an element."""

    def __init__(self, names: tuple[str, ...], max_bytes: int, amid: bool = False) -> None:
        self.names, self.max_bytes, self.amid = names, max_bytes, amid
        self.done: list[Element] = []
        self.element: Element | None = None  # that is open
        self.path: list[str] = []  # below it
        self.pieces: list[list[str]] = []  # of the texts of the element and of those on the path
        self.depth = self.size = self.fed = self.broken_at = 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text, self.parser.buffer_size = True, CHUNK
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.EntityDeclHandler = self._entity
        if amid:
            self.feed(b"<_>", final=False)

    def feed(self, data: bytes, final: bool) -> int | None:
        """None, or, where the XML breaks, the place in `data` from which to look for the next element."""
        before = self.fed
        self.fed += len(data)
        try:
            self.parser.Parse(data, final)
        except (expat.ExpatError, LookupError, ValueError):  # the latter of an encoding that Python does not know
            return min(max(1, self.parser.ErrorByteIndex - before), len(data))
        except Broken:
            return min(max(1, self.broken_at - before), len(data))
        return len(data) if self.fed - self.parser.CurrentByteIndex > MAX_TOKEN else None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        name = name.rpartition(":")[2]
        if self.depth > MAX_DEPTH or (self.element and name in self.names):
            self._break()
        if self.element is None:
            if name not in self.names:
                return
            self.element, self.path, self.pieces, self.size = Element(name), [], [[]], 0
        else:
            self.path.append(name)
            self.pieces.append([])
        path = "/".join(self.path)
        for key, value in attributes.items():
            self._grow(len(path) + len(key) + len(value))
            self.element.attributes.setdefault(f"{path}@{key.rpartition(':')[2]}", []).append(value)

    def _text(self, text: str) -> None:
        if self.element:
            self._grow(len(text))
            self.pieces[-1].append(text)

    def _end(self, name: str) -> None:
        self.depth -= 1
        if self.element is None:
            return
        self._grow(0)
        self.element.texts.setdefault("/".join(self.path), []).append("".join(self.pieces.pop()))
        if self.path:
            self.path.pop()
        else:
            self.done.append(self.element)
            self.element = None

    def _grow(self, size: int) -> None:
        self.size += size + PER_ITEM
        if self.size > self.max_bytes:
            self._break()

    def _break(self) -> None:
        self.broken_at = self.parser.CurrentByteIndex
        raise Broken

    def _entity(self, *_: object) -> None:
        raise Entity
