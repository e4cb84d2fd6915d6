"""Question-answer pairs made from docstrings: what a person would ask about an object, answered by its documentation.

Supervised fine-tuning needs questions with desired answers, and people who write them are slow and expensive (the lecture's
point, and the reason for Self-Instruct, Wang et al. 2022). Python source answers five kinds of questions about itself:

    description   What does `shutil.move` do?                   its docstring: knowledge
    name          Which function of `shutil` does this? ...     the same knowledge the other way round
    parameters    Which parameters does `f(a, b=1)` take?       in the question: a skill of copying and counting
    import        How do I import `shutil.move`?                in the question: a skill of copying
    kind          Is `shutil.move` a function, a class ...?     in the question: a skill of reading

Source is parsed with `ast` and never imported. Every choice is made by digest of the object's name, so that one object
always gives the same rows, whatever else is in the corpus.
"""

import ast
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from groundup.core.errors import UserError

STDLIB = "file:///stdlib/"
HELD_OUT, PREFERENCE = 0.1, 0.2  # of objects; the rest is for fine-tuning
MIN_WORDS, MAX_WORDS = 4, 60  # of a description
MAX_SENTENCE_WORDS = 30  # of a description that is part of a question
MAX_PARAMETERS = 8  # beyond, a signature is longer than the skill it teaches

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class DocumentedObject:
    name: str  # qualified: "argparse.ArgumentParser.add_argument"
    module: str  # "argparse"
    kind: str  # "function", "class", "method" or "module"
    definition: str  # as one line: "def add_argument(self, *args, **kwargs):"; "" for a module
    signature: str | None  # as called: "(*args, **kwargs)"; None for a module, or a class without its own __init__
    parameters: tuple[str, ...]  # ("*args", "**kwargs")
    docstring: str


def digest(*parts: object) -> int:
    """A number in [0, 2^64) that depends on the parts alone."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def module_name(url: str) -> str:
    """`file:///stdlib/email/mime/text.py` -> `email.mime.text`; "" for anything but a public module of the library."""
    if not (url.startswith(STDLIB) and url.endswith(".py")):
        return ""
    parts = url.removeprefix(STDLIB).removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    public = all(part.isidentifier() and not part.startswith("_") and part not in ("test", "tests") for part in parts)
    return ".".join(parts) if public else ""


# --- source -> documented objects ---------------------------------------------------------------------------------


def documented_objects(source: str, module: str) -> list[DocumentedObject]:
    """The module, its public functions and classes, and their public methods, where each has a docstring.

    Properties are left out (nobody calls them), and so is everything inside functions. For source that does not parse the
    list is empty.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    objects = []
    if docstring := _docstring(tree):
        objects.append(DocumentedObject(module, module, "module", "", None, (), docstring))
    for node in _definitions(tree.body):
        name = f"{module}.{node.name}"
        if isinstance(node, ast.ClassDef):
            objects += _class(node, name, module)
        elif docstring := _docstring(node):
            objects.append(_function(node, name, module, "function", docstring))
    return list({item.name: item for item in reversed(objects)}.values())[::-1]  # of several with one name the first


def _class(node: ast.ClassDef, name: str, module: str) -> Iterator[DocumentedObject]:
    members = list(_definitions(node.body, private=True))
    if docstring := _docstring(node):
        bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
        definition = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
        constructors = [member for member in members if isinstance(member, Function) and member.name == "__init__"]
        signature, parameters = _call(constructors[0]) if constructors else (None, ())
        yield DocumentedObject(name, module, "class", definition, signature, parameters, docstring)
    for member in members:
        if isinstance(member, Function) and not member.name.startswith("_") and (docstring := _docstring(member)):
            decorators = " ".join(ast.unparse(decorator) for decorator in member.decorator_list)
            if not re.search(r"property|\.(setter|getter|deleter)\b|\boverload\b", decorators):
                yield _function(member, f"{name}.{member.name}", module, "method", docstring)


def _function(node: Function, name: str, module: str, kind: str, docstring: str) -> DocumentedObject:
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    definition = f"{keyword} {node.name}({ast.unparse(node.args)}):"
    signature, parameters = _call(node, method=kind == "method")
    return DocumentedObject(name, module, kind, definition, signature, parameters, docstring)


def _call(node: Function, method: bool = True) -> tuple[str, tuple[str, ...]]:
    """Signature and parameters as a caller sees them: without `self` or `cls`."""
    arguments = node.args
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    bound = int(method and not static)
    skip_only, skip = (bound, 0) if arguments.posonlyargs else (0, bound)
    positional = len(arguments.posonlyargs) + len(arguments.args) - bound
    visible = ast.arguments(
        posonlyargs=arguments.posonlyargs[skip_only:],
        args=arguments.args[skip:],
        vararg=arguments.vararg,
        kwonlyargs=arguments.kwonlyargs,
        kw_defaults=arguments.kw_defaults,
        kwarg=arguments.kwarg,
        defaults=arguments.defaults[-positional:] if positional > 0 else [],
    )
    parameters = [argument.arg for argument in [*visible.posonlyargs, *visible.args]]
    parameters += [f"*{visible.vararg.arg}"] if visible.vararg else []
    parameters += [argument.arg for argument in visible.kwonlyargs]
    parameters += [f"**{visible.kwarg.arg}"] if visible.kwarg else []
    return f"({ast.unparse(visible)})", tuple(parameters)


def _definitions(body: Sequence[ast.stmt], private: bool = False) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes of a body, also those under `if` and `try`: much of the library is defined conditionally."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef):
            if private or not node.name.startswith("_"):
                yield node
        elif isinstance(node, ast.If | ast.Try):
            handlers = [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
            yield from _definitions([*node.body, *handlers, *node.orelse, *getattr(node, "finalbody", [])], private)


def _docstring(node: ast.Module | ast.ClassDef | Function) -> str:
    text = ast.get_docstring(node) or ""
    return text.encode("utf-8", "replace").decode()  # a literal may hold a lone surrogate, which cannot be written to a file


# --- docstring -> plain sentences ---------------------------------------------------------------------------------

_SIGNATURE = re.compile(r"[\w.]*\([^()]*(\([^()]*\)[^()]*)*\)\s*(->.*)?[.:]?")
_NOT_PROSE = re.compile(r">>>|XXX|TODO|\(C\)|[Cc]opyright|(.)\1{4}|[\x00-\x1f�]")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<!cf\.)\s+(?=[\"'`(*]*[A-Z])")


def first_paragraph(docstring: str) -> str:
    """The first paragraph of prose on one line, its reStructuredText marks reduced to backticks; "" when there is none.

    A leading line that only repeats the signature is skipped; a list or indented code ends the paragraph.
    """
    lines: list[str] = []
    for line in docstring.strip().split("\n"):
        if not lines and (not line.strip() or _SIGNATURE.fullmatch(line.strip())):
            continue
        if not line.strip() or (lines and re.match(r"\s{2,}|[-*+] |\d+[.)] |>>>", line)):
            break
        lines.append(line)
    text = " ".join(" ".join(lines).split()).replace("``", "`")
    text = re.sub(r":[a-z:]+:`[~!]?([^`]*)`", r"`\1`", text)  # :func:`name`
    text = re.sub(r"`([^`'\s]+)'", r"`\1`", text)  # `name' of older docstrings
    text = re.sub(r"(?<![\w*])\*(\w+)\*(?![\w*])", r"\1", text)  # *emphasis*
    if not re.match(r"[\"'`(]*[A-Za-z]", text) or _NOT_PROSE.search(text):
        return ""
    return text[0].upper() + text[1:] if text.split()[0].isalpha() else text


def sentences(paragraph: str) -> list[str]:
    """The sentences of a one-line paragraph; [""] of an empty one."""
    return _SENTENCE_END.split(paragraph)


def first_sentence(docstring: str) -> str:
    """As `description`, of one sentence."""
    return _whole_sentences(sentences(first_paragraph(docstring))[:1], MAX_SENTENCE_WORDS)


def description(docstring: str) -> str:
    """The whole sentences that begin the docstring, at most MAX_WORDS words; "" when they say less than MIN_WORDS."""
    return _whole_sentences(sentences(first_paragraph(docstring)), MAX_WORDS)


def _whole_sentences(candidates: list[str], max_words: int) -> str:
    kept: list[str] = []
    for sentence in candidates:
        # What a colon announces is not in the paragraph.
        if sentence.endswith((":", ",", "-")) or len(" ".join([*kept, sentence]).split()) > max_words:
            break
        kept.append(sentence)
    text = " ".join(kept)
    if len(text.split()) < MIN_WORDS:
        return ""
    return text if text.endswith((".", "!", "?")) else text.rstrip(";") + "."


# --- documented object -> questions and answers -------------------------------------------------------------------

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_DESCRIPTION = {
    "function": ("What does `{0.name}` do?", "What is the function `{0.name}` for?", "Explain what `{0.name}` does."),
    "method": ("What does `{0.name}` do?", "What is the method `{0.name}` for?", "Explain what `{0.name}` does."),
    "class": ("What is `{0.name}`?", "What is the class `{0.name}` for?", "Describe the class `{0.name}`."),
    "module": ("What is the module `{0.name}`?", "What is `{0.name}` for?", "Describe the module `{0.name}`."),
}
_NAME = {
    "function": "Which function of `{0.module}` does this? {1}",
    "method": "Which method of `{2}` does this? {1}",
    "class": "Which class of `{0.module}` fits this description? {1}",
    "module": "Which module fits this description? {1}",
}
_PARAMETERS = (
    "Which parameters does `{0.name}{0.signature}` take?",
    "What are the parameters of `{0.name}{0.signature}`?",
    "How many parameters does `{0.name}{0.signature}` take, and which?",
)
_IMPORT = ("In which module is `{0.name}` defined?", "How do I import `{0.name}`?", "Where does `{0.name}` come from?")
_KIND = (
    "Is `{0.name}` a function, a class or a method? Its definition begins `{0.definition}`.",
    "`{0.name}` is defined by `{0.definition}`. Is it a function, a class or a method?",
)


def examples(item: DocumentedObject) -> list[dict[str, Any]]:
    """Rows `{"messages": [user, assistant], "object": name, "kind": question kind}`, conversations as TRL has them."""
    owner, _, short = item.name.rpartition(".")
    pairs: list[tuple[str, str, str]] = []

    def ask(kind: str, questions: Sequence[str], answer: str) -> None:
        question = questions[digest(kind, item.name) % len(questions)]
        pairs.append((kind, question.format(item, first_sentence(item.docstring), owner), answer))

    if answer := description(item.docstring):
        ask("description", _DESCRIPTION[item.kind], answer)
    if first_sentence(item.docstring):
        ask("name", (_NAME[item.kind],), f"`{item.name}`.")
    if item.signature is not None and len(item.parameters) <= MAX_PARAMETERS:
        ask("parameters", _PARAMETERS, f"`{item.name}` takes {_listed(item.parameters)}.")
    if item.kind in ("function", "class"):
        ask("import", _IMPORT, f"It is defined in the module `{item.module}`: `from {item.module} import {short}`.")
    if item.kind != "module" and len(item.parameters) <= MAX_PARAMETERS:
        ask("kind", _KIND, f"`{item.name}` is a {item.kind}.")
    return [
        {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "object": item.name,
            "kind": kind,
        }
        for kind, question, answer in pairs
    ]


def _listed(parameters: Sequence[str]) -> str:
    """("a", "b", "c") -> "three parameters: `a`, `b` and `c`"."""
    quoted = [f"`{name}`" for name in parameters]
    if not quoted:
        return "no parameters"
    listed = " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
    return f"{_NUMBERS[len(quoted)]} parameter{'s' if len(quoted) > 1 else ''}: {listed}"


# --- documents -> rows --------------------------------------------------------------------------------------------


def split(items: Sequence[DocumentedObject], held_out: float, preference: float, seed: int) -> dict[str, str]:
    """The side of each object by name: "train", "preference" or "held_out" (shares of all objects, in expectation).

    The side follows from the first sentence of the docstring, so objects that share it (`posixpath.join` and
    `ntpath.join`, a method and its override) are never on two sides. Of several objects with one name the first counts.
    """
    sides: dict[str, str] = {}
    for item in items:
        # Without prose objects can only share the whole docstring.
        shared = sentences(first_paragraph(item.docstring))[0].lower().rstrip(".") or item.docstring
        fraction = digest(seed, shared) / 2**64
        side = "held_out" if fraction < held_out else "preference" if fraction < held_out + preference else "train"
        sides.setdefault(item.name, side)
    return sides


def documented(documents: Iterable[tuple[str, str]]) -> list[DocumentedObject]:
    """The documented objects of the library's modules among (url, text) documents, one a name, sorted by name."""
    by_name: dict[str, DocumentedObject] = {}
    for url, text in sorted(documents):
        if module := module_name(url):
            for item in documented_objects(text, module):
                by_name.setdefault(item.name, item)
    return [by_name[name] for name in sorted(by_name)]


def build(documents: Iterable[tuple[str, str]], max_objects: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of `examples` for at most `max_objects` objects, by side of `split`, each side in digest order.

    No two rows ask the same question and no two descriptions are the same, on any side. On each side no kind of question
    has more rows than `description`; otherwise the skills of copying would outnumber it. Rows of "preference" and "held_out"
    also have the answer as `reference`.
    Raises UserError when a side has no row.
    """
    items = sorted(documented(documents), key=lambda item: digest(seed, item.name))[:max_objects]
    sides = split(items, HELD_OUT, PREFERENCE, seed)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "preference": [], "held_out": []}
    seen: set[str] = set()
    for item in items:
        for row in examples(item):
            question, answer = (message["content"] for message in row["messages"])
            texts = {question, answer} if row["kind"] == "description" else {question}
            if texts & seen:
                continue
            seen |= texts
            side = sides[item.name]
            rows[side].append(row if side == "train" else {**row, "reference": answer})
    balanced = {side: _balanced(side_rows, seed) for side, side_rows in rows.items()}
    if without := [side for side, side_rows in balanced.items() if not side_rows]:
        raise UserError(
            f"no questions for {' and '.join(without)} in documented Python source (domain with stdlib:); give conversations "
            "of your own as data, more such source, or a larger max_objects"
        )
    return balanced


def _balanced(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    limit = sum(row["kind"] == "description" for row in rows)
    counts: Counter[str] = Counter()
    kept = []
    for row in sorted(rows, key=lambda row: digest(seed, row["messages"][0]["content"])):
        counts[row["kind"]] += 1
        if counts[row["kind"]] <= limit:
            kept.append(row)
    return kept
