"""Keeps pyarrow from importing pandas; import this module before the first array is made.

To see whether a list is a pandas column, pyarrow imports pandas where it is installed: 0.2 s and 42 MB per process.
Once that import has failed, it tries again only where it needs pandas.
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
