"""Whether a command may write to its output paths: only files that groundup made itself are overwritten."""

from pathlib import Path

from groundup.core.errors import UserError

# Marks in the first bytes of pages and figures that groundup made.
PAGE_MARKS = (b'<meta name="generator" content="groundup">', b'<svg data-generator="groundup"')
HEAD_BYTES = 2048


def require_new(*paths: Path) -> None:
    """Call it before any work. Raises UserError where a file, or any link, exists already."""
    for path in paths:
        if path.is_file() or path.is_symlink():
            raise UserError(f"{path}: is there already, and is not overwritten: delete it, or give another name")


def require_made_with(mark: Path, *paths: Path) -> None:
    """`require_new` unless the file `mark` exists: it is written with the `paths` or before, so they are ours."""
    if not mark.is_file():
        require_new(*paths)


def require_page(path: Path) -> None:
    """`require_new` for a page or figure, which is made again and again: an older one of ours may be overwritten."""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if not any(mark in head for mark in PAGE_MARKS):
            raise UserError(f"{path}: is there already, and is no page of groundup: delete it, or give another name")
