"""The article's text as a page states it for machines: `articleBody` of schema.org, in JSON-LD.

One article page in three has it. It is often cut, without its markup, or of another article that the page shows as well;
so it is no text to take, but says of each block whether it is of the article.
"""

import html
import json
import re

MAX_STATED = 300_000  # characters
BODY = re.compile(rb'"articleBody"\s*:\s*"((?:[^"\\]|\\.)*+)"', re.DOTALL)
MARKUP = re.compile(r"<[^<>]*+>")
WORD = re.compile(r"\w+")
HEAD = 160  # characters of a block that are looked for


def stated_article(source: bytes) -> str:
    """The longest `articleBody` of a page in UTF-8, without markup; empty where there is none."""
    if b'"articleBody"' not in source:
        return ""
    longest = max((match[1] for match in BODY.finditer(source)), key=len, default=b"")[:MAX_STATED]
    try:
        text = json.loads(b'"' + longest + b'"', strict=False)
    except ValueError:
        text = longest.decode("utf-8", "replace")
    return MARKUP.sub(" ", html.unescape(text))


def shares_stated(texts: list[str], stated: str) -> list[float]:
    """Of each text, how much of its beginning is in `stated`, by three words in a row; 0 if it has fewer."""
    words = WORD.findall(stated.lower())
    known = set(zip(words, words[1:], words[2:], strict=False))
    shares = []
    for text in texts:
        head = WORD.findall(text[:HEAD].lower())
        runs = list(zip(head, head[1:], head[2:], strict=False))
        shares.append(sum(map(known.__contains__, runs)) / max(len(runs), 1))
    return shares
