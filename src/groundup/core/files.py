"""Files that are whole or absent: every artifact is written to a temporary name and renamed."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success flush it to disk and rename it to `path`.

    Whoever reads `path`, now or after a crash, sees the old content or the new, never a part. Raises UserError where `path` is a
    folder, a device, a pipe or a socket: a rename would turn /dev/null into a file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a device, pipe or socket, which is never replaced; give a file to write")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file to write")
    temporary = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, "Tensor"], metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file, whole or not at all; returns its digest. Raises OSError when the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            # The library hides the system's error in its text: "I/O error: No space left on device (os error 28)".
            if system_error := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(system_error[1]), str(error), str(path)) from None
            raise
        return digest(temporary)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)  # in pieces: a vocabulary in one string takes 20 MB more
        file.write("\n")


def read_json(path: Path) -> Any:
    """Raises UserError when the file is missing or is not JSON."""
    try:
        if path.exists() and not path.is_file():  # reading a named pipe would wait for ever
            raise UserError(f"{path}: not a plain file")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; get it from where the others came from") from None
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, or of a number with thousands of digits
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:100]
        raise UserError(f"{path}: not valid JSON ({reason}); mend it, or get or make it again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is missing or is not one JSON object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def read_text(path: Path) -> str:
    """Raises UserError when the file is missing or is not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a plain file")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. Raises UserError when it is missing, or with the number of the first line not JSON."""
    rows = []
    # Only "\n" ends a row: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({str(error)[:100]})") from None
    return rows


def digest(path: Path) -> str:
    """BLAKE2b-128 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest_of_all(path: Path) -> str:
    """`digest` of a file; of a folder, that of the names and contents of all its files, in order of their names.

    An unreadable file of a folder counts without its content: readers of the folder pass it over, or report it.
    """
    if not path.is_dir():
        return digest(path)
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()):
        try:
            content = digest(path / name)
        except PermissionError:
            content = "may not be read"
        hasher.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()
