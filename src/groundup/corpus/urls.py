"""One spelling for each URL (RFC 3986, section 6), so that a page is asked for once, and the shapes of crawler traps."""

import re
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

MAX_URL_LENGTH = 2000  # longer ones come from traps that add to themselves
# Says where a reader came from, never what the page is.
TRACKING = re.compile(r"(?:utm_\w+|gclid|fbclid|msclkid)=[^&]*(?:&|$)", re.IGNORECASE)
# Heritrix's rules against pathological paths: the same segments three times in a row, or more than twenty segments.
TRAP = re.compile(r"/((?:[^/]+/){1,3})\1{2}|^(?:/[^/]*){21}")


def parse(url: str) -> SplitResult | None:
    """The parts of a URL that somebody else wrote; None where it has none (`http://[bad/`, a port that is no number).

    Everything foreign is split here, so that one bad row or record never ends the work on the others.
    """
    try:
        parts = urlsplit(url)
        _ = parts.hostname, parts.port  # both are parsed only when they are read
        url.encode()  # half of a surrogate pair is no text
    except ValueError:
        return None
    return parts


def canonical(link: str, base: str | None = None) -> str | None:
    """No fragment, no default port, no dot segments, host in lower case, escapes in upper, no tracking parameters.

    Otherwise the query is kept as it is: its order can matter to the server. None for what is not http or https.
    """
    try:
        parts = parse(urljoin(base, link.strip()) if base else link.strip())
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        host, port = parts.hostname, parts.port
        host = host if ":" in host or host.isascii() else host.encode("idna").decode()
    except ValueError:
        return None
    if not re.fullmatch(r"[^\s/\\?#@\[\]%]+", host):  # a wide slash, for one, becomes a slash when it is normalised
        return None
    host = f"[{host}]" if ":" in host else host
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    path: list[str] = []
    segments = parts.path.split("/")[1:] or [""]
    for segment in segments:
        if segment == "..":
            del path[-1:]
        elif segment != ".":
            path.append(segment)
    if segments[-1] in (".", ".."):
        path.append("")
    query = parts.query
    if "=" in query and (kept := "&".join(part for part in query.split("&") if not TRACKING.match(part))) != query:
        query = kept
    return urlunsplit((parts.scheme, host, "/" + escape("/".join(path)), escape(query), ""))


def escape(text: str) -> str:
    """Percent-escape what may not stand in a path or query; escapes that are there are kept, in upper case."""
    escaped = quote(text, safe="/%:@!$&'()*+,;=~?[]", errors="replace")
    return re.sub("%[0-9a-f]{2}", lambda match: match[0].upper(), escaped, flags=re.IGNORECASE)


def host_of(url: str) -> str:
    """Host and port; http and https at their usual ports are one site."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 'usual'}"


def path_and_query(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(("", "", parts.path, parts.query, ""))
