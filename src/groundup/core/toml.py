"""Writing TOML, which Python only reads."""

import json
from typing import Any


def dumps(table: dict[str, Any]) -> str:
    """A table of tables, lists, texts, numbers and truth values as TOML that reads back the same; None is left out."""
    lines: list[str] = []
    _table(table, "", lines)
    return "\n".join(lines).strip() + "\n"


def _table(value: dict[str, Any], name: str, lines: list[str]) -> None:
    tables: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, dict) or (isinstance(item, list) and item and all(isinstance(element, dict) for element in item)):
            tables.append((f"{name}.{_key(key)}" if name else _key(key), item))  # these come last, or would hold the rest
        elif item is not None:
            lines.append(f"{_key(key)} = {_value(item)}")
    for path, item in tables:
        for element in [item] if isinstance(item, dict) else item:
            lines += ["", f"[{path}]" if isinstance(item, dict) else f"[[{path}]]"]
            _table(element, path, lines)


def _key(key: str) -> str:
    return key if key and key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)
