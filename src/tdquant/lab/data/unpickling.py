"""Pickles of numeric arrays, such as CIFAR-10's, read without running them."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tdquant.errors import DataError
from tdquant.files.checkpoints.unpickling import unpickle

_DTYPE = re.compile(r"[|<>=]?[biuf][1248]")


class _Type:
    """A numeric type; the pickle says its byte order afterwards."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise pickle.UnpicklingError("an array of other than numbers")
        self.dtype = np.dtype(text)

    def fill(self, state: Any) -> None:
        order = state[1] if isinstance(state[1], str) else state[1].decode("latin1")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """An array whose content the pickle gives after it was made."""

    def __init__(self, *_: object) -> None:
        self.values = np.zeros(0, np.uint8)

    def fill(self, state: Any) -> None:
        _, shape, kind, columns_first, content = state
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("an array of objects")
        raw = content.encode("latin1") if isinstance(content, str) else content
        flat = np.frombuffer(raw, kind.dtype)
        self.values = flat.reshape(shape, order="F" if columns_first else "C")


def _latin1(text: str, *_: object) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes in the protocols of Python 2


def _no_call(*_: object) -> Any:
    raise pickle.UnpicklingError("an array that is made by hand")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _no_call,
    "numpy.dtype": _Type,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "_codecs.encode": _latin1,
}


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """What is pickled in a file: a dictionary with its numeric arrays, or anything else.

    Raises:
        DataError: The file is damaged, or holds more than plain containers and numeric arrays.
    """
    try:
        with open(path, "rb") as file:
            found = unpickle(file, _FUNCTIONS, strict=True)
    except (pickle.UnpicklingError, OSError) as error:
        raise DataError(
            "a pickle that cannot be read safely",
            where=str(path),
            why=str(error) or type(error).__name__,
            fix="extract the published archive again; nothing of this file was run",
        ) from error
    if isinstance(found, dict):
        return {k: v.values if isinstance(v, _Array) else v for k, v in found.items()}
    return found
