"""Chat templates that others wrote: jinja programs from a stranger's folder, run within bounds, and made into token ids.

`render` in `chat.py` is what applies a chat template: such a one, or our own format.

Bounds are counted, not timed, so that the same template ends the same way anywhere: jinja's sandbox keeps a template from
Python's objects, and here every turn of a loop, every call and every character put together counts.

What people say never becomes a special token: in contents the first character of every special token is replaced before
the template runs and put back after the rendered text was cut at the special tokens, but not in what the template itself
looks for, as `</think>`, where no special token can come of it. The ids are those of transformers'
`apply_chat_template` for text that holds no special token, but that an answer's first token never spans what is before it.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import jinja2
import regex
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from groundup.core.errors import UserError
from groundup.data.messages import BadRow

LONGEST = 1 << 16  # characters of a template; the longest of well-known models has 17,000
STEPS = 100_000  # turns of loops and calls, beside 100 a message
WRITTEN = 1 << 28  # characters of the template, times its steps
CHARACTERS = 1 << 24  # that a template may put together, beside eight times what the messages hold
LARGEST = 2**63
# Neither of these makes much out of little; `replace` and `join` are measured before they do.
FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe",
    "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper",
)  # fmt: skip
METHODS = {
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit", "islower", "isnumeric",
    "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
}  # fmt: skip
STAND_INS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters of Unicode: no text holds them but in error

Message = Mapping[str, Any]
Before = Literal["nothing", "token", "text"]  # what a text stands after: nothing, a special token, other text
Encode = Callable[[str, Before], list[int]]
FindSpecial = Callable[[str], Iterable[tuple[int, int, int]]]  # (start, end, id) of the special tokens in a text


class ChatTemplate:
    """A template in jinja with what it may name: `variables` such as bos_token; `special` tokens by their text.

    `spoken_ends`: ids of which the first one ends an answer. `textual`: those of the special tokens that an assistant may
    write as text, as Qwen3's `<think>`. `where` is for messages.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], special: Mapping[str, int], textual: Iterable[str],
        spoken_ends: Iterable[int], where: str, find: FindSpecial | None = None,
    ) -> None:  # fmt: skip
        self.source, self.variables, self.special, self.where = source, dict(variables), dict(special), where
        self.textual, self.spoken_ends = frozenset(textual), frozenset(spoken_ends)
        longest_first = sorted(special, key=len, reverse=True)
        pattern = regex.compile("|".join(map(regex.escape, longest_first)))
        self._find = find or (lambda text: ((*found.span(), special[found[0]]) for found in pattern.finditer(text)))

    def render(
        self, encode: Encode, messages: Sequence[Message], texts: Sequence[str], add_generation_prompt: bool
    ) -> tuple[list[int], list[int]]:
        """Ids, and 1 for each that the assistant writes: from where a prompt for the answer would end through its end.

        `texts` are the contents of `messages`. Raises UserError where the template fails, and, unless a prompt is asked
        for, where it does not let the answers be found.
        """
        stand_ins = self._stand_ins(texts)
        said = [
            {"role": message["role"], "content": self._masked(text, message["role"], stand_ins)}
            for message, text in zip(messages, texts, strict=True)
        ]
        whole = self._run(said, add_generation_prompt)
        if add_generation_prompt and said[-1]["content"].strip() not in whole:
            raise UserError(f"{self.where}: the chat template leaves out what the user says; get chat_template.jinja again")
        starts = []
        for number, message in enumerate(said):
            if message["role"] == "assistant":
                before = self._run(said[:number], True)
                if whole.startswith(before):
                    starts.append(len(before))
                elif not add_generation_prompt:
                    raise UserError("the folder's chat template writes what is before an answer otherwise once it is there")
        ids, mask = self._cut(whole, starts, {mark: plain for plain, mark in stand_ins.items()}, encode)
        answers = sum(message["role"] == "assistant" for message in said)
        if not add_generation_prompt and self._ended(ids, mask) < answers:
            raise UserError("the folder's chat template ends an answer with no token that ends one")
        return ids, mask

    def ends_answers(self) -> int | None:
        """The special token that the template writes first after an answer; None where it writes none, or takes no such talk."""
        question, answer = "how are you", "fine as ever"
        try:
            whole = self._run([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], False)
        except UserError:
            return None
        if (place := whole.rfind(answer)) < 0:
            return None
        return next((token for start, _, token in self._find(whole) if start >= place + len(answer)), None)

    def _ended(self, ids: Sequence[int], mask: Sequence[int]) -> int:
        return sum(1 for token, spoken in zip(ids, mask, strict=True) if spoken and token in self.spoken_ends)

    def _cut(
        self, whole: str, starts: Sequence[int], plain: Mapping[str, str], encode: Encode
    ) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        mask: list[int] = []
        places, speaks = [*starts, len(whole) + 1], False
        restored = str.maketrans(dict(plain))

        def add(found: list[int], at: int) -> None:
            nonlocal speaks
            while at >= places[0]:
                places.pop(0)
                speaks = True
            ids.extend(found)
            mask.extend([int(speaks)] * len(found))

        def add_text(start: int, end: int) -> None:
            before: Before = "token" if start else "nothing"
            for cut in [place for place in places if start < place < end] + [end]:
                if start < cut:
                    add(encode(whole[start:cut].translate(restored), before), start)
                    before = "text"
                start = cut

        end = 0
        for start, stop, token in self._find(whole):
            add_text(end, start)
            add([token], start)
            speaks = speaks and token not in self.spoken_ends
            end = stop
        add_text(end, len(whole))
        return ids, mask

    def _stand_ins(self, texts: Sequence[str]) -> dict[str, str]:
        """By first character of a special token, one that no text holds."""
        free = [mark for mark in STAND_INS if not any(mark in text for text in texts)]
        firsts = sorted({name[0] for name in self.special})
        if len(free) < len(firsts):
            raise UserError("a message holds too many characters that Unicode calls none (U+FDD0 to U+FDEF)")
        return dict(zip(firsts, free, strict=False))

    def _masked(self, text: str, role: str, stand_ins: Mapping[str, str]) -> str:
        table = str.maketrans(dict(stand_ins))
        parts, end = [], 0
        for found in self._unmasked[role == "assistant"].finditer(text):
            parts += [text[end : found.start()].translate(table), found[0]]
            end = found.end()
        return "".join([*parts, text[end:].translate(table)])

    @cached_property
    def _unmasked(self) -> tuple[regex.Pattern[str], regex.Pattern[str]]:
        """What stays as it is in contents: of everybody, what the template looks for; of an assistant `textual` too."""
        _, sandbox = self._compiled
        firsts = {name[0] for name in self.special}
        texts = {one.value for one in sandbox.parse(self.source).find_all(nodes.Const) if isinstance(one.value, str)}
        sought = {text for text in texts if firsts & {*text} and not self._may_begin_special(text)}
        first, second = (
            regex.compile("|".join(map(regex.escape, sorted(some, key=len, reverse=True))) or "(?!)")
            for some in (sought, sought | self.textual)
        )
        return first, second

    def _may_begin_special(self, text: str) -> bool:
        """Whether a special token is in a text, or may be in it and what follows."""
        ends = [text[start:] for start in range(len(text))]
        return any(end.startswith(name) or name.startswith(end) for end in ends for name in self.special)

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        compiled, sandbox = self._compiled
        sandbox.allow(len(self.source), [len(message["content"]) for message in messages])
        try:
            return "".join(
                compiled.generate(
                    messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, tools=None,
                    documents=None, **self.variables,
                )
            )  # fmt: skip
        except Exception as error:  # whatever a stranger's program ends with: it is the same to the user
            said = f"the chat template ended with: {_said(error)}"
            raise BadRow(said, f"{self.where}: {said}") from None

    @cached_property
    def _compiled(self) -> tuple[jinja2.Template, "Sandbox"]:
        if len(self.source) > LONGEST:
            raise UserError(f"{self.where}: the chat template has {len(self.source):,} characters; at most {LONGEST:,} are run")
        sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        try:
            return compiled(self.source, sandbox), sandbox
        except Exception as error:  # jinja's compiler is not made for strangers either
            raise UserError(f"{self.where}: the chat template is not jinja that is read here: {_said(error)}") from None


def compiled(source: str, sandbox: "Sandbox") -> jinja2.Template:
    """A template whose work the sandbox counts. Raises what jinja's compiler does, of any class."""
    tree = _Counting().visit(sandbox.parse(source))
    tree.set_environment(sandbox)
    return sandbox.from_string(tree)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant writes; that is found here for every template, so it is passed over."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Counting(NodeTransformer):
    """Puts the counters into a parsed template: around what is run over, looked through, printed and joined by `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise UserError("a recursive loop")
        self.generic_visit(node)
        node.iter = _through("_counted", node.iter)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Filter:
        self.generic_visit(node)
        if node.node is not None:
            node.node = _through("_weighed", node.node)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through("_weighed", node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        for one in node.ops:
            one.expr = _through("_weighed", one.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_joined", nodes.List(node.nodes).set_lineno(node.lineno))

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [one if isinstance(one, nodes.TemplateData) else _through("_printed", one) for one in node.nodes]
        return node


def _through(name: str, node: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        own = {
            "_counted": self._counted, "_joined": lambda parts: self._join("", parts), "_printed": self._printed,
            "_weighed": self._weighed, "join": self._join_filter, "replace": self._replace, "tojson": self._json,
        }  # fmt: skip
        self.filters = {name: self.filters[name] for name in FILTERS} | own
        self.globals = {"range": safe_range, "dict": lambda **entries: entries, "namespace": _Names, "raise_exception": _refuse}
        self.allow(1, ())

    def allow(self, template: int, contents: Sequence[int]) -> None:
        """Begin to count anew, for a template and messages of so many characters. Past a bound UserError is raised."""
        self.steps = min(STEPS, WRITTEN // max(template, 1)) + 100 * len(contents)
        self.characters = CHARACTERS + 8 * sum(contents)

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise UserError("more steps than a template may take")

    def make(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise UserError("more text than a template may put together")

    def wrap_str_format(self, value: Any) -> None:
        """jinja lets `format` by before it asks what is safe; a width of a billion is a billion spaces."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = not isinstance(obj, str | bytes | int | float) or attr in METHODS
        return known and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        own = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}  # of jinja, in loops
        if isinstance(owner, str) and name == "join":
            return self._join(owner, *args, **own)
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *args, **own)
        self._weighed(owner)
        found = super().call(context, obj, *args, **kwargs)
        if isinstance(found, range):
            self.step(len(found))
        return found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.step()
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "+" and not numbers:
            self.make(len(left) + len(right))
        elif not numbers or operator == "**":
            raise UserError(f"{operator} between {type(left).__name__} and {type(right).__name__}")
        found = super().call_binop(context, operator, left, right)
        if numbers and abs(found) > LARGEST:
            raise UserError("a number beyond 2^63")
        return found

    def _counted(self, values: Iterable[Any]) -> list[Any]:
        found = []
        for value in values:
            self.step()
            found.append(value)
        return found

    def _weighed(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple | dict):
            self.make(len(value) // 8)
        return value

    def _printed(self, value: Any) -> Any:
        if isinstance(value, jinja2.Undefined):
            return value
        text = str(value)
        self.make(len(text))
        return text

    def _join(self, between: str, parts: Iterable[Any]) -> str:
        texts = [str(part) for part in self._counted(parts)]
        self.make(sum(map(len, texts)) + len(between) * len(texts))
        return between.join(texts)

    def _join_filter(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = [self.getitem(one, attribute) for one in value]
        return self._join(str(d), value)

    def _replace(self, text: Any, old: str, new: str, count: int = -1) -> str:
        text = str(text)
        self.make(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _json(
        self, value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
            raise UserError("tojson with such an indent")
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.make(len(text))
        return text


class _Names(Namespace):
    """jinja's `namespace`, without names that Python itself asks objects for."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        Namespace.__init__(self)
        for name, value in dict(*given, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise UserError("a name that begins with _ in a namespace")
        Namespace.__setitem__(self, name, value)


def _refuse(reason: Any) -> None:
    raise UserError(str(reason))


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:120]}..."
