"""Pages that say in their title that there is no page: not found, forbidden, a check of the browser. They have no content.

In a dozen languages; where the text is long after all, as of a page about such errors, it is content.
"""

import re

from groundup.corpus.extract.blocks import Blocks

SAYS_SO = re.compile(
    r"\b(?:error|http|fehler|erreur)[\s:]*(?:40\d|410|429|50[0-4])\b"
    r"|^\W*(?:40\d|410|429|50[0-4])\W*(?:$|[-–—|:,]|(?:not found|forbidden|error|page|bad|service|internal|fehler|erreur)\b)"
    r"|\b(?:page|file|document|content)\s(?:(?:was|is|could)\s)?(?:not|cannot|can['’]t)(?:\sbe)?\sfound\b"
    r"|\bpage (?:does(?:n't|n’t| not) exist|unavailable|not available)|\baccess denied|^just a moment|^attention required!"
    r"|\bseite (?:wurde )?nicht (?:gefunden|verfügbar)|\bzugriff verweigert"
    r"|\bpage (?:non trouvée|introuvable)|\baccès refusé|\bp[aá]gina no (?:encontrada|existe)|\bacceso denegado"
    r"|\bpágina não encontrada|\bpagina non trovata|\bpagina niet gevonden|\bsidan hittades inte|\bsiden (?:ble|blev) ikke fundet"
    r"|nie znaleziono strony|\bstrona nie została znaleziona|страница не найдена"
    r"|页面不存在|找不到(?:页面|網頁)|ページが見つかりません",
    re.IGNORECASE,
)
HEADINGS = 3  # blocks of <h1> that are looked at
LONGEST_TITLE = 90  # characters
MUCH, LONG = 80, 12  # words of blocks that are LONG


def says_no_page(blocks: Blocks) -> bool:
    """Whether title or heading say that there is none, and little else is said."""
    headings = [text for text, at in zip(blocks.text, blocks.element, strict=True) if blocks.kinds[blocks.kind[at]].name == "h1"]
    titles = [title[:LONGEST_TITLE] for title in (blocks.title, *headings[:HEADINGS])]
    if not any(map(SAYS_SO.search, titles)):
        return False
    counts = [len(text.split()) for text, links in zip(blocks.text, blocks.link_chars, strict=True) if 2 * links < len(text)]
    return sum(count for count in counts if count >= LONG) < MUCH
