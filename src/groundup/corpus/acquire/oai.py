"""Descriptions of a repository's documents (title and abstract, Dublin Core), harvested by OAI-PMH 2.0: arXiv's, universities'.

`oai:https://oaipmh.arxiv.org/oai?set=math` requests ListRecords page by page, each with the token that the page before gave.
"""

import io
import logging
from collections.abc import Generator
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from groundup.core.errors import UserError
from groundup.corpus.acquire.fetch import Client, Unreachable
from groundup.corpus.archive.warc import Page
from groundup.corpus.archive.xml_records import Element, elements
from groundup.corpus.urls import canonical, split_url
from groundup.data.readers import Refused

PREFIX = "oai:"
MAX_ANSWER_BYTES = 64 << 20
MAX_ANSWERS = 100_000  # each with a token: some server may never end
OPTIONS = ("set", "from", "until")

logger = logging.getLogger(__name__)


@dataclass
class Repository:
    """`source` is `oai:` and the base address, optionally with set, from and until."""

    source: str
    refused: Refused
    requests_per_second: float | None
    allow_private: bool = False

    def pages(self) -> Generator[Page, None, None]:
        """A page a record, in the server's order. Raises UserError when it cannot be reached, or refuses the first request."""
        address = canonical(self.source.removeprefix(PREFIX))
        base, _, query = (address or "").partition("?")
        options = dict(parse_qsl(query))
        if not address or set(options) - set(OPTIONS):
            raise UserError(f"{self.source:.200}: give oai:https://host/path, with ?set=, from= or until= if wanted")
        client = Client(self.requests_per_second, self.allow_private)
        resumption_tokens: set[str] = set()
        request = {"metadataPrefix": "oai_dc", **options}
        while request is not None and len(resumption_tokens) < MAX_ANSWERS:
            url = f"{base}?{urlencode({'verb': 'ListRecords', **request})}"
            answer_elements = self._list_records(client, url, first=not resumption_tokens)
            token = ""
            for element in answer_elements:
                if element.name == "resumptionToken":
                    token = element.text("")
                elif page := self._page(element, base):
                    yield page
            if token in resumption_tokens:
                self._ends_early("repeated token", base, "the server gave a resumption token that it had given before")
            request = {"resumptionToken": token} if token and token not in resumption_tokens else None
            resumption_tokens.add(token)

    def _list_records(self, client: Client, url: str, first: bool) -> list[Element]:
        try:
            answer = client.fetch(url, types=None, max_bytes=MAX_ANSWER_BYTES)
            outcome = f"redirects to {answer.location}" if answer.location else answer.outcome
        except Unreachable as error:
            answer, outcome = None, f"cannot be reached ({error})"
        answer_elements: list[Element] = []
        if answer and answer.page:
            names = ("record", "resumptionToken", "error")
            answer_elements = list(elements(io.BytesIO(answer.page.body), names, url, self.refused))
            errors = [element for element in answer_elements if element.name == "error"]
            outcome = " ".join(f"{errors[0].attribute('@code')} {errors[0].text('')}".split()) if errors else ""
            answer_elements = [element for element in answer_elements if element.name != "error"]
        if outcome.startswith("noRecordsMatch"):
            return []
        if outcome and first:
            raise UserError(f"{self.source:.150}: gave no records ({outcome:.100}): check the address")
        if outcome:
            self._ends_early("unanswered", url, outcome)
        return answer_elements

    def _ends_early(self, reason: str, url: str, why: str) -> None:
        self.refused.add(reason, url)
        logger.warning(f"{self.source:.100}: the harvest ends early ({why:.100}); what came before is kept")

    def _page(self, record: Element, base: str) -> Page | None:
        identifier = record.text("header/identifier")
        if record.attribute("header@status") == "deleted":
            self.refused.add("deleted", identifier)
            return None
        parts = [*record.texts.get("metadata/dc/title", [])[:1], *record.texts.get("metadata/dc/description", [])]
        text = "\n\n".join(part.strip() for part in parts if part.strip())
        if not text:
            self.refused.add("no text", identifier)
            return None
        links = (link.strip() for link in record.texts.get("metadata/dc/identifier", []))
        url = next((link for link in links if link.startswith(("http://", "https://")) and split_url(link)), None)
        query = urlencode({"verb": "GetRecord", "metadataPrefix": "oai_dc", "identifier": identifier})
        return Page(url or f"{base}?{query}", "text/plain", text.encode("utf-8", "replace"), "utf-8")
