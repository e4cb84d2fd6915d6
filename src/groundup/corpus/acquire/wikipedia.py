"""Wikipedia, and any other MediaWiki wiki, from its dump: `dewiki-latest-pages-articles.xml.bz2`, read as a stream.

Articles only: other namespaces and redirects are passed over. Markup becomes prose (`extract/wikitext.py`); the URLs
are those of the wiki that the dump names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from groundup.core.plain_files import open_plain
from groundup.corpus.archive.warc import Page
from groundup.corpus.archive.xml_records import Element, elements
from groundup.corpus.extract.wikitext import DEFAULT_PREFIXES, prose
from groundup.corpus.urls import canonical
from groundup.data import streams
from groundup.data.file_kinds import Kind
from groundup.data.readers import Refused

DROPPED_NAMESPACES = ("6", "14")  # files and categories: links to them are not text


@dataclass
class WikiDump:
    """`base_url` begins the URLs of pages where the dump does not say which wiki it is of."""

    path: Path
    kind: Kind
    base_url: str
    refused: Refused

    def pages(self) -> Iterator[Page]:
        """The articles, in the dump's order, each under its title."""
        address, prefixes = self.base_url, DEFAULT_PREFIXES
        with open_plain(self.path) as file:
            stream = streams.content(file, self.kind.packing, self.kind.encoding, self.kind.mark)
            for element in elements(stream, ("siteinfo", "page"), str(self.path), self.refused):
                if element.name == "siteinfo":
                    address = _address(element.text("base")) or self.base_url
                    prefixes = DEFAULT_PREFIXES | _prefixes(element)
                elif page := self._page(element, address, prefixes):
                    yield page

    def _page(self, element: Element, address: str, prefixes: frozenset[str]) -> Page | None:
        title = element.text("title")
        reason = ""
        if element.text("ns") not in ("", "0"):
            reason = "not an article"
        elif "redirect" in element.texts:
            reason = "redirect"
        elif element.text("revision/model") not in ("", "wikitext"):
            reason = "type"
        text = "" if reason else prose(element.texts.get("revision/text", [""])[-1], prefixes)  # the last revision
        if not reason and not text:
            reason = "no text"
        if reason:
            self.refused.add(reason, f"{self.path}: {title[:80]}")
            return None
        url = f"{address}/{quote(title.replace(' ', '_').encode('utf-8', 'replace'), safe='/:,()!*')}"
        return Page(url, "text/plain", f"{title}\n\n{text}".encode("utf-8", "replace"), "utf-8")


def _address(base: str) -> str:
    """`https://de.wikipedia.org/wiki`, from the URL of the main page; "" where that is malformed."""
    url = canonical(base)
    return url.rpartition("/")[0] if url else ""


def _prefixes(siteinfo: Element) -> frozenset[str]:
    names = siteinfo.texts.get("namespaces/namespace", [])
    keys = siteinfo.attributes.get("namespaces/namespace@key", [])
    named = zip(keys, names, strict=False)
    return frozenset(name.strip().lower() for key, name in named if key in DROPPED_NAMESPACES)
