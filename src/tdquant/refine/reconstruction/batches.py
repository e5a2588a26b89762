"""Batches of a block's samples: which rows an iteration sees is a function of seed, block and
iteration alone, whatever the number of processes and however often the run was stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tdquant.diffusion.sampling import stream_of
from tdquant.refine.reconstruction.samples import Record, Samples


class Batches:
    """Draws rows of all calls, of which this process has every ``world``-th call.

    Arguments:
        inputs: Records of this process's calls.
        targets: The same of what the block should give.
        sizes: Rows of every call, of other processes too.
        batch: Rows of a batch over all processes.
        seed: Seed of the run.
        block: Number of the block.
        rank: Which process this is.
        world: Number of processes.
        device: Where the model is.
    """

    def __init__(
        self,
        inputs: Samples,
        targets: Samples,
        sizes: list[int],
        batch: int,
        seed: int = 0,
        block: int = 0,
        rank: int = 0,
        world: int = 1,
        device: Any = "cpu",
    ) -> None:
        self.inputs, self.targets, self.batch = inputs, targets, batch
        self.seed, self.block, self.device = seed, block, device
        self.places = [(call, row) for call, size in enumerate(sizes) for row in range(size)]
        self.rank, self.world = rank, world

    def draw(self, iteration: int) -> tuple[Record, Record, float] | None:
        """This process's rows of the batch, inputs and targets, and its share of the batch; None
        if it has none of them.
        """
        rng = stream_of(self.seed, iteration, stream=101 + self.block)
        chosen = torch.randint(len(self.places), (self.batch,), generator=rng).tolist()
        mine = [self.places[i] for i in chosen if self.places[i][0] % self.world == self.rank]
        if not mine:
            return None
        return *self._take(mine), len(mine) / self.batch

    def all(self) -> Iterator[tuple[Record, Record]]:
        """Every row of this process once, in order."""
        mine = [place for place in self.places if place[0] % self.world == self.rank]
        for first in range(0, len(mine), self.batch):
            yield self._take(mine[first : first + self.batch])

    def _take(self, places: list[tuple[int, int]]) -> tuple[Record, Record]:
        return self.inputs.take(places, self.device), self.targets.take(places, self.device)
