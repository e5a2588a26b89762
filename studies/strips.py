"""Pictures of a study: strips of samples from the same noise, one row a method, by bits or steps.

A strip is a PNG of the first images side by side, ``results/samples/STUDY-METHOD-VALUE.png``; the
report shows a slider over the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ledger
import tdquant as tdq
from tdquant.diffusion.pictures import save_png, to_uint8

TILES = 16


@dataclass(frozen=True)
class Strips:
    """The strips of one grid of samples.

    Attributes:
        study: First part of their names.
        title: Of the grid.
        axis: What the slider moves over.
        values: Its stops.
        methods: The rows.
    """

    study: str
    title: str
    axis: str
    values: Sequence[str]
    methods: Sequence[str]

    def file(self, method: str, value: str = "") -> Path:
        """Where the strip of a method is; without a value, one that holds at every stop."""
        name = "-".join(part for part in (self.study, slug(method), value) if part)
        return ledger.RESULTS / "samples" / f"{name}.png"

    def keep(self, images: Tensor, method: str, value: str = "", again: bool = False) -> None:
        """Writes the strip of images ``(N, 3, H, W)`` in [-1, 1]; of runs that are made ``again``
        only one that is missing.
        """
        file = self.file(method, value)
        if again and file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        save_png(torch.cat(list(to_uint8(images[:TILES])), dim=2), file)

    def keeper(
        self, method: str, value: str, exact: Tensor, again: bool = False
    ) -> Callable[[Tensor], None] | None:
        """What writes the strip of a method when it gets the images, and writes that of the float
        model's, ``exact``, beside it; None for a method that has no row.
        """
        if method not in self.methods:
            return None
        self.keep(exact, "float", again=again)
        return partial(self.keep, method=method, value=value, again=again)

    def told(self) -> list[dict[str, Any]]:
        """The grid as reports read it, of the methods that have strips; where a strip is missing,
        the report says so.
        """
        rows = []
        for method in self.methods:
            files = {value: self.file(method, value) for value in self.values}
            files = {v: f if f.exists() else self.file(method) for v, f in files.items()}
            names = {v: f"samples/{file.name}" for v, file in files.items() if file.exists()}
            if names:
                rows.append({"name": method, "files": names})
        grid = {
            "title": self.title, "axis": self.axis, "values": list(self.values), "rows": rows,
            "tile": 32, "note": "One column, one noise.", "credit": tdq.data.cats.ATTRIBUTION,
        }  # fmt: skip
        return [grid] if rows else []


def slug(method: str) -> str:
    """A method in the name of a file."""
    return "-".join(re.findall("[a-z0-9]+", method.lower()))
