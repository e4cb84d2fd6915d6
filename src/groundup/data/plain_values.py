"""What a row holds, as JSON would have it: rows of Python programs come from pandas, NumPy and PyTorch too."""

from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Lists for arrays, Python's numbers for NumPy's; None for what is missing, which pandas calls NaN, NA or NaT.

    So NaN is missing in files too, where programs write a row of a table as JSON. What else there may be stays as it is.
    """
    if value is None or isinstance(value, str | bytes | int):
        return value
    if isinstance(value, float):
        return None if value != value else float(value)
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if callable(as_list := getattr(value, "tolist", None)):  # of arrays and tensors; of their scalars too
        found = as_list()
        return plain(found) if isinstance(found, list | str | bytes | int | float | None) else value
    return value
