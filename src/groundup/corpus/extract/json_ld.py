"""The article's text as a page states it for machines: `articleBody` of schema.org, in JSON-LD.

One article page in three has it. It is often shortened, without markup, or of another article that the page shows as well.
So it is not taken as the text, but indicates for each block whether it belongs to the article.
"""

import html
import json
import re

MAX_STATED = 300_000  # characters
BODY = re.compile(rb'"articleBody"\s*:\s*"((?:[^"\\]|\\.)*+)"', re.DOTALL)
MARKUP = re.compile(r"<[^<>]*+>")
WORD = re.compile(r"\w+")
HEAD = 160  # characters of a block that are searched for


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
    """For each text, the share of the word trigrams of its beginning that are in `stated`; 0 if it has no trigram."""
    words = WORD.findall(stated.lower())
    known = set(zip(words, words[1:], words[2:], strict=False))
    shares = []
    for text in texts:
        head = WORD.findall(text[:HEAD].lower())
        runs = list(zip(head, head[1:], head[2:], strict=False))
        shares.append(sum(map(known.__contains__, runs)) / max(len(runs), 1))
    return shares
