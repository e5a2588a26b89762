"""The order of training images: an endless, seeded sequence that can be entered at any step.

With N images and a batch of B, let ``pi_e`` be the permutation of ``0..N-1`` that (seed, e) alone
determines. The order is the endless concatenation

    pi_0(0), ..., pi_0(N-1), pi_1(0), ..., pi_1(N-1), pi_2(0), ...

and global step k takes its places ``kB ... (k+1)B - 1``; process r of W takes the r-th of W equal
contiguous shares of these. No image is left out at the end of an epoch, and a run that is resumed
at step k sees what an uninterrupted run would have seen, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tdquant.errors import DataError


class BatchOrder(Sampler[list[int]]):
    """Endless batches of image indices, for ``DataLoader(batch_sampler=...)``.

    Every iteration begins at ``start`` again. One permutation is held at a time, 8 N bytes.

    Arguments:
        count: Number of images N.
        batch: Global batch B, over all processes together; at most N.
        seed: Seed of the permutations, 0 or more.
        start: First global step k, 0 or more.
        rank: This process r, 0 to W - 1.
        world: Number of processes W; divides B.

    Raises:
        DataError: A number is out of range, the batch is larger than the data set, or it cannot be
            shared out evenly; all mistakes are listed.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        mistakes = []
        if batch < 1:
            mistakes.append(f"batch={batch}: at least 1")
        elif batch > count:
            mistakes.append(f"batch={batch}: the data set has {count} images, fewer than a batch")
        if seed < 0 or start < 0:
            mistakes.append(f"seed={seed}, start={start}: both 0 or more")
        if world < 1 or not 0 <= rank < world:
            mistakes.append(f"rank={rank}, world={world}: rank is 0 to world - 1")
        elif batch % world:
            mistakes.append(f"batch={batch}: not divisible by the {world} processes")
        if mistakes:
            raise DataError("; ".join(mistakes), where="BatchOrder")
        self.count, self.batch, self.seed, self.start = count, batch, seed, start
        self.rank, self.world = rank, world

    def permutation(self, epoch: int) -> np.ndarray:
        """The order ``pi_epoch`` of the images in one epoch, int64 ``(N,)``."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.count)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch // self.world
        place = self.start * self.batch + self.rank * share
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            indices: list[int] = []
            while len(indices) < share:
                wanted, offset = divmod(place + len(indices), self.count)
                if wanted != epoch:
                    epoch, order = wanted, self.permutation(wanted)
                indices += order[offset : offset + share - len(indices)].tolist()
            yield indices
            place += self.batch


def loader(
    dataset: Dataset[Tensor],
    batch: int,
    *,
    seed: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> DataLoader[Tensor]:
    """An endless loader of float tensors ``(B / W, C, size, size)`` in the order of BatchOrder.

    The order depends neither on ``workers`` nor on where the run was cut. What a data set itself
    draws at random in a worker is seeded by (seed, rank), but begins anew at ``start``; the data
    sets of tdquant draw nothing.

    Arguments:
        dataset: A map-style data set of images.
        batch: Global batch B, over all processes together.
        seed: Seed of the order and of the workers.
        start: First global step.
        rank: This process.
        world: Number of processes W.
        workers: Processes that read ahead; 0 reads in this one.

    Raises:
        DataError: As for BatchOrder, or ``workers`` is negative.
    """
    if workers < 0:
        raise DataError(f"workers={workers}", where="loader", fix="0 or more")
    order = BatchOrder(len(dataset), batch, seed, start, rank, world)  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed * world + rank),
    )
