"""Reading a pickle of dictionaries, lists, bytes, strings, numbers and numeric arrays without ever
running what it says.

A pickle names functions and calls them. Here a name finds a function of this module or nothing:
the three names from which numpy rebuilds an array, and the one from which Python 3 rebuilds bytes
in old protocols.
"""

from __future__ import annotations

import os
import pickle
import re
from typing import Any

import numpy as np

from tdquant.errors import DataError

_DTYPE = re.compile(r"[|<>=]?[biuf][1248]")
_reconstruct = np.empty(0).__reduce__()[0]


def _array(*_: object) -> Any:
    """An empty array, which the pickle then fills through numpy's own checks."""
    return _reconstruct(np.ndarray, (0,), b"b")  # type: ignore[operator]


def _dtype(name: str | bytes, *_: object) -> np.dtype:
    """A copy of a numeric type; a copy, since the pickle sets its byte order."""
    text = name.decode("latin1") if isinstance(name, bytes) else name
    if not _DTYPE.fullmatch(text):
        raise pickle.UnpicklingError(f"an array of type {text!r}")
    return np.dtype(text, copy=True)  # type: ignore[call-overload]


def _latin1(text: str, *_: object) -> bytes:
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}") from None


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """What is pickled in a file; strings of Python 2 become bytes.

    Raises:
        DataError: The file is damaged, or holds more than plain containers and numeric arrays.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(
            "a pickle that cannot be read safely",
            where=str(path),
            why=str(error) or type(error).__name__,
            fix="extract the published archive again; nothing of this file was run",
        ) from error
