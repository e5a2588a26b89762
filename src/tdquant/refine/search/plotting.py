"""Plots of a sensitivity and of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tdquant.files.writing import replacing
from tdquant.support.optional import require


def draw_heat_map(
    path: Path, rows: Mapping[str, Tensor], times: Sequence[float], title: str
) -> None:
    """Draws layers from top to bottom, time from left to right, the log of the error as colour.

    Arguments:
        path: The image file; its suffix gives the format.
        rows: Layer -> error in each range of time, ``(K,)``.
        times: Middle of each, K of them.
        title: The title.
    """
    require("matplotlib", "demo")
    colors = require("matplotlib.colors", "demo")
    figure, axes = _figure((8, 1.5 + 0.16 * len(rows)))
    floor = max((float(row.max()) for row in rows.values()), default=1.0) * 1e-6 or 1e-12
    image = axes.imshow(
        [row.clamp(min=floor).tolist() for row in rows.values()],
        aspect="auto",
        norm=colors.LogNorm(),
        interpolation="nearest",
    )
    axes.set_yticks(range(len(rows)), list(rows), fontsize=6)
    shown = range(0, len(times), max(1, len(times) // 8))
    axes.set_xticks(list(shown), [f"{times[i]:.4g}" for i in shown])
    axes.set_xlabel("timestep")
    axes.set_title(title)
    figure.colorbar(image, ax=axes)
    _write(figure, path)


def draw_trade_off(
    path: Path,
    curve: Sequence[tuple[float, float]],
    uniform: Sequence[tuple[float, float]],
    chosen: tuple[float, float],
) -> None:
    """Draws predicted error over average bits, of searched and of uniform widths.

    Arguments:
        path: The image file; its suffix gives the format.
        curve: Average bits and error of searched assignments.
        uniform: Those of the same width everywhere.
        chosen: Those of the recipe.
    """
    figure, axes = _figure((5, 3.5))
    axes.plot(*zip(*curve, strict=True), label="searched")
    axes.plot(*zip(*uniform, strict=True), "o", label="uniform")
    axes.plot(*chosen, "*", markersize=12, label="this recipe")
    axes.set_yscale("log")
    axes.set_xlabel("average bits of a weight")
    axes.set_ylabel("predicted output error")
    axes.legend()
    _write(figure, path)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "demo").Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def _write(figure: Any, path: Path) -> None:
    with replacing(path) as fresh:
        figure.savefig(fresh, format=path.suffix.lstrip(".") or "png", dpi=110)
