"""Samples of tensors that may not fit into memory: what lies over a budget is kept on disk.

A record is what one call of the model gave: named tensors ``(B, *)`` of one batch. Any rows of any
records are gathered into a batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Record = dict[str, Tensor]


class Samples:
    """Records of samples, the first ones in memory and the rest in temporary files.

    Arguments:
        budget: Bytes that may stay in memory.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self._records: dict[int, Record | Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, number: int, record: Record) -> None:
        """Keeps the record of call ``number``."""
        record = {name: value.detach().cpu().contiguous() for name, value in record.items()}
        size = sum(value.numel() * value.element_size() for value in record.values())
        if size <= self._left:
            self._left -= size
            self._records[number] = {name: value.clone() for name, value in record.items()}
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tdquant-")
        path = Path(self._folder.name) / f"{number}.safetensors"
        save_file(record, path)
        self._records[number] = path

    def __len__(self) -> int:
        return len(self._records)

    @property
    def spilled(self) -> int:
        """Records on disk."""
        return sum(isinstance(record, Path) for record in self._records.values())

    def take(self, places: Sequence[tuple[int, int]], device: Any = "cpu") -> Record:
        """A batch of the rows ``(number of the call, row)``, in their order."""
        rows: list[Record] = []
        for number, row in places:
            record = self._records[number]
            if isinstance(record, Path):
                with safe_open(record, framework="pt") as file:
                    names = list(file.keys())
                    rows.append({n: file.get_slice(n)[row : row + 1] for n in names})
            else:
                rows.append({name: value[row : row + 1] for name, value in record.items()})
        return {name: torch.cat([r[name] for r in rows]).to(device) for name in rows[0]}

    def close(self) -> None:
        """Forgets all of them and removes their files."""
        self._records.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
