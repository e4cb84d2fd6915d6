"""Prose from MediaWiki's markup: templates, tables, references, files and categories go, links leave their words.

One pass over the marks with a stack, so that any text takes time in proportion to its length, and the same text gives the
same words on every machine; what is opened and never closed is words. What templates would have written is missing, as it
is with other tools that have only the dump.
"""

import re

from groundup.corpus.urls import unescaped

# Whose content is no prose.
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
MAX_DEPTH = 40  # of marks within marks: each moves what is in it once more; MediaWiki itself stops at 40 templates
HELD = "\x7f"  # stands around the number of a text that is kept as it is


def prose(markup: str, prefixes: frozenset[str] = DEFAULT_PREFIXES) -> str:
    """The words of a page. `prefixes`, in lower case: those of links that are files and categories, which are dropped."""
    text, held = _without_tags(markup.replace(HELD, ""))
    text = _without_marks("\n" + text, prefixes)
    text = SWITCH.sub("", EMPHASIS.sub("", OTHER_TAG.sub("", BREAK.sub("\n", text))))
    text = BLANK_LINES.sub("\n\n", "\n".join(_lines(unescaped(text)))).strip("\n")
    return re.sub(f"{HELD}(\\d+){HELD}", lambda found: held[int(found[1])], text)


def _without_tags(text: str) -> tuple[str, list[str]]:
    """Comments and elements that are no prose are gone; formulas and code are held: a number stands for each."""
    parts: list[str] = []
    held: list[str] = []
    lower, at = text.lower(), 0
    unclosed: set[str] = set()  # names that are closed nowhere further on
    for found in TAG.finditer(text):
        if found.start() < at:
            continue
        name = (found[1] or found[2]).lower()
        closing = "-->" if found[1] else f"</{name}"
        end = -1 if name in unclosed else lower.find(closing, found.end())
        if found[3] and found[3].endswith("/"):
            content, after = "", found.end()
        elif end < 0:
            unclosed.add(name)
            continue
        else:
            content, after = text[found.end() : end], end + 3 if found[1] else lower.find(">", end) + 1 or len(text)
        parts.append(text[at : found.start()])
        if name in VERBATIM.split("|") and content:
            parts.append(f"{HELD}{len(held)}{HELD}")
            held.append(f"${content.strip()}$" if name == "math" else content)
        at = after
    return "".join([*parts, text[at:]]), held


def _without_marks(text: str, prefixes: frozenset[str]) -> str:
    """Templates and tables are gone, and of links the words are left."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    opened = dict.fromkeys(CLOSES.values(), 0)
    at = 0

    def give_up() -> None:  # what was opened last is words
        mark, content = stack.pop()
        opened[mark] -= 1
        stack[-1][1].extend(content if mark in ("{{", "{|") else [mark, *content])

    for found in MARK.finditer(text):
        stack[-1][1].append(text[at : found.start()])
        at = found.end()
        mark = found[0].lstrip(" :*") if found[0] != "\n" else "\n"
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
    """Headings without their marks, those of sections without text gone; items after a hyphen."""
    lines: list[str] = []
    filled = [False] * 7  # whether a heading of this level would have text below it
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
            words = line[mark.end() :]  # none, where a template or a file was all
            line = ("- " if words and mark[0][0] in "*#" else "") + words
        filled = [True] * 7 if line else filled
        lines.append(line)
    return lines[::-1]
