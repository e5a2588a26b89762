"""Features of a folder of images, kept in shards beside them.

    features/<network>-00003.safetensors        images 1500 .. 1999, a tensor (N, D) a kind

A shard says which network it is of, and of which files at which times: one of others, a damaged
one, or one that lacks a kind is made again. Process r of W makes the shards k with k mod W = r.
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
from tdquant.lab.evaluation.progress import wait_for
from tdquant.lab.evaluation.reading import read_pictures, signature
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.support.progress import Bar

SHARD = 500
_PART = 50


@dataclass(frozen=True)
class FeatureShards:
    """The features of images that are files.

    Arguments:
        folder: Where the shards lie.
        files: The images, in order.
        network: A feature network of ``tdquant.lab.metrics``.
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

    def make(
        self,
        rank: int = 0,
        world: int = 1,
        progress: bool = True,
        seen: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Makes the shards of this process that are not there.

        Arguments:
            rank: This process.
            world: Number of processes that share the work.
            progress: Draw a bar.
            seen: Called with the number of images done by this process.
        """
        own = [k for k in range(self.count) if k % world == rank]
        total = sum(len(self._files(k)) for k in own)
        bar, done = Bar(f"{self.network.title}: features", -(-total // _PART), show=progress), 0
        for k in own:
            wait_for(lambda k=k: sum(not f.exists() for f in self._files(k)), "images",  # type: ignore[misc]
                     self.folder.parent)  # fmt: skip
            if not self._whole(k):
                self._write(k, bar, lambda n, done=done: seen(done + n))  # type: ignore[misc]
            done += len(self._files(k))
            seen(done)
        bar.close()

    def missing(self) -> int:
        """Number of shards that are not there yet."""
        return sum(not self._whole(k) for k in range(self.count))

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
            "files": signature(self._files(k)),
            "resize": self.resize,
        }

    def _whole(self, k: int) -> bool:
        try:
            with safe_open(self._path(k), framework="pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
                there = set(opened.keys())
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return False
        return facts == self._facts(k) and set(self.kinds) <= there

    def _write(self, k: int, bar: Bar, seen: Callable[[int], None]) -> None:
        files = self._files(k)
        parts: dict[str, list[Tensor]] = {kind: [] for kind in self.kinds}
        facts = self._facts(k)
        for first in range(0, len(files), _PART):
            images = read_pictures(files[first : first + _PART], self.resize)
            found = self.network.extract(images.to(self.network.device), self.kinds)
            for kind in self.kinds:
                parts[kind].append(found[kind].float().cpu())
            bar.advance()
            seen(first + len(images))
        tensors = {kind: torch.cat(rows) for kind, rows in parts.items()}
        with replacing(self._path(k)) as fresh:
            write_tensors(tensors, fresh, metadata={"facts": json.dumps(facts)})
