"""Paths that somebody else named, and opening them: only plain ones, so that a pipe or a device is never waited for."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from groundup.core.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"  # what a clone without Git LFS has in place of a file


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file to read its bytes.

    Raises UserError, in one line, for what is missing, a folder, a pipe, socket or device, or may not be read.
    """
    try:
        _require_plain(path, path.stat().st_mode)
        # Should a pipe have taken its place since, opening it without waiting is told by the second look.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{path}: no name of a file ({error})") from None
    try:
        _require_plain(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def expanded(path: str | Path) -> Path:
    """With the home folder for a `~` at its beginning. Raises UserError where there is no such user, and for no path."""
    try:
        return Path(path).expanduser()
    except TypeError:
        raise UserError(f"{type(path).__name__}, where the path of a file or folder is wanted") from None
    except RuntimeError:
        raise UserError(f"{path}: there is no user whose home folder this could be; give the whole path") from None


def seen_from(path: Path) -> str:
    """For a message on a path that is not there: where it was looked for, which a relative one does not say by itself."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def _require_plain(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: a pipe, socket or device, not a plain file: write what it gives to a file first")
