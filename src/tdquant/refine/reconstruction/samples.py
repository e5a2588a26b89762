"""Samples of tensors that may not fit into memory, and batches of their rows.

A record holds named tensors ``(B, *)`` of the batch of one call; any rows of any records can be
gathered into a batch. The rows of an iteration are a function of seed, block and iteration alone,
whatever the number of processes and however often the run was stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdquant.diffusion.sampling import stream_of

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
        size = sum(value.nbytes for value in record.values())
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
        """Drops all records and removes their files."""
        self._records.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Batches:
    """Draws rows of all calls, of which each process holds every ``world``-th call.

    Arguments:
        inputs: Records of this process's calls.
        targets: Their target outputs.
        sizes: Rows of every call, of other processes too.
        batch: Rows of a batch over all processes.
        seed: Seed of the run.
        block: Number of the block.
        rank: Number of this process.
        world: Number of processes.
        device: Device of the model.
    """

    inputs: Samples
    targets: Samples
    sizes: list[int]
    batch: int
    seed: int = 0
    block: int = 0
    rank: int = 0
    world: int = 1
    device: Any = "cpu"

    def __post_init__(self) -> None:
        self._places = [(call, row) for call, size in enumerate(self.sizes) for row in range(size)]

    def draw(self, iteration: int) -> tuple[Record, Record, float] | None:
        """This process's rows of the batch, inputs and targets, and its share of the batch; None
        if it has none of them.
        """
        rng = stream_of(self.seed, iteration, stream=101 + self.block)
        chosen = torch.randint(len(self._places), (self.batch,), generator=rng).tolist()
        mine = self._mine([self._places[i] for i in chosen])
        return (*self._take(mine), len(mine) / self.batch) if mine else None

    def all(self) -> Iterator[tuple[Record, Record]]:
        """Every row of this process once, in order."""
        mine = self._mine(self._places)
        for first in range(0, len(mine), self.batch):
            yield self._take(mine[first : first + self.batch])

    def _mine(self, places: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [place for place in places if place[0] % self.world == self.rank]

    def _take(self, places: list[tuple[int, int]]) -> tuple[Record, Record]:
        return self.inputs.take(places, self.device), self.targets.take(places, self.device)
