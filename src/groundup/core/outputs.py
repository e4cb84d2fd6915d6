"""Whether a command may write where it was told to: nothing is written over that it did not make itself."""

from pathlib import Path

from groundup.core.errors import UserError

# Of pages and figures, in their first bytes.
PAGE_MARKS = (b'<meta name="generator" content="groundup">', b'<svg data-generator="groundup"')
HEAD_BYTES = 2048


def require_new(*paths: Path) -> None:
    """Before any work. Raises UserError where a file, or a link to whatever, is there already."""
    for path in paths:
        if path.is_file() or path.is_symlink():
            raise UserError(f"{path}: is there already, and nothing is written over: delete it, or give another name")


def require_made_with(mark: Path, *paths: Path) -> None:
    """The same in a folder where `mark` is written with them, or before: where it is, they are ours."""
    if not mark.is_file():
        require_new(*paths)


def require_page(path: Path) -> None:
    """The same for pages and figures, which are made of other files again and again: an older one of ours may be there."""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if not any(mark in head for mark in PAGE_MARKS):
            raise UserError(f"{path}: is there already, and no page of groundup: delete it, or give another name")
