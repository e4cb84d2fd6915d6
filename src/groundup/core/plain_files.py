"""Opening paths that a user named: only plain files, so that no pipe or device is waited for."""

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from groundup.core.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins in a clone without Git LFS


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file to read its bytes.

    Raises UserError, in one line, for a path that is missing, unreadable, a folder, pipe, socket or device.
    """
    try:
        _require_plain(path, path.stat().st_mode)
        # A pipe may have replaced the file since: O_NONBLOCK opens it without waiting, and the second check below refuses it.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{path}: not a file name ({error})") from None
    try:
        _require_plain(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def expanded(path: str | Path) -> Path:
    """The path with its `~` expanded. Raises UserError where there is no such user, and for what is no path."""
    try:
        return Path(path).expanduser()
    except TypeError:
        raise UserError(f"{type(path).__name__}, where the path of a file or folder is wanted") from None
    except RuntimeError:
        raise UserError(f"{path}: there is no user whose home folder this could be; give the whole path") from None


def seen_from(path: Path) -> str:
    """For the message on a missing path: the folder that a relative path was looked up in; empty for an absolute one."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def hub_advice(path: Path) -> str:
    """For the message on a missing folder of a model: what to do where it is named as on Hugging Face, as Qwen/Qwen3-0.6B."""
    name = re.fullmatch(r"(hf:)?([\w.-]*\w/\w[\w.-]*)", str(path))
    if name is None or (path.parent.is_dir() and not name[1]):
        return ""
    return f"; if it is Hugging Face's, `hf download {name[2][:80]}` prints the folder to give"


def _require_plain(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: a pipe, socket or device, not a plain file: write what it gives to a file first")
