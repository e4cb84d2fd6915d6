"""Columns of Arrow as text, whatever type their writer chose."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

import groundup.core.arrow  # noqa: F401 (for what it keeps away)
from groundup.data.file_kinds import CONTROLS


def has_dates(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return has_dates(kind.value_type)
    parts = [kind.field(number).type for number in range(kind.num_fields)]
    return pa.types.is_temporal(kind) or any(map(has_dates, parts))


def is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    tests: list[Callable[[pa.DataType], bool]] = [
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
        pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
    ]  # fmt: skip
    return any(test(kind) for test in tests)


def as_text(column: pa.Array) -> tuple[pa.Array, bool]:
    """A column of any type that holds text as large strings, valid UTF-8, null for no text; and whether none is null."""
    column = _plain(column)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.large_string()), False
    strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    is_bytes = not any(test(column.type) for test in strings)
    if not is_bytes:
        try:
            column.validate(full=True)
            return column.cast(pa.large_string()), not column.null_count
        except pa.ArrowInvalid:
            pass
    decoded = [_decoded(value, is_bytes) for value in column.cast(pa.large_binary()).to_pylist()]
    return pa.array(decoded, pa.large_string()), None not in decoded


def _decoded(value: bytes | None, is_bytes: bool) -> str | None:
    if value is None or (is_bytes and 64 * (len(value) - len(value.translate(None, CONTROLS))) > len(value)):
        return None  # a picture in a column of bytes
    return value.decode("utf-8", "replace")


def _plain(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def as_notes(column: pa.Array) -> pa.Array:
    """A column as strings; null for lists, structs and what has no text."""
    column = _plain(column)
    if pa.types.is_null(column.type) or pa.types.is_nested(column.type):
        return pa.nulls(len(column), pa.string())
    if is_text(column.type):
        return as_text(column)[0].cast(pa.string())
    try:
        strings = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(column), pa.string())
    # Arrow's text for a date that no calendar has.
    return pc.if_else(pc.starts_with(strings, "<value out of range"), pa.scalar(None, pa.string()), strings)
