"""The tensors of safetensors files, known by their headers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.storage.narrow import counted, cut, narrow

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "BOOL": 8}


class TensorFiles:
    """Tensors over one or several files; a tensor's numbers are read when they are asked for.

    Arguments:
        files: The files.

    Attributes:
        shapes: Name -> shape.
        sizes: Name -> bytes.

    Raises:
        StorageError: A file cannot be read, is cut or of another format.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        self._types: dict[str, str] = {}
        self._where: dict[str, Path] = {}
        for file in files:
            try:
                self._take(file)
            except (SafetensorError, OSError) as error:
                raise StorageError(
                    "the tensors cannot be read",
                    where=str(file),
                    why=str(error),
                    fix="a whole safetensors file: copy or save it again if it was cut",
                ) from error

    def _take(self, file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                header = opened.get_slice(name)
                self.shapes[name] = tuple(header.get_shape())
                self._types[name] = header.get_dtype()
                bits = _BITS.get(self._types[name], 8)
                self.sizes[name] = math.prod(self.shapes[name]) * bits // 8
                self._where[name] = file

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""
        with safe_open(self._where[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def listing(self, width: int | None = None) -> str:
        """A line for each tensor, and the whole.

        Arguments:
            width: Characters of the terminal, to which names are cut; None cuts nothing.
        """
        facts = {
            name: f"{self._types[name]:<5} {'x'.join(map(str, shape)) or 'scalar'}"
            for name, shape in self.shapes.items()
        }
        column = max(map(len, facts), default=0)
        if width is not None:
            longest = max(map(len, facts.values()), default=0)
            column = min(column, max(width - longest - 2, 16))
        lines = [f"{narrow(name, column):<{column}}  {fact}" for name, fact in facts.items()]
        if width is not None:
            lines = [cut(line, width) for line in lines]
        total = sum(self.sizes.values()) / 1e6
        return "\n".join([*lines, f"{counted(len(lines), 'tensor')}, {total:.2f} MB"])
