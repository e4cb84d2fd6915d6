"""A question and a context in one sequence, as BERT reads them: [CLS] question [SEP] context [SEP].

Segment 0 is the question, segment 1 the context; the mask is 1 on tokens and 0 on padding. Only the context is ever cut: one
that is too long is read through several overlapping windows, so that no answer is cut in two. Every token has the offsets of
its characters.
"""

from dataclasses import dataclass

from groundup.core.errors import UserError
from groundup.tokenizer.load import AnyTokenizer
from groundup.tokenizer.wordpiece import WordPiece

Span = tuple[int, int]  # offsets in the text of a token's first character and after its last


@dataclass(frozen=True)
class Window:
    """Four lists of one length. `offsets` are in the question (segment 0) or the context (1); special tokens have none."""

    ids: list[int]
    segments: list[int]
    mask: list[int]
    offsets: list[Span | None]


def encode_pair(
    tokenizer: WordPiece,
    question: str,
    context: str | None = None,
    length: int | None = None,
    overlap: int = 0,
    pad: bool = False,
) -> list[Window]:
    """Windows of at most `length` tokens (exactly that many with `pad`); neighbours share `overlap` tokens of context.

    Without a context there is one: [CLS] question [SEP]. Raises UserError when a window has no room for the question
    and more context than the overlap.
    """
    question_tokens = tokenizer.encode_with_offsets(question)
    special = 2 if context is None else 3
    context_tokens = [] if context is None else tokenizer.encode_with_offsets(context)
    context_room = len(context_tokens) if length is None else length - len(question_tokens) - special
    if context_room < 0 or (context_room < len(context_tokens) and context_room <= overlap):
        raise UserError(
            f"the question has {len(question_tokens)} tokens: windows of {length} that overlap by {overlap} have no room for it "
            "and a context; shorten the question or the overlap, or take longer windows"
        )
    head = [(tokenizer.classify, None), *((n, (s, e)) for n, s, e in question_tokens), (tokenizer.separator, None)]
    windows = []
    for first in range(0, max(1, len(context_tokens) - overlap), max(1, context_room - overlap)):
        window_context = context_tokens[first : first + context_room]
        tail = [] if context is None else [*((n, (s, e)) for n, s, e in window_context), (tokenizer.separator, None)]
        tokens = head + tail
        padding = length - len(tokens) if pad and length else 0
        windows.append(
            Window(
                [number for number, _ in tokens] + [tokenizer.pad] * padding,
                [0] * len(head) + [1] * len(tail) + [0] * padding,
                [1] * len(tokens) + [0] * padding,
                [span for _, span in tokens] + [None] * padding,
            )
        )
        if first + context_room >= len(context_tokens):
            break
    return windows


def show(
    tokenizer: AnyTokenizer, text: str, context: str | None = None, length: int | None = None, overlap: int = 0
) -> tuple[str, list[dict[str, list]]]:
    """How a tokenizer splits a text, or a question and its context: an aligned table, and for each window its lists.

    A WordPiece tokenizer adds [CLS] and [SEP]; with `length` windows are padded to it. Raises UserError when a tokenizer of
    another kind, which has no such tokens, is given a context or a length.
    """
    if isinstance(tokenizer, WordPiece):
        windows = [
            {
                "tokens": [tokenizer.pieces[number] for number in window.ids],
                "ids": window.ids,
                "segments": window.segments,
                "mask": window.mask,
            }
            for window in encode_pair(tokenizer, text, context, length, overlap, pad=length is not None)
        ]
    elif context is not None or length is not None:
        raise UserError("only a WordPiece tokenizer has [CLS] and [SEP] for a pair and [PAD] for a length; train one")
    else:
        ids = tokenizer.encode(text)
        # Bytes that are a part of a character are shown as \xNN.
        tokens = [tokenizer.token_bytes(number).decode("utf-8", "backslashreplace") for number in ids]
        windows = [{"tokens": tokens, "ids": ids}]
    return "\n\n".join(_table(window) for window in windows), windows


def _table(window: dict[str, list]) -> str:
    """One column per token, lines of at most 100 characters."""
    names = [*window]
    columns = [
        [str(cell) if isinstance(cell, int) else _visible(cell) for cell in cells]
        for cells in zip(*window.values(), strict=True)
    ]
    blocks, line, line_width = [], [], 0
    for column in columns:
        width = max(map(len, column)) + 2
        if line and line_width + width > 90:
            blocks.append(line)
            line, line_width = [], 0
        line.append([cell.rjust(width) for cell in column])
        line_width += width
    blocks.append(line)
    return "\n\n".join(
        "\n".join(name.ljust(8) + "".join(column[row] for column in block) for row, name in enumerate(names))
        for block in blocks
    )


def _visible(token: str) -> str:
    """Spaces and characters that print as nothing, written out."""
    return "".join(c if c.isprintable() and c != " " else "␣" if c == " " else c.encode("unicode_escape").decode() for c in token)
