"""The repeated elements of a large XML file, one after another, in the memory of one: dumps, harvested records.

Read by expat, which fetches nothing from outside; an entity that the file itself defines ends the reading before it can
expand. Where the XML breaks, reading resumes at the next element of the name, and the break is counted: a dump that is cut
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
MAX_BREAKS = 1000  # breaks of the XML after which the rest is given up
MAX_TOKEN = 4 << 20  # bytes of a tag with its attributes: expat before 2.6 reads it from its start with every chunk
LONGEST_NAME = 64
ITEM_BYTES = 1024  # added to the length of each text, attribute or piece: an element should have few


@dataclass
class Element:
    """Texts by the path below the element ("revision/text", "" for its own), and attributes by path and name
    ("redirect@title", "@Id"): lists, since a path can occur many times. Names have no prefixes."""

    name: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def text(self, path: str) -> str:
        """The first text of a path; "" where there is none."""
        return self.texts.get(path, [""])[0].strip()

    def attribute(self, name: str) -> str:
        """The first value of an attribute; "" where there is none."""
        return self.attributes.get(name, [""])[0]


class EntityDefined(Exception):
    """The file defines an entity."""


class BrokenXml(Exception):
    """A limit is exceeded, or an element is inside another of its kind: the end of the outer one is missing."""


def elements(
    stream: IO[bytes], names: tuple[str, ...], source: str, refused: Refused, max_bytes: int = MAX_TEXT_BYTES
) -> Iterator[Element]:
    """Each element with one of the names, at any depth; none of them inside another.

    `refused` counts breaks ("damaged"), elements of more than `max_bytes` ("size"), and "entities", after which nothing is
    read.
    """
    start_tags = re.compile("|".join(rf"<(?:\w{{1,{LONGEST_NAME}}}:)?{name}[\s/>]" for name in names).encode())
    reader: _Reader | None = _Reader(names, max_bytes)
    data, breaks = b"", 0
    while True:
        try:
            chunk = stream.read(CHUNK)
        except DAMAGE:
            refused.add("damaged", source)
            return
        data += chunk
        while True:
            if reader is None:  # after a break
                start_tag = start_tags.search(data)
                if not start_tag:
                    data = data[-2 * LONGEST_NAME :]  # in which one may begin
                    break
                data, reader = data[start_tag.start() :], _Reader(names, max_bytes, amid=True)
            try:
                broken_at = reader.feed(data, final=not chunk)
            except EntityDefined:
                refused.add("entities", source)
                return
            yield from reader.completed
            reader.completed = []
            if broken_at is None:
                data = b""
                break
            # A tag that closes an element from before an earlier break is no break of its own.
            reason = "size" if reader.size > max_bytes else "damaged"
            refused.add(reason, source, int(not reader.amid or reader.element is not None))
            data, reader, breaks = data[broken_at:], None, breaks + 1
            if breaks > MAX_BREAKS:
                return
        if not chunk:
            return


class _Reader:
    """One expat parser, for as long as the XML is well formed. `amid`: its data begins in the middle, with an element."""

    def __init__(self, names: tuple[str, ...], max_bytes: int, amid: bool = False) -> None:
        self.names, self.max_bytes, self.amid = names, max_bytes, amid
        self.completed: list[Element] = []
        self.element: Element | None = None  # the open one
        self.path: list[str] = []  # names of the open elements below it
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
        """None, or, where the XML breaks, the index in `data` from which to search for the next element."""
        before = self.fed
        self.fed += len(data)
        try:
            self.parser.Parse(data, final)
        except (expat.ExpatError, LookupError, ValueError):  # the latter of an encoding that Python does not know
            return min(max(1, self.parser.ErrorByteIndex - before), len(data))
        except BrokenXml:
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
            self.completed.append(self.element)
            self.element = None

    def _grow(self, size: int) -> None:
        self.size += size + ITEM_BYTES
        if self.size > self.max_bytes:
            self._break()

    def _break(self) -> None:
        self.broken_at = self.parser.CurrentByteIndex
        raise BrokenXml

    def _entity(self, *_: object) -> None:
        raise EntityDefined
