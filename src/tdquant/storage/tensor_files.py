"""The tensors of files, known before their numbers are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tdquant.files.checkpoints import open_checkpoint
from tdquant.storage.narrow import counted, cut, narrow


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
            with open_checkpoint(file) as found:
                for name, tensor in found.items():
                    self.shapes[name], self.sizes[name] = tuple(tensor.shape), tensor.nbytes
                    self._types[name] = str(tensor.dtype).removeprefix("torch.")
                    self._where[name] = file

    def read(self, name: str) -> Tensor:
        """The numbers of one tensor."""
        with open_checkpoint(self._where[name]) as found:
            return found[name].load()

    def listing(self, width: int | None = None) -> str:
        """A line for each tensor, and the whole.

        Arguments:
            width: Characters of the terminal, to which names are cut; None cuts nothing.
        """
        facts = {
            name: f"{self._types[name]:<8} {'x'.join(map(str, shape)) or 'scalar'}"
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
