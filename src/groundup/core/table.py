"""Tables for people, on stderr."""

import io
from collections.abc import Sequence

from groundup.core.text import printable

WIDTH = 120  # at most: beyond, a terminal would break the lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """A row a line, columns of numbers to the right; the first and those in `left` hold words. Cells are text, no markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(head):
        shown.add_column(Text(name), justify="right" if number and number not in left else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
