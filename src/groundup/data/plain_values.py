"""Values of rows as JSON has them: rows of Python programs hold values of pandas, NumPy and PyTorch too."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more digits than Python reads: infinite, as it reads 1e999 too
        return float(digits)


# For rows of files: tabs and line ends as they are in a text, which programs write that join strings, cost no row.
JSON = json.JSONDecoder(strict=False, parse_int=_integer)


def plain(value: Any) -> Any:
    """Arrays as lists, NumPy's numbers and decimals as Python's; None for missing values, which pandas calls NaN, NA or NaT.

    NaN counts as missing in files too, since programs write rows of tables as JSON. Other values are unchanged.
    """
    if value is None or isinstance(value, str | bytes | int):
        return value
    if isinstance(value, float):
        return None if value != value else float(value)
    if isinstance(value, Decimal):  # of Parquet: databases give each number with a point this type
        return None if value.is_nan() else float(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if callable(as_list := getattr(value, "tolist", None)):  # of arrays and tensors; of their scalars too
        as_python = as_list()
        return plain(as_python) if isinstance(as_python, list | str | bytes | int | float | None) else value
    return value
