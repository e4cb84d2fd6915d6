"""Writing TOML, which Python only reads."""

import json
from typing import Any


def dumps(value: dict[str, Any]) -> str:
    """A table of tables, lists, texts, numbers and truth values as TOML that reads back the same; None is left out."""
    lines: list[str] = []
    _table(value, "", lines)
    return "\n".join(lines).strip() + "\n"


def _table(value: dict[str, Any], name: str, lines: list[str]) -> None:
    tables: list[tuple[str, Any]] = []
    for key, one in value.items():
        if isinstance(one, dict) or (isinstance(one, list) and one and all(isinstance(part, dict) for part in one)):
            tables.append((f"{name}.{_key(key)}" if name else _key(key), one))  # these come last, or would hold the rest
        elif one is not None:
            lines.append(f"{_key(key)} = {_value(one)}")
    for path, one in tables:
        for part in [one] if isinstance(one, dict) else one:
            lines += ["", f"[{path}]" if isinstance(one, dict) else f"[[{path}]]"]
            _table(part, path, lines)


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
