"""Prose from MediaWiki's markup: without templates, tables, references, files and categories, and with the words of links.

One pass over the marks with a stack, so that the time is linear in the length of any text, and the same text gives the
same words on every machine. A mark that is never closed is text. The output of templates is missing, as it
is with other tools that have only the dump.
"""

import re

from groundup.corpus.urls import unescaped

# Elements whose content is no prose.
DROPPED = "ref|references|gallery|imagemap|timeline|score|graph|mapframe|maplink|templatestyles|hiero|inputbox"
VERBATIM = "math|nowiki|pre|syntaxhighlight|source"
TAG = re.compile(rf"<(?:(!--)|({DROPPED}|{VERBATIM})\b([^<>]{{0,500}})>)", re.I)
MARK = re.compile(r"\{\{|\}\}|(?<=\n)[ :*]{0,8}\{\||(?<=\n)[ :*]{0,8}\|\}(?!\})|\[\[|\]\]|\[(?=(?:https?:)?//)|\]|\n")
CLOSES = {"}}": "{{", "|}": "{|", "]]": "[[", "]": "["}
BREAK = re.compile(r"<(?:br|hr|p|div|blockquote)\b[^<>\n]{0,200}>|</(?:p|div|blockquote)\s{0,9}>", re.I)
OTHER_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,500}>")
SWITCH = re.compile(r"__[A-Z]{3,30}__")
EMPHASIS = re.compile(r"'{2,5}")
LIST_MARK = re.compile(r"[*#:;]+[ \t]*")
LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,12})*:")
BLANK_LINES = re.compile(r"\n{3,}")
DEFAULT_PREFIXES = frozenset({"file", "image", "media", "category"})
MAX_DEPTH = 40  # of nested marks: each level copies its content once more; MediaWiki itself stops at 40 templates
HELD = "\x7f"  # around the number of a text that is kept as it is


def prose(markup: str, prefixes: frozenset[str] = DEFAULT_PREFIXES) -> str:
    """The words of a page. `prefixes`, in lower case: those of links to files and categories, which are dropped."""
    text, held = _without_tags(markup.replace(HELD, ""))
    text = _without_marks("\n" + text, prefixes)
    text = SWITCH.sub("", EMPHASIS.sub("", OTHER_TAG.sub("", BREAK.sub("\n", text))))
    text = BLANK_LINES.sub("\n\n", "\n".join(_lines(unescaped(text)))).strip("\n")
    return re.sub(f"{HELD}(\\d+){HELD}", lambda match: held[int(match[1])], text)


def _without_tags(text: str) -> tuple[str, list[str]]:
    """The text without comments and elements that are no prose, and the formulas and code in it, each replaced by a number."""
    parts: list[str] = []
    held: list[str] = []
    lower, at = text.lower(), 0
    unclosed: set[str] = set()  # names that are not closed in the rest of the text
    for tag in TAG.finditer(text):
        if tag.start() < at:
            continue
        name = (tag[1] or tag[2]).lower()
        closing = "-->" if tag[1] else f"</{name}"
        end = -1 if name in unclosed else lower.find(closing, tag.end())
        if tag[3] and tag[3].endswith("/"):
            content, after = "", tag.end()
        elif end < 0:
            unclosed.add(name)
            continue
        else:
            content, after = text[tag.end() : end], end + 3 if tag[1] else lower.find(">", end) + 1 or len(text)
        parts.append(text[at : tag.start()])
        if name in VERBATIM.split("|") and content:
            parts.append(f"{HELD}{len(held)}{HELD}")
            held.append(f"${content.strip()}$" if name == "math" else content)
        at = after
    return "".join([*parts, text[at:]]), held


def _without_marks(text: str, prefixes: frozenset[str]) -> str:
    """The text without templates and tables, and with the words of links."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    opened = dict.fromkeys(CLOSES.values(), 0)
    at = 0

    def give_up() -> None:  # the mark opened last is text
        mark, content = stack.pop()
        opened[mark] -= 1
        stack[-1][1].extend(content if mark in ("{{", "{|") else [mark, *content])

    for match in MARK.finditer(text):
        stack[-1][1].append(text[at : match.start()])
        at = match.end()
        mark = match[0].lstrip(" :*") if match[0] != "\n" else "\n"
        if mark in opened:
            if len(stack) > MAX_DEPTH:
                continue
            opened[mark] += 1
            stack.append((mark, []))
        elif mark == "\n":
            if stack[-1][0] == "[":
                give_up()
            stack[-1][1].append("\n")
        elif opened[CLOSES[mark]]:
            while stack[-1][0] != CLOSES[mark]:
                give_up()
            opened[CLOSES[mark]] -= 1
            content = "".join(stack.pop()[1])
            if mark == "]]":
                stack[-1][1].append(_link(content, prefixes))
            elif mark == "]":
                stack[-1][1].append(content.partition(" ")[2])
        elif mark == "]":
            stack[-1][1].append("]")
    stack[-1][1].append(text[at:])
    while len(stack) > 1:
        give_up()
    return "".join(stack[0][1])


def _link(content: str, prefixes: frozenset[str]) -> str:
    target, bar, words = content.partition("|")
    prefix, colon, _ = target.partition(":")
    if colon and (prefix.strip().lower() in prefixes or (not bar and LANGUAGE_LINK.match(target))):
        return ""
    return (words.rpartition("|")[2] if bar else target.removeprefix(":")) or target


def _lines(text: str) -> list[str]:
    """The lines, with headings without their marks and only if their section has text, and list items after a hyphen."""
    lines: list[str] = []
    filled = [False] * 7  # by level of heading: whether there is text below
    for line in reversed(text.split("\n")):
        line = line.strip()
        level = min(6, len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")))
        if level and line.strip("= \t"):
            if filled[level]:
                lines += ["", line.strip("= \t"), ""]
            filled[level:] = [False] * (7 - level)
            continue
        if set(line) <= {"-"}:  # a rule
            line = ""
        elif mark := LIST_MARK.match(line):
            words = line[mark.end() :]  # empty where the item was only a template or a file
            line = ("- " if words and mark[0][0] in "*#" else "") + words
        filled = [True] * 7 if line else filled
        lines.append(line)
    return lines[::-1]
