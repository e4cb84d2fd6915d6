"""What readers wrote under a page: known by the names that authors of pages give to its elements, in eight languages."""

import re

import numpy as np

from groundup.corpus.extract.blocks import Blocks, Tag
from groundup.corpus.extract.features import tokens_of

SECTION = frozenset([
    "comment", "comments", "commentlist", "commentary-list", "kommentar", "kommentare", "leserkommentare", "commentaire",
    "commentaires", "comentario", "comentarios", "commento", "commenti", "reacties", "komentarz", "komentarze",
    "itemprop=comment",
])  # fmt: skip
# In the same class or id: then it is a number of comments, a link to them, or says of the page whether it has any.
NO_SECTION = frozenset(["count", "counter", "link", "links", "open", "closed", "has", "no", "icon", "number", "button", "with"])
ABOUT = frozenset([  # of a comment's elements, those that say who, when and what next
    "form", "respond", "author", "meta", "metadata", "date", "time", "reply", "avatar", "vcard", "actions", "likes", "toolbar",
    "login", "notes", "title", "username", "user",
])  # fmt: skip
NO_WORDS_OF_READERS = frozenset(["form", "label", "button", "h1", "h2", "h3", "h4", "h5", "h6", "time", "legend", "figcaption"])
LIKE_SECTION = ("comment", "kommentar", "coment", "reacties", "komentarz")  # in the words of SECTION, and of few tags
LIKE_ABOUT = re.compile("|".join(sorted(ABOUT)), re.IGNORECASE)
LEAST_WORDS = 3
WORD = re.compile(r"\w+")


def comments_of(blocks: Blocks) -> list[int]:
    """The blocks that are words of comments, in order; not their authors, dates, links and forms."""
    names = "\n".join(["\n".join(tag.words) for tag in blocks.kinds]).lower()
    if not any(map(names.__contains__, LIKE_SECTION)):
        return []
    section = np.array([_is_section(tag) for tag in blocks.kinds], dtype=bool)
    if not section.any():
        return []
    about = np.array([tag.name in NO_WORDS_OF_READERS or _is_about(tag) for tag in blocks.kinds], dtype=bool)
    kind = np.array(blocks.kind)
    inner = np.array(blocks.inner)
    inside = _within(blocks, section[kind])
    aside = _within(blocks, about[kind] & ~section[kind]) | ((inner >= 0) & about[inner])
    return [
        at
        for at in np.flatnonzero(inside & ~aside).tolist()
        if 2 * blocks.link_chars[at] < len(blocks.text[at]) and len(WORD.findall(blocks.text[at][:100])) >= LEAST_WORDS
    ]


def _is_section(tag: Tag) -> bool:
    words = [word for word in tag.words[1:] if any(map(word.lower().__contains__, LIKE_SECTION))]
    if tag.name == "body" or not words:
        return False
    tokens = map(frozenset, map(tokens_of, words))
    return any(not SECTION.isdisjoint(found) and NO_SECTION.isdisjoint(found) for found in tokens)


def _is_about(tag: Tag) -> bool:
    return any(LIKE_ABOUT.search(word) and not ABOUT.isdisjoint(tokens_of(word)) for word in tag.words[1:])


def _within(blocks: Blocks, elements: np.ndarray) -> np.ndarray:
    """[elements] -> [blocks]: whether a block is in one of them."""
    size = len(blocks.text) + 1
    some = np.flatnonzero(elements)
    start, end = np.array(blocks.start)[some], np.array(blocks.end)[some]
    return np.cumsum(np.bincount(start, minlength=size) - np.bincount(end, minlength=size))[:-1] > 0
