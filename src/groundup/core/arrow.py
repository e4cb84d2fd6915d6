"""Keeps pyarrow from importing pandas; import this module before the first array is made.

To see whether a list is one of pandas' columns, pyarrow imports pandas where it is installed: 0.2 s and 42 MB a process.
When it has not found it once, it asks again only where it needs it.
"""

import sys

import pyarrow as pa


class _NoPandas:
    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError


if "pandas" not in sys.modules:
    sys.meta_path.insert(0, _NoPandas)  # type: ignore[arg-type]
    pa.array([])
    sys.meta_path.remove(_NoPandas)  # type: ignore[arg-type]
