"""Features of a run's images, kept in shards beside them.

    features/<network>-00003.safetensors        images 1500 .. 1999, a tensor (N, D) a kind

A shard names its network, and its files with their times. A shard of others, a damaged one, or one
that lacks a kind is computed again. Process r of W computes the shards k with k mod W = r.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.files.writing import replacing, write_tensors
from tdquant.lab.evaluation.image_files import read_pictures, stat_digest
from tdquant.lab.evaluation.progress import wait_for
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.support.progress import Bar

SHARD = 500
PART = 50
"""Images that are read at a time."""


def compute_features(
    read: Callable[[int, int], Tensor],
    count: int,
    network: FeatureNetwork,
    kinds: Sequence[str],
    on_part: Callable[[int], None],
) -> dict[str, Tensor]:
    """Features of images that are read part by part, kind -> float32 ``(N, D)`` on the CPU.

    Arguments:
        read: ``(first, end) -> uint8 images (end - first, 3, H, W)``.
        count: Number of images.
        network: A feature network.
        kinds: Which of its features.
        on_part: Called after every part with the number of images that are done.
    """
    parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for first in range(0, count, PART):
        end = min(first + PART, count)
        for kind, found in network.extract(read(first, end).to(network.device), kinds).items():
            parts[kind].append(found.float().cpu())
        on_part(end)
    return {kind: torch.cat(rows) for kind, rows in parts.items()}


@dataclass(frozen=True)
class FeatureShards:
    """The features of image files.

    Arguments:
        folder: Where the shards lie.
        files: The images, in order.
        network: A feature network.
        kinds: Which of its features.
        resize: Side to resize to, or None.
    """

    folder: Path
    files: Sequence[Path]
    network: FeatureNetwork
    kinds: tuple[str, ...]
    resize: int | None = None

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.files) // SHARD)

    def compute(
        self, rank: int, world: int, progress: bool, on_part: Callable[[int], None]
    ) -> None:
        """Computes this process's shards that are missing.

        Arguments:
            rank: Index of this process.
            world: Number of processes that share the work.
            progress: Draw a bar.
            on_part: Called with the number of images that this process has done.
        """
        own = range(rank, self.count, world)
        total = sum(len(self._files(k)) for k in own)
        bar, done = Bar(f"{self.network.title}: features", -(-total // PART), show=progress), 0
        for k in own:
            files, before = self._files(k), done

            def advance(images: int, before: int = before) -> None:
                bar.advance()
                on_part(before + images)

            def missing(files: Sequence[Path] = files) -> int:
                return sum(not file.exists() for file in files)

            wait_for(missing, "images", self.folder.parent)
            if not self._is_whole(k):
                self._write(k, advance)
            done += len(files)
            on_part(done)
        bar.close()

    def count_missing(self) -> int:
        """Number of shards that are still missing."""
        return sum(not self._is_whole(k) for k in range(self.count))

    def gather(self) -> dict[str, Tensor]:
        """All features, kind -> float32 ``(N, D)``."""
        parts: dict[str, list[Tensor]] = {kind: [] for kind in self.kinds}
        for k in range(self.count):
            with safe_open(self._path(k), framework="pt") as opened:
                for kind in self.kinds:
                    parts[kind].append(opened.get_tensor(kind))
        return {kind: torch.cat(found) for kind, found in parts.items()}

    def _files(self, k: int) -> Sequence[Path]:
        return self.files[k * SHARD : (k + 1) * SHARD]

    def _path(self, k: int) -> Path:
        return self.folder / f"{self.network.name}-{k:05d}.safetensors"

    def _facts(self, k: int) -> dict[str, Any]:
        return {
            "network": self.network.digest,
            "first": k * SHARD,
            "count": len(self._files(k)),
            "files": stat_digest(self._files(k)),
            "resize": self.resize,
        }

    def _is_whole(self, k: int) -> bool:
        try:
            with safe_open(self._path(k), framework="pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
                there = set(opened.keys())
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return False
        return facts == self._facts(k) and set(self.kinds) <= there

    def _write(self, k: int, on_part: Callable[[int], None]) -> None:
        files, facts = self._files(k), self._facts(k)

        def read(first: int, end: int) -> Tensor:
            return read_pictures(files[first:end], self.resize)

        tensors = compute_features(read, len(files), self.network, self.kinds, on_part)
        with replacing(self._path(k)) as fresh:
            write_tensors(tensors, fresh, metadata={"facts": json.dumps(facts)})
