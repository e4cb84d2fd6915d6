"""What a site asks of crawlers: robots.txt (RFC 9309, with Crawl-delay) and sitemaps (sitemaps.org)."""

import re
import zlib
from dataclasses import dataclass, field

from groundup.corpus.archive import http_message
from groundup.corpus.urls import escape, unescaped

MAX_ROBOTS = 500 << 10  # RFC 9309, 2.5: parse at least this much
MAX_SITEMAP_BYTES = 50 << 20  # sitemaps.org
MAX_SITEMAP_URLS = 50_000  # sitemaps.org
# No XML parser: the pattern follows the sitemaps' grammar, entities cannot expand, and broken files still give URLs.
LOCATION = re.compile(r"<(\w{1,20}:)?loc\b[^<>]{0,200}>\s{0,100}(?:<!\[CDATA\[)?\s{0,100}([^<>\]\s]{1,2048})")
ROOT = re.compile(r"<(\w{1,20}:)?(urlset|sitemapindex)\b")


@dataclass
class RobotsRules:
    """`patterns`: (path pattern, whether it allows) of the groups for this crawler; `delay` in seconds."""

    patterns: list[tuple[str, bool]] = field(default_factory=list)
    delay: float | None = None
    sitemaps: list[str] = field(default_factory=list)

    def allows(self, path: str) -> bool:
        """The longest pattern that matches a path with its query decides; of two as long, the one that allows."""
        path = escape(path)
        best = max(((len(pattern), allow) for pattern, allow in self.patterns if _matches(pattern, path)), default=None)
        return best is None or best[1] or path == "/robots.txt"


NOTHING_ALLOWED = RobotsRules([("/", False)])


def parse_robots(text: str, agent: str) -> RobotsRules:
    """The rules for `agent`, a product token: of all groups that name it, or else of those for `*`."""
    groups: dict[str, RobotsRules] = {}
    current: list[RobotsRules] = []
    sitemaps: list[str] = []
    starting = True
    for line in text[:MAX_ROBOTS].removeprefix("\ufeff").splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            current = [*(current if starting else ()), groups.setdefault(value.partition("/")[0].strip().lower(), RobotsRules())]
            starting = True
        elif key == "sitemap":  # belongs to no group
            sitemaps.append(value)
        elif key in ("allow", "disallow", "crawl-delay"):
            starting = False
            for group in current:
                if key != "crawl-delay":
                    if value:
                        group.patterns.append((escape(value), key == "allow"))
                elif re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII):
                    group.delay = float(value)  # infinite, if it has that many digits
    rules = groups.get(agent.lower()) or groups.get("*") or RobotsRules()
    return RobotsRules(rules.patterns, rules.delay, list(dict.fromkeys(sitemaps)))


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for anything, `$` at the end for the end. In linear time, whatever the pattern."""
    anchored = pattern.endswith("$")
    first, *rest = (pattern[:-1] if anchored else pattern).split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if anchored and rest:
        last = rest.pop()
        if len(path) - len(last) < at or not path.endswith(last):
            return False
        path, anchored = path[: len(path) - len(last)], False
    for part in rest:
        at = path.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return not anchored or at == len(path)


def parse_sitemap(body: bytes) -> tuple[bool, list[str]]:
    """Whether it is an index of sitemaps, and the URLs it lists, in order. XML or one URL per line, gzip or not."""
    if body.startswith(b"\x1f\x8b"):
        try:
            body, _ = http_message.undo_encodings(body, "gzip", MAX_SITEMAP_BYTES)
        except (ValueError, zlib.error):
            return False, []
    text = body[:MAX_SITEMAP_BYTES].decode("utf-8", "replace")
    root = ROOT.search(text)
    found = LOCATION.findall(text)
    # Extensions list pictures and films as <image:loc>: elements of the sitemap itself have the prefix of its root.
    own = [location for prefix, location in found if root and prefix == (root[1] or "")]
    urls = [unescaped(location) for location in own or [location for _, location in found]]
    if not urls and "<" not in text[:100]:
        lines = map(str.strip, text.removeprefix("\ufeff").splitlines())
        urls = [line for line in lines if line.startswith(("http://", "https://"))]
    return root is not None and root[2] == "sitemapindex", urls[:MAX_SITEMAP_URLS]
