"""A question and a context in one sequence, as BERT reads them: [CLS] question [SEP] context [SEP].

Segment 0 is the question, segment 1 the context; the mask is 1 on tokens and 0 on padding. Only the context is ever cut:
one that is too long is read through several windows, and what stands at the end of one also stands in the next, so that
no answer is cut in two. Every token knows which characters it stands for.
"""

from dataclasses import dataclass

from groundup.core.errors import UserError
from groundup.tokenizer.load import AnyTokenizer
from groundup.tokenizer.wordpiece import WordPiece

Place = tuple[int, int]  # where in the text the characters of a token begin and end


@dataclass(frozen=True)
class Window:
    """Four lists of one length. `places` are in the question (segment 0) or the context (1); special tokens have none."""

    ids: list[int]
    segments: list[int]
    mask: list[int]
    places: list[Place | None]


def encode_pair(
    tokenizer: WordPiece,
    question: str,
    context: str | None = None,
    length: int | None = None,
    overlap: int = 0,
    pad: bool = False,
) -> list[Window]:
    """Windows of at most `length` tokens (of exactly that many with `pad`), each `overlap` tokens of context into the next.

    Without a context there is one: [CLS] question [SEP]. Raises UserError when a window has no room for the question
    and more context than the overlap.
    """
    asked = tokenizer.encode_with_offsets(question)
    special = 2 if context is None else 3
    read = [] if context is None else tokenizer.encode_with_offsets(context)
    room = len(read) if length is None else length - len(asked) - special
    if room < 0 or (room < len(read) and room <= overlap):
        raise UserError(
            f"the question has {len(asked)} tokens: windows of {length} that overlap by {overlap} have no room for it "
            "and a context; shorten the question or the overlap, or take longer windows"
        )
    head = [(tokenizer.classify, None), *((n, (start, end)) for n, start, end in asked), (tokenizer.separator, None)]
    windows = []
    for first in range(0, max(1, len(read) - overlap), max(1, room - overlap)):
        seen = read[first : first + room]
        tail = [] if context is None else [*((n, (s, e)) for n, s, e in seen), (tokenizer.separator, None)]
        tokens = head + tail
        padding = length - len(tokens) if pad and length else 0
        windows.append(
            Window(
                [number for number, _ in tokens] + [tokenizer.pad] * padding,
                [0] * len(head) + [1] * len(tail) + [0] * padding,
                [1] * len(tokens) + [0] * padding,
                [place for _, place in tokens] + [None] * padding,
            )
        )
        if first + room >= len(read):
            break
    return windows


def show(
    tokenizer: AnyTokenizer, text: str, context: str | None = None, length: int | None = None, overlap: int = 0
) -> tuple[str, list[dict[str, list]]]:
    """How a tokenizer cuts a text, or a question and its context: an aligned table, and for each window its lists.

    A WordPiece tokenizer adds [CLS] and [SEP]; with `length` windows are padded to it. Raises UserError when another
    kind, which has no such tokens, is given a context or a length.
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
    """One column a token, lines of at most 100 characters."""
    names = [*window]
    columns = [
        [str(cell) if isinstance(cell, int) else _visible(cell) for cell in cells]
        for cells in zip(*window.values(), strict=True)
    ]
    blocks, line, used = [], [], 0
    for column in columns:
        width = max(map(len, column)) + 2
        if line and used + width > 90:
            blocks.append(line)
            line, used = [], 0
        line.append([cell.rjust(width) for cell in column])
        used += width
    blocks.append(line)
    return "\n\n".join(
        "\n".join(name.ljust(8) + "".join(column[row] for column in block) for row, name in enumerate(names))
        for block in blocks
    )


def _visible(token: str) -> str:
    """Spaces and characters that print as nothing, written out."""
    return "".join(c if c.isprintable() and c != " " else "␣" if c == " " else c.encode("unicode_escape").decode() for c in token)
