"""Foreign chat templates: jinja programs from a stranger's folder, run within bounds; their text becomes token ids.

`render` in `chat.py` applies a chat template: a foreign one, or our own format.

Bounds are counted, not timed, so that the same template ends the same way anywhere: jinja's sandbox keeps a template from
Python's objects, and here every iteration of a loop, every call and every character concatenated counts.

The content of a message never becomes a special token: in contents the first character of every special token is replaced
before the template runs, and restored after the rendered text was cut at the special tokens. Not replaced are texts that the
template itself looks for, such as `</think>`, where they cannot form a special token. The ids are those of transformers'
`apply_chat_template` for text without special tokens, except that an answer's first token never spans text before the answer.
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
STEPS = 100_000  # iterations of loops and calls, in addition to 100 per message
WRITTEN = 1 << 28  # characters of the template, times its steps
CHARACTERS = 1 << 24  # that a template may make, in addition to eight times those of the messages
LARGEST = 2**63
# None of these makes a long text of a short one; `replace` and `join` are measured before they run.
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
STAND_INS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters of Unicode: no text holds them but by mistake

Message = Mapping[str, Any]
Before = Literal["nothing", "token", "text"]  # what precedes a text: nothing, a special token, other text
Encode = Callable[[str, Before], list[int]]
FindSpecial = Callable[[str], Iterable[tuple[int, int, int]]]  # (start, end, id) of the special tokens in a text


class ChatTemplate:
    """A jinja template and the names that it may use: `variables` such as bos_token; `special`: ids of tokens by their text.

    `spoken_ends`: ids that end an answer. `textual`: special tokens that an assistant may write as text, as Qwen3's
    `<think>`. `where`: the folder, for messages.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], special: Mapping[str, int], textual: Iterable[str],
        spoken_ends: Iterable[int], where: str, find: FindSpecial | None = None,
    ) -> None:  # fmt: skip
        self.source, self.variables, self.special, self.where = source, dict(variables), dict(special), where
        self.textual, self.spoken_ends = frozenset(textual), frozenset(spoken_ends)
        longest_first = sorted(special, key=len, reverse=True)
        pattern = regex.compile("|".join(map(regex.escape, longest_first)))
        self._find = find or (lambda text: ((*match.span(), special[match[0]]) for match in pattern.finditer(text)))

    def render(
        self, encode: Encode, messages: Sequence[Message], texts: Sequence[str], add_generation_prompt: bool
    ) -> tuple[list[int], list[int]]:
        """Ids, and a mask with 1 for those that the assistant writes: from the end of the prompt for an answer to its end.

        `texts` are the contents of `messages`. Raises UserError where the template fails, and, unless a prompt is asked
        for, where the answers cannot be located in its output.
        """
        stand_ins = self._stand_ins(texts)
        masked = [
            {"role": message["role"], "content": self._masked(text, message["role"], stand_ins)}
            for message, text in zip(messages, texts, strict=True)
        ]
        rendered = self._run(masked, add_generation_prompt)
        if add_generation_prompt and masked[-1]["content"].strip() not in rendered:
            raise UserError(f"{self.where}: the chat template leaves out the user's last message; get chat_template.jinja again")
        starts = []
        for number, message in enumerate(masked):
            if message["role"] == "assistant":
                prompt = self._run(masked[:number], True)
                if rendered.startswith(prompt):
                    starts.append(len(prompt))
                elif not add_generation_prompt:
                    raise UserError("the folder's chat template changes the text before an answer once the answer is there")
        ids, mask = self._cut(rendered, starts, {mark: plain for plain, mark in stand_ins.items()}, encode)
        answers = sum(message["role"] == "assistant" for message in masked)
        if not add_generation_prompt and self._ended(ids, mask) < answers:
            raise UserError("the folder's chat template ends an answer without an end token")
        return ids, mask

    def ends_answers(self) -> int | None:
        """The special token that the template writes first after an answer; None without one, or if the template fails."""
        question, answer = "how are you", "fine as ever"
        try:
            rendered = self._run([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], False)
        except UserError:
            return None
        if (answer_start := rendered.rfind(answer)) < 0:
            return None
        return next((token for start, _, token in self._find(rendered) if start >= answer_start + len(answer)), None)

    def _ended(self, ids: Sequence[int], mask: Sequence[int]) -> int:
        return sum(1 for token, spoken in zip(ids, mask, strict=True) if spoken and token in self.spoken_ends)

    def _cut(
        self, rendered: str, starts: Sequence[int], plain: Mapping[str, str], encode: Encode
    ) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        mask: list[int] = []
        boundaries, speaks = [*starts, len(rendered) + 1], False
        restored = str.maketrans(dict(plain))

        def add(new_ids: list[int], offset: int) -> None:
            nonlocal speaks
            while offset >= boundaries[0]:
                boundaries.pop(0)
                speaks = True
            ids.extend(new_ids)
            mask.extend([int(speaks)] * len(new_ids))

        def add_text(start: int, end: int) -> None:
            before: Before = "token" if start else "nothing"
            for cut in [boundary for boundary in boundaries if start < boundary < end] + [end]:
                if start < cut:
                    add(encode(rendered[start:cut].translate(restored), before), start)
                    before = "text"
                start = cut

        end = 0
        for start, stop, token in self._find(rendered):
            add_text(end, start)
            add([token], start)
            speaks = speaks and token not in self.spoken_ends
            end = stop
        add_text(end, len(rendered))
        return ids, mask

    def _stand_ins(self, texts: Sequence[str]) -> dict[str, str]:
        """For the first character of each special token a stand-in that no text holds."""
        free = [mark for mark in STAND_INS if not any(mark in text for text in texts)]
        firsts = sorted({name[0] for name in self.special})
        if len(free) < len(firsts):
            raise UserError("a message holds too many of Unicode's noncharacters (U+FDD0 to U+FDEF)")
        return dict(zip(firsts, free, strict=False))

    def _masked(self, text: str, role: str, stand_ins: Mapping[str, str]) -> str:
        table = str.maketrans(dict(stand_ins))
        parts, end = [], 0
        for match in self._unmasked[role == "assistant"].finditer(text):
            parts += [text[end : match.start()].translate(table), match[0]]
            end = match.end()
        return "".join([*parts, text[end:].translate(table)])

    @cached_property
    def _unmasked(self) -> tuple[regex.Pattern[str], regex.Pattern[str]]:
        """What is not replaced in contents: texts that the template looks for; of an assistant `textual` too."""
        _, sandbox = self._compiled
        firsts = {name[0] for name in self.special}
        texts = {const.value for const in sandbox.parse(self.source).find_all(nodes.Const) if isinstance(const.value, str)}
        sought = {text for text in texts if firsts & {*text} and not self._may_begin_special(text)}
        first, second = (
            regex.compile("|".join(map(regex.escape, sorted(unmasked, key=len, reverse=True))) or "(?!)")
            for unmasked in (sought, sought | self.textual)
        )
        return first, second

    def _may_begin_special(self, text: str) -> bool:
        """Whether a special token is in the text, or may begin in it."""
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
        except Exception as error:  # of any class: a stranger's program
            failure = f"the chat template ended with: {_one_line(error)}"
            raise BadRow(failure, f"{self.where}: {failure}") from None

    @cached_property
    def _compiled(self) -> tuple[jinja2.Template, "Sandbox"]:
        if len(self.source) > LONGEST:
            raise UserError(f"{self.where}: the chat template has {len(self.source):,} characters; at most {LONGEST:,} are run")
        sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        try:
            return compiled(self.source, sandbox), sandbox
        except Exception as error:  # jinja's compiler raises any class on untrusted source
            raise UserError(f"{self.where}: the chat template is not jinja that groundup supports: {_one_line(error)}") from None


def compiled(source: str, sandbox: "Sandbox") -> jinja2.Template:
    """A template whose work the sandbox counts. Raises exceptions of any class, as jinja's compiler does."""
    tree = _Counting().visit(sandbox.parse(source))
    tree.set_environment(sandbox)
    return sandbox.from_string(tree)


class _Generation(Extension):
    """Ignores `{% generation %}`, which marks what the assistant writes: `render` locates that in every template."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Counting(NodeTransformer):
    """Puts the counters into a parsed template: around what is iterated over, filtered, compared, printed and joined by `~`."""

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
        for operand in node.ops:
            operand.expr = _through("_weighed", operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _through("_joined", nodes.List(node.nodes).set_lineno(node.lineno))

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [child if isinstance(child, nodes.TemplateData) else _through("_printed", child) for child in node.nodes]
        return node


def _through(name: str, node: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        filters = {
            "_counted": self._counted, "_joined": lambda parts: self._join("", parts), "_printed": self._printed,
            "_weighed": self._weighed, "join": self._join_filter, "replace": self._replace, "tojson": self._json,
        }  # fmt: skip
        self.filters = {name: self.filters[name] for name in FILTERS} | filters
        self.globals = {"range": safe_range, "dict": lambda **entries: entries, "namespace": _Names, "raise_exception": _refuse}
        self.allow(1, ())

    def allow(self, template: int, contents: Sequence[int]) -> None:
        """Reset the counts, for a template and messages of so many characters. Past a bound UserError is raised."""
        self.steps = min(STEPS, WRITTEN // max(template, 1)) + 100 * len(contents)
        self.characters = CHARACTERS + 8 * sum(contents)

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise UserError("more steps than a template may take")

    def make(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise UserError("more text than a template may make")

    def wrap_str_format(self, value: Any) -> None:
        """Disallows `format`, which jinja permits before it asks what is safe: a width of a billion is a billion spaces."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = not isinstance(obj, str | bytes | int | float) or attr in METHODS
        return known and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        named = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}  # of jinja, in loops
        if isinstance(owner, str) and name == "join":
            return self._join(owner, *args, **named)
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *args, **named)
        self._weighed(owner)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, range):
            self.step(len(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.step()
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "+" and not numbers:
            self.make(len(left) + len(right))
        elif not numbers or operator == "**":
            # No UserError, which ends a task's evaluation: one row among good ones may lack its number.
            raise TypeError(f"{operator} between {type(left).__name__} and {type(right).__name__}")
        result = super().call_binop(context, operator, left, right)
        if numbers and abs(result) > LARGEST:
            raise OverflowError("a number beyond 2^63")
        return result

    def _counted(self, values: Iterable[Any]) -> list[Any]:
        items = []
        for value in values:
            self.step()
            items.append(value)
        return items

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
            value = [self.getitem(item, attribute) for item in value]
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
    """jinja's `namespace`, without names that Python itself looks up on objects."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *positional = args
        Namespace.__init__(self)
        for name, value in dict(*positional, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise UserError("a name that begins with _ in a namespace")
        Namespace.__setitem__(self, name, value)


def _refuse(reason: Any) -> None:
    raise UserError(str(reason))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:120]}..."
