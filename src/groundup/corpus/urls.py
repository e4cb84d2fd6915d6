"""Foreign URLs: parsed where a malformed one is None and no error; one spelling for each (RFC 3986, section 6), so that a
page is fetched once; and the patterns of crawler traps."""

import html
import os
import re
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

MAX_URL_LENGTH = 2000  # longer ones come from traps that add to themselves
MAX_URL_BYTES = 32 << 10  # of a URL that is parsed: a record's head, which holds the URL, is at most twice as long
# Says where a reader came from, never what the page is.
TRACKING = re.compile(r"(?:utm_\w+|gclid|fbclid|msclkid)=[^&]*(?:&|$)", re.IGNORECASE)
# Heritrix's rules against pathological paths: the same segments three times in a row, or more than twenty segments.
TRAP = re.compile(r"/((?:[^/]+/){1,3})\1{2}|^(?:/[^/]*){21}")


def split_url(url: str) -> SplitResult | None:
    """The parts of a foreign URL; None where it is malformed (invalid brackets or port, half of a surrogate pair, a host that
    Unicode's compatibility forms turn into something else) or too long. Never raises."""
    try:
        parts = urlsplit(url)
        # Reading either may raise ValueError, and a URL that is not Unicode can be neither recorded nor fetched.
        _ = parts.hostname, parts.port
        return parts if len(url.encode()) <= MAX_URL_BYTES else None
    except ValueError:
        return None


def unescaped(text: str) -> str:
    """Text with its HTML entities decoded; unchanged where a number is too long to be a character's."""
    try:
        return html.unescape(text)
    except ValueError:  # a number of more digits than Python reads
        return text


def quoted(name: str) -> str:
    """A file's name or path as part of a URL, whatever its bytes are."""
    return quote(os.fsencode(name))


def canonical(link: str, base: str | None = None) -> str | None:
    """No fragment, no default port, no dot segments, host in lower case, escapes in upper, no tracking parameters.

    Otherwise the query is kept as it is: its order can matter to the server. None for what is not http or https.
    """
    try:
        parts = split_url(urljoin(base, link.strip()) if base else link.strip())
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        host, port = parts.hostname, parts.port
        host = host if ":" in host or host.isascii() else host.encode("idna").decode()
    except ValueError:
        return None
    # A wide slash, for one, becomes a slash when it is normalised.
    if not re.fullmatch(r"[^\s\x00-\x1f\x7f-\x9f/\\?#@\[\]%]+", host):
        return None
    host = f"[{host}]" if ":" in host else host
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    kept_segments: list[str] = []
    segments = parts.path.split("/")[1:] or [""]
    for segment in segments:
        if segment == "..":
            del kept_segments[-1:]
        elif segment != ".":
            kept_segments.append(segment)
    if segments[-1] in (".", ".."):
        kept_segments.append("")
    query = parts.query
    if "=" in query and (kept := "&".join(part for part in query.split("&") if not TRACKING.match(part))) != query:
        query = kept
    address = urlunsplit((parts.scheme, host, "/" + escape("/".join(kept_segments)), escape(query), ""))
    return address if split_url(address) else None  # the host's IDNA form may be invalid


def escape(text: str) -> str:
    """Percent-escape what a path or query may not hold; existing escapes are kept, in upper case."""
    escaped = quote(text, safe="/%:@!$&'()*+,;=~?[]", errors="replace")
    return re.sub("%[0-9a-f]{2}", lambda match: match[0].upper(), escaped, flags=re.IGNORECASE)


def host_of(url: str) -> str:
    """Host and port, which make a site; http and https at their usual ports are one. For a malformed URL "", which is no site."""
    parts = split_url(url)
    return f"{parts.hostname}:{parts.port or 'usual'}" if parts else ""


def path_and_query(url: str) -> str:
    """The part of a URL behind the host; for a malformed URL "/"."""
    parts = split_url(url)
    return urlunsplit(("", "", parts.path, parts.query, "")) if parts else "/"
